//! Rows of the read models, as both databases can give them, and what makes them what the fold made.

use ledger_core::{
    Account, AccountId, AccountState, Balance, BusinessKey, Epoch, Freeze, Hash, Head, PARTITIONS, Partition, Position,
    Timestamp, TransactionId,
};
use ledger_store::StoreError;
use uuid::Uuid;

use crate::snapshot::DamagedModelRow;

/// The columns of `balances`, in the order in which both databases read and write them.
pub(crate) const BALANCE_COLUMNS: &str = "partition, account_id, position, version, balance, frozen, available, \
     updated_at, status, user_id, credit_type";

/// The columns of `freezes`, likewise.
pub(crate) const FREEZE_COLUMNS: &str = "partition, position, amount, remaining, captured, released, expires_at, \
     created_at, freeze_id, account_id, status, user_id, credit_type, business_code, business_id";

/// A row of `balances` before anything is believed of it, with texts of its own or borrowed ones.
#[derive(Debug, Clone)]
pub(crate) struct BalanceRow<T = String> {
    pub(crate) partition: i64,
    pub(crate) account_id: Option<Uuid>,
    pub(crate) position: i64,
    pub(crate) version: i64,
    pub(crate) balance: i64,
    pub(crate) frozen: i64,
    pub(crate) available: i64,
    pub(crate) updated_at: Option<Timestamp>,
    pub(crate) status: T,
    pub(crate) user_id: T,
    pub(crate) credit_type: T,
}

/// A row of `freezes` before anything is believed of it.
#[derive(Debug, Clone)]
pub(crate) struct FreezeRow<T = String> {
    pub(crate) partition: i64,
    pub(crate) position: i64,
    pub(crate) amount: i64,
    pub(crate) remaining: i64,
    pub(crate) captured: i64,
    pub(crate) released: i64,
    /// Outer: readable; inner: there.
    pub(crate) expires_at: Option<Option<Timestamp>>,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) freeze_id: Option<Uuid>,
    pub(crate) account_id: Option<Uuid>,
    pub(crate) status: T,
    pub(crate) user_id: T,
    pub(crate) credit_type: T,
    pub(crate) business_code: T,
    pub(crate) business_id: T,
}

type Damage = (&'static str, String);

impl<T: AsRef<str>> BalanceRow<T> {
    pub(crate) fn read(self) -> Result<Balance, DamagedModelRow> {
        let (partition, position) = (self.partition, self.position);
        self.fields().map_err(|(column, reason)| DamagedModelRow {
            table: "balances",
            partition,
            position,
            key: format!("{}/{}", self.user_id.as_ref(), self.credit_type.as_ref()),
            column,
            reason,
        })
    }

    fn fields(&self) -> Result<Balance, Damage> {
        let state = AccountState {
            balance: number("balance", self.balance)?,
            frozen: number("frozen", self.frozen)?,
            locked: match self.status.as_ref() {
                "locked" => true,
                "active" => false,
                other => return Err(("status", format!("is `{other}`, not active or locked"))),
            },
            version: number("version", self.version)?,
        };
        if self.available != self.balance - self.frozen {
            return Err((
                "available",
                format!("is {}, not balance - frozen = {}", self.available, self.balance - self.frozen),
            ));
        }
        Ok(Balance {
            account: account(self.partition, self.account_id, self.user_id.as_ref(), self.credit_type.as_ref())?,
            state,
            position: Position(number("position", self.position)?),
            updated_at: self.updated_at.ok_or_else(|| unreadable("updated_at"))?,
        })
    }
}

impl<T: AsRef<str>> FreezeRow<T> {
    pub(crate) fn read(self) -> Result<Freeze, DamagedModelRow> {
        let (partition, position, id) = (self.partition, self.position, self.freeze_id);
        self.fields().map_err(|(column, reason)| DamagedModelRow {
            table: "freezes",
            partition,
            position,
            key: id.map_or_else(|| format!("position {position}"), |id| id.to_string()),
            column,
            reason,
        })
    }

    fn fields(&self) -> Result<Freeze, Damage> {
        let freeze_id = self.freeze_id.and_then(TransactionId::from_uuid).ok_or_else(|| unreadable("freeze_id"))?;
        let freeze = Freeze {
            freeze_id,
            account: account(self.partition, self.account_id, self.user_id.as_ref(), self.credit_type.as_ref())?,
            amount: number("amount", self.amount)?,
            remaining: number("remaining", self.remaining)?,
            captured: number("captured", self.captured)?,
            released: number("released", self.released)?,
            expires_at: self.expires_at.ok_or_else(|| unreadable("expires_at"))?,
            key: BusinessKey::stored(self.business_code.as_ref().into(), self.business_id.as_ref().into()),
            created_at: self.created_at.ok_or_else(|| unreadable("created_at"))?,
            position: Position(number("position", self.position)?),
        };
        if freeze.status() != self.status.as_ref() {
            return Err(("status", format!("is `{}`, but {} remain", self.status.as_ref(), freeze.remaining)));
        }
        Ok(freeze)
    }
}

fn account(partition: i64, id: Option<Uuid>, user_id: &str, credit_type: &str) -> Result<Account, Damage> {
    let id = id.and_then(AccountId::stored).ok_or_else(|| unreadable("account_id"))?;
    let account = Account::stored(id, user_id.into(), credit_type.into());
    if i64::from(id.partition().number()) != partition || !account.is_consistent() {
        return Err((
            "account_id",
            format!("{id} is not the account of {user_id}/{credit_type} in partition {partition}"),
        ));
    }
    Ok(account)
}

fn number(column: &'static str, stored: i64) -> Result<u64, Damage> {
    u64::try_from(stored).map_err(|_| (column, format!("is {stored}, below 0")))
}

fn unreadable(column: &'static str) -> Damage {
    (column, "cannot be read".to_owned())
}

/// A checkpoint that is held cannot move.
pub(crate) fn moved() -> StoreError {
    StoreError::Inconsistent("a checkpoint moved while it was held".to_owned())
}

/// A number of the domain as both databases store it. All of them are below 2^63.
pub(crate) fn stored(number: u64) -> i64 {
    i64::try_from(number).expect("amounts, versions and positions are below 2^63")
}

/// Checkpoints of every partition from rows of (partition, epoch, position, hash) in order.
pub(crate) fn heads(name: &str, rows: Vec<(i64, i64, i64, Vec<u8>)>) -> Result<[Head; PARTITIONS], StoreError> {
    let damaged =
        || StoreError::Inconsistent(format!("the checkpoints of {name} are damaged: run replay-tool rebuild"));
    let heads = rows.into_iter().zip(Partition::all()).map(|((number, epoch, position, hash), partition)| {
        let in_place = number == i64::from(partition.number());
        in_place.then_some(())?;
        Some(Head {
            epoch: Epoch(u32::try_from(epoch).ok()?),
            position: Position(u64::try_from(position).ok()?),
            hash: Hash(hash.try_into().ok()?),
        })
    });
    let heads: Option<Vec<_>> = heads.collect();
    heads.and_then(|heads| heads.try_into().ok()).ok_or_else(damaged)
}
