//! The service over TLS.

use std::{fs, path::Path, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tests::{Service, store};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Writes a new certificate for `localhost` and its key into a folder, and gives what trusts it.
fn certificate(folder: &Path) -> RootCertStore {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    fs::write(folder.join("tls.crt"), cert.pem()).expect("written");
    fs::write(folder.join("tls.key"), signing_key.serialize_pem()).expect("written");
    let mut trusted = RootCertStore::empty();
    trusted.add(cert.der().clone()).expect("a certificate");
    trusted
}

/// One request over TLS; `None` when the certificate is not trusted or the connection fails.
async fn get(address: &str, trusted: RootCertStore, path: &str) -> Option<String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.ok()?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    // A server that closes without saying so has answered all the same.
    let _ = stream.read_to_string(&mut answer).await;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_over_tls_and_only_over_tls() {
    let database = store::sqlite();
    let folder = tempfile::tempdir().expect("a folder");
    let trusted = certificate(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (crt, key) = (file("tls.crt"), file("tls.key"));
    let service = Service::start(&database.url, &["--tls-certificate", &crt, "--tls-key", &key]);
    let address = service.url.strip_prefix("https://").expect("it says that it speaks TLS").to_owned();
    let answer = get(&address, trusted, "/livez").await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Another certificate is not trusted, and plain HTTP is not spoken.
    let other = tempfile::tempdir().expect("a folder");
    assert_eq!(get(&address, certificate(other.path()), "/livez").await, None);
    let plain = reqwest::get(format!("http://{address}/livez")).await;
    assert!(plain.is_err(), "{plain:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named() {
    let database = store::sqlite();
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    certificate(folder.path());
    certificate(other.path());
    let file = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let (crt, key) = (file(folder.path(), "tls.crt"), file(folder.path(), "tls.key"));
    let (others_key, none) = (file(other.path(), "tls.key"), file(folder.path(), "none.crt"));
    for (arguments, word) in [
        (vec!["--tls-certificate", &*crt], "--tls-key"),
        (vec!["--tls-key", &*key], "--tls-certificate"),
        (vec!["--tls-certificate", &*none, "--tls-key", &*key], "none.crt"),
        (vec!["--tls-certificate", &*key, "--tls-key", &*key], "--tls-certificate"),
        (vec!["--tls-certificate", &*crt, "--tls-key", &*crt], "--tls-key"),
        (vec!["--tls-certificate", &*crt, "--tls-key", &*others_key], "does not go with the certificate"),
    ] {
        let said = Service::try_start(&database.url, &arguments).expect_err("it must not start");
        assert!(said.lines().count() == 1 && said.contains(word), "{arguments:?}: {said}");
    }
}
