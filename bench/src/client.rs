//! The load: connections that send commands as fast as they are answered, or at a given rate.
//!
//! The client shares the machine with what it measures, so it does little: one thread, requests written into a buffer
//! that is used again, answers read but for their status and, where a later command needs it, their transaction id.

use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

use futures::future::join_all;
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep_until,
};

use crate::figures::{histogram, record};

/// What a connection sends. Each connection has one of its own.
pub(crate) trait Source {
    /// Writes the next request, whole, into the empty buffer, and says how many commands it holds.
    fn next(&mut self, request: &mut Request<'_>) -> u32;

    /// Looks at the answer to the request before.
    fn answered(&mut self, status: u16, body: &[u8]);
}

/// A request in the making.
pub(crate) struct Request<'b>(&'b mut Vec<u8>);

impl Request<'_> {
    /// A request without a body.
    pub(crate) fn get(&mut self, path: &str) {
        self.0.extend_from_slice(b"GET ");
        self.0.extend_from_slice(path.as_bytes());
        self.0.extend_from_slice(b" HTTP/1.1\r\nhost: ledger\r\n\r\n");
    }

    /// A request with a JSON body, which `write` writes.
    pub(crate) fn post(&mut self, path: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.0.extend_from_slice(b"POST ");
        self.0.extend_from_slice(path.as_bytes());
        // The length is written once it is known, into room for eight digits.
        self.0.extend_from_slice(
            b" HTTP/1.1\r\nhost: ledger\r\ncontent-type: application/json\r\ncontent-length: 00000000\r\n\r\n",
        );
        let start = self.0.len();
        write(self.0);
        let length = format!("{:08}", self.0.len() - start);
        self.0[start - 12..start - 4].copy_from_slice(length.as_bytes());
    }
}

/// What one load came to.
pub(crate) struct Outcome {
    /// Of each request that counts.
    pub(crate) latencies: Histogram<u64>,
    /// The commands in them.
    pub(crate) commands: u64,
    /// How long the time that counts was.
    pub(crate) elapsed: Duration,
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(crate) fn commands_per_second(&self) -> f64 {
        self.commands as f64 / self.elapsed.as_secs_f64()
    }
}

/// One connection, kept open.
struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(64 * 1024) })
    }

    /// Sends a request and gives the answer's status and where its body stands in `received`.
    async fn ask(&mut self, request: &[u8]) -> io::Result<(u16, std::ops::Range<usize>)> {
        self.stream.write_all(request).await?;
        self.received.clear();
        let (status, start, length) = loop {
            self.more().await?;
            if let Some(head) = head(&self.received)? {
                break head;
            }
        };
        while self.received.len() < start + length {
            self.more().await?;
        }
        Ok((status, start..start + length))
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The status, where the body begins, and its length, once the head is whole.
fn head(received: &[u8]) -> io::Result<Option<(u16, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(received).map_err(io::Error::other)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(start) => {
            let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or(0);
            Ok(Some((response.code.unwrap_or(0), start, length)))
        }
    }
}

/// The address part of an `http://` URL.
fn address(url: &str) -> &str {
    url.strip_prefix("http://").unwrap_or(url)
}

/// When requests count, and where they are counted.
struct Tally {
    from: Instant,
    until: Instant,
    /// When the last request that counts was answered.
    last: Cell<Instant>,
    commands: Cell<u64>,
}

impl Tally {
    fn new(warm_up: Duration, length: Duration) -> Self {
        let from = Instant::now() + warm_up;
        Self { from, until: from + length, last: Cell::new(from), commands: Cell::new(0) }
    }

    fn counts(&self, when: Instant) -> bool {
        when >= self.from && when < self.until
    }

    /// A request that was due then and counts was answered now.
    fn count(&self, due: Instant, now: Instant, commands: u32, latencies: &mut Histogram<u64>) {
        self.last.set(now);
        self.commands.set(self.commands.get() + u64::from(commands));
        record(latencies, now - due);
    }

