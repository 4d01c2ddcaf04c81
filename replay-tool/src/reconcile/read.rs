//! Orders, read line by line from CSV or NDJSON.

use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    order::{Fields, Order, Reading},
    source::{Format, Source},
    spill::{Spill, Spilling},
};
use crate::context::Failure;

/// The longest line of NDJSON, in bytes: an order needs a fraction of it, and a file of another kind is told apart early.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// What the orders must have.
const REQUIRED: [&str; 4] = ["order_id", "user_id", "points", "status"];

/// Reads all orders and lays them down by partition. The first line that is none ends it: nothing is compared, and nothing
/// settled, on half of what the order system says.
pub(crate) fn read_orders(source: Source, reading: &Reading) -> Result<Spill, Failure> {
    let Source { name, format, reader } = source;
    let mut spilling = Spilling::start()?;
    let outcome = match format {
        Format::Csv => read_csv(reader, reading, &mut |order| spilling.add(order)),
        Format::Ndjson => read_ndjson(reader, reading, &mut |order| spilling.add(order)),
    };
    outcome.map_err(|fault| match fault {
        Fault::Line(line, why) => Failure::new(format!("{name} line {line}: {why}; nothing was compared")),
        Fault::Failed(failure) => failure,
        Fault::Read(error) => {
            Failure::new(format!("{name} could not be read to its end: {error}; nothing was compared"))
        }
    })?;
    spilling.finish()
}

#[derive(Debug)]
enum Fault {
    Line(u64, String),
    Read(std::io::Error),
    Failed(Failure),
}

type Take<'a> = &'a mut dyn FnMut(&Order) -> Result<(), Failure>;

fn read_csv(reader: impl Read, reading: &Reading, take: Take<'_>) -> Result<(), Fault> {
    let mut rows = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(reader);
    let header = rows.headers().map_err(csv_fault)?;
    // A spreadsheet may put a byte order mark before the first name.
    let names: Vec<_> = header.iter().map(|name| name.trim_start_matches('\u{feff}').to_ascii_lowercase()).collect();
    let column = |wanted: &str| names.iter().position(|name| name == wanted);
    let points = column("points").or_else(|| column("points_amount"));
    if let Some(missing) =
        REQUIRED.iter().find(|name| column(name).is_none() && !(**name == "points" && points.is_some()))
    {
        let why = format!(
            "there is no column {missing}; the first line must name the columns, parted by commas: {}",
            REQUIRED.join(",")
        );
        return Err(Fault::Line(1, why));
    }
    let optional = ["credit_type", "created_at", "refunded_points"].map(column);
    let [order_id, user_id, status] = ["order_id", "user_id", "status"].map(column);
    let mut row = csv::StringRecord::new();
    while rows.read_record(&mut row).map_err(csv_fault)? {
        let line = row.position().map_or(0, csv::Position::line);
        let cell = |column: Option<usize>| column.and_then(|column| row.get(column)).map(str::to_owned);
        let fields = Fields {
            order_id: cell(order_id),
            user_id: cell(user_id),
            points: cell(points),
            status: cell(status),
            credit_type: cell(optional[0]),
            created_at: cell(optional[1]),
            refunded_points: cell(optional[2]),
        };
        let order = reading.order(line, fields).map_err(|why| Fault::Line(line, why))?;
        take(&order).map_err(Fault::Failed)?;
    }
    Ok(())
}

fn csv_fault(error: csv::Error) -> Fault {
    let line = error.position().map_or(1, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => Fault::Read(error),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Fault::Line(line, format!("there are {len} cells where the first line has {expected_len}"))
        }
        csv::ErrorKind::Utf8 { err, .. } => Fault::Line(line, format!("cell {} is not UTF-8", err.field() + 1)),
        _ => Fault::Line(line, "this is no line of CSV".to_owned()),
    }
}

/// A line of NDJSON, its members as they are written; other members are the order system's own.
#[derive(Debug, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    order_id: Option<&'a RawValue>,
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow, alias = "points_amount")]
    points: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    credit_type: Option<&'a RawValue>,
    #[serde(borrow)]
    created_at: Option<&'a RawValue>,
    #[serde(borrow)]
    refunded_points: Option<&'a RawValue>,
}

fn read_ndjson(reader: impl Read, reading: &Reading, take: Take<'_>) -> Result<(), Fault> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut text).map_err(Fault::Read)?;
        if read == 0 {
            break;
        }
        if read as u64 > LINE_BYTES_MAX {
            return Err(Fault::Line(number, format!("the line is longer than {LINE_BYTES_MAX} bytes: it is no order")));
        }
        let line = text.strip_prefix("\u{feff}".as_bytes()).filter(|_| number == 1).unwrap_or(&text).trim_ascii();
        if line.is_empty() {
            continue;
        }
        if line.starts_with(b"[") {
            let why = "this is a JSON array; write one object a line, such as `jq -c '.[]'` does";
            return Err(Fault::Line(number, why.to_owned()));
        }
        let parsed: Line<'_> =
            serde_json::from_slice(line).map_err(|error| Fault::Line(number, format!("no order: {error}")))?;
        let fields = fields(&parsed).map_err(|why| Fault::Line(number, why))?;
        let order = reading.order(number, fields).map_err(|why| Fault::Line(number, why))?;
        take(&order).map_err(Fault::Failed)?;
    }
    Ok(())
}

fn fields(line: &Line<'_>) -> Result<Fields, String> {
    Ok(Fields {
        order_id: id("order_id", line.order_id)?,
        user_id: id("user_id", line.user_id)?,
        points: text("points", line.points)?,
        status: text("status", line.status)?,
        credit_type: text("credit_type", line.credit_type)?,
        created_at: text("created_at", line.created_at)?,
        refunded_points: text("refunded_points", line.refunded_points)?,
    })
}

