//! `POST /v1/operations` and `POST …/steps/{name}`: flows of several steps, as their callers describe them.

use std::collections::HashSet;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use chrono::Utc;
use ledger_core::{InvalidField, Timestamp, operation, text};
use ledger_store::{
    Unavailable,
    operations::{Operation, Record},
    refusals::Time,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use uuid::Uuid;

use super::{Status, document, id, known, told, verbatim};
use crate::{
    access::Caller,
    body::{self, missing},
    commands, content,
    problem::Problem,
    request::{Origin, Path, json},
    service::Service,
};

/// Steps of one flow.
const STEPS_MAX: usize = 64;
/// A flow's or a step's name, in characters.
const NAME_CHARS_MAX: usize = 64;
/// What a flow's opening is recorded as.
const OPENED: &str = "opened";
/// Rows of one flow: steps that are tried again and again come to an end.
const RECORDS_MAX: usize = 10_000;
/// Attempts to add a row while others add theirs.
const ATTEMPTS: usize = 100;

/// What is kept of a flow's opening.
#[derive(Serialize, Deserialize)]
struct Opening {
    steps: Vec<String>,
    description: Option<String>,
}

/// A flow as its records tell it.
pub(super) struct Flow<'a> {
    pub(super) name: &'a str,
    pub(super) steps: Vec<Step<'a>>,
}

/// What became of a step last.
#[derive(Serialize)]
pub(super) struct Step<'a> {
    name: String,
    /// `pending` until something is said of it.
    status: &'a str,
    data: Option<Box<RawValue>>,
    recorded_at: Option<Timestamp>,
    actor: Option<&'a str>,
    request_id: Option<&'a str>,
}

impl<'a> Flow<'a> {
    /// The flow, if one was opened.
    pub(super) fn of(operation: &'a Operation) -> Option<Self> {
        let first = operation.records.first().filter(|record| record.number == 0)?;
        let opening: Opening = serde_json::from_str(first.data.as_deref().unwrap_or_default()).ok()?;
        let steps = opening.steps.into_iter().map(|name| {
            let last = operation.records.iter().rfind(|record| record.number > 0 && record.name == name);
            Step {
                name,
                status: last.map_or("pending", |record| &record.status),
                data: last.and_then(|record| record.data.as_deref()).map(verbatim),
                recorded_at: last.map(|record| record.recorded_at.0),
                actor: last.map(|record| &*record.actor),
                request_id: last.map(|record| &*record.request_id),
            }
        });
        Some(Self { name: &first.name, steps: steps.collect() })
    }

    pub(super) fn status(&self) -> Status {
        if self.steps.iter().any(|step| step.status == "failed") {
            Status::Failed
        } else if self.steps.iter().all(|step| step.status == "completed") {
            Status::Completed
        } else {
            Status::InProgress
        }
    }
}

/// `POST /v1/operations`: opens a flow.
pub(crate) async fn open(
    service: State<Service>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let content = content::read(&service.bodies, &headers, body, commands::COMMAND_BYTES_MAX).await?;
    let fields = body::read(&content, &["operation_id", "name", "steps", "description"])?;
    let name = identifier("name", &fields.required_string("name")?)?;
    let mut steps = Vec::new();
    for (index, element) in fields.elements("steps", STEPS_MAX)?.into_iter().enumerate() {
        let field = format!("steps[{index}]");
        let step: String =
            serde_json::from_str(element.get()).map_err(|_| Problem::invalid(field.clone(), "must be a string"))?;
        steps.push(identifier("steps", &step).map_err(|invalid| Problem::invalid(field, invalid.reason))?);
    }
    if steps.iter().collect::<HashSet<_>>().len() < steps.len() {
        return Err(Problem::invalid("steps", "must have names of their own"));
    }
    let description = fields.string("description")?.map(|text| text::description(&text)).transpose()?;
    let id = fields.uuid("operation_id")?.unwrap_or_else(Uuid::new_v4);
    let opening = Opening { steps, description: description.map(|text| text.to_string()) };
    let data = serde_json::to_string(&opening).expect("names are JSON");
    let record = record(id, 0, &name, OPENED, Some(data), &origin)?;
    let details = [("operation_id", json!(id)), ("name", json!(name))];
    Ok(told_of(record_opening(&service, record, &origin.caller).await, details))
}

