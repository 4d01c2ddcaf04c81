//! What the writer shows to others in this process.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use ledger_core::{Account, Balance, Head, PARTITIONS, Position};
use quick_cache::sync::Cache;
use tokio::sync::watch;

use crate::{
    batch::Draft,
    feed::{self, Feed, Waiting},
    refusals,
    tail::Span,
};

/// Accounts whose newest committed state is kept at hand, so that whoever wrote reads what was written.
const RECENT_ACCOUNTS_MAX: usize = 100_000;

/// Everything here is durable: it is shown after the commit.
pub(crate) struct Published {
    recent: Cache<ledger_core::AccountId, Balance>,
    positions: [AtomicU64; PARTITIONS],
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
            positions: std::array::from_fn(|index| AtomicU64::new(heads[index].position.0)),
            commits: watch::Sender::new(0),
            waiting: Arc::default(),
            trouble: Mutex::new(None),
            refusals: Arc::new(refusals::Waiting::new()),
        }
    }

    /// A commit of this process is durable.
    pub(crate) fn commit(&self, draft: &mut Draft) {
        feed::lock(&self.waiting).push(std::mem::take(&mut draft.events));
        self.show(&draft.span, &draft.heads);
    }

    /// Events are durable, whoever wrote them, up to these heads.
    pub(crate) fn show(&self, span: &Span, heads: &[Head; PARTITIONS]) {
        for (id, balance) in &span.accounts {
            self.recent.insert(*id, balance.clone());
        }
        for (position, head) in self.positions.iter().zip(heads) {
            position.store(head.position.0, Ordering::Release);
        }
        if span.events > 0 {
            self.commits.send_modify(|commits| *commits += 1);
        }
    }

    pub(crate) fn recent(&self, account: &Account) -> Option<Balance> {
        self.recent.get(&account.id()).filter(|balance| balance.account == *account)
    }

    pub(crate) fn positions(&self) -> [Position; PARTITIONS] {
        std::array::from_fn(|index| Position(self.positions[index].load(Ordering::Acquire)))
    }

    pub(crate) fn commits(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }

    /// Whether the projector in this process has enough to do: see [`Waiting::is_full`].
    pub(crate) fn projector_is_behind(&self) -> bool {
        feed::lock(&self.waiting).is_full()
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
