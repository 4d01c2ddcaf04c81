//! The stored form never changes by accident: fixed events have fixed bytes, hashes and ids.

use ledger_core::{
    Account, Action, Amount, BatchMark, BusinessKey, Command, Event, Hash, Head, Position, Provenance, Situation, Slot,
    Timestamp, chain, decide,
    json::{LogEntry, Transaction},
};

fn event() -> Event {
    let account = Account::new("ann", "points").expect("valid");
    let command = Command {
        action: Action::Credit { account: account.clone(), amount: Amount::new(1_000).expect("valid") },
        key: BusinessKey::new("signup.bonus", "ann").expect("valid"),
        expected_version: None,
        provenance: Provenance {
            operation_id: None,
            request_id: "request-1".into(),
            actor: "anonymous".into(),
            description: Some("welcome".into()),
            metadata: Some(r#"{ "n" : 1.50,"big":123456789012345678901234567890 }"#.into()),
        },
    };
    let now = Timestamp::parse("2026-11-20T12:00:00Z").expect("a time");
    let effect = decide(&Situation { account: None, original: None }, &command, now).expect("done");
    let slot = Slot { partition: account.partition(), head: Head::EMPTY, previous_position: Position::ZERO };
    let mark = BatchMark { id: uuid::Uuid::from_u128(7), size: 2, index: 1 };
    Event::seal(&account, &command, &effect, &slot, Some(mark), now)
}

#[test]
fn a_fixed_event_has_fixed_ids_bytes_and_hash() {
    let event = event();
    assert_eq!(event.account.id().to_string(), "3913c592-1f87-8195-97d5-8f15d9c67cfc");
    assert_eq!(event.transaction_id.to_string(), "39000000-0100-8000-8000-0007c04f2e1a");
    let mut bytes = Vec::new();
    chain::write_canonical(&mut bytes, &event);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, CANONICAL);
    assert_eq!(event.hash.to_string(), HASH);
    assert_eq!(chain::link(&Hash::ZERO, &event), event.hash);
}

#[test]
fn json_has_the_fields_of_the_contract_and_metadata_to_the_letter() {
    let event = event();
    let transaction = serde_json::to_string(&Transaction { event: &event, replayed: Some(false) }).expect("JSON");
    assert_eq!(
        transaction,
        concat!(
            r#"{"transaction_id":"39000000-0100-8000-8000-0007c04f2e1a","type":"credited","#,
            r#""account_id":"3913c592-1f87-8195-97d5-8f15d9c67cfc","user_id":"ann","credit_type":"points","#,
            r#""amount":1000,"released":0,"related_id":null,"remaining":null,"balance":1000,"frozen":0,"available":1000,"#,
            r#""version":1,"partition":57,"position":1,"business_code":"signup.bonus","business_id":"ann","#,
            r#""operation_id":"39000000-0100-8000-8000-0007c04f2e1a","request_id":"request-1","description":"welcome","#,
            r#""metadata":{ "n" : 1.50,"big":123456789012345678901234567890 },"expires_at":null,"#,
            r#""recorded_at":"2026-11-20T12:00:00.000000Z","replayed":false}"#
        )
    );
    let entry: serde_json::Value =
        serde_json::from_str(&serde_json::to_string(&LogEntry(&event)).expect("JSON")).expect("JSON");
    for (field, value) in [
        ("epoch", serde_json::json!(1)),
        ("previous_position", serde_json::json!(0)),
        ("hash", serde_json::json!(HASH)),
        ("schema_version", serde_json::json!(1)),
        ("locked", serde_json::json!(false)),
        ("actor", serde_json::json!("anonymous")),
        ("batch_size", serde_json::json!(2)),
        ("batch_index", serde_json::json!(1)),
    ] {
        assert_eq!(entry[field], value, "{field}");
    }
}

#[test]
fn texts_are_counted_in_characters_and_bear_no_control_characters() {
    let wide = |chars: usize| "💶".repeat(chars);
    for (user, fine) in [
        ("a".to_owned(), true),
        (wide(128), true),
        (wide(129), false),
        (String::new(), false),
        ("a\u{1}".to_owned(), false),
        ("a\u{85}".to_owned(), false),
        ("a\0".to_owned(), false),
        ("../..".to_owned(), true),
    ] {
        assert_eq!(Account::new(&user, "points").is_ok(), fine, "{user:?}");
        assert_eq!(BusinessKey::new("code", &user).is_ok(), fine, "{user:?}");
    }
    assert!(BusinessKey::new(&wide(64), "1").is_ok() && BusinessKey::new(&wide(65), "1").is_err());
    assert!(BusinessKey::new("system.lock", "1").is_err() && BusinessKey::reserved("system.lock", "1").is_ok());
}

const CANONICAL: &str = concat!(
    "01390000000100000000000000010000000000000000000101390000000100800080000007c04f2e1a3913c5921f87819597",
    "d58f15d9c67cfc00000003616e6e00000006706f696e74730100000000000003e80000000000000000000000000000000003",
    "e800000000000000000000000000000000010000000c7369676e75702e626f6e757300000003616e6e390000000100800080",
    "000007c04f2e1a00000009726571756573742d3100000009616e6f6e796d6f7573010000000777656c636f6d650100000033",
    "7b20226e22203a20312e35302c22626967223a31323334353637383930313233343536373839303132333435363738393020",
    "7d00000660b3fbca100001000000000000000000000000000000070000000200000001",
);
const HASH: &str = "a2b59b32bbe0b4cfd0b9f90ea00c3c2c1a3f3a13eff36df05e4e711855506454";
