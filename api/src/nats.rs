//! The connections to NATS that the service holds besides the publisher's.

use std::time::Duration;

use async_nats::{
    Client, ConnectOptions,
    jetstream::{
        self, Context,
        stream::{self, Stream},
    },
};

/// How long the server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before an address that cannot be used at all is tried again: its host may get a name yet.
const PAUSE: Duration = Duration::from_secs(5);

/// A connection that comes back by itself, for ever. The server may be away at first, too.
pub(crate) async fn connect(url: &str, name: &str) -> Client {
    loop {
        let connecting = ConnectOptions::new()
            .connection_timeout(CONNECT_TIMEOUT)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .name(name)
            .connect(url)
            .await;
        match connecting {
            Ok(client) => return client,
            // The error may repeat the address, which may hold a password.
            Err(error) => tracing::warn!(kind = %error.kind(), name, "NATS cannot be used; trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// JetStream over a connection.
pub(crate) fn jetstream(client: Client) -> Context {
    jetstream::context::ContextBuilder::new().timeout(ANSWER).ack_timeout(ANSWER).build(client)
}

/// Opens a stream, creates it when it is missing, and adds subjects that it lacks. What an operator set stays.
pub(crate) async fn open_stream(context: &Context, config: stream::Config) -> Result<Stream, String> {
    let (name, subjects) = (config.name.clone(), config.subjects.clone());
    let failed = |error: String| format!("the stream {name} cannot be opened: {error}");
    let opened = context.get_or_create_stream(config).await.map_err(|error| failed(error.to_string()))?;
    let mut there = opened.cached_info().config.clone();
    let known = there.subjects.len();
    for subject in subjects {
        if !there.subjects.contains(&subject) {
            there.subjects.push(subject);
        }
    }
    if there.subjects.len() > known {
        context.update_stream(&there).await.map_err(|error| failed(error.to_string()))?;
    }
    Ok(opened)
}
