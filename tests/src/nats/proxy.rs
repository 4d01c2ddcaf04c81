//! A way to a nats-server on which something can go wrong at a certain point.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::Nats;

/// What becomes of the first connection over which a client sends a certain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing goes either way, from that text on until the release.
    Held,
    /// The server gets everything, the client no answer any more; with the release the connection ends.
    Unanswered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Met,
    Released,
}

/// Stands between clients and a nats-server, gone with the value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    server: JoinHandle<()>,
}

impl Proxy {
    /// Lets clients through to the server, until one sends the text.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub async fn start(nats: &Nats, text: &'static str, fate: Fate) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free loopback port");
        let port = listener.local_addr().expect("it listens").port();
        let to = nats.port.expect("it was started");
        let state = watch::Sender::new(State::Waiting);
        let known = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let known = known.clone();
                tokio::spawn(async move {
                    // Either end may go away at any time.
                    let _ = relay(client, to, text, fate, &known).await;
                });
            }
        });
        Self { port, state, server }
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Waits until a client has sent the text.
    ///
    /// # Panics
    ///
    /// When none did within a minute.
    pub async fn met(&self) {
        let mut state = self.state.subscribe();
        let met = timeout(Duration::from_secs(60), state.wait_for(|state| *state != State::Waiting));
        assert!(met.await.is_ok_and(|met| met.is_ok()), "no client sent the text");
    }

    /// Releases what was met; from now on everything is let through.
    pub fn release(&self) {
        self.state.send_replace(State::Released);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn relay(
    client: TcpStream,
    to: u16,
    text: &'static str,
    fate: Fate,
    state: &watch::Sender<State>,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(("127.0.0.1", to)).await?.into_split();
    let (mut asked, mut answered) = (vec![0_u8; 64 * 1024], vec![0_u8; 64 * 1024]);
    let mut sent: Vec<u8> = Vec::new();
    let mut is_unanswered = false;
    let mut released = state.subscribe();
    loop {
        tokio::select! {
            length = from_client.read(&mut asked) => {
                let asked = &asked[..length?];
                if asked.is_empty() {
                    return Ok(());
                }
                sent.extend_from_slice(asked);
                let has_text = sent.windows(text.len()).any(|bytes| bytes == text.as_bytes());
                // The text may come in parts.
                sent.drain(..sent.len().saturating_sub(text.len() - 1));
                if has_text && meet(state) {
                    match fate {
                        Fate::Held => until_released(&mut released).await,
                        Fate::Unanswered => is_unanswered = true,
                    }
                }
                to_server.write_all(asked).await?;
            }
            length = from_server.read(&mut answered) => {
                let answered = &answered[..length?];
                if answered.is_empty() {
                    return Ok(());
                }
                if !is_unanswered {
                    to_client.write_all(answered).await?;
                }
            }
            () = until_released(&mut released), if is_unanswered => return Ok(()),
        }
    }
}

async fn until_released(state: &mut watch::Receiver<State>) {
    // A sender that is gone is gone with its test.
    let _ = state.wait_for(|state| *state == State::Released).await;
}

/// Whether this is the first time.
fn meet(state: &watch::Sender<State>) -> bool {
    state.send_if_modified(|state| {
        let is_first = *state == State::Waiting;
        if is_first {
            *state = State::Met;
        }
        is_first
    })
}
