//! What the documents list is what there is, and what they show works.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tests::{
    Service, on_both_databases,
    store::{self, NewDatabase},
};

on_both_databases!(the_commands_of_the_readme_work_one_after_the_other);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The text of every source file below a folder.
fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            texts.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(fs::read_to_string(&path).expect("UTF-8"));
        }
    }
    texts
}

/// The quoted names that follow a beginning.
fn named_after(texts: &[String], beginning: &str) -> BTreeSet<String> {
    let places = texts.iter().flat_map(|text| text.split(beginning).skip(1));
    let quoted = places.filter_map(|place| place.trim_start().strip_prefix('"')?.split_once('"'));
    quoted.map(|(name, _)| name.to_owned()).collect()
}

/// The names of a table: what stands between backticks at the beginning of its rows.
fn rows(document: &str) -> BTreeSet<String> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    rows.map(|(name, _)| name.to_owned()).collect()
}

/// A part of a document, from its heading to the next one.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, part) = document.split_once(heading).unwrap_or_else(|| panic!("there is no {heading}"));
    part.split_once("\n#").map_or(part, |(part, _)| part)
}

#[test]
fn every_metric_is_in_the_table_and_says_what_it_means() {
    let texts: Vec<_> =
        ["api/src", "projector/src", "ledger-store/src"].iter().flat_map(|part| sources(&root().join(part))).collect();
    let table = read("docs/operations.md");
    let mut measured = BTreeSet::new();
    for kind in ["counter", "gauge", "histogram"] {
        for name in named_after(&texts, &format!("{kind}!(")) {
            assert!(table.contains(&format!("| `{name}` | {kind} |")), "{name} is a {kind}");
            measured.insert(name);
        }
    }
    assert!(measured.len() > 30, "{measured:?}");
    assert_eq!(rows(&table), measured);
    let help = [read("api/src/metrics_help.rs")];
    let meant: BTreeSet<_> = named_after(&help, "(").into_iter().filter(|name| name.starts_with("ledger_")).collect();
    assert_eq!(meant, measured);
}

#[test]
fn every_kind_of_alert_is_in_the_readme() {
    let texts = sources(&root().join("api/src"));
    let told = rows(section(&read("README.md"), "### Alerts"));
    let raised = named_after(&texts, "kind: ");
    assert!(raised.len() > 5 && raised.is_subset(&told), "{raised:?} {told:?}");
    for kind in told {
        assert!(texts.iter().any(|text| text.contains(&format!("\"{kind}\""))), "nothing raises {kind}");
    }
}

#[test]
fn what_the_documents_link_to_is_there() {
    for name in ["README.md", "docs/operations.md"] {
        let document = read(name);
        let headings: BTreeSet<String> = document
            .lines()
            .filter_map(|line| line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' '))
            .map(|heading| {
                let letters = heading.to_lowercase().replace(' ', "-");
                letters.chars().filter(|letter| letter.is_alphanumeric() || *letter == '-').collect()
            })
            .collect();
        let folder = root().join(name).parent().expect("a folder").to_owned();
        for target in document.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            let is_there = match target.strip_prefix('#') {
                Some(heading) => headings.contains(heading),
                None => target.starts_with("https://") || folder.join(target).exists(),
            };
            assert!(is_there, "{name}: {target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_metric_is_shown_with_what_it_means() {
    let database = store::sqlite();
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 1, "1").await;
    let shown = service.get("/metrics").await.body;
    let shown = shown.as_str().expect("text");
    let types: Vec<_> = shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(types.contains(&"ledger_commands_total"), "{shown}");
    for name in types {
        assert!(shown.contains(&format!("# HELP {name} ")), "{name} is not explained");
    }
}

async fn the_commands_of_the_readme_work_one_after_the_other(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let readme = read("README.md");
    let (walk, _) = readme.split_once("## API keys and limits").expect("the walk is before it");
    let beginnings = ["curl -s ", "-d '", "OP="];
    let lines = walk.lines().map(str::trim).filter(|line| beginnings.iter().any(|known| line.starts_with(known)));
    let script = lines
        .collect::<Vec<_>>()
        .join("\n")
        .replace("http://127.0.0.1:8080", &service.url)
        .replace("localhost:8080", &service.url)
        .replace("curl -s ", "curl -sS -w '\\n' ");
    let ran = Command::new("bash").args(["-c", &script]).output().expect("it runs");
    let printed = String::from_utf8(ran.stdout).expect("UTF-8");
    let answers: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(answers.len() > 12, "{printed}{}", String::from_utf8_lossy(&ran.stderr));
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer["code"].as_str()).collect();
    assert_eq!(refused, ["insufficient_frozen"], "{printed}");

    // Commands over NATS have the bodies of the routes. Those that name what came before leave out its id.
    let mut published = 0;
    for line in readme.lines().filter_map(|line| line.trim().strip_prefix("nats pub credit.commands.")) {
        let (kind, body) = line.split_once(" '").expect("a body");
        if let Some((body, _)) = body.split_once('\'').filter(|(body, _)| !body.contains('…')) {
            let answer = service.post_text(&format!("/v1/{kind}s"), body).await;
            assert!(answer.status.is_success(), "{line}: {}", answer.body);
            published += 1;
        }
    }
    assert_eq!(published, 2);
}
