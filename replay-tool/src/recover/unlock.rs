//! Accounts that the ledger itself locked, and that nobody needs locked any more.

use std::sync::Arc;

use chrono::Utc;
use ledger_core::{
    Account, Action, BusinessKey, Command, Event, EventType, Partition, Position, Provenance, key::SYSTEM_CODE_PREFIX,
};
use ledger_store::{Database, Ledger, LedgerOptions, StoreError};
use projector::freezes::{self, Status};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::Row;

use crate::context::Failure;

/// A lock of the ledger's own that is younger may still be needed.
const AGE_MIN_MICROS: i64 = 24 * 60 * 60 * 1_000_000;
/// Accounts of one read.
const PAGE: i64 = 1_000;
/// Open freezes that are named for each account.
const FREEZES_NAMED: usize = 20;
/// Accounts that are named; more are only counted.
const NAMED_MAX: usize = 1_000;
/// The business code of the unlock; its id is the lock's transaction, so that no lock is lifted twice.
const CODE: &str = "system.recovery.unlock";
/// The code that the service gives a lock which an administrator asked for without a key.
const ADMINISTRATORS_CODE: &str = "system.lock";
const ACTOR: &str = "replay-tool";

/// What was found and done.
#[derive(Debug, Default, Serialize)]
pub(super) struct Unlocked {
    pub(super) unlocked: u64,
    pub(super) unlocked_accounts: Vec<Value>,
    /// Locked by the ledger, long enough, but with open freezes: a person must look.
    pub(super) open_work: u64,
    pub(super) open_work_accounts: Vec<Value>,
    /// Locked by the ledger less than a day ago.
    pub(super) young: u64,
    /// Locked by an administrator: they stay.
    pub(super) by_administrator: u64,
    /// The ledger refused to unlock them.
    pub(super) refused: Vec<Value>,
}

/// Looks at every locked account, and unlocks those that the ledger itself locked more than a day ago and that have
/// nothing open.
pub(super) async fn unlock(database: &Database) -> Result<Unlocked, Failure> {
    let mut done = Unlocked::default();
    let mut ledger = None;
    let mut after: Option<(Partition, String)> = None;
    loop {
        let page = locked_accounts(database, after.as_ref()).await?;
        for (account, position) in &page {
            let Some((newest, lock)) = newest_lock(database, account, *position).await? else { continue };
            judge(database, &mut ledger, &newest, &lock, &mut done).await?;
        }
        match page.last() {
            Some((account, _)) => after = Some((account.partition(), account.id().to_string())),
            None => break,
        }
    }
    if let Some(ledger) = ledger {
        ledger.stop().await;
    }
    Ok(done)
}

/// Whether a person locked the account. An administrator who gives no key of their own gets one of this code.
fn is_administrators(lock: &Event) -> bool {
    !lock.key.code().starts_with(SYSTEM_CODE_PREFIX) || **lock.key.code() == *ADMINISTRATORS_CODE
}

