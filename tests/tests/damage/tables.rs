//! Damage of what stands beside the log: heads, checkpoints, read models, indexes.

use tests::vandal::Vandal;

use crate::{
    case::{Case, sql},
    ledger::{Ledger, NEWEST, account},
};

pub(crate) fn of_heads_and_checkpoints(ledger: &Ledger, vandal: &Vandal) -> Vec<Case> {
    let p = ledger.partition;
    let set = |table: &str, set: &str| format!("update {table} set {set} where partition = {p}");
    let model = |change: &str| {
        format!("update projection_checkpoints set {change} where partition = {p} and projection = 'balances'")
    };
    let at = |kind: &'static str, position: u64| [(kind, p, Some(position))];
    let nowhere = |kind: &'static str| [(kind, p, None)];
    let hash = format!("hash = {}", vandal.blob(&[7; 32]));
    let short = format!("hash = {}", vandal.blob(&[7; 3]));
    let back = format!("position = 9, hash = (select hash from events where partition = {p} and position = 9)");
    let row = |table: &str, columns: &str, values: &str| format!("insert into {table} ({columns}) values ({values})");
    // As many positions as nobody has the time to look at one by one.
    let far = "position = position + 1000000000000000";
    let far_at = NEWEST + 1_000_000_000_000_000;
    let restored = row(
        "restores",
        "partition, epoch, position, hash, restored_at, archive_id",
        &format!("{p}, 99, 3, {}, '2026-11-20T12:00:00.000000Z', 'a'", vandal.blob(&[7; 32])),
    );
    let published = row(
        "publisher_checkpoints",
        "stream, partition, epoch, position, hash, stream_sequence",
        &format!("'CREDIT', {p}, 1, 4, {}, 4", vandal.blob(&[7; 32])),
    );
    vec![
        sql("a head too far", &[&set("partition_heads", "position = position + 1")], &at("gap", 11)),
        sql("a head far too far", &[&set("partition_heads", far)], &at("gap", 11)),
        sql("a head set back", &[&set("partition_heads", &back)], &at("beyond_head", NEWEST)),
        sql("a head's hash edited", &[&set("partition_heads", &hash)], &at("head_mismatch", NEWEST)),
        sql("a head's epoch edited", &[&set("partition_heads", "epoch = 2")], &at("head_mismatch", NEWEST)),
        sql("a head's hash cut short", &[&set("partition_heads", &short)], &nowhere("head_mismatch")),
        sql(
            "a head deleted",
            &[&format!("delete from partition_heads where partition = {p}")],
            &nowhere("head_missing"),
        ),
        sql(
            "a restore that never was",
            &[&restored],
            &[("restore_mismatch", p, Some(3)), ("head_mismatch", p, Some(NEWEST))],
        ),
        sql("a checkpoint's epoch edited", &[&model("epoch = epoch + 1")], &at("checkpoint_mismatch", NEWEST)),
        sql("a checkpoint's hash edited", &[&model(&hash)], &at("checkpoint_mismatch", NEWEST)),
        sql("a checkpoint cut short", &[&model(&short)], &nowhere("checkpoint_mismatch")),
        sql("a checkpoint ahead", &[&model("position = position + 1")], &at("checkpoint_mismatch", 11)),
        sql("a checkpoint far ahead", &[&model(far)], &at("checkpoint_mismatch", far_at)),
        sql("a checkpoint behind", &[&model(&back)], &at("balance_mismatch", 9)),
        sql(
            "a checkpoint deleted",
            &[&format!("delete from projection_checkpoints where partition = {p} and projection = 'freezes'")],
            &nowhere("checkpoint_missing"),
        ),
        sql(
            "an index checkpoint ahead",
            &[&set("index_checkpoints", "position = position + 1")],
            &at("checkpoint_mismatch", 11),
        ),
        sql("an index checkpoint far ahead", &[&set("index_checkpoints", far)], &at("checkpoint_mismatch", far_at)),
        sql(
            "an index checkpoint's hash edited",
            &[&set("index_checkpoints", &hash)],
            &at("checkpoint_mismatch", NEWEST),
        ),
        sql(
            "an index checkpoint deleted",
            &[&format!("delete from index_checkpoints where partition = {p}")],
            &nowhere("checkpoint_missing"),
        ),
        sql("a publisher's checkpoint of another log", &[&published], &at("checkpoint_mismatch", 4)),
    ]
}

