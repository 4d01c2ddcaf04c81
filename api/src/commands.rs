//! `POST /v1/credits`, `/v1/debits`, `/v1/freezes`, `/v1/unfreezes`, `/v1/refunds`.

use std::sync::{Arc, OnceLock};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use ledger_core::{
    Account, Action, BusinessKey, Command, EventType, Expiry, NamedAccount, Provenance, Timestamp, TransactionId,
    json::Transaction, text,
};
use ledger_store::Recorded;

use crate::{
    access::Scope,
    audit::{Outcome, about::Did},
    body::{self, Fields, missing},
    content,
    lifetime::LIFETIME_SECONDS_MAX,
    problem::Problem,
    request::{Origin, if_match, json},
    service::Service,
};

/// A command's body is at most so large, in bytes.
pub(crate) const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// Most transactions are no longer than this as JSON, in bytes.
pub(crate) const TRANSACTION_BYTES: usize = 1_024;

/// Every field that a command can have; `type` is a batch's.
pub(crate) const COMMAND_FIELDS: &[&str] = &[
    "type",
    "user_id",
    "credit_type",
    "freeze_id",
    "debit_id",
    "amount",
    "release_remainder",
    "expires_at",
    "expires_in_seconds",
    "business_code",
    "business_id",
    "operation_id",
    "expected_version",
    "description",
    "metadata",
];

/// What a route or a batch's `type` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Credit,
    Debit,
    Freeze,
    Unfreeze,
    Refund,
}

impl Kind {
    /// The kind that a command in a batch names.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "credit" => Self::Credit,
            "debit" => Self::Debit,
            "freeze" => Self::Freeze,
            "unfreeze" => Self::Unfreeze,
            "refund" => Self::Refund,
            _ => return None,
        })
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Debit => "debit",
            Self::Freeze => "freeze",
            Self::Unfreeze => "unfreeze",
            Self::Refund => "refund",
        }
    }

    /// How long commands of this kind take. The handle is kept: to find it each time costs more than to record.
    fn seconds(self) -> &'static metrics::Histogram {
        static SECONDS: [OnceLock<metrics::Histogram>; 5] = [const { OnceLock::new() }; 5];
        SECONDS[self as usize].get_or_init(|| metrics::histogram!("ledger_command_seconds", "type" => self.name()))
    }

    /// What a caller needs to ask for it.
    pub(crate) const fn scope(self) -> Scope {
        match self {
            Self::Credit => Scope::Credit,
            Self::Debit => Scope::Debit,
            Self::Freeze | Self::Unfreeze => Scope::Freeze,
            Self::Refund => Scope::Refund,
        }
    }

    /// Reads the command that `fields` describe.
    pub(crate) fn command(self, fields: &Fields<'_>, origin: &Origin) -> Result<Command, Problem> {
        let action = self.action(fields)?;
        let code = fields.required_string("business_code")?;
        let id = fields.required_string("business_id")?;
        Ok(Command {
            action,
            key: BusinessKey::new(&code, &id)?,
            expected_version: fields.number("expected_version")?,
            provenance: Provenance {
                operation_id: fields.uuid("operation_id")?,
                request_id: origin.id.0.clone(),
                actor: origin.caller.actor.clone(),
                description: fields.string("description")?.map(|text| text::description(&text)).transpose()?,
                metadata: fields.object("metadata")?.map(Arc::from),
            },
        })
    }

    fn action(self, fields: &Fields<'_>) -> Result<Action, Problem> {
        let freeze_only = |names: &[&'static str]| fields.refuse(names, "belongs to a freeze");
        let expiry = ["expires_at", "expires_in_seconds"];
        if self != Self::Freeze {
            freeze_only(&expiry)?;
        }
        if self != Self::Debit {
            fields.refuse(&["release_remainder"], "belongs to a debit of a freeze")?;
        }
        if !matches!(self, Self::Debit | Self::Unfreeze) {
            fields.refuse(&["freeze_id"], "belongs to a debit of a freeze and to an unfreeze")?;
        }
        if self != Self::Refund {
            fields.refuse(&["debit_id"], "belongs to a refund")?;
        }
        Ok(match self {
            Self::Credit => Action::Credit { account: account(fields)?, amount: fields.required_amount("amount")? },
            Self::Debit => match transaction_id(fields, "freeze_id")? {
                Some(freeze) => Action::Capture {
                    freeze,
                    named: named(fields)?,
                    amount: fields.amount("amount")?,
                    release_remainder: fields.boolean("release_remainder")?,
                },
                None => {
                    fields.refuse(&["release_remainder"], "belongs to a debit of a freeze: name its freeze_id")?;
                    Action::Debit { account: account(fields)?, amount: fields.required_amount("amount")? }
                }
            },
            Self::Freeze => Action::Freeze {
                account: account(fields)?,
                amount: fields.required_amount("amount")?,
                expiry: read_expiry(fields)?,
            },
            Self::Unfreeze => Action::Unfreeze {
                freeze: transaction_id(fields, "freeze_id")?.ok_or_else(|| missing("freeze_id"))?,
                named: named(fields)?,
                amount: fields.amount("amount")?,
            },
            Self::Refund => Action::Refund {
                debit: transaction_id(fields, "debit_id")?.ok_or_else(|| missing("debit_id"))?,
                named: named(fields)?,
                amount: fields.amount("amount")?,
            },
        })
    }
}

