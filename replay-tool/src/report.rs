//! One self-contained page for whoever has to know afterwards: an operator, an auditor.
//!
//! The file loads nothing and runs nothing, so that it may be kept for years, sent by mail, and printed.

use std::{
    io::{self, Write},
    path::Path,
};

use chrono::{DateTime, SecondsFormat, Utc};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::prelude::*;
use tempfile::NamedTempFile;

use crate::context::Failure;

/// Rows that a table shows; a page of more is no page any more.
const ROWS_MAX: usize = 1_000;
/// Bars that a chart shows.
const BARS_MAX: usize = 64;
const CURVE: RGBColor = RGBColor(47, 125, 209);
const FONT: &str = "sans-serif";

/// Where a page goes at the end, if one was asked for with `--report`. That it can be written is found out at the beginning, and
/// a command tells what it came to before it writes the page: what was done cannot be asked for again.
#[derive(Debug)]
pub(crate) struct Place<'a>(Option<&'a Path>);

impl<'a> Place<'a> {
    pub(crate) fn new(path: Option<&'a Path>) -> Result<Self, Failure> {
        if let Some(path) = path {
            let made = if path.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { file_beside(path) };
            // It is gone again at once.
            made.map_err(|error| Failure::new(format!("--report: {}", cannot_write(path, &error))))?;
        }
        Ok(Self(path))
    }

    pub(crate) fn write(&self, page: impl FnOnce() -> Report) -> Result<(), Failure> {
        self.0.map_or(Ok(()), |path| page().write(path))
    }
}

/// A page that is being written, section by section, in the order of the calls.
#[derive(Debug)]
pub(crate) struct Report {
    title: String,
    made_at: DateTime<Utc>,
    sections: Vec<Markup>,
}

impl Report {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), made_at: Utc::now(), sections: Vec::new() }
    }

    /// Names and their values, one a line.
    pub(crate) fn facts(&mut self, heading: &str, facts: impl IntoIterator<Item = (String, String)>) -> &mut Self {
        self.section(
            heading,
            &html! {
                table.facts {
                    @for (name, value) in facts {
                        tr { th scope="row" { (name) } td.number[is_number(&value)] { (value) } }
                    }
                }
            },
        )
    }

    /// A table of at most 1,000 rows, and how many more there are.
    pub(crate) fn table(
        &mut self,
        heading: &str,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> &mut Self {
        let mut rows = rows.into_iter();
        let shown: Vec<_> = rows.by_ref().take(ROWS_MAX).collect();
        let more = rows.count();
        self.section(
            heading,
            &html! {
                @if shown.is_empty() {
                    p.quiet { "None." }
                } @else {
                    div.wide {
                        table {
                            thead { tr { @for name in header { th scope="col" { (name) } } } }
                            tbody {
                                @for row in &shown {
                                    tr { @for cell in row { td.number[is_number(cell)] { (cell) } } }
                                }
                            }
                        }
                    }
                }
                @if more > 0 {
                    p.quiet { "The first " (thousands(ROWS_MAX as u64)) "; " (thousands(more as u64)) " more are not shown." }
                }
            },
        )
    }

    /// A chart of bars, longest name at most some thirty characters.
    pub(crate) fn bars(
        &mut self,
        heading: &str,
        unit: &str,
        bars: impl IntoIterator<Item = (String, f64)>,
    ) -> &mut Self {
        let mut bars = bars.into_iter();
        let shown: Vec<_> = bars.by_ref().take(BARS_MAX).collect();
        let more = bars.count();
        self.section(
            heading,
            &html! {
                (bar_chart(heading, unit, &shown))
                @if more > 0 { p.quiet { "The first " (BARS_MAX) "; " (more) " more are not shown." } }
            },
        )
    }

    /// One curve.
    pub(crate) fn line(&mut self, heading: &str, x_label: &str, y_label: &str, points: &[(f64, f64)]) -> &mut Self {
        let drawn = curve(x_label, y_label, points);
        self.section(
            heading,
            &html! {
                @match drawn {
                    Some(svg) => figure role="img" aria-label=(heading) { (PreEscaped(svg)) },
                    None => p.quiet { "There are too few points to draw a curve." },
                }
            },
        )
    }

    pub(crate) fn text(&mut self, heading: &str, paragraph: &str) -> &mut Self {
        self.section(heading, &html! { p { (paragraph) } })
    }

    /// What all of it comes to.
    pub(crate) fn verdict(&mut self, ok: bool, sentence: &str) -> &mut Self {
        let class = if ok { "verdict ok" } else { "verdict bad" };
        let mark = if ok { "✓" } else { "✗" };
        self.sections.push(html! { p class=(class) { strong { (mark) } " " (sentence) } });
        self
    }

    /// Puts the page into its place whole: a reader sees the old one or the new one.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        write_whole(path, self.page().into_string().as_bytes())
    }

    fn section(&mut self, heading: &str, body: &Markup) -> &mut Self {
        self.sections.push(html! { section { h2 { (heading) } (body) } });
        self
    }

    fn page(&self) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        h1 { (self.title) }
                        p.quiet {
                            "replay-tool " (env!("CARGO_PKG_VERSION")) ", "
                            (self.made_at.to_rfc3339_opts(SecondsFormat::Secs, true))
                        }
                        @for section in &self.sections { (section) }
                    }
                }
            }
        }
    }
}

