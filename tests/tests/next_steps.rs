//! What the replay-tool tells a person to do next.

use std::{path::Path, process::Command};

use tests::{
    Service, on_both_databases,
    service::program,
    store::{self, NewDatabase},
    tool,
    vandal::Vandal,
};

on_both_databases!(a_ledger_that_comes_back_without_api_keys_says_so);

const MAKE_KEYS: &str = "make API keys (api keys create): this database has none, and so is open";

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

async fn a_ledger_that_comes_back_without_api_keys_says_so(database: NewDatabase) {
    let (folder, source) = (tempfile::tempdir().expect("a temporary folder"), store::sqlite());
    let at = |name: &str| folder.path().join(name);
    let mut service = Service::start(&source.url, &[]);
    service.credit("ann", 10, "1").await;
    service.terminate();
    let archive = at("archive");
    let exported = tool::run(&source, &["export", "--out", text(&archive)]);
    assert_eq!(exported.code, 0, "{}", exported.err);

    let import = ["import", "--from", text(&archive)];
    let imported = tool::run(&database, &import);
    assert_eq!(imported.code, 0, "{}", imported.err);
    assert!(imported.out.contains(&format!("next      {MAKE_KEYS}\n")), "{}", imported.out);

    let mut create = Command::new(program("api"));
    create.args(["--database-url", &database.url, "keys", "create", "--label", "shop", "--scopes", "read"]);
    assert!(create.output().expect("it runs").status.success());
    // The same again finds that it is done, and now there is a key.
    let again = tool::run(&database, &import);
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(!again.out.contains("API keys"), "{}", again.out);

    // Keys are taken along from a ledger whose log is replaced.
    Vandal::in_place(&database.url).run(&["update events set amount = amount + 1"]).await;
    let report = at("report");
    let recovered = tool::run(&database, &["recover", "--from", text(&archive), "--report", text(&report)]);
    assert_eq!(recovered.code, 0, "{}{}", recovered.out, recovered.err);
    assert!(recovered.out.contains("next    start every service"), "{}", recovered.out);
    assert!(!recovered.out.contains("API keys"), "{}", recovered.out);

    let (empty, report) = (store::sqlite(), at("another report"));
    let recovered = tool::run(&empty, &["recover", "--from", text(&archive), "--report", text(&report)]);
    assert_eq!(recovered.code, 0, "{}{}", recovered.out, recovered.err);
    assert!(recovered.out.contains(&format!("next    {MAKE_KEYS}\n")), "{}", recovered.out);
}
