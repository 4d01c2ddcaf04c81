//! `correct`: an adjustment of a balance, as an event of its own.

use std::sync::Arc;

use clap::Args;
use ledger_core::{Account, Action, Amount, BusinessKey, Command, Provenance, json::Transaction, text};
use ledger_store::{CommandError, Ledger, LedgerOptions, Recorded};
use serde_json::json;
use uuid::Uuid;

use crate::{
    argument::{parse_account, parse_actor},
    context::{Context, Failure, Outcome, say},
};

/// The business code of corrections.
const CORRECTION_CODE: &str = "system.correction";

/// Corrects a balance: adds a credit or a deduction with a reason and a name. Events are never changed.
///
/// The correction is a new event with the business_code system.correction, the reason as its description and the name as its
/// actor. It has an id, its business_id: the same id is never done twice. Without --id it follows from the account, the
/// amount, the reason and the name, so that a command that is repeated by mistake, or after a crash, corrects once; to make
/// the very same correction again, give another --id.
///
/// A deduction takes what is available: what is frozen is not, and a locked account gives nothing.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The account.
    #[arg(value_name = "USER/CREDIT_TYPE", value_parser = parse_account)]
    account: Account,
    /// What to add or to take, with its sign: +500 or -300.
    #[arg(long, value_name = "+N|-N", value_parser = parse_change, allow_hyphen_values = true)]
    amount: Change,
    /// Why, for whoever reads the account's history.
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: Arc<str>,
    /// Who corrects.
    #[arg(long, value_name = "NAME", value_parser = parse_actor)]
    actor: String,
    /// The correction's own id, such as a ticket's number.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Let a credit open an account that has no events yet. Without it such an account is taken for a slip of the pen.
    #[arg(long)]
    open_account: bool,
}

/// What is added or taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Add(Amount),
    Take(Amount),
}

impl std::fmt::Display for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add(amount) => write!(formatter, "+{}", amount.units()),
            Self::Take(amount) => write!(formatter, "-{}", amount.units()),
        }
    }
}

fn parse_change(text: &str) -> Result<Change, String> {
    let amount = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let units = plain.then(|| digits.parse().ok()).flatten();
        let units = units.ok_or_else(|| "write a whole number with its sign, such as +500 or -300".to_owned())?;
        Amount::new(units).map_err(|invalid| invalid.to_string())
    };
    match text.split_at_checked(1) {
        Some(("+", digits)) => Ok(Change::Add(amount(digits)?)),
        Some(("-", digits)) => Ok(Change::Take(amount(digits)?)),
        _ => Err("write the sign, too: +500 adds, -300 takes".to_owned()),
    }
}

fn parse_reason(reason: &str) -> Result<Arc<str>, String> {
    if reason.trim().is_empty() {
        return Err("must say why".to_owned());
    }
    text::description(reason).map_err(|invalid| invalid.reason)
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let id = arguments.id.clone().unwrap_or_else(|| derived_id(arguments));
    let key = BusinessKey::reserved(CORRECTION_CODE, &id)
        .map_err(|invalid| Failure::new(format!("--id {}", invalid.reason)))?;
    let database = context.open().await?;
    let ledger = Ledger::start(database.clone(), LedgerOptions::default()).await?;
    let recorded = correct(&ledger, arguments, key, &id).await;
    ledger.stop().await;
    database.close().await;
    let recorded = recorded?;
    show(context, &id, &recorded);
    Ok(Outcome::Consistent)
}

async fn correct(ledger: &Ledger, arguments: &Arguments, key: BusinessKey, id: &str) -> Result<Recorded, Failure> {
    let Arguments { account, amount, reason, actor, open_account, .. } = arguments;
    let known = ledger.newest(account).await.map_err(|error| Failure::new(error.to_string()))?;
    if known.is_none() && !open_account {
        return Err(Failure::new(format!(
            "there is no account {}/{}; look at the spelling, or open it with --open-account",
            account.user_id(),
            account.credit_type()
        )));
    }
    let account = account.clone();
    let command = Command {
        action: match *amount {
            Change::Add(amount) => Action::Credit { account, amount },
            Change::Take(amount) => Action::Debit { account, amount },
        },
        key,
        expected_version: None,
        provenance: Provenance {
            operation_id: None,
            request_id: Uuid::new_v4().to_string().into(),
            actor: actor.as_str().into(),
            description: Some(reason.clone()),
            metadata: None,
        },
    };
    ledger.execute(command).await.map_err(|error| match error {
        CommandError::Rejected(rejection) => Failure::new(format!(
            "{}: {rejection}; nothing was done: replay-tool explain shows the account",
            rejection.code()
        )),
        CommandError::Unavailable(unavailable) => Failure::new(format!(
            "{unavailable}; whether correction {id} was done is not known: run the same command again, it corrects once"
        )),
    })
}

/// Follows from all that makes the correction what it is, so that the same command again is a repeat.
fn derived_id(arguments: &Arguments) -> String {
    let Arguments { account, amount, reason, actor, .. } = arguments;
    let mut hasher = blake3::Hasher::new();
    for text in [&**account.user_id(), account.credit_type(), &amount.to_string(), reason, actor] {
        hasher.update(&(text.len() as u64).to_be_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

fn show(context: &Context, id: &str, recorded: &Recorded) {
    let Recorded { event, replayed } = recorded;
    let transaction = Transaction { event, replayed: Some(*replayed) };
    if context.json {
        say!("{}", json!({ "corrected": !replayed, "id": id, "transaction": transaction }));
        return;
    }
    let after = &event.after;
    say!(
        "correction   {id}\ntransaction  {}\nrecorded at  {}\nbalance      {}\nfrozen       {}\navailable    {}\nversion      {}",
        event.transaction_id,
        event.recorded_at,
        after.balance,
        after.frozen,
        after.available(),
        after.version
    );
    if *replayed {
        say!("corrected before: nothing was done now; another --id makes the same correction again");
    } else {
        say!("corrected");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(amount: &str, reason: &str) -> Arguments {
        Arguments {
            account: parse_account("u1/points").expect("an account"),
            amount: parse_change(amount).expect("a change"),
            reason: parse_reason(reason).expect("a reason"),
            actor: "ann".to_owned(),
            id: None,
            open_account: false,
        }
    }

    #[test]
    fn a_change_has_its_sign() {
        assert_eq!(parse_change("+500"), Amount::new(500).map(Change::Add).map_err(|error| error.to_string()));
        assert_eq!(parse_change("-300"), Amount::new(300).map(Change::Take).map_err(|error| error.to_string()));
        for text in ["500", "", "+", "-", "+0", "-1.5", "++5", "+-5", "+9007199254740992", "é5"] {
            assert!(parse_change(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_same_correction_has_the_same_id_and_another_has_another() {
        let id = derived_id(&arguments("+500", "lost"));
        assert_eq!(id, derived_id(&arguments("+500", "lost")));
        assert_ne!(id, derived_id(&arguments("-500", "lost")));
        assert_ne!(id, derived_id(&arguments("+500", "lost again")));
    }
}
