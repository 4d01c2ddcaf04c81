//! A receiver of webhooks, on a loopback port.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::children::free_port;

/// A request that was received.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The headers, their names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Delivered {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A webhook's receiver. It is down until it is told to listen.
#[derive(Debug)]
pub struct Webhook {
    port: u16,
    received: Arc<Mutex<Vec<Delivered>>>,
    server: Option<JoinHandle<()>>,
}

impl Default for Webhook {
    fn default() -> Self {
        Self { port: free_port(), received: Arc::default(), server: None }
    }
}

impl Webhook {
    /// Where it receives; the path holds what no log may show.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hooks/token-that-nobody-may-see", self.port)
    }

    /// Answers every request with a status from now on.
    ///
    /// # Panics
    ///
    /// When another process took the port.
    pub async fn answer(&mut self, status: u16) {
        self.hang_up().await;
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the port is still free");
        let received = self.received.clone();
        self.server = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A sender that goes away in between is none of ours.
                let _ = serve(stream, status, &received).await;
            }
        }));
    }

    /// Takes no connection any more.
    pub async fn hang_up(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // It ends by being aborted.
            let _ = server.await;
        }
    }

    /// What was received so far.
    ///
    /// # Panics
    ///
    /// Never: no holder of the lock panics.
    #[must_use]
    pub fn received(&self) -> Vec<Delivered> {
        self.received.lock().expect("no holder panics").clone()
    }
}

async fn serve(stream: TcpStream, status: u16, received: &Mutex<Vec<Delivered>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut headers = Vec::new();
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        if let Some((name, value)) = line.trim_end().split_once(": ") {
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        line.clear();
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, length)| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    received.lock().expect("no holder panics").push(Delivered { headers, body });
    let answer = format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.get_mut().write_all(answer.as_bytes()).await
}
