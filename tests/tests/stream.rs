//! `GET /v1/events/stream`: what its clients may rely on.

use std::time::Duration;

use reqwest::{Client, Response};
use tests::{
    Service,
    rewind::{log_of, put_back},
    store,
};

/// What a client has of a stream.
struct Stream {
    response: Response,
    text: String,
}

impl Stream {
    async fn open(service: &Service) -> Self {
        let response = Client::new().get(format!("{}/v1/events/stream?from=start", service.url)).send().await;
        Self { response: response.expect("an answer"), text: String::new() }
    }

    /// Reads on; false at the end.
    async fn read(&mut self) -> bool {
        let chunk = tokio::time::timeout(Duration::from_secs(60), self.response.chunk()).await.expect("in time");
        let Some(chunk) = chunk.expect("it ends whole") else { return false };
        self.text.push_str(std::str::from_utf8(&chunk).expect("whole messages"));
        true
    }

    async fn until_events(&mut self, count: usize) {
        while self.text.matches("data:").count() < count {
            assert!(self.read().await, "it ended early: {}", self.text);
        }
    }

    /// The id that a client comes back with.
    fn last_id(&self) -> &str {
        self.text.lines().filter_map(|line| line.strip_prefix("id:")).next_back().expect("an id").trim()
    }
}

async fn credit(service: &Service, what: &str, count: usize) {
    for number in 0..count {
        service.credit("ann", 1, &format!("{what}-{number}")).await;
    }
}

/// On SQLite nobody may have the file open while a log is restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_where_the_log_is_restored_and_whoever_saw_what_was_undone_begins_again() {
    let database = store::postgres();
    // What a restore without read models leaves there is no drift that anybody should hear of.
    let arguments = ["--proof-round", "0"];
    let service = Service::start(&database.url, &arguments);
    credit(&service, "before", 5).await;
    let kept = log_of(&database.url).await;
    let mut stream = Stream::open(&service).await;
    credit(&service, "undone", 5).await;
    stream.until_events(10).await;
    put_back(&database.url, kept, 7).await;
    // More than was undone, so that there are new events past those that the client has seen.
    let other = Service::start(&database.url, &arguments);
    credit(&other, "after", 10).await;
    while stream.read().await {
        assert!(!stream.text.contains(r#""epoch":7"#), "it goes on as if nothing had happened: {}", stream.text);
    }
    assert_eq!(stream.text.matches("data:").count(), 10);

    let again = Client::new().get(format!("{}/v1/events/stream", other.url)).header("last-event-id", stream.last_id());
    let again = again.send().await.expect("an answer");
    assert_eq!(again.status().as_u16(), 400);
    assert!(again.text().await.expect("a problem").contains("Last-Event-ID"));
    // One that begins in the new epoch goes on.
    let mut stream = Stream::open(&other).await;
    stream.until_events(15).await;
    credit(&other, "and on", 1).await;
    stream.until_events(16).await;
    assert!(stream.text.contains(r#""epoch":7"#) && !stream.text.contains("undone"), "{}", stream.text);
}
