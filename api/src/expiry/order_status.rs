//! What became of an order, asked of the order system before its freeze is released.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use ledger_core::Event;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::timeout;

/// How long the order system may take for a whole answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer is at most so long, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The statuses of an order that keep its freeze.
const PAID: [&str; 2] = ["completed", "paid"];
/// What needs no encoding anywhere in a URL (RFC 3986 §2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where to ask, with places for what is asked about.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    text: String,
    is_https: bool,
}

impl Template {
    /// # Errors
    ///
    /// What is wrong with it, in one line that does not repeat it: it may hold a secret.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let refused =
            |why: &str| format!("--order-status-url {why}, such as https://shop.example/orders/{{business_id}}");
        let is_https = text.starts_with("https://");
        if !is_https && !text.starts_with("http://") {
            return Err(refused("must begin with http:// or https://"));
        }
        if !text.contains("{business_id}") {
            return Err(refused("must contain {business_id}"));
        }
        let filled = fill(text, "1", "1", "1");
        if filled.contains(['{', '}']) {
            return Err(refused("may contain {business_id}, {business_code} and {user_id} and no other braces"));
        }
        let uri: Uri = filled.parse().map_err(|_| refused("must be a URL"))?;
        let host_end = text.find("://").map_or(0, |at| at + 3);
        let authority = text[host_end..].split(['/', '?', '#']).next().unwrap_or_default();
        if uri.host().is_none_or(str::is_empty) || authority.contains('{') {
            return Err(refused("must name the host itself"));
        }
        if authority.contains('@') {
            return Err(refused("must not hold a user and a password, which would not be sent"));
        }
        Ok(Self { text: text.to_owned(), is_https })
    }

    fn url(&self, event: &Event) -> String {
        fill(&self.text, event.key.id(), event.key.code(), event.account.user_id())
    }
}

/// Puts what is asked about into its places. What is put in has no braces any more.
fn fill(text: &str, business_id: &str, business_code: &str, user_id: &str) -> String {
    [("{business_id}", business_id), ("{business_code}", business_code), ("{user_id}", user_id)]
        .into_iter()
        .fold(text.to_owned(), |url, (place, value)| {
            url.replace(place, &utf8_percent_encode(value, ENCODED).to_string())
        })
}

/// What is known of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// It is paid: its freeze will be captured.
    Paid(String),
    /// It is not, or there is none.
    NotPaid,
    /// Why that cannot be told.
    Unknown(String),
}

