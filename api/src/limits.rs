//! How many commands a second an account, or a key for an account, may send: a token bucket for each.
//!
//! The buckets are kept within a bound of memory. When there are more accounts than it has room for, those that were not
//! seen for the longest are forgotten, and begin with a full bucket when they come again.

use std::{fmt, num::NonZeroU32, str::FromStr, sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
};
use ledger_core::{AccountId, Command, TransactionId};
use ledger_store::{Database, StoreError};
use quick_cache::sync::Cache;

use crate::{access::Caller, problem::Problem};

/// Buckets that are kept: some 60 MiB.
const BUCKETS_MAX: usize = 400_000;
/// Freezes and deductions whose account is remembered.
const ORIGINALS_MAX: usize = 100_000;
/// The largest rate and burst.
const COMMANDS_MAX: u32 = 1_000_000;

/// So many commands a second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

impl Rate {
    fn quota(self) -> Quota {
        Quota::per_second(self.per_second).allow_burst(self.burst)
    }

    /// How long an empty bucket takes to be full, in whole seconds.
    fn window_seconds(self) -> u32 {
        self.burst.get().div_ceil(self.per_second.get())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.per_second, self.burst)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let number = text.parse().ok().filter(|number: &NonZeroU32| number.get() <= COMMANDS_MAX);
            number.filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let (per_second, burst) = text.split_once('/').unwrap_or((text, text));
        match (number(per_second), number(burst)) {
            (Some(per_second), Some(burst)) => Ok(Self { per_second, burst }),
            _ => Err(format!("write RATE/BURST, such as 5/10: 5 a second, burst 10; each from 1 to {COMMANDS_MAX}")),
        }
    }
}

type Bucket = DefaultDirectRateLimiter<StateInformationMiddleware>;

/// What a bucket belongs to: an account, or an account as one key uses it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Owner {
    account: AccountId,
    key: Option<Arc<str>>,
}

/// The buckets.
#[derive(Debug)]
pub(crate) struct Limits {
    usual: Option<Rate>,
    clock: DefaultClock,
    buckets: Cache<Owner, Arc<Bucket>>,
    originals: Cache<TransactionId, AccountId>,
}

/// What is left of the bucket that has least, for the headers of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    rate: Rate,
    remaining: u32,
}

impl Limits {
    /// `usual` goes for every account; keys may have limits of their own.
    pub(crate) fn new(usual: Option<Rate>) -> Self {
        Self {
            usual,
            clock: DefaultClock::default(),
            buckets: Cache::new(BUCKETS_MAX),
            originals: Cache::new(ORIGINALS_MAX),
        }
    }

    /// Takes a token for each command, or refuses all of them. `None` where nothing is limited.
    pub(crate) async fn take(
        &self,
        caller: &Caller,
        database: &Database,
        commands: &[Command],
    ) -> Result<Option<Left>, Problem> {
        let (rate, key) = match (&caller.limit, self.usual) {
            (Some((rate, key)), _) => (*rate, Some(key.clone())),
            (None, Some(rate)) => (rate, None),
            (None, None) => return Ok(None),
        };
        let mut accounts = Vec::with_capacity(commands.len());
        for command in commands {
            accounts.extend(self.account(database, command).await?);
        }
        accounts.sort_unstable();
        let mut least = Left { rate, remaining: rate.burst.get() };
        for same in accounts.chunk_by(|one, other| one == other) {
            let count = u32::try_from(same.len()).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
            let remaining = self.take_from(&Owner { account: same[0], key: key.clone() }, rate, count)?;
            least.remaining = least.remaining.min(remaining);
        }
        Ok(Some(least))
    }

    fn take_from(&self, owner: &Owner, rate: Rate, count: NonZeroU32) -> Result<u32, Problem> {
        let made = || RateLimiter::direct(rate.quota()).with_middleware::<StateInformationMiddleware>();
        let bucket = self.buckets.get_or_insert_with(owner, || Ok::<_, std::convert::Infallible>(Arc::new(made())));
        let bucket = match bucket {
            Ok(bucket) => bucket,
            Err(never) => match never {},
        };
        match bucket.check_n(count) {
            Ok(Ok(state)) => Ok(state.remaining_burst_capacity()),
            Ok(Err(until)) => Err(limited(rate, until.wait_time_from(self.clock.now()))),
            // More at once than there is room for in the bucket: no waiting helps.
            Err(_) => Err(Problem::rate_limited(
                format!(
                    "{count} commands for one account at once are more than the burst of {}: send fewer",
                    rate.burst
                ),
                Duration::from_secs(u64::from(rate.window_seconds())),
            )
            .with_headers(Left { rate, remaining: 0 }.headers(Duration::from_secs(u64::from(rate.window_seconds()))))),
        }
    }

    /// Whose bucket a command counts against. One about a freeze or a deduction that is not there counts against nobody:
    /// it is refused without having moved anything.
    async fn account(&self, database: &Database, command: &Command) -> Result<Option<AccountId>, Problem> {
        if let Some(account) = command.action.account() {
            return Ok(Some(account.id()));
        }
        let Some(original) = command.action.original() else { return Ok(None) };
        if let Some(account) = self.originals.get(&original) {
            return Ok(Some(account));
        }
        let account = database.transaction(original).await.map_err(away)?.map(|event| event.account.id());
        if let Some(account) = account {
            self.originals.insert(original, account);
        }
        Ok(account)
    }
}

fn away(error: StoreError) -> Problem {
    error.into()
}

fn limited(rate: Rate, wait: Duration) -> Problem {
    let detail = format!("more than {} commands a second (burst {}) for this account", rate.per_second, rate.burst);
    Problem::rate_limited(detail, wait).with_headers(Left { rate, remaining: 0 }.headers(wait))
}

impl Left {
    /// The headers of an answer that is no refusal.
    pub(crate) fn add_to(self, headers: &mut HeaderMap) {
        let to_full = self.rate.burst.get().saturating_sub(self.remaining).div_ceil(self.rate.per_second.get());
        headers.extend(self.headers(Duration::from_secs(u64::from(to_full))));
    }

    /// `RateLimit-Limit`, `-Remaining` and `-Reset` (seconds), and the policy behind them, as the IETF's draft on
    /// rate-limit header fields names them.
    fn headers(self, reset: Duration) -> HeaderMap {
        let number = |number: u64| HeaderValue::from(number);
        let policy = format!("{};w={}", self.rate.burst, self.rate.window_seconds());
        HeaderMap::from_iter([
            (HeaderName::from_static("ratelimit-limit"), number(self.rate.burst.get().into())),
            (HeaderName::from_static("ratelimit-remaining"), number(self.remaining.into())),
            (HeaderName::from_static("ratelimit-reset"), number(whole_seconds(reset))),
            (
                HeaderName::from_static("ratelimit-policy"),
                HeaderValue::from_str(&policy).expect("digits and a few signs"),
            ),
        ])
    }
}

/// Rounded up: whoever comes back after so many whole seconds does not come too early.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}