fn account(fields: &Fields<'_>) -> Result<Account, Problem> {
    Ok(Account::new(&fields.required_string("user_id")?, &fields.required_string("credit_type")?)?)
}

fn named(fields: &Fields<'_>) -> Result<NamedAccount, Problem> {
    let (user_id, credit_type) = (fields.string("user_id")?, fields.string("credit_type")?);
    // Judged by the same rules as a whole account's name.
    Account::new(user_id.as_deref().unwrap_or("-"), credit_type.as_deref().unwrap_or("-"))?;
    Ok(NamedAccount { user_id: user_id.map(Into::into), credit_type: credit_type.map(Into::into) })
}

/// A transaction's id. A UUID that no ledger gives is not found, like one that this ledger did not give.
fn transaction_id(fields: &Fields<'_>, name: &'static str) -> Result<Option<TransactionId>, Problem> {
    let Some(uuid) = fields.uuid(name)? else { return Ok(None) };
    let code = if name == "debit_id" { "debit_not_found" } else { "freeze_not_found" };
    TransactionId::from_uuid(uuid).map(Some).ok_or_else(|| Problem::unknown_id(code, name, &uuid.to_string()))
}

fn read_expiry(fields: &Fields<'_>) -> Result<Option<Expiry>, Problem> {
    let at = fields.string("expires_at")?;
    let seconds = fields.number("expires_in_seconds")?;
    match (at, seconds) {
        (Some(_), Some(_)) => Err(Problem::invalid("expires_in_seconds", "and expires_at exclude each other")),
        (Some(at), None) => Timestamp::parse(&at)
            .map(|at| Some(Expiry::At(at)))
            .ok_or_else(|| Problem::invalid("expires_at", "must be a time such as 2026-11-20T12:00:00Z (RFC 3339)")),
        (None, Some(seconds)) if !(1..=LIFETIME_SECONDS_MAX).contains(&seconds) => {
            Err(Problem::invalid("expires_in_seconds", format!("must be from 1 to {LIFETIME_SECONDS_MAX}")))
        }
        (None, Some(seconds)) => Ok(Some(Expiry::InSeconds(seconds))),
        (None, None) => Ok(None),
    }
}

pub(crate) async fn credit(
    service: State<Service>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    run(Kind::Credit, &service, &origin, &headers, body).await
}

pub(crate) async fn debit(
    service: State<Service>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    run(Kind::Debit, &service, &origin, &headers, body).await
}

pub(crate) async fn freeze(
    service: State<Service>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    run(Kind::Freeze, &service, &origin, &headers, body).await
}

pub(crate) async fn unfreeze(
    service: State<Service>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    run(Kind::Unfreeze, &service, &origin, &headers, body).await
}

pub(crate) async fn refund(
    service: State<Service>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    run(Kind::Refund, &service, &origin, &headers, body).await
}