/// The order system.
pub(crate) struct OrderStatus {
    template: Template,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

#[derive(Deserialize)]
struct Answer {
    status: String,
}

impl OrderStatus {
    /// # Errors
    ///
    /// When a certificate could not be checked, in one line.
    pub(crate) fn new(template: Template) -> Result<Self, String> {
        let provider = rustls::crypto::ring::default_provider();
        let tls = HttpsConnectorBuilder::new();
        let connector = if template.is_https {
            tls.with_provider_and_native_roots(provider)
                .map_err(|error| format!("--order-status-url: the system's certificates cannot be read: {error}"))?
        } else {
            // No certificate is ever looked at, and a machine without any is fine.
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(|error| format!("--order-status-url: {error}"))?;
            tls.with_tls_config(config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
        };
        let client = Client::builder(TokioExecutor::new()).build(connector.https_or_http().enable_http1().build());
        Ok(Self { template, client })
    }

    /// Where it asks, for people: without the query, which may hold a secret.
    pub(crate) fn describe(&self) -> &str {
        self.template.text.split(['?', '#']).next().unwrap_or_default()
    }

    /// Asks what became of the order that a freeze was made for.
    pub(super) async fn ask(&self, event: &Event) -> Order {
        match timeout(PATIENCE, self.answer(event)).await {
            Ok(Ok(order)) => order,
            Ok(Err(why)) => Order::Unknown(why),
            Err(_) => Order::Unknown(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    async fn answer(&self, event: &Event) -> Result<Order, String> {
        let request = Request::get(self.template.url(event))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("ledger/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let response = self.client.request(request).await.map_err(|error| chain(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("its answer broke off: {error}"))?.to_bytes();
        read(status, &body)
    }
}

fn read(status: StatusCode, body: &[u8]) -> Result<Order, String> {
    match status {
        StatusCode::NOT_FOUND => Ok(Order::NotPaid),
        StatusCode::OK => {
            // serde takes an array for a struct, too.
            let is_object = body.trim_ascii_start().starts_with(b"{");
            let answer: Answer = serde_json::from_slice(body)
                .ok()
                .filter(|_| is_object)
                .ok_or("its answer is not a JSON object with a text as status")?;
            let order = answer.status.trim().to_ascii_lowercase();
            if order.is_empty() {
                return Err("the status in its answer is empty".to_owned());
            }
            Ok(if PAID.contains(&order.as_str()) { Order::Paid(order) } else { Order::NotPaid })
        }
        other => Err(format!("it answers {other}")),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_and_what_is_put_in_cannot_change_its_shape() {
        let template = "https://shop.example/{user_id}/orders/{business_id}?step={business_code}";
        assert!(Template::parse(template).is_ok());
        assert_eq!(
            fill(template, "A/../B?x={user_id}&y#z", "order.create", "ä b"),
            "https://shop.example/%C3%A4%20b/orders/A%2F..%2FB%3Fx%3D%7Buser_id%7D%26y%23z?step=order.create"
        );
    }

    #[test]
    fn a_template_that_cannot_be_asked_is_refused_without_being_repeated() {
        for (text, why) in [
            ("shop.example/{business_id}", "must begin with http"),
            ("ftp://shop.example/{business_id}", "must begin with http"),
            ("http://shop.example/orders?secret=s3cret", "must contain {business_id}"),
            ("http://shop.example/{business_id}/{order}", "no other braces"),
            ("http://shop.example/{business_id}/{", "no other braces"),
            ("http:///{business_id}", "must"),
            ("http://{business_id}/", "must name the host"),
            ("http://{business_id}.shop.example/", "must name the host"),
            ("http://shop.example/ {business_id}", "must be a URL"),
            ("http://ann:s3cret@shop.example/{business_id}", "must not hold a user"),
        ] {
            let refused = Template::parse(text).expect_err(text);
            assert!(refused.contains(why) && refused.starts_with("--order-status-url "), "{text}: {refused}");
            assert!(!refused.contains("s3cret") && !refused.contains('\n'), "{refused}");
        }
    }

    #[test]
    fn only_a_known_answer_decides() {
        let read = |status: u16, body: &str| read(StatusCode::from_u16(status).expect("a status"), body.as_bytes());
        for body in [r#"{"status":"paid"}"#, r#"{"id":1,"status":" Completed ","lines":[]}"#] {
            assert!(matches!(read(200, body), Ok(Order::Paid(_))), "{body}");
        }
        for (status, body) in [(200, r#"{"status":"cancelled"}"#), (200, r#"{"status":"unpaid"}"#), (404, "")] {
            assert_eq!(read(status, body), Ok(Order::NotPaid), "{status} {body}");
        }
        for (status, body) in [
            (200, ""),
            (200, "paid"),
            (200, r#""paid""#),
            (200, r#"{"status":null}"#),
            (200, r#"{"status":7}"#),
            (200, r#"{"status":" "}"#),
            (200, r#"{"state":"paid"}"#),
            (200, r#"["cancelled"]"#),
            (200, r#"{"status":"paid","status":"cancelled"}"#),
            (200, "<html>"),
            (204, ""),
            (302, ""),
            (401, r#"{"status":"cancelled"}"#),
            (429, ""),
            (500, r#"{"status":"cancelled"}"#),
            (503, ""),
        ] {
            assert!(read(status, body).is_err(), "{status} {body}");
        }
    }
}
