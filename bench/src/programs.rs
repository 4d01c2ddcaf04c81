//! The programs that are measured.

use std::{env, path::Path, process::Command};

/// Builds `api` and `replay-tool` by the profile that this program was built by: it starts those that stand beside it.
///
/// # Panics
///
/// When they cannot be built.
pub(crate) fn build() {
    let program = env::current_exe().expect("a program knows itself");
    let folder = program.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    let profile = match folder {
        "debug" => panic!("a benchmark of an unoptimised build says nothing: cargo run --release -p bench -- run"),
        profile => profile,
    };
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(["build", "--profile", profile, "-p", "api", "-p", "replay-tool"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "api and replay-tool cannot be built: see above, or --no-build"
    );
}
