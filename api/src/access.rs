//! Who calls, and what the caller may do.
//!
//! Without any key in the database everything is open, which [`crate::settings`] allows on loopback addresses only. As
//! soon as there is one, every request has to bring a key that is sound and has the scope that the route states.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, header};
use chrono::{DateTime, Utc};
use foldhash::HashMap;
use ledger_store::{Database, StoreError, error::chain};
use tokio::task::AbortHandle;

use crate::{
    keys::{self, Secret, StoredKey},
    limits::Rate,
    problem::Problem,
};

/// How often the keys are read again: a key that is revoked is refused after so long at the latest.
const REFRESH: Duration = Duration::from_secs(1);
/// How often at most an unknown key makes them be read at once, so that a new key works at once.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Credit,
    /// Debits, captures of a freeze among them.
    Debit,
    /// Freezes and unfreezes.
    Freeze,
    Refund,
    /// Every read, and metrics.
    Read,
    /// Locks and unlocks, and what only operators may see.
    Admin,
}

impl Scope {
    pub(crate) const ALL: [Self; 6] = [Self::Credit, Self::Debit, Self::Freeze, Self::Refund, Self::Read, Self::Admin];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Debit => "debit",
            Self::Freeze => "freeze",
            Self::Refund => "refund",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scopes(u8);

impl Scopes {
    pub(crate) const ALL: Self = Self(0b11_1111);

    pub(crate) const fn of(scopes: &[Scope]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < scopes.len() {
            bits |= 1 << scopes[index] as u8;
            index += 1;
        }
        Self(bits)
    }

    pub(crate) const fn has(self, scope: Scope) -> bool {
        self.0 >> scope as u8 & 1 == 1
    }

    const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Scope::ALL.into_iter().filter(|scope| self.has(*scope)).map(Scope::name).collect();
        formatter.write_str(&names.join(","))
    }
}

impl FromStr for Scopes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let scopes = text.split(',').map(|name| {
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name.trim());
            scope.ok_or_else(|| format!("`{name}` is no scope; there are {}", Self::ALL))
        });
        Ok(Self::of(&scopes.collect::<Result<Vec<_>, _>>()?))
    }
}

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: health and documentation, which say nothing about anybody's credits.
    Nothing,
    Scope(Scope),
    /// Any of these: a batch, whose commands are judged one by one.
    AnyOf(Scopes),
}

impl Needs {
    /// What each command of a batch may need.
    pub(crate) const COMMANDS: Self =
        Self::AnyOf(Scopes::of(&[Scope::Credit, Scope::Debit, Scope::Freeze, Scope::Refund]));
}

/// Who sent a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// What the events that it makes bear as their actor: the key's label.
    pub(crate) actor: Arc<str>,
    scopes: Scopes,
    /// The key's own limit, where it has one, and what tells its buckets from other keys'.
    pub(crate) limit: Option<(Rate, Arc<str>)>,
}

impl Caller {
    /// Everybody, where there are no keys.
    pub(crate) fn anonymous() -> Self {
        Self { actor: "anonymous".into(), scopes: Scopes::ALL, limit: None }
    }

    /// Whoever may publish to the queue on NATS: NATS decides who that is.
    pub(crate) fn queue() -> Self {
        Self { actor: "nats".into(), scopes: Scopes::ALL, limit: None }
    }

    /// Refuses what the caller has no scope for.
    pub(crate) fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.has(scope) { Ok(()) } else { Err(Problem::scope_missing(scope.name())) }
    }

    fn meet(&self, needs: Needs) -> Result<(), Problem> {
        match needs {
            Needs::Nothing => Ok(()),
            Needs::Scope(scope) => self.require(scope),
            Needs::AnyOf(scopes) if self.scopes.meets(scopes) => Ok(()),
            Needs::AnyOf(scopes) => Err(Problem::scope_missing(&scopes.to_string())),
        }
    }
}

/// A key as it is looked up.
#[derive(Debug, Clone)]
struct Known {
    hash: blake3::Hash,
    expires_at: Option<DateTime<Utc>>,
    is_revoked: bool,
    caller: Caller,
}

/// The keys as they were last read.
#[derive(Debug)]
struct Table {
    keys: HashMap<String, Known>,
    /// Nobody ever made a key; a damaged one is one that was made.
    is_empty: bool,
}

/// Tells callers apart.
#[derive(Debug)]
pub(crate) struct Access {
    database: Database,
    /// Keys are wanted even if there is none: the service can be reached from elsewhere.
    is_closed: bool,
    anonymous: Caller,
    table: RwLock<Arc<Table>>,
    /// When an unknown key made the keys be read.
    look_began: tokio::sync::Mutex<Instant>,
}

