//! Two pictures of each database: latency against load, and speed against growth.

use std::{error::Error, path::Path};

use plotters::{
    coord::{Shift, ranged1d::Ranged},
    prelude::*,
};

use crate::{
    figures::Latency,
    plan::Plan,
    report::rate,
    results::Results,
    scenario::LEVELS,
    series::{Grown, Series},
    subject::Kind,
};

const SIZE: (u32, u32) = (1_000, 520);
/// Where the legend begins: beside the curves, so that it hides none.
const LEGEND: u32 = 760;
const FONT: &str = "sans-serif";

const BLUE: RGBColor = RGBColor(31, 119, 180);
const ORANGE: RGBColor = RGBColor(255, 127, 14);
const GREEN: RGBColor = RGBColor(44, 160, 44);
const RED: RGBColor = RGBColor(214, 39, 40);
const VIOLET: RGBColor = RGBColor(148, 103, 189);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// One curve, or single points where there is nothing between them.
struct Curve {
    label: &'static str,
    color: RGBColor,
    joined: bool,
    points: Vec<(f64, f64)>,
}

/// Draws what has been measured; a picture that cannot be drawn is no reason to lose the figures.
pub(crate) fn all(results: &Results, database: Kind, plan: &Plan) {
    let name = match database {
        Kind::Postgres => "postgres",
        Kind::Sqlite => "sqlite",
    };
    let drawn = [
        latency(results, database, &plan.out.join(format!("{name}-latency.svg"))),
        growth(results, database, plan, &plan.out.join(format!("{name}-growth.svg"))),
    ];
    for error in drawn.into_iter().filter_map(Result::err) {
        eprintln!("a plot of {database} was not drawn: {error}");
    }
}

fn latency(results: &Results, database: Kind, file: &Path) -> Drawn {
    let measured: Vec<_> = LEVELS
        .into_iter()
        .filter_map(|level| {
            let figures = results.median(database, Series::Offered(level))?;
            Some((figures.rate, figures.latency?))
        })
        .collect();
    if measured.is_empty() {
        return Ok(());
    }
    let curve = |label, color, quantile: fn(&Latency) -> f64| {
        let points = measured.iter().map(|(rate, latency)| (*rate, quantile(latency))).collect();
        Curve { label, color, joined: true, points }
    };
    let curves = [
        curve("p99.9", RED, |latency| latency.p999),
        curve("p99", ORANGE, |latency| latency.p99),
        curve("p50", BLUE, |latency| latency.p50),
    ];
    let (right, top) = corner(&curves);
    let bottom = curves.iter().flat_map(|curve| &curve.points).map(|point| point.1).fold(1.0, f64::min);
    // Whole powers of ten, so that the axis has labels.
    let decades = 10_f64.powf(bottom.log10().floor())..10_f64.powf(top.log10().ceil());

    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let (left, legend) = halves(&root)?;
    let mut chart = ChartBuilder::on(&left)
        .caption(format!("{database}: latency of single commands against load"), (FONT, 20))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right * 1.05, decades.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("commands per second, sent at a constant rate")
        .y_desc("milliseconds from when a command was due")
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .x_labels(8)
        .x_label_formatter(&|per_second| rate(*per_second))
        .y_label_formatter(&|millis| format!("{millis}"))
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    draw(&mut chart, &curves)?;
    explain(&legend, &curves)?;
    Ok(root.present()?)
}

fn growth(results: &Results, database: Kind, plan: &Plan, file: &Path) -> Drawn {
    let curves: Vec<Curve> =
        growth_curves(results, database, plan).into_iter().filter(|curve| !curve.points.is_empty()).collect();
    if !curves.iter().any(|curve| curve.joined) {
        return Ok(());
    }
    let (right, top) = corner(&curves);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let (left, legend) = halves(&root)?;
    let mut chart = ChartBuilder::on(&left)
        .caption(format!("{database}: speed of a ledger that grows"), (FONT, 20))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..right * 1.05, 0.0..top * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("millions of events or rows stored")
        .y_desc("per second")
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .x_label_formatter(&|millions| format!("{}", (millions * 1_000.0).round() / 1_000.0))
        .y_label_formatter(&|per_second| rate(*per_second))
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    draw(&mut chart, &curves)?;
    explain(&legend, &curves)?;
    Ok(root.present()?)
}

/// Millions of events, and what was reached when there were as many.
fn growth_curves(results: &Results, database: Kind, plan: &Plan) -> Vec<Curve> {
    let stages = plan.stages();
    let point = |series| {
        let rate = results.rate(database, series)?;
        Some((results.stored(database, series).unwrap_or(0.0) / 1e6, rate))
    };
    let stage = |label, color, grown| {
        let points = stages.iter().filter_map(|stage| point(Series::Grown(*stage, grown))).collect();
        Curve { label, color, joined: true, points }
    };
    let single = |label, color, series: &[Series]| {
        let points = series.iter().filter_map(|series| point(*series)).collect();
        Curve { label, color, joined: false, points }
    };
    let filling = results.filling.iter().filter(|point| point.database == database);
    let filling = filling.map(|point| (point.events / 1e6, point.rate)).collect();
    let last = stages.last().copied().unwrap_or(0);
    let bulk = match database {
        Kind::Postgres => "COPY, naive table",
        Kind::Sqlite => "naive inserts",
    };
    vec![
        Curve { label: "filling, batches of 10,000", color: VIOLET, joined: true, points: filling },
        stage("batches of 1,000", BLUE, Grown::Batches(1_000)),
        stage("single commands", GREEN, Grown::Singles),
        single(bulk, RED, &[Series::batches_peer(1_000), Series::GrownPeer(last)]),
        single("pgbench, one function", ORANGE, &[Series::SinglesOneFunction]),
    ]
}

/// The largest x and y.
fn corner(curves: &[Curve]) -> (f64, f64) {
    let points = curves.iter().flat_map(|curve| &curve.points);
    points.fold((0.0, 0.0), |(right, top), (x, y)| (f64::max(right, *x), f64::max(top, *y)))
}

fn halves<'a>(root: &Area<'a>) -> Result<(Area<'a>, Area<'a>), Box<dyn Error>> {
    root.fill(&WHITE)?;
    Ok(root.split_horizontally(LEGEND))
}

fn draw<'a, X, Y>(chart: &mut ChartContext<'_, SVGBackend<'a>, Cartesian2d<X, Y>>, curves: &[Curve]) -> Drawn
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for Curve { color, joined, points, .. } in curves {
        if *joined {
            chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
        } else {
            chart.draw_series(points.iter().map(|point| TriangleMarker::new(*point, 7, color.filled())))?;
        }
    }
    Ok(())
}

fn explain(legend: &Area<'_>, curves: &[Curve]) -> Drawn {
    for (row, Curve { label, color, joined, .. }) in (0_i32..).zip(curves) {
        let y = 60 + 26 * row;
        if *joined {
            legend.draw(&PathElement::new(vec![(4, y), (32, y)], color.stroke_width(2)))?;
            legend.draw(&Circle::new((18, y), 3, color.filled()))?;
        } else {
            legend.draw(&TriangleMarker::new((18, y), 7, color.filled()))?;
        }
        legend.draw(&Text::new(*label, (40, y - 7), (FONT, 14)))?;
    }
    Ok(())
}