/// Writes a file beside its place and then renames it there, so that no one ever reads half of one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failure = |error: io::Error| Failure::new(cannot_write(path, &error));
    let mut file = file_beside(path).map_err(failure)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failure)?;
    file.persist(path).map_err(|error| failure(error.error))?;
    Ok(())
}

/// A new file that can take this one's place.
fn file_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Reports are handed on: readable as far as the umask lets them be.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.prefix(".replay-tool-").tempfile_in(folder)
}

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}; name a file in a folder that exists and may be written to", path.display())
}

/// Figures stand at the right, so that their digits stand below each other.
fn is_number(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
        && text.len() <= 24
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"+-., %".contains(&byte))
}

/// 1234567 as 1,234,567.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn figure_text(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just before")]
    if value.fract() == 0.0 && (0.0..1e15).contains(&value) {
        thousands(value as u64)
    } else if value.abs() >= 1_000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Bars that lie, one below the other: their names need no room that is not there.
fn bar_chart(heading: &str, unit: &str, bars: &[(String, f64)]) -> Markup {
    const NAMES: f64 = 220.0;
    const LENGTH: f64 = 380.0;
    const ROW: usize = 26;
    let longest = bars.iter().map(|(_, value)| *value).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let height = bars.len() * ROW + 24;
    html! {
        @if bars.is_empty() {
            p.quiet { "None." }
        } @else {
            figure {
                svg role="img" aria-label=(heading) viewBox=(format!("0 0 720 {height}")) width="720" height=(height) {
                    @for (row, (name, value)) in bars.iter().enumerate() {
                        @let length = if longest > 0.0 && value.is_finite() { value.max(0.0) / longest * LENGTH } else { 0.0 };
                        @let y = row * ROW;
                        text x=(NAMES - 8.0) y=(y + 16) text-anchor="end" { (name) }
                        rect.bar x=(NAMES) y=(y + 4) width=(format!("{:.1}", length.max(1.0))) height=(ROW - 8) {}
                        text x=(format!("{:.1}", NAMES + length + 8.0)) y=(y + 16) { (figure_text(*value)) }
                    }
                    text.quiet x=(NAMES) y=(height - 4) { (unit) }
                }
            }
        }
    }
}

/// The curve as SVG; none of too few points, or of points that no plane holds.
fn curve(x_label: &str, y_label: &str, points: &[(f64, f64)]) -> Option<String> {
    if points.len() < 2 || !points.iter().all(|(x, y)| x.is_finite() && y.is_finite()) {
        return None;
    }
    let bounds = |values: fn(&(f64, f64)) -> f64| {
        let low = points.iter().map(values).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(values).fold(f64::NEG_INFINITY, f64::max);
        // A flat curve still needs a plane with a height.
        (low, if high > low { high } else { low + 1.0 })
    };
    let ((left, right), (low, high)) = (bounds(|point| point.0), bounds(|point| point.1));
    let mut svg = String::new();
    draw(&mut svg, (x_label, y_label), points, left..right, low.min(0.0)..high * 1.05).ok()?;
    Some(svg)
}

fn draw(
    svg: &mut String,
    (x_label, y_label): (&str, &str),
    points: &[(f64, f64)],
    across: std::ops::Range<f64>,
    up: std::ops::Range<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (720, 320)).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(across, up)?;
    chart
        .configure_mesh()
        .x_desc(x_label)
        .y_desc(y_label)
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 12))
        .x_label_formatter(&|value| figure_text(*value))
        .y_label_formatter(&|value| figure_text(*value))
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), CURVE.stroke_width(2)))?;
    if points.len() <= 60 {
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, CURVE.filled())))?;
    }
    root.present()?;
    drop(chart);
    Ok(())
}

