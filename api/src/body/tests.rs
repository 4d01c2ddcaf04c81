use super::*;
use crate::{
    access::Caller,
    commands::{COMMAND_FIELDS, Kind},
    request::{Origin, RequestId},
};

const FREEZE_ID: &str = "00000000-0104-8000-8000-000004000000";

fn command(kind: Kind, body: &[u8]) -> Result<ledger_core::Command, Problem> {
    let origin = Origin { id: RequestId("r1".into()), caller: Caller::anonymous() };
    kind.command(&read(body, COMMAND_FIELDS)?, &origin)
}

/// A credit's body in which `field` holds `value`, or is left out.
fn credit_with(field: &str, value: Option<&str>) -> String {
    let mut fields = vec![
        ("user_id", "\"ann\""),
        ("credit_type", "\"points\""),
        ("amount", "5"),
        ("business_code", "\"order.create\""),
        ("business_id", "\"1\""),
    ];
    fields.retain(|(name, _)| *name != field);
    fields.extend(value.map(|value| (field, value)));
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

#[test]
fn a_bad_value_is_refused_by_the_name_of_its_field() {
    let long = |chars: usize| format!("\"{}\"", "x".repeat(chars));
    let deep = |levels: usize| format!("{}{}", "{\"a\":".repeat(levels), "1".to_owned() + &"}".repeat(levels));
    let mut cases: Vec<(&str, String)> = Vec::new();
    for value in [
        "0",
        "-1",
        "-0",
        "9007199254740992",
        "99999999999999999999999",
        "5.0",
        "5.",
        "05",
        "1e3",
        "+5",
        "\"5\"",
        "null",
        "true",
        "[5]",
        "{}",
        "",
    ] {
        cases.push(("amount", value.to_owned()));
    }
    for field in ["user_id", "credit_type", "business_code", "business_id"] {
        for value in ["\"\"", "7", "null", "[]", r#""a\u0000b""#, r#""a\u0001b""#, r#""\u0085""#, r#""\ud800""#] {
            cases.push((field, value.to_owned()));
        }
        cases.push((field, long(129)));
    }
    cases.extend([
        ("business_code", long(65)),
        ("business_code", "\"system.lock\"".to_owned()),
        ("operation_id", "\"x\"".to_owned()),
        ("operation_id", "\"67e5504410b1426f9247bb680e5fe0c8\"".to_owned()),
        ("expected_version", "-1".to_owned()),
        ("expected_version", "\"1\"".to_owned()),
        ("description", long(513)),
        ("description", r#""\u0000""#.to_owned()),
        ("description", "7".to_owned()),
        ("metadata", "[]".to_owned()),
        ("metadata", "\"x\"".to_owned()),
        ("metadata", format!("{{\"a\":{}}}", long(4096))),
        ("metadata", r#"{"a":"\u0000"}"#.to_owned()),
        ("metadata", r#"{"a":[{"b\u0000":1}]}"#.to_owned()),
        ("metadata", r#"{"a":"\ud800"}"#.to_owned()),
        ("metadata", r#"{"\ud800":1}"#.to_owned()),
        ("metadata", r#"{"a":1,"a":2}"#.to_owned()),
        ("metadata", r#"{"a":{"b":1,"\u0062":2}}"#.to_owned()),
        ("metadata", deep(DEPTH_MAX + 1)),
        ("metadata", format!("{{\"a\":{}", "[".repeat(100_000))),
        ("user_id", "[".repeat(100_000)),
        ("freeze_id", "\"x\"".to_owned()),
        ("debit_id", format!("\"{FREEZE_ID}\"")),
        ("release_remainder", "true".to_owned()),
        ("expires_at", "\"2030-01-01T00:00:00Z\"".to_owned()),
        ("expires_in_seconds", "5".to_owned()),
        ("colour", "1".to_owned()),
    ]);
    for (field, value) in &cases {
        let problem = command(Kind::Credit, credit_with(field, Some(value)).as_bytes()).expect_err(value);
        let shown: String = value.chars().take(60).collect();
        assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(*field)), "{field}: {shown}");
    }
}

#[test]
fn what_is_missing_is_named() {
    for field in ["user_id", "credit_type", "amount", "business_code", "business_id"] {
        let problem = command(Kind::Credit, credit_with(field, None).as_bytes()).expect_err(field);
        assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(field)));
    }
    let key = r#""business_code":"a","business_id":"b""#;
    for (kind, field) in [(Kind::Unfreeze, "freeze_id"), (Kind::Refund, "debit_id"), (Kind::Debit, "user_id")] {
        let problem = command(kind, format!("{{{key}}}").as_bytes()).expect_err(field);
        assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(field)));
    }
}

#[test]
fn a_fault_of_no_field_is_one_of_the_whole() {
    let good = credit_with("amount", Some("5"));
    for body in [
        String::new(),
        "null".to_owned(),
        "7".to_owned(),
        "[]".to_owned(),
        "{".to_owned(),
        "{,}".to_owned(),
        format!("{good}x"),
        format!("{good}{good}"),
        format!("\u{feff}{good}"),
        "[".repeat(100_000),
        "{\"a".to_owned(),
    ] {
        let problem = command(Kind::Credit, body.as_bytes()).expect_err("no object");
        let shown: String = body.chars().take(60).collect();
        assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(WHOLE)), "{shown}");
    }
}