async fn judge(
    database: &Database,
    ledger: &mut Option<Ledger>,
    newest: &Event,
    lock: &Event,
    done: &mut Unlocked,
) -> Result<(), Failure> {
    let account = &lock.account;
    if is_administrators(lock) {
        done.by_administrator += 1;
        return Ok(());
    }
    if Utc::now().timestamp_micros() - lock.recorded_at.micros() < AGE_MIN_MICROS {
        done.young += 1;
        return Ok(());
    }
    let who = || {
        json!({ "user_id": &**account.user_id(), "credit_type": &**account.credit_type(), "locked_at": lock.recorded_at,
            "lock": lock.transaction_id, "business_code": &**lock.key.code() })
    };
    if newest.after.frozen > 0 {
        done.open_work += 1;
        if done.open_work_accounts.len() < NAMED_MAX {
            let (open, more) = freezes::of_account(database, account, Some(Status::Open), None, FREEZES_NAMED).await?;
            let open: Vec<_> = open
                .iter()
                .map(|freeze| {
                    json!({ "freeze_id": freeze.freeze_id, "remaining": freeze.remaining,
                        "business_code": &**freeze.key.code(), "business_id": &**freeze.key.id() })
                })
                .collect();
            let mut who = who();
            who["frozen"] = json!(newest.after.frozen);
            who["freezes"] = json!(open);
            who["more_freezes"] = json!(more.is_some());
            done.open_work_accounts.push(who);
        }
        return Ok(());
    }
    let ledger = match ledger {
        Some(ledger) => ledger,
        None => ledger.insert(Ledger::start(database.clone(), LedgerOptions::default()).await?),
    };
    let key = BusinessKey::reserved(CODE, &lock.transaction_id.to_string())
        .map_err(|error| Failure::new(error.to_string()))?;
    let command = Command {
        action: Action::Unlock { account: account.clone() },
        key,
        // Whatever was done to the account meanwhile, a new lock among it, is not to be undone.
        expected_version: Some(newest.after.version),
        provenance: Provenance {
            operation_id: None,
            request_id: ACTOR.into(),
            actor: ACTOR.into(),
            description: Some(Arc::from("locked by the ledger itself for more than a day, with nothing open")),
            metadata: None,
        },
    };
    match ledger.execute(command).await {
        Ok(_) => {
            done.unlocked += 1;
            if done.unlocked_accounts.len() < NAMED_MAX {
                done.unlocked_accounts.push(who());
            }
        }
        Err(error) => {
            let mut who = who();
            who["why"] = json!(error.to_string());
            done.refused.push(who);
        }
    }
    Ok(())
}

/// The account's newest event, and its newest lock, when it is locked now.
async fn newest_lock(
    database: &Database,
    account: &Account,
    position: Position,
) -> Result<Option<(Event, Event)>, StoreError> {
    let Some(newest) = database.event_at(account.partition(), position).await? else { return Ok(None) };
    if !newest.after.locked {
        return Ok(None);
    }
    let mut event = newest.clone();
    while event.event_type != EventType::Locked {
        match database.event_at(account.partition(), event.previous_position).await? {
            Some(before) => event = before,
            None => return Ok(None),
        }
    }
    Ok(Some((newest, event)))
}

/// Locked accounts and the positions of their newest events, in the order of the table's key, after one of them.
async fn locked_accounts(
    database: &Database,
    after: Option<&(Partition, String)>,
) -> Result<Vec<(Account, Position)>, Failure> {
    let (partition, id) =
        after.map_or((-1, String::new()), |(partition, id)| (i64::from(partition.number()), id.clone()));
    let place = |position: i64| Position(u64::try_from(position).unwrap_or(0));
    let account = |user_id: &str, credit_type: &str| {
        Account::new(user_id, credit_type).map_err(|error| Failure::new(format!("a row of balances: {error}")))
    };
    match database {
        Database::Postgres(database) => {
            let rows = sqlx::query(
                "select user_id, credit_type, position from balances \
                 where status = 'locked' and (partition > $1 or (partition = $1 and account_id > $2::uuid)) \
                 order by partition, account_id limit $3",
            )
            .bind(i16::try_from(partition).unwrap_or(-1))
            .bind(id.parse::<uuid::Uuid>().unwrap_or_default())
            .bind(PAGE)
            .fetch_all(database.pool())
            .await?;
            rows.iter().map(|row| Ok((account(row.try_get(0)?, row.try_get(1)?)?, place(row.try_get(2)?)))).collect()
        }
        Database::Sqlite(database) => {
            let rows = sqlx::query(
                "select user_id, credit_type, position from balances \
                 where status = 'locked' and (partition > ?1 or (partition = ?1 and account_id > ?2)) \
                 order by partition, account_id limit ?3",
            )
            .bind(partition)
            .bind(id)
            .bind(PAGE)
            .fetch_all(database.readers())
            .await?;
            rows.iter().map(|row| Ok((account(row.try_get(0)?, row.try_get(1)?)?, place(row.try_get(2)?)))).collect()
        }
    }
}