async fn record_opening(service: &Service, record: Record, caller: &Caller) -> Result<Response, Problem> {
    let is_new = service.database.record_step(record.clone()).await?;
    let operation = known(service, record.operation_id).await?;
    let first = operation.records.first();
    if !first.is_some_and(|first| first.name == record.name && first.data == record.data) {
        return Err(Problem::operation_conflict(record.operation_id));
    }
    Ok(answer(is_new, &operation, caller))
}

/// `POST /v1/operations/{operation_id}/steps/{name}`: says what became of a step.
pub(crate) async fn step(
    service: State<Service>,
    origin: Origin,
    path: Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = id(&path)?;
    let content = content::read(&service.bodies, &headers, body, commands::COMMAND_BYTES_MAX).await?;
    let fields = body::read(&content, &["status", "data"])?;
    let status = fields.string("status")?.ok_or_else(|| missing("status"))?;
    if !["started", "completed", "failed"].contains(&&*status) {
        return Err(Problem::invalid("status", "must be started, completed or failed"));
    }
    let data = fields.object("data")?.map(str::to_owned);
    let name = path.get("name");
    // A name that no step can have may be as long as a path.
    let step = identifier("name", name).ok();
    let details = [("operation_id", json!(id)), ("step", json!(step)), ("status", json!(&*status))];
    Ok(told_of(record_status(&service, &origin, id, name, &status, data).await, details))
}

async fn record_status(
    service: &Service,
    origin: &Origin,
    id: Uuid,
    name: &str,
    status: &str,
    data: Option<String>,
) -> Result<Response, Problem> {
    for _ in 0..ATTEMPTS {
        let operation = known(service, id).await?;
        let flow = Flow::of(&operation)
            .ok_or_else(|| Problem::unknown_id("operation_not_found", "operation_id", &id.to_string()))?;
        let Some(step) = flow.steps.iter().find(|step| step.name == name) else {
            let names: Vec<_> = flow.steps.iter().map(|step| &*step.name).collect();
            return Err(Problem::step_not_found(name, &names.join(", ")));
        };
        let same_data = data.as_deref() == step.data.as_deref().map(RawValue::get);
        if step.status == status && same_data {
            return Ok(answer(false, &operation, &origin.caller));
        }
        if operation.compensation.is_some() {
            return Err(Problem::operation_compensated(id));
        }
        if step.status == "completed" {
            return Err(Problem::step_conflict(name));
        }
        let number = operation.records.last().map_or(0, |record| record.number) + 1;
        if operation.records.len() >= RECORDS_MAX {
            return Err(Problem::invalid("status", format!("of a flow's steps was told {RECORDS_MAX} times already")));
        }
        let record = record(id, number, name, status, data.clone(), origin)?;
        if service.database.record_step(record).await? {
            return Ok(answer(true, &known(service, id).await?, &origin.caller));
        }
        // Somebody else's row has that number: judge again with it.
    }
    Err(Unavailable::Overloaded.into())
}

fn record(
    id: Uuid,
    number: u32,
    name: &str,
    status: &str,
    data: Option<String>,
    origin: &Origin,
) -> Result<Record, Problem> {
    let now = Timestamp::from_micros(Utc::now().timestamp_micros()).ok_or_else(Problem::internal)?;
    Ok(Record {
        partition: operation::partition(id).number(),
        number,
        operation_id: id,
        recorded_at: Time(now),
        name: name.to_owned(),
        status: status.to_owned(),
        data,
        request_id: origin.id.0.to_string(),
        actor: origin.caller.actor.to_string(),
    })
}

fn identifier(field: &'static str, text: &str) -> Result<String, InvalidField> {
    text::identifier(field, text, NAME_CHARS_MAX).map(|text| text.to_string())
}

/// What was answered or refused, with what the audit says of it: also whether it had been told before.
fn told_of<const N: usize>(outcome: Result<Response, Problem>, details: [(&str, Value); N]) -> Response {
    let mut details: Map<String, Value> = details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Ok(response) = &outcome {
        details.insert("before".to_owned(), (response.status() == StatusCode::OK).into());
    }
    told(outcome, details)
}

fn answer(is_new: bool, operation: &Operation, caller: &Caller) -> Response {
    if !is_new {
        let mut response = json(StatusCode::OK, document(operation, caller));
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
        return response;
    }
    let mut response = json(StatusCode::CREATED, document(operation, caller));
    let location = format!("/v1/operations/{}", operation.id);
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&location).expect("an id is plain text"));
    response
}