pub(crate) fn of_read_models_and_indexes(ledger: &Ledger) -> Vec<Case> {
    let (p, busy) = (ledger.partition, ledger.busy);
    let ann = format!("partition = {p} and account_id = '{}'", account("ann").id());
    // Nobody yet, in ann's partition.
    let mut strangers = (0..10_000).map(|number| account(&format!("stranger-{number}")));
    let stranger = strangers.find(|stranger| stranger.partition() == p).expect("accounts spread over all partitions");
    let at = |kind: &'static str, position: u64| [(kind, p, Some(position))];
    let edit = |table: &str, set: &str, which: &str| format!("update {table} set {set} where {which}");
    let freeze = format!("partition = {p} and position = 2");
    let add = |table: &str, set: &str, which: &str| {
        [
            format!("create table a_row as select * from {table} where {which}"),
            format!("update a_row set {set}"),
            format!("insert into {table} select * from a_row"),
            "drop table a_row".to_owned(),
        ]
    };
    let balance = add(
        "balances",
        &format!("user_id = '{}', account_id = '{}', position = 1", stranger.user_id(), stranger.id()),
        &ann,
    );
    let added_freeze = add("freezes", "position = 5", &freeze);
    let index = add("account_positions", &format!("account_id = '{}', position = 1", stranger.id()), &ann);
    let key = format!("partition = {p} and position = 4");
    let added_key = add("key_positions", "business_hash = 1", &key);
    let history = format!("partition = {busy}");
    // What ann has at her newest event, and a thousand more, with a seal that fits: it is no secret how one is made.
    let (edited, numbers) = (1_852_u64, [NEWEST, 1_852, 200, 8]);
    let mut sealed = account("ann").id().uuid().as_bytes().to_vec();
    numbers.iter().for_each(|number| sealed.extend_from_slice(&number.to_be_bytes()));
    sealed.push(0);
    let seal = blake3::hash(&sealed);
    let seal = i64::from_be_bytes(std::array::from_fn(|index| seal.as_bytes()[index]));
    vec![
        sql(
            "a balance edited",
            &[&edit("balances", "balance = balance + 5, available = available + 5", &ann)],
            &at("balance_mismatch", NEWEST),
        ),
        sql(
            "only the balance edited",
            &[&edit("balances", "balance = balance + 5", &ann)],
            &at("balance_mismatch", NEWEST),
        ),
        sql("a status edited", &[&edit("balances", "status = 'locked'", &ann)], &at("balance_mismatch", NEWEST)),
        sql("a status that is none", &[&edit("balances", "status = 'lost'", &ann)], &at("balance_mismatch", NEWEST)),
        sql(
            "a time of a balance edited",
            &[&edit("balances", "updated_at = '2026-01-01T00:00:00.000000Z'", &ann)],
            &at("balance_mismatch", NEWEST),
        ),
        sql("a balance deleted", &[&format!("delete from balances where {ann}")], &at("balance_missing", NEWEST)),
        sql("a balance added", &balance.each_ref().map(String::as_str), &[("balance_unexpected", p, Some(1))]),
        sql(
            "a freeze edited",
            &[&edit("freezes", "remaining = remaining - 1, released = released + 1", &freeze)],
            &at("freeze_mismatch", 2),
        ),
        sql("a freeze settled by hand", &[&edit("freezes", "status = 'settled'", &freeze)], &at("freeze_mismatch", 2)),
        sql("a freeze deleted", &[&format!("delete from freezes where {freeze}")], &at("freeze_missing", 2)),
        sql("a freeze added", &added_freeze.each_ref().map(String::as_str), &at("freeze_unexpected", 5)),
        sql(
            "an account's place edited",
            &[&edit("account_positions", "position = 6", &ann)],
            &at("index_mismatch", NEWEST),
        ),
        sql(
            "an account's place past the log",
            &[&edit("account_positions", "position = 60", &ann)],
            &at("index_mismatch", 60),
        ),
        sql(
            "an account's state edited and sealed anew",
            &[&edit("account_positions", &format!("balance = {edited}, seal = {seal}"), &ann)],
            &at("index_mismatch", NEWEST),
        ),
        sql(
            "an account's place deleted",
            &[&format!("delete from account_positions where {ann}")],
            &at("index_missing", NEWEST),
        ),
        sql("an account's place added", &index.each_ref().map(String::as_str), &[("index_unexpected", p, Some(1))]),
        sql(
            "a key's place edited",
            &[&edit("key_positions", "position = 5", &key)],
            &[("index_missing", p, Some(4)), ("index_unexpected", p, Some(5))],
        ),
        sql("a key's place deleted", &[&format!("delete from key_positions where {key}")], &at("index_missing", 4)),
        sql("a key's place added", &added_key.each_ref().map(String::as_str), &at("index_unexpected", 4)),
        sql(
            "a key moved to another run",
            &[&edit("key_positions", "run = 3", &key)],
            &[("index_missing", p, Some(4)), ("index_unexpected", p, Some(4))],
        ),
        sql(
            "a relation's place edited",
            &[&edit("related_positions", "position = 3", &format!("partition = {p} and original_position = 2"))],
            &at("index_mismatch", 9),
        ),
        sql(
            "a relation's place deleted",
            &[&format!("delete from related_positions where partition = {p} and original_position = 3")],
            &at("index_missing", 4),
        ),
        sql(
            "a version's place edited",
            &[&edit("history_positions", "position = 255", &history)],
            &[("index_mismatch", busy, Some(256))],
        ),
        sql(
            "a version's place deleted",
            &[&format!("delete from history_positions where {history}")],
            &[("index_missing", busy, Some(256))],
        ),
    ]
}