#[test]
fn a_field_that_is_there_twice_is_refused_however_it_is_spelled() {
    let good = credit_with("amount", Some("5"));
    for twice in ["\"amount\":5", "\"amount\":6", "\"\\u0061mount\":null"] {
        let body = good.replacen('{', &format!("{{{twice},"), 1);
        let problem = command(Kind::Credit, body.as_bytes()).expect_err(twice);
        assert_eq!((problem.code(), problem.field()), ("invalid_request", Some("amount")), "{twice}");
    }
}

#[test]
fn invalid_utf_8_is_refused_by_the_name_of_its_field() {
    for (field, value) in [("user_id", b"\"\xff\"".as_slice()), ("metadata", b"{\"a\":\"\xc3\x28\"}")] {
        let with_mark = credit_with(field, Some("@"));
        let (before, after) = with_mark.split_once('@').expect("marked");
        let body = [before.as_bytes(), value, after.as_bytes()].concat();
        let problem = command(Kind::Credit, &body).expect_err(field);
        assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(field)));
    }
}

#[test]
fn a_field_goes_with_its_command() {
    let freeze = format!("\"freeze_id\":\"{FREEZE_ID}\"");
    let (key, of) =
        (r#""business_code":"a","business_id":"b""#, r#""user_id":"ann","credit_type":"points","amount":5"#);
    for (kind, fields, field) in [
        (Kind::Debit, format!("{of},\"release_remainder\":true"), "release_remainder"),
        (Kind::Debit, format!("{freeze},\"user_id\":\"\""), "user_id"),
        (Kind::Debit, format!("{freeze},\"expires_in_seconds\":5"), "expires_in_seconds"),
        (Kind::Unfreeze, format!("{freeze},\"release_remainder\":true"), "release_remainder"),
        (Kind::Refund, freeze.clone(), "freeze_id"),
        (Kind::Freeze, format!("{of},{freeze}"), "freeze_id"),
        (
            Kind::Freeze,
            format!("{of},\"expires_at\":\"2030-01-01T00:00:00Z\",\"expires_in_seconds\":5"),
            "expires_in_seconds",
        ),
        (Kind::Freeze, format!("{of},\"expires_in_seconds\":0"), "expires_in_seconds"),
        (Kind::Freeze, format!("{of},\"expires_in_seconds\":9007199254740991"), "expires_in_seconds"),
        (Kind::Freeze, format!("{of},\"expires_at\":\"tomorrow\""), "expires_at"),
        (Kind::Freeze, format!("{of},\"expires_at\":1700000000"), "expires_at"),
    ] {
        let problem = command(kind, format!("{{{key},{fields}}}").as_bytes()).expect_err(field);
        assert_eq!((problem.code(), problem.field()), ("invalid_request", Some(field)), "{fields}");
    }
}

#[test]
fn an_id_that_no_transaction_can_have_is_that_of_none() {
    let body = r#"{"freeze_id":"67e55044-10b1-426f-9247-bb680e5fe0c8","business_code":"a","business_id":"b"}"#;
    let problem = command(Kind::Unfreeze, body.as_bytes()).expect_err("not found");
    assert_eq!((problem.code(), problem.field()), ("freeze_not_found", Some("freeze_id")));
}

#[test]
fn what_is_optional_may_be_null_and_what_is_free_comes_as_it_is() {
    let body = credit_with("description", Some("null")).replacen(
        '{',
        r#"{"operation_id":null,"expected_version":null,"metadata":null,"#,
        1,
    );
    let provenance = command(Kind::Credit, body.as_bytes()).expect("valid").provenance;
    assert!(provenance.description.is_none() && provenance.metadata.is_none() && provenance.operation_id.is_none());

    let metadata = r#"{ "z":1.50 ,"n":[1e999,123456789012345678901234567890],"t":"é\ud83d\ude00\n" }"#;
    let provenance =
        command(Kind::Credit, credit_with("metadata", Some(metadata)).as_bytes()).expect("valid").provenance;
    assert_eq!(provenance.metadata.as_deref(), Some(metadata));
}
