//! Accepts connections, bounds what a slow or silent client can hold, and ends gracefully.

use std::{convert::Infallible, time::Duration};

use axum::body::Body;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};

use crate::{
    request::{self, Peer},
    router::Routes,
    service::Service,
    tls::Tls,
};

/// How long a client may take to send a request's headers, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests that are under way may take to end once the service stops.
const DRAIN: Duration = Duration::from_secs(30);
/// The largest head of a request, and what a connection buffers of a body, in bytes.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// The pause after the system could not give a connection, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` turns true and every request that was under way is answered.
pub(crate) async fn serve(listener: TcpListener, tls: Option<Tls>, service: Service, mut stop: watch::Receiver<bool>) {
    let routes = Routes::new(service.clone());
    let graceful = GracefulShutdown::new();
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES_MAX);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small and whole: they must not wait for more.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection closed at once");
            continue;
        }
        let peer = Peer(peer.to_string().into());
        let answers = Answers { server: server.clone(), service: service.clone(), routes: routes.clone(), peer };
        let watcher = graceful.watcher();
        match tls.clone() {
            None => drop(tokio::spawn(answers.give(stream, watcher))),
            Some(tls) => drop(tokio::spawn(async move {
                if let Some(stream) = tls.accept(stream).await {
                    answers.give(stream, watcher).await;
                }
            })),
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

/// What answers the requests of a connection.
struct Answers {
    server: hyper::server::conn::http1::Builder,
    service: Service,
    routes: Routes,
    peer: Peer,
}

impl Answers {
    /// Serves a connection until it ends, or until the service stops and what was under way is answered.
    async fn give(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, watcher: Watcher) {
        let Self { server, service, routes, peer } = self;
        let answer = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let (service, routes) = (service.clone(), routes.clone());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            async move { Ok::<_, Infallible>(request::serve(service, routes, request).await) }
        });
        if let Err(error) = watcher.watch(server.serve_connection(TokioIo::new(stream), answer)).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
