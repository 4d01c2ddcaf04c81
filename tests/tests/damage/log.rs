//! Damage of the log itself.

use ledger_core::{Amount, Epoch, Position, TransactionId};

use crate::{
    case::{Case, lie, only_against_an_anchor, sql, with_id, with_its_own_id},
    ledger::{Ledger, NEWEST},
};

pub(crate) fn of_the_log(ledger: &Ledger) -> Vec<Case> {
    let (p, q) = (ledger.partition, ledger.other);
    let here = |position: u64| format!("partition = {p} and position = {position}");
    let update = |set: &str, position: u64| format!("update events set {set} where {}", here(position));
    let delete = |which: &str| format!("delete from events where partition = {p} and position {which}");
    let from = |column: &str, position: u64| format!("(select {column} from kept_events where {})", here(position));
    let copy = |position: i64, of: u64| {
        [
            format!("create table a_row as select * from events where {}", here(of)),
            format!("update a_row set position = {position}"),
            "insert into events select * from a_row".to_owned(),
            "drop table a_row".to_owned(),
        ]
    };
    let at = |kind: &'static str, position: u64| [(kind, p, Some(position))];
    let (past, before) = (copy(11, NEWEST), copy(0, NEWEST));
    let (past, before) = (past.each_ref().map(String::as_str), before.each_ref().map(String::as_str));
    vec![
        sql("an amount edited", &[&update("amount = amount + 1", 3)], &at("hash_mismatch", 3)),
        sql(
            "a balance carried edited",
            &[&update("balance = balance + 1, available = available + 1", 4)],
            &at("hash_mismatch", 4),
        ),
        sql("metadata edited", &[&update("metadata = '{}'", 2)], &at("hash_mismatch", 2)),
        sql("a description edited", &[&update("description = 'x'", 6)], &at("hash_mismatch", 6)),
        sql(
            "a time edited",
            &[&update(&format!("recorded_at = {}", from("recorded_at", 4)), 5)],
            &at("hash_mismatch", 5),
        ),
        sql("an actor edited", &[&update("actor = 'nobody'", 1)], &at("hash_mismatch", 1)),
        sql("a business key edited", &[&update("business_id = 'x'", 5)], &at("hash_mismatch", 5)),
        sql("a version skipped", &[&update("version = version + 1", 5)], &at("hash_mismatch", 5)),
        sql("an epoch edited", &[&update("epoch = 2", NEWEST)], &at("hash_mismatch", NEWEST)),
        sql("a relation cut", &[&update("related_id = null", 3)], &at("hash_mismatch", 3)),
        sql(
            "a relation bent",
            &[&update(&format!("related_id = {}", from("transaction_id", 7)), 9)],
            &at("hash_mismatch", 9),
        ),
        sql(
            "a batch mark taken off",
            &[&update("batch_id = null, batch_size = null, batch_index = null", 8)],
            &at("hash_mismatch", 8),
        ),
        sql("an expiry added", &[&update("expires_at = recorded_at", 2)], &at("hash_mismatch", 2)),
        sql("a hash edited", &[&update(&format!("hash = {}", from("hash", 3)), 5)], &at("hash_mismatch", 5)),
        sql("a type that is none", &[&update("type = 'gifted'", 4)], &at("damaged_event", 4)),
        sql("more frozen than owned", &[&update("frozen = balance + 1", 4)], &at("damaged_event", 4)),
        sql("a hash cut short", &[&update("hash = substr(hash, 1, 31)", 4)], &at("damaged_event", 4)),
        sql("a row deleted", &[&delete("= 3")], &at("gap", 3)),
        sql("some rows deleted", &[&delete("between 3 and 7")], &at("gap", 3)),
        sql("the first row deleted", &[&delete("= 1")], &at("gap", 1)),
        sql("the newest row deleted", &[&delete("= 10")], &at("gap", NEWEST)),
        sql("a partition emptied", &[&delete("> 0")], &at("gap", 1)),
        sql(
            "two rows swapped",
            &[&update("position = 999", 3), &update("position = 3", 4), &update("position = 4", 999)],
            &[("hash_mismatch", p, Some(3)), ("hash_mismatch", p, Some(4))],
        ),
        sql("a row added after the newest", &past, &at("beyond_head", 11)),
        sql("a row added before the first", &before, &at("damaged_event", 0)),
        sql(
            "a row moved to another partition",
            &[&update(&format!("partition = {q}, position = 9"), 3)],
            &[("gap", p, Some(3)), ("beyond_head", q, Some(9))],
        ),
        lie(
            "another version, hashes made to follow",
            5,
            |event, _| event.after.version += 1,
            &at("version_mismatch", 5),
        ),
        lie("another predecessor", 5, |event, _| event.previous_position = Position(1), &at("version_mismatch", 5)),
        lie("another balance", 5, |event, _| event.after.balance += 1, &at("state_mismatch", 5)),
        lie(
            "another amount",
            5,
            |event, _| {
                (event.amount, event.remaining) = (Amount::new(11).ok(), Some(11));
            },
            &at("state_mismatch", 5),
        ),
        lie(
            "more than there is",
            5,
            |event, _| {
                (event.amount, event.remaining) = (Amount::new(100_000).ok(), Some(100_000));
            },
            &at("state_mismatch", 5),
        ),
        lie(
            "an original that is no freeze",
            9,
            |event, all| event.related_id = Some(all[0].transaction_id),
            &at("relation_missing", 9),
        ),
        lie(
            "another account's freeze",
            9,
            |event, all| event.related_id = Some(all[6].transaction_id),
            &at("relation_foreign", 9),
        ),
        lie(
            "a refund of more than was paid",
            4,
            |event, _| {
                (event.amount, event.remaining) = (Amount::new(201).ok(), Some(0));
                event.after.balance += 151;
            },
            &at("relation_exceeded", 4),
        ),
        lie("a refund that says another rest", 4, |event, _| event.remaining = Some(149), &at("relation_mismatch", 4)),
        lie("a release that says another rest", 9, |event, _| event.remaining = Some(199), &at("relation_mismatch", 9)),
        lie(
            "a key twice",
            5,
            |event, all| {
                event.key = all[1].key.clone();
                with_its_own_id(event);
            },
            &at("duplicate_key", 5),
        ),
        lie(
            "another id",
            5,
            |event, _| {
                with_id(event, TransactionId::derive(&event.account, Epoch(7), event.position, &event.key));
            },
            &at("id_mismatch", 5),
        ),
        lie("another operation", 5, |event, all| event.operation_id = all[0].operation_id, &at("index_missing", 5)),
        lie("time running backwards", 5, |event, all| event.recorded_at = all[0].recorded_at, &at("order_mismatch", 5)),
        lie(
            "an epoch that no restore began",
            NEWEST,
            |event, _| {
                event.epoch = Epoch(7);
                with_its_own_id(event);
            },
            &[
                ("epoch_mismatch", p, Some(NEWEST)),
                ("head_mismatch", p, Some(NEWEST)),
                ("checkpoint_mismatch", p, Some(NEWEST)),
                ("checkpoint_mismatch", p, Some(NEWEST)),
                ("checkpoint_mismatch", p, Some(NEWEST)),
            ],
        ),
        lie("half a batch", 8, |event, _| event.batch = None, &[("batch_incomplete", q, Some(1))]),
        only_against_an_anchor(lie(
            "hashes made anew from a point on",
            6,
            |event, _| {
                event.metadata = Some("{\"edited\":true}".into());
            },
            &at("anchor_mismatch", NEWEST),
        )),
        only_against_an_anchor(lie(
            "the whole chain made anew",
            1,
            |event, _| {
                event.metadata = Some("{\"edited\":true}".into());
            },
            &at("anchor_mismatch", NEWEST),
        )),
        only_against_an_anchor(sql(
            "the newest rows cut off",
            &[
                &delete("> 8"),
                &format!("update partition_heads set position = 8, hash = {} where partition = {p}", from("hash", 8)),
                // All that is made from the log is made anew by the next start.
                &format!("delete from account_positions where partition = {p}"),
                &format!("delete from key_positions where partition = {p}"),
                &format!("delete from related_positions where partition = {p}"),
                &format!("delete from balances where partition = {p}"),
                &format!("delete from freezes where partition = {p}"),
                &format!("update index_checkpoints set position = 0, hash = NOTHING where partition = {p}"),
                &format!("update projection_checkpoints set position = 0, hash = NOTHING where partition = {p}"),
            ],
            &at("truncated_tail", 9),
        )),
    ]
}
