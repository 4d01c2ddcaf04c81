//! Where orders come from: a file, or the order system itself.

use std::{
    fs::File,
    io::{self, Cursor, Read},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, Uri, body::Incoming, header};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{sync::mpsc, time::timeout};

use crate::context::Failure;

/// How long an order system may take to begin its answer, and to go on with it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pieces of an answer that wait to be parsed: while so many do, no more is received.
const PIECES_MAX: usize = 16;

/// How orders are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Csv,
    Ndjson,
}

/// Orders that are about to be read.
pub(crate) struct Source {
    /// For people, without secrets.
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) reader: Box<dyn Read + Send>,
}

/// Opens a file by its path, or asks a URL. `authorization` is sent as the header of that name.
pub(crate) async fn open(orders: &str, authorization: Option<&str>) -> Result<Source, Failure> {
    if is_url(orders) { ask(orders, authorization).await } else { open_file(orders) }
}

/// Refuses a file that cannot be read, before anything else is done. An order system is asked when it is needed.
pub(crate) fn check(orders: &str) -> Result<(), Failure> {
    if is_url(orders) { Ok(()) } else { open_file(orders).map(drop) }
}

fn is_url(orders: &str) -> bool {
    orders.starts_with("http://") || orders.starts_with("https://")
}

fn open_file(orders: &str) -> Result<Source, Failure> {
    let format = format_of_name(orders).ok_or_else(|| {
        Failure::new(format!(
            "--orders {orders}: the name must end in .csv, .ndjson or .jsonl, so that it tells what is in it"
        ))
    })?;
    let file = File::open(orders).map_err(|error| {
        Failure::new(format!("--orders {orders} cannot be opened: {error}; name a file that can be read, or a URL"))
    })?;
    Ok(Source { name: orders.to_owned(), format, reader: Box::new(file) })
}

fn format_of_name(name: &str) -> Option<Format> {
    match Path::new(name).extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(Format::Csv),
        "ndjson" | "jsonl" | "json" => Some(Format::Ndjson),
        _ => None,
    }
}

fn format_of_content_type(content_type: &str) -> Option<Format> {
    match content_type.split(';').next()?.trim().to_ascii_lowercase().as_str() {
        "text/csv" => Some(Format::Csv),
        "application/x-ndjson"
        | "application/ndjson"
        | "application/jsonl"
        | "application/x-jsonlines"
        | "application/json" => Some(Format::Ndjson),
        _ => None,
    }
}

async fn ask(url: &str, authorization: Option<&str>) -> Result<Source, Failure> {
    let uri: Uri = url.parse().map_err(|error| Failure::new(format!("--orders is no URL: {error}")))?;
    // A query or user information may hold a secret.
    let name = format!("{}://{}{}", uri.scheme_str().unwrap_or("http"), host(&uri), uri.path());
    let failed = |why: String| {
        Failure::new(format!("--orders {name}: {why}; see that the order system answers there, or give a file"))
    };
    let mut request = Request::get(&uri)
        .header(header::ACCEPT, "application/x-ndjson, text/csv")
        .header(header::USER_AGENT, concat!("replay-tool/", env!("CARGO_PKG_VERSION")));
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
    let provider = rustls::crypto::ring::default_provider();
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(provider)
        .map_err(|error| failed(format!("the system's certificates cannot be read: {error}")))?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let response = timeout(PATIENCE, client.request(request))
        .await
        .map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(chain(&error)))?;
    let text =
        |name: header::HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    if response.status().is_redirection() {
        return Err(failed(format!("it answers {}; ask {} itself", response.status(), text(header::LOCATION))));
    }
    if !response.status().is_success() {
        return Err(failed(format!("it answers {}", response.status())));
    }
    let content_type = text(header::CONTENT_TYPE).to_owned();
    let format = format_of_content_type(&content_type).or_else(|| format_of_name(uri.path())).ok_or_else(|| {
        failed(format!("it answers {content_type:?}; it must answer text/csv or application/x-ndjson"))
    })?;
    Ok(Source { name: name.clone(), format, reader: Box::new(receive(response)) })
}

fn host(uri: &Uri) -> String {
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", uri.host().unwrap_or_default())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

/// An answer, read where it is parsed: on a thread that may wait.
struct Pieces {
    queue: mpsc::Receiver<io::Result<Bytes>>,
    current: Cursor<Bytes>,
}

fn receive(response: Response<Incoming>) -> Pieces {
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        let mut body = response.into_body();
        loop {
            let piece = match timeout(PATIENCE, body.frame()).await {
                Ok(None) => return,
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(data),
                    // Trailers say nothing about orders.
                    Err(_) => continue,
                },
                Ok(Some(Err(error))) => Err(io::Error::other(format!("the answer broke off: {}", chain(&error)))),
                Err(_) => Err(io::Error::other(format!("the answer stopped for {} s", PATIENCE.as_secs()))),
            };
            let last = piece.is_err();
            // Whoever parses may have given up.
            if pieces.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    Pieces { queue, current: Cursor::new(Bytes::new()) }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.queue.blocking_recv() {
                Some(piece) => self.current = Cursor::new(piece?),
                None => return Ok(0),
            }
        }
    }
}
