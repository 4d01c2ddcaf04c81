//! API keys: what they look like, where they are kept, and `api keys create|list|revoke`.

mod table;

use std::io::Write;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use clap::{Args, Subcommand};
use ledger_store::{Database, error::chain};

use serde_json::{Value, json};

use crate::{
    access::Scopes,
    audit::{self, Entry, Outcome},
    limits::Rate,
    settings::whole,
};

pub(crate) use table::all;

/// What every key begins with, so that scanners for leaked secrets can tell.
const BEGINNING: &str = "lk_";
/// The prefix that keys are looked up by, in hexadecimal digits.
const PREFIX_DIGITS: usize = 12;
/// The secret part, in hexadecimal digits: 256 bits.
const SECRET_DIGITS: usize = 64;
/// The longest label, in characters.
const LABEL_CHARS_MAX: usize = 64;
/// The longest time that a key can be made for: ten years, in days.
const DAYS_MAX: i64 = 3_660;

/// A key as its owner holds it: `lk_<12 digits>_<64 digits>`. Not to be printed but once.
pub(crate) struct Secret(String);

impl Secret {
    /// A new key of 256 random bits, and 48 more to look it up by.
    fn generate() -> Result<Self, String> {
        let mut bytes = [0; (PREFIX_DIGITS + SECRET_DIGITS) / 2];
        getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random bytes: {error}"))?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (prefix, secret) = digits.split_at(PREFIX_DIGITS);
        Ok(Self(format!("{BEGINNING}{prefix}_{secret}")))
    }

    /// A key that a caller sent, if it looks like one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (prefix, secret) = text.strip_prefix(BEGINNING)?.split_once('_')?;
        let is_hex = |digits: &str| digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let fits = prefix.len() == PREFIX_DIGITS && secret.len() == SECRET_DIGITS && is_hex(prefix) && is_hex(secret);
        fits.then(|| Self(text.to_owned()))
    }

    /// What it is looked up by, and shown as.
    pub(crate) fn prefix(&self) -> &str {
        &self.0[BEGINNING.len()..BEGINNING.len() + PREFIX_DIGITS]
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        blake3::hash(self.0.as_bytes())
    }
}

/// A key as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct StoredKey {
    pub(crate) prefix: String,
    pub(crate) hash: blake3::Hash,
    pub(crate) label: String,
    pub(crate) scopes: Scopes,
    pub(crate) rate_limit: Option<Rate>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
}

impl StoredKey {
    fn state(&self, now: DateTime<Utc>) -> &'static str {
        match (self.revoked_at, self.expires_at) {
            (Some(_), _) => "revoked",
            (None, Some(at)) if at <= now => "expired",
            _ => "active",
        }
    }
}

/// Makes, lists and revokes API keys, in the database that --database-url names.
///
/// With the first key the service asks every caller for one, and may listen beyond loopback addresses. A running service
/// takes a change within a second or two.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Makes a key and prints it, once: it is stored as a hash and cannot be shown again.
    Create(Create),
    /// Lists the keys, without their secrets.
    List,
    /// Revokes a key, for ever.
    Revoke {
        /// The key's prefix, as `list` shows it: 12 hexadecimal digits.
        prefix: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Who will use it: every event that it makes bears this as its actor. 1-64 characters, no control characters.
    #[arg(long, value_parser = label)]
    label: String,
    /// What it may do, with commas between: credit, debit, freeze (unfreeze too), refund, read, admin.
    #[arg(long)]
    scopes: Scopes,
    /// After how many days it ends. Left out: never.
    #[arg(long, value_parser = whole::<i64>(1..=DAYS_MAX))]
    expires_in_days: Option<i64>,
    /// Its own limit, such as 5/10: 5 commands a second, burst 10, per user and credit type.
    #[arg(long)]
    rate_limit: Option<Rate>,
}

fn label(text: &str) -> Result<String, String> {
    let fits = (1..=LABEL_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err(format!("1 to {LABEL_CHARS_MAX} characters, no control characters")) }
}

/// Does what was asked. `Err` is why not, in one line.
pub(crate) async fn run(database_url: &str, command: &KeysCommand) -> Result<(), String> {
    // Only to make a key is a reason to make a ledger: in another folder than the service's it would be another one.
    let opened = match command {
        KeysCommand::Create(_) => Database::open(database_url).await,
        KeysCommand::List | KeysCommand::Revoke { .. } => Database::open_existing(database_url).await,
    };
    let database = opened.map_err(|error| chain(&error))?;
    let done = match command {
        KeysCommand::Create(create) => make(&database, create).await,
        KeysCommand::List => list(&database).await,
        KeysCommand::Revoke { prefix } => revoke(&database, prefix).await,
    };
    database.close().await;
    done
}

