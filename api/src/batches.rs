//! `POST /v1/batches`.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use ledger_core::{Command, EventType, json::Transaction};
use ledger_store::{BatchError, CommandError, Recorded};
use serde_json::value::RawValue;

use crate::{
    audit::{Outcome, about::Did},
    body,
    commands::{self, COMMAND_FIELDS, Kind, Named, TRANSACTION_BYTES},
    content,
    problem::Problem,
    request::{Origin, RequestId, json},
    service::Service,
};

/// A batch's body is at most so large, in bytes.
const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A batch has at most so many commands.
const BATCH_COMMANDS_MAX: usize = 10_000;

pub(crate) async fn run(
    State(service): State<Service>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if headers.contains_key(header::IF_MATCH) {
        return Err(Problem::invalid("If-Match", "speaks of one account: use the commands' expected_version"));
    }
    let content = content::read(&service.bodies, &headers, body, BATCH_BYTES_MAX).await?;
    // Reading megabytes takes long enough to hold up the requests of this thread: they go to another one.
    let mut batch = tokio::task::block_in_place(|| Batch::read(&content, &origin))?;
    drop(content);
    batch.apply_lifetimes(&service).await?;
    let left = match &batch {
        Batch::Atomic(commands) => service.limits.take(&origin.caller, &service.database, commands).await?,
        Batch::Each(_) => None,
    };
    let mut response = match batch {
        Batch::Atomic(commands) => run_atomic(&service, &origin.id, commands).await?,
        Batch::Each(commands) => run_each(&service, &origin, commands).await,
    };
    if let Some(left) = left {
        left.add_to(response.headers_mut());
    }
    Ok(response)
}

enum Batch {
    Atomic(Vec<Command>),
    Each(Vec<Result<Command, Problem>>),
}

impl Batch {
    fn read(content: &[u8], origin: &Origin) -> Result<Self, Problem> {
        let fields = body::read(content, &["atomic", "commands"])?;
        let atomic = fields.boolean("atomic")?.unwrap_or(true);
        let elements = fields.elements("commands", BATCH_COMMANDS_MAX)?;
        let commands = elements.iter().enumerate().map(|(index, element)| {
            parse(element, origin).map_err(|problem| {
                // An id that no ledger gives can be read, and is refused like one that this ledger did not give.
                if problem.is_not_found() { problem } else { problem.inside(index) }
            })
        });
        if !atomic {
            return Ok(Self::Each(commands.collect()));
        }
        let (mut sound, mut refused) = (Vec::with_capacity(elements.len()), None);
        for (index, command) in commands.enumerate() {
            match command {
                Ok(command) => sound.push(command),
                // What cannot be read is told first.
                Err(problem) if problem.is_not_found() => refused = refused.or(Some((index, problem))),
                Err(problem) => return Err(problem),
            }
        }
        match refused {
            None => Ok(Self::Atomic(sound)),
            Some((index, problem)) => Err(Problem::batch_rejected(index, &problem, &origin.id.0)),
        }
    }

    /// Bounds how long freezes may stay open.
    async fn apply_lifetimes(&mut self, service: &Service) -> Result<(), Problem> {
        match self {
            Self::Atomic(commands) => {
                for (index, command) in commands.iter_mut().enumerate() {
                    let applied = service.lifetimes.apply(&service.ledger, command).await;
                    applied.map_err(|problem| problem.inside(index))?;
                }
            }
            Self::Each(commands) => {
                for (index, command) in commands.iter_mut().enumerate() {
                    let Ok(sound) = command else { continue };
                    if let Err(problem) = service.lifetimes.apply(&service.ledger, sound).await {
                        *command = Err(problem.inside(index));
                    }
                }
            }
        }
        Ok(())
    }
}

fn parse(element: &RawValue, origin: &Origin) -> Result<Command, Problem> {
    let fields = body::read(element.get().as_bytes(), COMMAND_FIELDS)?;
    let name = fields.required_string("type")?;
    let kind = Kind::of_name(&name)
        .ok_or_else(|| Problem::invalid("type", "must be credit, debit, freeze, unfreeze or refund"))?;
    origin.caller.require(kind.scope())?;
    kind.command(&fields, origin)
}

async fn run_atomic(service: &Service, id: &RequestId, commands: Vec<Command>) -> Result<Response, Problem> {
    let named: Vec<_> = commands.iter().map(Named::of).collect();
    match service.ledger.execute_atomic(commands).await {
        Ok(recorded) => {
            count(&recorded);
            let status =
                if recorded.iter().all(|recorded| recorded.replayed) { StatusCode::OK } else { StatusCode::CREATED };
            let mut results = Results::of(recorded.len());
            recorded.iter().for_each(|recorded| results.transaction(recorded));
            let mut response = json(status, results.body());
            response.extensions_mut().insert(did(&recorded, 0));
            Ok(response)
        }
        Err(BatchError::Rejected { index, rejection }) => {
            let problem = named[index].problem(&CommandError::Rejected(rejection));
            Err(Problem::batch_rejected(index, &problem, &id.0))
        }
        Err(BatchError::Unavailable(unavailable)) => Err(unavailable.into()),
    }
}

