#!/usr/bin/env bash
# The one test command: installs what a fresh Debian machine lacks (PostgreSQL, nats-server), builds the programs and runs
# every test. What is there already is left alone; nothing is started that does not end with the tests.
set -euo pipefail
cd "$(dirname "$0")"

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "test.sh: please install PostgreSQL 13 or newer and nats-server, or run this as root or with sudo" >&2
        exit 2
    fi
}

has_postgres() {
    command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}

packages=()
has_postgres && command -v psql >/dev/null || packages+=(postgresql postgresql-client)
command -v nats-server >/dev/null || [ -x /usr/sbin/nats-server ] || packages+=(nats-server)
command -v setpriv >/dev/null || packages+=(util-linux)
if [ ${#packages[@]} -gt 0 ]; then
    echo "installing ${packages[*]}"
    # Debian's package would make and start a cluster of its own; the tests start private ones.
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        as_root mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
fi
export PATH="$PATH:/usr/sbin"

# The last clusters that tests shared end with their processes; their folders are left, and nobody after them removes them.
remove_clusters() {
    local owner
    for owner in /tmp/ledger-pg*/owner; do
        if [ -e "$owner" ] && [ ! -d "/proc/$(cat "$owner")" ]; then
            rm -rf "$(dirname "$owner")"
        fi
    done
}
trap remove_clusters EXIT

# The tests across crates start these programs. They are built with the features that the tests' build has, or it would build everything again.
cargo build --workspace --bins --features replay-tool/columnar
# What is built only on demand is tested with the rest.
if command -v cargo-nextest >/dev/null; then
    cargo nextest run --workspace --features replay-tool/columnar "$@"
else
    cargo test --workspace --features replay-tool/columnar "$@"
fi