async fn make(database: &Database, create: &Create) -> Result<(), String> {
    let secret = Secret::generate()?;
    let now = Utc::now().trunc_subsecs(6);
    let key = StoredKey {
        prefix: secret.prefix().to_owned(),
        hash: secret.hash(),
        label: create.label.clone(),
        scopes: create.scopes,
        rate_limit: create.rate_limit,
        created_at: now,
        expires_at: create.expires_in_days.map(|days| now + TimeDelta::days(days)),
        revoked_at: None,
    };
    table::insert(database, &key).await.map_err(|error| chain(&error))?;
    let details = json!({
        "prefix": key.prefix, "label": key.label, "scopes": key.scopes.to_string(),
        "rate_limit": key.rate_limit.map(|rate| rate.to_string()), "expires_at": key.expires_at.map(|at| at.to_rfc3339()),
    });
    // The secret is told whether or not the rest comes about: it could not be told again.
    print(&secret.0)?;
    record(database, "key_created", details).await
}

async fn list(database: &Database) -> Result<(), String> {
    let now = Utc::now();
    let time = |at: Option<DateTime<Utc>>| at.map_or("-".to_owned(), |at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string());
    print(&format!(
        "{:<12}  {:<7}  {:<20}  {:<20}  {:<10}  {:<38}  label",
        "prefix", "state", "created", "expires", "rate limit", "scopes"
    ))?;
    for key in all(database).await.map_err(|error| chain(&error))? {
        let key = match key {
            Ok(key) => key,
            Err(why) => {
                print(&format!("{why}: it opens nothing; delete the row and make another key"))?;
                continue;
            }
        };
        print(&format!(
            "{:<12}  {:<7}  {:<20}  {:<20}  {:<10}  {:<38}  {}",
            key.prefix,
            key.state(now),
            time(Some(key.created_at)),
            time(key.expires_at),
            key.rate_limit.map_or("-".to_owned(), |rate| rate.to_string()),
            key.scopes.to_string(),
            key.label
        ))?;
    }
    Ok(())
}

async fn revoke(database: &Database, prefix: &str) -> Result<(), String> {
    let prefix = prefix.strip_prefix(BEGINNING).unwrap_or(prefix);
    let prefix = prefix.split('_').next().unwrap_or(prefix);
    match table::revoke(database, prefix, Utc::now()).await.map_err(|error| chain(&error))? {
        true => {
            print(&format!("revoked {prefix}"))?;
            record(database, "key_revoked", json!({ "prefix": prefix })).await
        }
        false => {
            let place = database.describe();
            Err(format!("{place} has no active key with this prefix; `api keys list` shows them"))
        }
    }
}

/// Writes into the audit who did this, as far as this machine knows.
async fn record(database: &Database, action: &'static str, details: Value) -> Result<(), String> {
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    let Value::Object(details) = details else { return Ok(()) };
    let entry = Entry {
        action,
        actor: format!("local:{user}").into(),
        address: None,
        request_id: None,
        account: None,
        outcome: Outcome::Done,
        details: Some(Box::new(details)),
    };
    let row = audit::table::Row::of(audit::now(), entry);
    audit::table::insert(database, &[row], audit::table::Attempt::First)
        .await
        .map_err(|error| format!("it was done, but the audit could not be written: {}", chain(&error)))
}

fn print(line: &str) -> Result<(), String> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| format!("nothing can be printed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_made_and_no_two_are_alike() {
        let (one, other) = (Secret::generate().expect("random"), Secret::generate().expect("random"));
        let read = Secret::parse(&one.0).expect("a key");
        assert_eq!((read.prefix(), read.hash()), (one.prefix(), one.hash()));
        assert_ne!(one.prefix(), other.prefix());
        assert_ne!(one.hash(), other.hash());
    }

    #[test]
    fn what_is_no_key_is_not_looked_up() {
        let key = Secret::generate().expect("random").0;
        for text in ["", "lk_", "lk__", &key[1..], &key[..key.len() - 1], &format!("{key}0"), &key.to_uppercase()] {
            assert!(Secret::parse(text).is_none(), "{text}");
        }
        assert!(Secret::parse(&key.replacen('_', "é", 1)).is_none());
    }

    #[test]
    fn a_label_is_short_and_printable() {
        assert!(label("order service").is_ok());
        for text in [String::new(), "two\nlines".to_owned(), "x".repeat(65)] {
            assert!(label(&text).is_err(), "{text}");
        }
    }
}
