//! What both examples need: a client of the ledger's HTTP interface.

use reqwest::StatusCode;
use serde_json::Value;

/// A ledger somewhere.
#[derive(Debug, Clone)]
pub struct Ledger {
    url: String,
    client: reqwest::Client,
}

/// The ledger did not answer, or not as it promises.
#[derive(Debug)]
pub struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Attempts of one request. Each command bears its business key, so a repeat does nothing twice.
const ATTEMPTS: u32 = 5;

impl Ledger {
    /// The ledger at `url`, such as `http://127.0.0.1:8080`; `key` is an API key, where the ledger asks for one.
    ///
    /// # Errors
    ///
    /// When the key cannot be sent.
    pub fn new(url: &str, key: Option<&str>) -> Result<Self, Unreachable> {
        let mut headers = reqwest::header::HeaderMap::new();
        if let Some(key) = key {
            let value =
                format!("Bearer {key}").parse().map_err(|_| Unreachable("the API key is no text".to_owned()))?;
            headers.insert(reqwest::header::AUTHORIZATION, value);
        }
        let client = reqwest::Client::builder()
            .default_headers(headers)
            .timeout(std::time::Duration::from_secs(40))
            .build()
            .map_err(|error| Unreachable(error.to_string()))?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), client })
    }

    /// Posts a command and gives what the ledger decided: a transaction, or a problem with its `code`. A time-out and a 503
    /// are tried again: what was done already is answered again.
    ///
    /// # Errors
    ///
    /// When there is no decision after several attempts; `GET /v1/operations/{id}` tells it later.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, Value), Unreachable> {
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            tokio::time::sleep(std::time::Duration::from_millis(u64::from(attempt * attempt) * 200)).await;
            match self.client.post(format!("{}{path}", self.url)).json(body).send().await {
                Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => "503".clone_into(&mut last),
                Ok(answer) => {
                    let status = answer.status();
                    match answer.json().await {
                        Ok(body) => return Ok((status, body)),
                        Err(error) => last = error.to_string(),
                    }
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(Unreachable(format!("{path}: no decision after {ATTEMPTS} attempts: {last}")))
    }

    /// Gets a path.
    ///
    /// # Errors
    ///
    /// When the ledger does not answer.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, Value), Unreachable> {
        let unreachable = |error: reqwest::Error| Unreachable(format!("{path}: {error}"));
        let answer = self.client.get(format!("{}{path}", self.url)).send().await.map_err(unreachable)?;
        let status = answer.status();
        Ok((status, answer.json().await.map_err(unreachable)?))
    }
}