impl Access {
    /// Reads the keys. `is_closed`: without a key nobody gets in.
    pub(crate) async fn load(database: Database, is_closed: bool) -> Result<Arc<Self>, StoreError> {
        let access = Self {
            is_closed,
            anonymous: Caller::anonymous(),
            table: RwLock::new(Arc::new(read(&database).await?)),
            look_began: tokio::sync::Mutex::new(Instant::now()),
            database,
        };
        Ok(Arc::new(access))
    }

    /// Reads the keys again and again.
    pub(crate) fn keep_fresh(self: &Arc<Self>) -> AbortHandle {
        let access = self.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(REFRESH).await;
                access.refresh().await;
            }
        });
        task.abort_handle()
    }

    /// Whether keys are wanted of callers.
    pub(crate) fn is_on(&self) -> bool {
        self.is_closed || !self.table().is_empty
    }

    /// Whether there is a key that opens anything.
    pub(crate) fn has_usable_key(&self) -> bool {
        self.table().keys.values().any(|key| !key.is_revoked && !is_over(key.expires_at))
    }

    /// Who sent a request, if the route may be used by whoever it is.
    pub(crate) async fn admit(&self, headers: &HeaderMap, needs: Needs) -> Result<Caller, Problem> {
        if needs == Needs::Nothing || !self.is_on() {
            return Ok(self.anonymous.clone());
        }
        let caller = self.identify(headers).await?;
        caller.meet(needs)?;
        Ok(caller)
    }

    async fn identify(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return Err(Problem::unauthenticated("send one header Authorization: Bearer KEY"));
        };
        let text = value.to_str().ok().and_then(|text| {
            let (scheme, key) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let secret = text.and_then(Secret::parse);
        let Some(secret) = secret else {
            return Err(Problem::unauthenticated("the header Authorization must be Bearer and an API key"));
        };
        let mut known = self.table().keys.get(secret.prefix()).cloned();
        if known.is_none() {
            self.look_again(Instant::now()).await;
            known = self.table().keys.get(secret.prefix()).cloned();
        }
        // Both are BLAKE3 hashes, whose comparison takes the same time wherever they differ.
        match known.filter(|known| known.hash == secret.hash()) {
            None => Err(Problem::unauthenticated("there is no such API key")),
            Some(known) if known.is_revoked => Err(Problem::unauthenticated("the API key was revoked")),
            Some(known) if is_over(known.expires_at) => Err(Problem::unauthenticated("the API key has expired")),
            Some(known) => Ok(known.caller),
        }
    }

    fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the keys, unless that was begun after `asked`. However many ask, it is done once in [`LOOK_AGAIN`].
    async fn look_again(&self, asked: Instant) {
        let mut began = self.look_began.lock().await;
        if *began >= asked {
            return;
        }
        tokio::time::sleep_until((*began + LOOK_AGAIN).into()).await;
        *began = Instant::now();
        self.refresh().await;
    }

    /// While the database is away the keys that are known go on.
    async fn refresh(&self) {
        match read(&self.database).await {
            Ok(table) => *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table),
            Err(error) => tracing::debug!(error = %chain(&error), "the API keys could not be read again"),
        }
    }
}

fn is_over(expires_at: Option<DateTime<Utc>>) -> bool {
    expires_at.is_some_and(|at| at <= Utc::now())
}

async fn read(database: &Database) -> Result<Table, StoreError> {
    let rows = keys::all(database).await?;
    let is_empty = rows.is_empty();
    let keys = rows.into_iter().filter_map(|row| {
        let key = row.inspect_err(|why| tracing::error!(why, "an API key is damaged and opens nothing")).ok()?;
        let StoredKey { prefix, hash, label, scopes, rate_limit, expires_at, revoked_at, .. } = key;
        let limit = rate_limit.map(|rate| (rate, prefix.as_str().into()));
        let caller = Caller { actor: label.into(), scopes, limit };
        Some((prefix, Known { hash, expires_at, is_revoked: revoked_at.is_some(), caller }))
    });
    Ok(Table { keys: keys.collect(), is_empty })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        for text in ["credit", "credit,debit", "credit,debit,freeze,refund,read,admin"] {
            assert_eq!(text.parse::<Scopes>().expect(text).to_string(), text);
        }
        assert_eq!(" read , credit".parse::<Scopes>().expect("spaces").to_string(), "credit,read");
        for text in ["", "write", "credit,", "CREDIT"] {
            assert!(text.parse::<Scopes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_scope_opens_what_needs_it_and_nothing_else() {
        for scope in Scope::ALL {
            let caller = Caller { scopes: Scopes::of(&[scope]), ..Caller::anonymous() };
            for needed in Scope::ALL {
                assert_eq!(caller.meet(Needs::Scope(needed)).is_ok(), needed == scope, "{scope:?} {needed:?}");
            }
            let is_command = !matches!(scope, Scope::Read | Scope::Admin);
            assert_eq!(caller.meet(Needs::COMMANDS).is_ok(), is_command, "{scope:?}");
            assert!(caller.meet(Needs::Nothing).is_ok());
        }
    }
}
