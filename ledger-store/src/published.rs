//! What the writer shows to others in this process.

use std::sync::{Arc, Mutex, PoisonError};

use ledger_core::{Account, Balance, Head, PARTITIONS, Position};
use quick_cache::sync::Cache;
use tokio::sync::watch;

use crate::{
    batch::Draft,
    feed::{self, Begun, Feed, Waiting},
    freshness::Freshness,
    refusals,
    tail::Span,
};

/// Accounts whose newest committed state is kept at hand, so that whoever wrote reads what was written.
const RECENT_ACCOUNTS_MAX: usize = 100_000;

/// Everything here is durable: it is shown after the commit.
pub(crate) struct Published {
    recent: Cache<ledger_core::AccountId, Balance>,
    /// Up to where this process knows the log: `recent` covers it, but for accounts that were let go.
    heads: Mutex<[Head; PARTITIONS]>,
    pub(crate) freshness: Freshness,
    commits: watch::Sender<u64>,
    waiting: Arc<Mutex<Waiting>>,
    trouble: Mutex<Option<String>>,
    /// What was refused, until it is written.
    pub(crate) refusals: Arc<refusals::Waiting>,
}

impl Published {
    pub(crate) fn new(heads: &[Head; PARTITIONS]) -> Self {
        Self {
            recent: Cache::new(RECENT_ACCOUNTS_MAX),
            heads: Mutex::new(*heads),
            freshness: Freshness::new(),
            commits: watch::Sender::new(0),
            waiting: Arc::default(),
            trouble: Mutex::new(None),
            refusals: Arc::new(refusals::Waiting::new()),
        }
    }

    /// A commit of this process begins. What this gives is kept until its end is known.
    pub(crate) fn begin(&self) -> Begun {
        Begun::new(self.waiting.clone())
    }

    /// A commit of this process is durable.
    pub(crate) fn commit(&self, draft: &mut Draft, begun: Option<Begun>) {
        feed::lock(&self.waiting).push(std::mem::take(&mut draft.events));
        drop(begun);
        self.show(&draft.span, &draft.heads);
    }

    /// Events are durable, whoever wrote them, up to these heads.
    pub(crate) fn show(&self, span: &Span, heads: &[Head; PARTITIONS]) {
        for (id, balance) in &span.accounts {
            self.recent.insert(*id, balance.clone());
        }
        *self.heads.lock().unwrap_or_else(PoisonError::into_inner) = *heads;
        if span.events > 0 {
            self.commits.send_modify(|commits| *commits += 1);
        }
    }

    pub(crate) fn recent(&self, account: &Account) -> Option<Balance> {
        self.recent.get(&account.id()).filter(|balance| balance.account == *account)
    }

    /// The same, if no other process can have written to it for longer than a moment.
    pub(crate) fn fresh(&self, account: &Account) -> Option<Balance> {
        // First: what is remembered may only be newer than what was compared.
        self.freshness.is_fresh(account.partition()).then(|| self.recent(account))?
    }

    /// Forgets the accounts: the log went on further than this process followed it event by event.
    pub(crate) fn forget_recent(&self) {
        self.recent.clear();
    }

    pub(crate) fn heads(&self) -> [Head; PARTITIONS] {
        *self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn positions(&self) -> [Position; PARTITIONS] {
        self.heads().map(|head| head.position)
    }

    pub(crate) fn commits(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }

    /// Whether the projector in this process would keep up: see [`Waiting::has_room_for`].
    pub(crate) fn projector_has_room_for(&self, next: usize, decided: usize) -> bool {
        feed::lock(&self.waiting).has_room_for(next, decided)
    }

    pub(crate) fn feed(&self) -> Feed {
        Feed::new(self.waiting.clone(), self.commits())
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}