async fn run(
    kind: Kind,
    service: &Service,
    origin: &Origin,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let content = content::read(&service.bodies, headers, body, COMMAND_BYTES_MAX).await?;
    let mut command = read(kind, &content, origin)?;
    // What it said is in the command now; its room is for others while this one waits.
    drop(content);
    insist(&mut command, if_match(headers)?)?;
    service.lifetimes.apply(&service.ledger, &mut command).await?;
    let left = service.limits.take(&origin.caller, &service.database, std::slice::from_ref(&command)).await?;
    let began = std::time::Instant::now();
    let mut outcome = execute(service, command).await;
    kind.seconds().record(began.elapsed().as_secs_f64());
    if let (Ok(response), Some(left)) = (&mut outcome, left) {
        left.add_to(response.headers_mut());
    }
    outcome
}

/// Reads a command that comes alone.
pub(crate) fn read(kind: Kind, content: &[u8], origin: &Origin) -> Result<Command, Problem> {
    let fields = body::read(content, COMMAND_FIELDS)?;
    fields.refuse(&["type"], "belongs to a batch; the path says what this is")?;
    kind.command(&fields, origin)
}

/// `If-Match` says the same as `expected_version`.
pub(crate) fn insist(command: &mut Command, version: Option<u64>) -> Result<(), Problem> {
    match (command.expected_version, version) {
        (Some(expected), Some(version)) if expected != version => {
            Err(Problem::invalid("expected_version", "and If-Match say different versions"))
        }
        (expected, version) => {
            command.expected_version = expected.or(version);
            Ok(())
        }
    }
}

/// Does a command and answers with its transaction.
pub(crate) async fn execute(service: &Service, command: Command) -> Result<Response, Problem> {
    let recorded = apply(service, command).await?;
    let mut response = answer(&recorded);
    response.extensions_mut().insert(Did::of(outcome(&recorded)));
    Ok(response)
}

/// Does a command, from wherever it came.
pub(crate) async fn apply(service: &Service, command: Command) -> Result<Recorded, Problem> {
    let named = Named::of(&command);
    match service.ledger.execute(command).await {
        Ok(recorded) => {
            count(recorded.event.event_type, recorded.replayed, 1);
            Ok(recorded)
        }
        Err(error) => Err(named.problem(&error)),
    }
}

/// What the audit says of a command that is done.
pub(crate) fn outcome(recorded: &Recorded) -> Outcome {
    let event = recorded.event.clone();
    if recorded.replayed { Outcome::Replayed(event) } else { Outcome::Recorded(event) }
}

/// Counts commands that are done.
pub(crate) fn count(event_type: EventType, replayed: bool, commands: u64) {
    static COUNTERS: [[OnceLock<metrics::Counter>; 2]; 8] = [const { [const { OnceLock::new() }; 2] }; 8];
    let outcome = if replayed { "replayed" } else { "recorded" };
    COUNTERS[event_type as usize][usize::from(replayed)]
        .get_or_init(|| metrics::counter!("ledger_commands_total", "type" => event_type.name(), "outcome" => outcome))
        .increment(commands);
}

/// Whom a command named, for its refusal.
pub(crate) struct Named(Option<Account>);

impl Named {
    pub(crate) fn of(command: &Command) -> Self {
        command.action.account().map_or(Self(None), Self::of_account)
    }

    pub(crate) fn of_account(account: &Account) -> Self {
        Self(Some(account.clone()))
    }

    pub(crate) fn problem(&self, error: &ledger_store::CommandError) -> Problem {
        let names = self.0.as_ref().map(|account| (&**account.user_id(), &**account.credit_type()));
        let (user_id, credit_type) = names.unzip();
        Problem::command(error, user_id, credit_type).about(self.0.as_ref())
    }
}

fn answer(recorded: &Recorded) -> Response {
    let transaction = Transaction { event: &recorded.event, replayed: Some(recorded.replayed) };
    let mut body = Vec::with_capacity(TRANSACTION_BYTES);
    serde_json::to_writer(&mut body, &transaction).expect("an event is JSON");
    if recorded.replayed {
        let mut response = json(StatusCode::OK, body);
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
        return response;
    }
    let mut response = json(StatusCode::CREATED, body);
    let location = format!("/v1/transactions/{}", recorded.event.transaction_id);
    let location = HeaderValue::from_str(&location).expect("an id is plain text");
    response.headers_mut().insert(header::LOCATION, location);
    response
}
