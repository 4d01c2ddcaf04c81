//! What was measured, for people: a line at a time, and a page in the end.

use std::fmt::Write;

use crate::{
    figures::Figures,
    machine::Machine,
    plan::Plan,
    results::{Fact, Results},
    series::{Series, thousands},
    subject::Kind,
    targets::{Bound, Target, targets},
};

const FACTS: [Fact; 8] = [
    Fact::EventsStored,
    Fact::AccountsStored,
    Fact::DiskBytesPerEvent,
    Fact::SecondsUntilServingAfterKill,
    Fact::VerifySeconds,
    Fact::VerifyEventsPerSecond,
    Fact::RebuildSeconds,
    Fact::RebuildEventsPerSecond,
];

/// One measurement in one line.
pub(crate) fn line(series: Series, figures: &Figures) -> String {
    let mut line = format!("{series:<44} {:>9}/s", rate(figures.rate));
    // A string takes all that is written to it.
    if let Some(latency) = figures.latency {
        let _ = write!(line, "  p50 {:.1} p99 {:.1} p99.9 {:.1} ms", latency.p50, latency.p99, latency.p999);
    }
    if let Some(cpu) = figures.cpu {
        let _ = write!(line, "  cpu {:.2}/{:.2}/{:.2}", cpu.service, cpu.database, cpu.client);
    }
    if let Some(bytes) = figures.bytes_per_event {
        let _ = write!(line, "  {bytes:.0} B/event");
    }
    if let Some(lag) = figures.lag_seconds {
        let _ = write!(line, "  lag {lag:.2} s");
    }
    if let Some(memory) = figures.memory_mib {
        let _ = write!(line, "  {memory:.0} MiB");
    }
    line
}

/// The targets of every database that was measured, but for those that were not to be.
pub(crate) fn all_targets(results: &Results, plan: &Plan) -> Vec<Target> {
    let stages = plan.stages();
    let all = results.databases().into_iter().flat_map(|database| targets(results, database, &stages));
    all.filter(|target| plan.only.is_empty() || target.found.is_some()).collect()
}

/// One target in one line.
pub(crate) fn target_line(target: &Target) -> String {
    let (found, verdict) = (found(target), verdict(target));
    format!("{:<10} {:<56} {found:>8}  target {:<8} {verdict}", target.database, target.name, bound(target.bound))
}

/// The page.
pub(crate) fn page(results: &Results, plan: &Plan, machine: &Machine) -> String {
    let mut page = String::new();
    let _ = writeln!(page, "# Benchmark\n\n{machine}");
    if let Some(version) = &results.postgres {
        let _ = writeln!(
            page,
            "PostgreSQL {version} with shared_buffers = a quarter of the memory, max_wal_size = 8 GB, min_wal_size = 4 GB (made \
             beforehand) and wal_compression = lz4, for the peers, too."
        );
    }
    let _ = writeln!(
        page,
        "\nMedians of {} run(s) of {} s after {} s of warm-up; batches of 1,000 for {} s. Client, service and database \
         share the machine. Every commit is durable. CPU in cores; a peer stands below what it is compared with, and \
         its server is under `database` (the echo's under `service`). Bytes are what the disk was given for each \
         event, by its own counter, until read models, indexes and data files are written.",
        plan.runs, plan.seconds, plan.warm_up_seconds, plan.sustained_seconds
    );
    for database in results.databases() {
        let _ = writeln!(page, "\n## {database}\n");
        table(&mut page, results, database);
        facts(&mut page, results, database);
    }
    let _ = writeln!(page, "\n## Targets\n\n| database | what | found | target | |\n|---|---|--:|--:|---|");
    for target in all_targets(results, plan) {
        let (found, bound, verdict) = (found(&target), bound(target.bound), verdict(&target));
        let _ = writeln!(page, "| {} | {} | {found} | {bound} | {verdict} |", target.database, target.name);
    }
    if !results.failures.is_empty() {
        let _ = writeln!(page, "\n## Failed\n");
        for failure in &results.failures {
            let why = failure.why.replace('\n', " ");
            let _ = writeln!(page, "- {} {}: {why}", failure.database, failure.scenario);
        }
    }
    page
}

fn table(page: &mut String, results: &Results, database: Kind) {
    page.push_str(
        "| scenario | per second | p50 ms | p99 ms | p99.9 ms | CPU service | database | client | bytes/event | lag s \
         | memory MiB |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for series in results.series(database) {
        let Some(figures) = results.median(database, series) else { continue };
        let _ = writeln!(page, "| {} | {} |", name(series), cells(&figures).join(" | "));
    }
}

fn facts(page: &mut String, results: &Results, database: Kind) {
    let found: Vec<_> = FACTS.iter().filter_map(|fact| Some((fact, results.fact(database, *fact)?))).collect();
    if found.is_empty() {
        return;
    }
    page.push_str("\n| the ledger that has grown | |\n|---|--:|\n");
    for (fact, value) in found {
        let _ = writeln!(page, "| {} | {} |", fact.label(), plain(value));
    }
}

/// A peer stands out by an arrow, as Markdown drops what a cell is indented by.
fn name(series: Series) -> String {
    let name = series.to_string();
    if series.is_peer() && series != Series::Echo { format!("↳ {}", name.trim_start()) } else { name }
}

fn cells(figures: &Figures) -> [String; 10] {
    let number = |figure: Option<f64>, digits: usize| {
        figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.digits$}"))
    };
    let (latency, cpu) = (figures.latency, figures.cpu);
    [
        rate(figures.rate),
        number(latency.map(|latency| latency.p50), 1),
        number(latency.map(|latency| latency.p99), 1),
        number(latency.map(|latency| latency.p999), 1),
        number(cpu.map(|cpu| cpu.service), 2),
        number(cpu.map(|cpu| cpu.database), 2),
        number(cpu.map(|cpu| cpu.client), 2),
        number(figures.bytes_per_event, 0),
        number(figures.lag_seconds, 2),
        number(figures.memory_mib, 0),
    ]
}

/// With no more digits than say something.
pub(crate) fn plain(value: f64) -> String {
    if value < 1_000.0 { format!("{value:.2}") } else { rate(value) }
}

pub(crate) fn rate(rate: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are positive and far below 2^52"
    )]
    let rounded = rate.round() as u64;
    thousands(rounded)
}

fn found(target: &Target) -> String {
    target.found.map_or_else(|| "–".to_owned(), |found| format!("{found:.2}"))
}

fn bound(bound: Bound) -> String {
    match bound {
        Bound::AtLeast(bound) => format!("≥ {bound}"),
        Bound::AtMost(bound) => format!("≤ {bound}"),
    }
}

fn verdict(target: &Target) -> &'static str {
    match target.reached() {
        Some(true) => "reached",
        Some(false) => "NOT reached",
        None => "not measured",
    }
}