    fn outcome(&self, until: Instant, latencies: impl IntoIterator<Item = Histogram<u64>>) -> Outcome {
        let mut all = histogram();
        for latencies in latencies {
            all.add(latencies).expect("the bounds are the same");
        }
        Outcome { latencies: all, commands: self.commands.get(), elapsed: until - self.from }
    }
}

/// Each source sends its next request as soon as the one before is answered. What is answered within the time counts.
///
/// # Panics
///
/// When a connection breaks.
pub(crate) async fn closed_loop<S: Source>(
    url: &str,
    sources: &mut [S],
    warm_up: Duration,
    length: Duration,
) -> Outcome {
    let tally = &Tally::new(warm_up, length);
    let runs = sources.iter_mut().map(|source| async move {
        let mut latencies = histogram();
        let mut connection = Connection::open(address(url)).await.expect("the service listens");
        let mut buffer = Vec::new();
        loop {
            let due = Instant::now();
            if due >= tally.until {
                return latencies;
            }
            let commands = exchange(&mut connection, &mut buffer, &mut *source).await;
            let now = Instant::now();
            if tally.counts(now) {
                tally.count(due, now, commands, &mut latencies);
            }
        }
    });
    let latencies = join_all(runs).await;
    tally.outcome(tally.until, latencies)
}

/// Requests fall due at a constant rate, whether or not those before are answered, and are sent by the first source
/// that is free. A latency counts from when the request was due, so waiting for a free connection is part of it, and
/// so is the timer's grain of a millisecond. What is due within the time counts, however late it is answered.
///
/// # Panics
///
/// When a connection breaks.
pub(crate) async fn open_loop<S: Source>(
    url: &str,
    sources: &mut [S],
    per_second: f64,
    warm_up: Duration,
    length: Duration,
) -> Outcome {
    let tally = &Tally::new(warm_up, length);
    let began = Instant::now();
    let next = &Cell::new(0_u64);
    let runs = sources.iter_mut().map(|source| async move {
        let mut latencies = histogram();
        let mut connection = Connection::open(address(url)).await.expect("the service listens");
        let mut buffer = Vec::new();
        loop {
            let number = next.get();
            next.set(number + 1);
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            let due = began + Duration::from_secs_f64(number as f64 / per_second);
            if due >= tally.until {
                return latencies;
            }
            sleep_until(due.into()).await;
            let commands = exchange(&mut connection, &mut buffer, &mut *source).await;
            if tally.counts(due) {
                tally.count(due, Instant::now(), commands, &mut latencies);
            }
        }
    });
    let latencies = join_all(runs).await;
    tally.outcome(tally.until.max(tally.last.get()), latencies)
}

async fn exchange<S: Source>(connection: &mut Connection, buffer: &mut Vec<u8>, source: &mut S) -> u32 {
    buffer.clear();
    let commands = source.next(&mut Request(buffer));
    let (status, body) = connection.ask(buffer).await.expect("the service answers");
    source.answered(status, &connection.received[body]);
    commands
}

/// Each source sends requests, one after the other, for as long as it is wanted.
///
/// # Panics
///
/// When a connection breaks.
pub(crate) async fn while_wanted<S: Source>(url: &str, sources: &mut [S], wanted: impl Fn(&S) -> bool) {
    let wanted = &wanted;
    let runs = sources.iter_mut().map(|source| async move {
        let mut connection = Connection::open(address(url)).await.expect("the service listens");
        let mut buffer = Vec::new();
        while wanted(source) {
            exchange(&mut connection, &mut buffer, &mut *source).await;
        }
    });
    join_all(runs).await;
}

/// Sends one request and gives the answer's status and body.
///
/// # Errors
///
/// When the service is not there.
pub(crate) async fn once(url: &str, write: impl FnOnce(&mut Request<'_>)) -> io::Result<(u16, Vec<u8>)> {
    let mut connection = Connection::open(address(url)).await?;
    let mut buffer = Vec::new();
    write(&mut Request(&mut buffer));
    let (status, body) = connection.ask(&buffer).await?;
    Ok((status, connection.received[body].to_vec()))
}