/// Each on its own: a command that cannot be read is a problem in its place.
async fn run_each(service: &Service, origin: &Origin, parsed: Vec<Result<Command, Problem>>) -> Response {
    let id = &origin.id;
    let mut named = Vec::with_capacity(parsed.len());
    let mut commands = Vec::with_capacity(parsed.len());
    for command in parsed {
        let command = match command {
            Ok(command) => {
                let one = std::slice::from_ref(&command);
                service.limits.take(&origin.caller, &service.database, one).await.map(|_| command)
            }
            refused => refused,
        };
        named.push(command.as_ref().map(Named::of).map_err(Clone::clone));
        commands.extend(command);
    }
    let commands_count = named.len();
    let mut outcomes = service.ledger.execute_each(commands).await.into_iter();
    let mut results = Results::of(named.len());
    let mut done = Vec::with_capacity(named.len());
    for command in named {
        match command {
            Err(problem) => results.problem(&problem, id),
            Ok(named) => match outcomes.next() {
                Some(Ok(recorded)) => {
                    results.transaction(&recorded);
                    done.push(recorded);
                }
                Some(Err(error)) => results.problem(&named.problem(&error), id),
                None => results.problem(&Problem::internal(), id),
            },
        }
    }
    count(&done);
    let refused = commands_count - done.len();
    let mut response = json(StatusCode::OK, results.body());
    response.extensions_mut().insert(did(&done, refused));
    response
}

/// What the audit says of a batch: figures, and the first transaction, by whose request and actor the others are found.
fn did(done: &[Recorded], refused: usize) -> Did {
    let replayed = done.iter().filter(|recorded| recorded.replayed).count();
    let details = serde_json::Map::from_iter([
        ("commands".to_owned(), (done.len() + refused).into()),
        ("recorded".to_owned(), (done.len() - replayed).into()),
        ("replayed".to_owned(), replayed.into()),
        ("refused".to_owned(), refused.into()),
        ("first_transaction_id".to_owned(), done.first().map(|first| first.event.transaction_id.to_string()).into()),
    ]);
    Did { details: Some(Box::new(details)), ..Did::of(Outcome::Done) }
}

/// Counts what was done, by type and outcome.
fn count(recorded: &[Recorded]) {
    let mut counts: BTreeMap<(EventType, bool), u64> = BTreeMap::new();
    for recorded in recorded {
        *counts.entry((recorded.event.event_type, recorded.replayed)).or_default() += 1;
    }
    for ((event_type, replayed), count) in counts {
        commands::count(event_type, replayed, count);
    }
}

/// `{"results":[…]}`, written as the results come: a batch's answer has megabytes.
struct Results(Vec<u8>);

impl Results {
    fn of(count: usize) -> Self {
        let mut body = Vec::with_capacity(32 + count * TRANSACTION_BYTES * 3 / 4);
        body.extend_from_slice(b"{\"results\":[");
        Self(body)
    }

    fn transaction(&mut self, recorded: &Recorded) {
        let transaction = Transaction { event: &recorded.event, replayed: Some(recorded.replayed) };
        self.add(&transaction);
    }

    fn problem(&mut self, problem: &Problem, id: &RequestId) {
        self.add(&problem.document(&id.0));
    }

    fn add(&mut self, result: &impl serde::Serialize) {
        if !self.0.ends_with(b"[") {
            self.0.push(b',');
        }
        serde_json::to_writer(&mut self.0, result).expect("results are JSON");
    }

    fn body(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"]}");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Caller;

    const CREDIT: &str =
        r#"{"type":"credit","user_id":"u1","credit_type":"points","amount":1,"business_code":"b","business_id":"1"}"#;

    fn read(body: &str) -> Result<Batch, Problem> {
        let origin = Origin { id: RequestId("r1".into()), caller: Caller::anonymous() };
        Batch::read(body.as_bytes(), &origin)
    }

    #[test]
    fn a_fault_names_the_command_and_its_field() {
        let bad = CREDIT.replace("\"amount\":1", "\"amount\":0");
        for (body, field) in [
            (format!(r#"{{"commands":[{CREDIT},{bad}]}}"#), "commands[1].amount"),
            (r#"{"commands":[{"type":"lock"}]}"#.to_owned(), "commands[0].type"),
            (r#"{"commands":[{"amount":1}]}"#.to_owned(), "commands[0].type"),
            (r#"{"commands":[{"type":"credit","x":1}]}"#.to_owned(), "commands[0].x"),
            (r#"{"commands":[7]}"#.to_owned(), "commands[0]"),
            (r#"{"commands":[]}"#.to_owned(), "commands"),
            (r#"{"commands":{}}"#.to_owned(), "commands"),
            (r#"{"commands":null}"#.to_owned(), "commands"),
            (format!(r#"{{"commands":[{}0]}}"#, "0,".repeat(BATCH_COMMANDS_MAX)), "commands"),
            (format!(r#"{{"commands":{}}}"#, "[".repeat(100_000)), "commands"),
            (format!(r#"{{"atomic":1,"commands":[{CREDIT}]}}"#), "atomic"),
            (format!(r#"{{"atomik":true,"commands":[{CREDIT}]}}"#), "atomik"),
            ("[]".to_owned(), "body"),
        ] {
            let problem = read(&body).err().expect("refused");
            assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(field)));
        }
    }

    #[test]
    fn where_each_is_on_its_own_an_invalid_command_is_only_its_own_fault() {
        let body = format!(r#"{{"atomic":false,"commands":[{CREDIT},{{"type":"credit"}},{CREDIT}]}}"#);
        let Ok(Batch::Each(commands)) = read(&body) else { panic!("each on its own") };
        let faults: Vec<_> =
            commands.iter().map(|command| command.as_ref().err().and_then(|problem| problem.field())).collect();
        assert_eq!(faults, [None, Some("commands[1].user_id"), None]);
    }
}