/// A text or a number. The number stays as it is written: past 64 bits a parsed one would be another.
fn text(field: &str, member: Option<&RawValue>) -> Result<Option<String>, String> {
    let Some(written) = member.map(RawValue::get) else { return Ok(None) };
    match written.as_bytes().first() {
        Some(b'"') => serde_json::from_str(written).map(Some).map_err(|error| format!("{field} is no text: {error}")),
        Some(b'-' | b'0'..=b'9') => Ok(Some(written.to_owned())),
        _ => Err(format!("{field} must be a text or a number, not {written}")),
    }
}

/// Order systems have ids that are numbers. `1`, `1.0` and `1e0` are one number, and would be three ids.
fn id(field: &str, member: Option<&RawValue>) -> Result<Option<String>, String> {
    let id = text(field, member)?;
    let written = member.map_or("", RawValue::get);
    if !written.starts_with('"') && written.contains(['.', 'e', 'E']) {
        return Err(format!("{field} must be a text or a whole number, not {written}: write it as a text"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::order::Statuses;

    fn read(format: Format, text: &str) -> Result<Vec<Order>, String> {
        let reading = Reading { credit_type: "points".into(), statuses: Statuses::with(&[]), from: None, to: None };
        let mut orders = Vec::new();
        let mut take = |order: &Order| {
            orders.push(order.clone());
            Ok(())
        };
        let outcome = match format {
            Format::Csv => read_csv(text.as_bytes(), &reading, &mut take),
            Format::Ndjson => read_ndjson(text.as_bytes(), &reading, &mut take),
        };
        match outcome {
            Ok(()) => Ok(orders),
            Err(Fault::Line(line, why)) => Err(format!("line {line}: {why}")),
            Err(other) => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_same_orders_come_from_csv_and_from_ndjson() {
        let csv = "\u{feff}Status,user_id,order_id,note,points,credit_type\npaid,u1,O1,\"a, b\",5,\ncancelled,\"u,2\",O2,,7,coins\n";
        let ndjson = "{\"order_id\":\"O1\",\"user_id\":\"u1\",\"points\":5,\"status\":\"paid\"}\r\n\n\
                      {\"status\":\"cancelled\",\"order_id\":\"O2\",\"user_id\":\"u,2\",\"points\":\"7\",\"credit_type\":\"coins\",\"x\":{}}";
        let (mut csv, mut ndjson) =
            (read(Format::Csv, csv).expect("read"), read(Format::Ndjson, ndjson).expect("read"));
        assert_eq!(csv.iter().map(|order| order.line).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(ndjson.iter().map(|order| order.line).collect::<Vec<_>>(), [1, 3]);
        csv.iter_mut().chain(&mut ndjson).for_each(|order| order.line = 0);
        assert_eq!(csv, ndjson);
    }

    #[test]
    fn a_line_that_is_no_order_is_named_by_its_number() {
        for (format, text, says) in [
            (Format::Csv, "order_id,user_id,points\nO1,u1,5\n", "line 1: there is no column status"),
            (Format::Csv, "", "line 1: there is no column order_id"),
            (Format::Csv, "order_id,user_id,points,status\nO1,u1,5,paid\nO2,u1,5\n", "line 3: there are 3 cells"),
            (Format::Csv, "order_id,user_id,points,status\nO1,u1,5,paid\nO2,u1,x,paid\n", "line 3: points must be"),
            (Format::Ndjson, "{\"order_id\":\"O1\"}\n", "line 1: user_id is missing"),
            (Format::Ndjson, "\n{\"order_id\":", "line 2: no order: EOF"),
            (Format::Ndjson, "[{}]", "jq -c"),
            (
                Format::Ndjson,
                "{\"order_id\":{},\"user_id\":1,\"points\":1,\"status\":\"paid\"}",
                "order_id must be a text",
            ),
            (
                Format::Ndjson,
                "{\"order_id\":1,\"user_id\":1,\"points\":1.0,\"status\":\"paid\"}",
                "points must be a whole",
            ),
            (
                Format::Ndjson,
                "\n{\"order_id\":1.0,\"user_id\":1,\"points\":1,\"status\":\"paid\"}",
                "line 2: order_id must be a text or a whole number, not 1.0: write it as a text",
            ),
            (
                Format::Ndjson,
                "{\"order_id\":1,\"user_id\":2E3,\"points\":1,\"status\":\"paid\"}",
                "line 1: user_id must be a text or a whole number, not 2E3: write it as a text",
            ),
        ] {
            let refused = read(format, text).expect_err(text);
            assert!(refused.contains(says), "{text}: {refused}");
        }
    }

    #[test]
    fn ids_that_are_numbers_are_read_as_they_are_written() {
        let line = |order: &str, user: &str| {
            format!("{{\"order_id\":{order},\"user_id\":{user},\"points\":1,\"status\":\"paid\"}}\n")
        };
        let text = [
            line("20261120120000123456", "18446744073709551617"),
            line("20261120120000123457", "18446744073709551618"),
            line("7", "\"1.5e\\u0033\""),
        ];
        let orders = read(Format::Ndjson, &text.concat()).expect("read");
        let ids: Vec<_> = orders.iter().map(|order| (&*order.order_id, &**order.account.user_id())).collect();
        assert_eq!(
            ids,
            [
                ("20261120120000123456", "18446744073709551617"),
                ("20261120120000123457", "18446744073709551618"),
                ("7", "1.5e3"),
            ]
        );
    }
}
