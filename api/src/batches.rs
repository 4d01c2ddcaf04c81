//! `POST /v1/batches`.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use ledger_core::{Command, json::Transaction};
use ledger_store::{BatchError, CommandError, Recorded};
use serde_json::value::RawValue;

use crate::{
    body,
    commands::{COMMAND_FIELDS, Kind, Named},
    problem::Problem,
    request::{RequestId, json, json_body},
    service::Service,
};

/// A batch's body is at most so large, in bytes.
const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A batch has at most so many commands.
const BATCH_COMMANDS_MAX: usize = 10_000;

pub(crate) async fn run(
    State(service): State<Service>,
    id: RequestId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let text = json_body(&service, &headers, body, BATCH_BYTES_MAX).await?;
    let fields = body::read(&text, &["atomic", "commands"])?;
    let atomic = fields.boolean("atomic")?.unwrap_or(true);
    let elements = fields.elements("commands")?;
    if elements.is_empty() || elements.len() > BATCH_COMMANDS_MAX {
        return Err(Problem::invalid("commands", format!("must have 1 to {BATCH_COMMANDS_MAX} elements")));
    }
    let commands = elements
        .iter()
        .enumerate()
        .map(|(index, element)| parse(element, &id).map_err(|problem| problem.inside(index)));
    if atomic {
        run_atomic(&service, &id, commands.collect::<Result<_, _>>()?).await
    } else {
        Ok(run_each(&service, &id, commands.collect()).await)
    }
}

fn parse(element: &RawValue, id: &RequestId) -> Result<Command, Problem> {
    let fields = body::read(element.get(), COMMAND_FIELDS)?;
    let name = fields.required_string("type")?;
    let kind = Kind::of_name(&name)
        .ok_or_else(|| Problem::invalid("type", "must be credit, debit, freeze, unfreeze or refund"))?;
    kind.command(&fields, id)
}

async fn run_atomic(service: &Service, id: &RequestId, commands: Vec<Command>) -> Result<Response, Problem> {
    let named: Vec<_> = commands.iter().map(Named::of).collect();
    match service.ledger.execute_atomic(commands).await {
        Ok(recorded) => {
            count(&recorded);
            let status =
                if recorded.iter().all(|recorded| recorded.replayed) { StatusCode::OK } else { StatusCode::CREATED };
            let results: Vec<_> = recorded.iter().map(transaction).collect();
            Ok(json(status, results_body(&results)))
        }
        Err(BatchError::Rejected { index, rejection }) => {
            let problem = named[index].problem(&CommandError::Rejected(rejection));
            Err(Problem::batch_rejected(index, &problem, &id.0))
        }
        Err(BatchError::Unavailable(unavailable)) => Err(unavailable.into()),
    }
}

/// Each on its own: a command that cannot be read is a problem in its place.
async fn run_each(service: &Service, id: &RequestId, parsed: Vec<Result<Command, Problem>>) -> Response {
    let mut named = Vec::with_capacity(parsed.len());
    let mut commands = Vec::with_capacity(parsed.len());
    for command in parsed {
        named.push(command.as_ref().map(Named::of).map_err(Clone::clone));
        commands.extend(command);
    }
    let mut outcomes = service.ledger.execute_each(commands).await.into_iter();
    let mut results = Vec::with_capacity(named.len());
    for command in named {
        results.push(match command {
            Err(problem) => problem.document(&id.0).to_string(),
            Ok(named) => match outcomes.next() {
                Some(Ok(recorded)) => {
                    count(std::slice::from_ref(&recorded));
                    transaction(&recorded)
                }
                Some(Err(error)) => named.problem(&error).document(&id.0).to_string(),
                None => Problem::internal().document(&id.0).to_string(),
            },
        });
    }
    json(StatusCode::OK, results_body(&results))
}

fn count(recorded: &[Recorded]) {
    for recorded in recorded {
        metrics::counter!("ledger_commands_total", "type" => recorded.event.event_type.name(),
            "outcome" => if recorded.replayed { "replayed" } else { "recorded" })
        .increment(1);
    }
}

fn transaction(recorded: &Recorded) -> String {
    let transaction = Transaction { event: &recorded.event, replayed: Some(recorded.replayed) };
    serde_json::to_string(&transaction).expect("an event is JSON")
}

fn results_body(results: &[String]) -> String {
    format!("{{\"results\":[{}]}}", results.join(","))
}
