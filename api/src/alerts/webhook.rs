//! Alerts as signed HTTP requests.
//!
//! `X-Ledger-Signature: t=<Unix seconds>,v1=<hex>`, where `v1` is the HMAC-SHA256 of `<t>.<body>` under the shared secret. The
//! time is each attempt's, so that a receiver can refuse what is old.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::{Request, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use sha2::Sha256;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Raised, WAITING_MAX, delivered, undelivered};
use crate::backoff;

pub(super) const TARGET: &str = "webhook";
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// The pause after a failure, doubled up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// After so long an alert is given up.
const GIVE_UP: Duration = Duration::from_secs(6 * 60 * 60);
/// Requests under way at once.
const REQUESTS_MAX: usize = 8;
/// A secret that is shorter can be guessed; one that is longer is a mistake.
const SECRET_CHARS: std::ops::RangeInclusive<usize> = 16..=256;

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Where alerts are posted to, and what they are signed with. Not to be printed: the address may hold a token.
pub(crate) struct Webhook {
    uri: Uri,
    secret: String,
    client: HttpClient,
}

impl Webhook {
    /// Checks what was set. `Err` is what is wrong with it, without repeating any of it.
    pub(crate) fn new(url: &str, secret: Option<&str>) -> Result<Self, String> {
        let refused = || "--alert-webhook-url must be a URL such as https://hooks.example.org/ledger".to_owned();
        let uri: Uri = url.parse().map_err(|_| refused())?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().filter(|authority| is_http && !authority.host().is_empty());
        if authority.ok_or_else(refused)?.as_str().contains('@') {
            return Err(
                "--alert-webhook-url must not hold a user or password: the receiver checks the signature".to_owned()
            );
        }
        let Some(secret) = secret else {
            return Err(
                "--alert-webhook-url needs --alert-webhook-secret, which alerts are signed with: make one with \
                 `openssl rand -hex 32`"
                    .to_owned(),
            );
        };
        if !SECRET_CHARS.contains(&secret.len()) || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "--alert-webhook-secret must have {} to {} visible ASCII characters: make one with `openssl rand -hex 32`",
                SECRET_CHARS.start(),
                SECRET_CHARS.end()
            ));
        }
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| format!("--alert-webhook-url: the system's certificates cannot be read: {error}"))?
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { uri, secret: secret.to_owned(), client })
    }

    /// Posts each alert until it is taken or given up. Each waits on its own, so that one that is not taken holds up no
    /// other.
    pub(super) async fn deliver(self, mut alerts: mpsc::Receiver<Arc<Raised>>) {
        let webhook = Arc::new(self);
        let turns = Arc::new(Semaphore::new(REQUESTS_MAX));
        let mut deliveries = JoinSet::new();
        while let Some(alert) = alerts.recv().await {
            while deliveries.try_join_next().is_some() {}
            if deliveries.len() >= WAITING_MAX {
                undelivered(TARGET);
                continue;
            }
            deliveries.spawn(webhook.clone().deliver_one(alert, turns.clone()));
        }
        while deliveries.join_next().await.is_some() {}
    }

    async fn deliver_one(self: Arc<Self>, alert: Arc<Raised>, turns: Arc<Semaphore>) {
        let began = Instant::now();
        let mut failures = 0;
        loop {
            let outcome = {
                let Ok(_turn) = turns.acquire().await else { return };
                timeout(ATTEMPT, self.post(&alert)).await.unwrap_or_else(|_| Err("it did not answer".to_owned()))
            };
            let Err(why) = outcome else {
                delivered(TARGET);
                return;
            };
            failures += 1;
            metrics::counter!("ledger_alert_webhook_failures_total").increment(1);
            if began.elapsed() >= GIVE_UP {
                tracing::error!(alert_id = %alert.id, failures, why, "the webhook never took an alert: it is given up");
                undelivered(TARGET);
                return;
            }
            if failures == 1 {
                tracing::warn!(alert_id = %alert.id, why, "the webhook did not take an alert; trying again");
            }
            tokio::time::sleep(backoff::pause(failures, PAUSE, PAUSE_MAX)).await;
        }
    }

    async fn post(&self, alert: &Raised) -> Result<(), String> {
        let signature = signature(&self.secret, chrono::Utc::now().timestamp(), &alert.body);
        let request = Request::post(&self.uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("credit-ledger/", env!("CARGO_PKG_VERSION")))
            .header("X-Ledger-Alert-Id", alert.id.to_string())
            .header("X-Ledger-Signature", signature)
            .body(Full::new(alert.body.clone()))
            .map_err(|_| "no request can be made of it".to_owned())?;
        // The error may repeat the address.
        let response = self.client.request(request).await.map_err(|error| {
            if error.is_connect() { "it cannot be reached".to_owned() } else { "the connection broke".to_owned() }
        })?;
        if response.status().is_success() { Ok(()) } else { Err(format!("it answers {}", response.status())) }
    }
}

/// What the header says of a body that is sent at a time.
fn signature(secret: &str, unix_seconds: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(unix_seconds.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    let digest = mac.finalize().into_bytes();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={unix_seconds},v1={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_hmac_sha256_of_time_and_body() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(
            signature("0123456789abcdef", 1_700_000_000, br#"{"a":1}"#),
            "t=1700000000,v1=9eb18f493f8ec135d9eb2dad817c369bb4e9cbfa818657897a7437c1cd8c3a23"
        );
    }

    #[test]
    fn what_is_wrong_is_told_without_repeating_it() {
        let secret = Some("0123456789abcdef0123456789abcdef");
        for (url, secret, told) in [
            ("hooks.example.org", secret, "must be a URL"),
            ("ftp://hooks.example.org/x", secret, "must be a URL"),
            ("https://", secret, "must be a URL"),
            ("https://tok en@x", secret, "must be a URL"),
            ("https://ann:hush@hooks.example.org/", secret, "must not hold a user"),
            ("https://hooks.example.org/hush", None, "needs --alert-webhook-secret"),
            ("https://hooks.example.org/hush", Some("hush"), "16 to 256"),
            ("https://hooks.example.org/hush", Some("hush hush hush hush"), "16 to 256"),
        ] {
            let why = Webhook::new(url, secret).err().expect("refused");
            assert!(why.contains(told), "{url}: {why}");
            assert!(!why.contains("hush") && !why.contains('\n'), "{why}");
        }
        assert!(Webhook::new("http://127.0.0.1:1/x", secret).is_ok());
    }
}
