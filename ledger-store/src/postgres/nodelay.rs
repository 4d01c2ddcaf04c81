//! Sockets to the server that send what is written at once.
//!
//! sqlx 0.9.0 does not set `TCP_NODELAY`, as versions before it did and later ones will
//! (<https://github.com/transact-rs/sqlx/issues/4335>): the end of a statement that is longer than a packet waits until the
//! server's system has acknowledged the rest, which takes it up to 40 ms. sqlx does not give its sockets away either, so they
//! are looked for among all that this process has open. To go with the first version of sqlx that sets it again.

use std::{
    fs, io,
    net::TcpStream,
    os::fd::{OwnedFd, RawFd},
};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Sets `TCP_NODELAY` on every connection of this process to a server's port that does not have it; says how many they were.
///
/// # Errors
///
/// Where the system does not let a process look at its own descriptors: Linux before 5.6, or a sandbox.
pub(super) fn send_at_once(port: u16) -> io::Result<usize> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut set = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // It may be closed by now, or be another one: what counts is where it is connected to.
        if !fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
            continue;
        }
        let socket: OwnedFd = match pidfd_getfd(&this, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            Err(error) if error == rustix::io::Errno::BADF => continue,
            Err(error) => return Err(error.into()),
        };
        let socket = TcpStream::from(socket);
        if socket.peer_addr().is_ok_and(|peer| peer.port() == port) && socket.nodelay().is_ok_and(|is_set| !is_set) {
            socket.set_nodelay(true)?;
            set += 1;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn connections_to_the_port_send_at_once_and_others_stay_as_they_are() {
        let [server, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let connect = |to: &TcpListener| TcpStream::connect(to.local_addr().expect("an address")).expect("connected");
        let ([first, second], beside) = ([connect(&server), connect(&server)], connect(&other));
        let port = server.local_addr().expect("an address").port();
        assert_eq!(send_at_once(port).expect("looked for"), 2);
        assert!(first.nodelay().expect("told") && second.nodelay().expect("told"));
        assert!(!beside.nodelay().expect("told"), "nobody asked for that");
        assert_eq!(send_at_once(port).expect("looked for"), 0, "both have it already");
    }
}
