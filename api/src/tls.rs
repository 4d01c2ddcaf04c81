//! TLS, where a certificate is set.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How often the files are looked at: a certificate that was renewed is used after so long at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long a client may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Takes TLS connections with the certificate and the key of two PEM files.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Files>);

struct Files {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<(TlsAcceptor, Changed)>,
}

/// When the files were changed last.
type Changed = [Option<SystemTime>; 2];

impl Tls {
    /// Reads the files. `Err` is what is wrong with them, in one line.
    pub(crate) fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let changed = [changed(certificate), changed(key)];
        let acceptor = acceptor(certificate, key)?;
        Ok(Self(Arc::new(Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: RwLock::new((acceptor, changed)),
        })))
    }

    /// Takes renewed files into use, for ever. Files that cannot be used leave what was in use.
    pub(crate) async fn keep_fresh(self) {
        let mut turn = tokio::time::interval(LOOK_AGAIN);
        loop {
            turn.tick().await;
            let Files { certificate, key, current } = &*self.0;
            let now = [changed(certificate), changed(key)];
            if current.read().unwrap_or_else(PoisonError::into_inner).1 == now {
                continue;
            }
            match acceptor(certificate, key) {
                Ok(acceptor) => {
                    *current.write().unwrap_or_else(PoisonError::into_inner) = (acceptor, now);
                    tracing::info!("the renewed certificate is in use");
                }
                Err(why) => tracing::warn!(why, "the certificate's files changed and cannot be used"),
            }
        }
    }

    /// Shakes hands; `None` when the client speaks no TLS, or takes too long.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let acceptor = self.0.current.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => None,
        }
    }
}

fn changed(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let refused =
        |setting: &str, file: &Path, why: &dyn std::fmt::Display| format!("{setting} {}: {why}", file.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| refused("--tls-certificate", certificate, &error))?;
    if chain.is_empty() {
        return Err(refused("--tls-certificate", certificate, &"holds no certificate; give the chain as PEM"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| refused("--tls-key", key, &error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| refused("--tls-key", key, &format!("does not go with the certificate: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