/// A drawing's own colours are attributes, which a style sheet overrides: so the same drawing serves light and dark.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2129; --quiet: #5b6472; --paper: #ffffff; --rule: #d9dde3; --ok: #1b7a43; --bad: #b3261e; --bar: #2f7dd1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --quiet: #9aa3b0; --paper: #14171c; --rule: #343a44; --ok: #5fc98a; --bad: #ff8a80; --bar: #5aa2ee; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { max-width: 46rem; margin: .4rem 0; }
.quiet { color: var(--quiet); }
.verdict { font-size: 1.1rem; padding: .6rem .9rem; margin: 1.2rem 0; border-left: 4px solid; }
.verdict.ok { border-color: var(--ok); } .verdict.ok strong { color: var(--ok); }
.verdict.bad { border-color: var(--bad); } .verdict.bad strong { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
.facts th { color: var(--quiet); font-weight: 400; padding-right: 2rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: .4rem 0; overflow-x: auto; }
svg { max-width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg text.quiet { fill: var(--quiet); } svg rect.bar { fill: var(--bar); }
svg line, svg polyline[stroke='#000000'] { stroke: var(--quiet); }
svg polyline[stroke='#2F7DD1'] { stroke: var(--bar); } svg circle { fill: var(--bar); }
@media print {
  :root { --ink: #000; --quiet: #444; --paper: #fff; --rule: #bbb; --ok: #1b7a43; --bad: #b3261e; --bar: #2f7dd1; }
  main { max-width: none; padding: 0; } .wide, figure { overflow: visible; } tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
}
";

#[cfg(test)]
mod tests {
    use super::*;

    fn page(report: &Report) -> String {
        report.page().into_string()
    }

    #[test]
    fn whatever_is_said_is_text_and_never_markup() {
        let mut report = Report::new("<script>alert(1)</script>");
        report
            .facts("<b>", [("<i>".to_owned(), "a & b".to_owned())])
            .table("t", &["<u>"], [vec!["<img src=x>".to_owned()]])
            .bars("b", "<em>", [("<a href=x>".to_owned(), 1.0)])
            .line("l", "<x>", "<y>", &[(0.0, 0.0), (1.0, 2.0)])
            .verdict(false, "<br>");
        let page = page(&report);
        for markup in ["<script", "<b>", "<i>", "<u>", "<img", "<em>", "<a ", "<x>", "<y>", "<br>"] {
            assert!(!page.contains(markup), "{markup} came through");
        }
        assert!(page.contains("a &amp; b"));
    }

    #[test]
    fn a_table_says_how_many_rows_it_leaves_out() {
        let mut report = Report::new("many");
        report.table("rows", &["number"], (0..1_234).map(|number| vec![format!("row-{number}")]));
        let page = page(&report);
        assert!(page.contains("row-999<") && !page.contains("row-1000<"));
        assert!(page.contains("The first 1,000; 234 more are not shown."));
    }

    #[test]
    fn curves_of_nothing_of_one_value_and_of_no_number_are_no_error() {
        assert_eq!(curve("x", "y", &[]), None);
        assert_eq!(curve("x", "y", &[(0.0, f64::NAN), (1.0, 1.0)]), None);
        let flat = curve("x", "y", &[(0.0, 7.0), (1.0, 7.0)]).expect("drawn");
        assert!(flat.contains("<svg") && flat.contains(r##"stroke="#2F7DD1""##), "{flat}");
    }

    #[test]
    fn a_report_replaces_the_one_before_it_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report.html");
        Report::new("first").write(&path).expect("written");
        Report::new("second").verdict(true, "all is well").write(&path).expect("written");
        let page = std::fs::read_to_string(&path).expect("there");
        assert!(page.contains("<title>second</title>") && page.ends_with("</html>"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
        let nowhere = Report::new("x").write(&folder.path().join("no/such/folder.html")).expect_err("no folder");
        assert!(nowhere.to_string().contains("folder that exists"), "{nowhere}");
    }

    #[test]
    fn that_a_page_cannot_be_written_is_found_out_at_the_beginning() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [folder.path().join("no/such/folder.html"), folder.path().to_owned()] {
            let refused = Place::new(Some(&path)).expect_err("no page can be there");
            assert!(refused.to_string().starts_with("--report: cannot write"), "{refused}");
        }
        let path = folder.path().join("report.html");
        std::fs::write(&path, "before").expect("written");
        let place = Place::new(Some(&path)).expect("a page can be there");
        let read = || std::fs::read_to_string(&path).expect("there");
        assert_eq!(read(), "before");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
        place.write(|| Report::new("after")).expect("written");
        assert!(read().contains("<title>after</title>"));
        Place::new(None).and_then(|place| place.write(|| unreachable!("none was asked for"))).expect("nothing to do");
    }

    #[test]
    fn figures_are_written_in_groups_of_three() {
        assert_eq!(["0", "999", "1,000", "1,234,567"].map(str::to_owned), [0, 999, 1_000, 1_234_567].map(thousands));
    }
}
