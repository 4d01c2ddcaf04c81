//! `replay-tool verify` finds what was done to a database by hand, names it, and finds nothing else; `rebuild` mends what can
//! be mended.

mod case;
mod columns;
mod hidden;
mod ledger;
mod log;
mod part;
mod switch;
mod tables;

use std::collections::HashMap;

use ledger_core::{Amount, Event, EventType, Partition, Position};
use ledger_store::Database;
use serde_json::{Value, json};
use tests::{
    Load, Nats, Service, on_both_databases, replay_tool, store::NewDatabase, vandal::Vandal, verify_consistent,
};

use case::{Case, Deed, named};
use columns::what_is_edited_in_any_column_is_found;
use hidden::{
    a_compensation_whose_row_is_gone_is_named_and_written_again, a_damaged_log_opens_no_operation_again,
    a_state_whose_seal_is_broken_is_not_believed_and_no_finding, a_table_and_its_key_that_disagree_are_named,
};
use ledger::{NEWEST, ledger, wait_until_projected};
use part::verify_looks_at_a_part_and_says_what_it_leaves_out;

on_both_databases!(
    verify_names_each_damage_that_is_done_by_hand,
    what_is_edited_in_any_column_is_found,
    a_projector_that_counts_refunds_twice_is_found_on_the_first_run,
    a_cut_log_is_found_against_the_stream,
    verify_looks_at_a_part_and_says_what_it_leaves_out,
    rebuild_mends_the_read_models_while_commands_go_on,
    what_is_no_ledger_is_refused_in_one_line,
    a_table_and_its_key_that_disagree_are_named,
    a_state_whose_seal_is_broken_is_not_believed_and_no_finding,
    a_compensation_whose_row_is_gone_is_named_and_written_again,
    a_damaged_log_opens_no_operation_again,
);

async fn verify_names_each_damage_that_is_done_by_hand(database: NewDatabase) {
    let ledger = ledger(&database, &[]).await;
    let digest = verify_consistent(&database.url)["digest"].clone();
    let vandal = Vandal::arrive(&database.url).await;
    let mut cases = log::of_the_log(&ledger);
    cases.extend(tables::of_heads_and_checkpoints(&ledger, &vandal));
    cases.extend(tables::of_read_models_and_indexes(&ledger));
    let tried = cases.len();
    let number = ledger.partition.to_string();
    let mut missed = Vec::new();
    for Case { what, deed, found, needs_anchor } in cases {
        match deed {
            Deed::Sql(statements) => {
                let nothing = vandal.blob(&[0; 32]);
                let statements: Vec<_> = statements.iter().map(|sql| sql.replace("NOTHING", &nothing)).collect();
                vandal.run(&statements).await;
            }
            Deed::Lie(from, edit) => vandal.lie(ledger.partition, from, &*edit).await,
        }
        if needs_anchor {
            // By itself the log agrees with itself.
            verify_consistent(&database.url);
        }
        let against = if needs_anchor { &["verify", "--anchor", &ledger.anchor][..] } else { &["verify"] };
        let (code, verified) = replay_tool(&database.url, against);
        let named = named(&verified, &found);
        if code != 1 || verified["consistent"] != false || !named {
            missed.push(format!("{what}: exit {code}, expected {found:?}: {:#}", verified["findings"]));
        }
        vandal.undo().await;
        let undone = replay_tool(&database.url, &["verify", "--partition", &number]);
        assert_eq!(undone.0, 0, "{what} was not undone: {:#}", undone.1);
    }
    assert_eq!(verify_consistent(&database.url)["digest"], digest);
    println!("{} found of {tried} tried", tried - missed.len());
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    assert!(tried >= 25);
}

/// The fold of a projector with a bug: a refund counts twice.
fn counted_twice(events: &[Event]) -> HashMap<String, (u64, u64)> {
    let mut balances: HashMap<String, (u64, u64)> = HashMap::new();
    for event in events {
        let (balance, frozen) = balances.entry(event.account.id().to_string()).or_default();
        let amount = event.amount.map_or(0, Amount::units);
        match event.event_type {
            EventType::Credited => *balance += amount,
            EventType::Refunded => *balance += 2 * amount,
            EventType::Deducted => {
                *balance -= amount;
                if event.related_id.is_some() {
                    *frozen -= amount + event.released;
                }
            }
            EventType::Frozen => *frozen += amount,
            EventType::Unfrozen => *frozen -= amount,
            EventType::Locked | EventType::Unlocked => {}
        }
    }
    balances
}

async fn a_projector_that_counts_refunds_twice_is_found_on_the_first_run(database: NewDatabase) {
    let ledger = ledger(&database, &[]).await;
    let digest = verify_consistent(&database.url)["digest"].clone();
    let log = Database::open_existing(&database.url).await.expect("a ledger");
    let mut statements = Vec::new();
    for partition in Partition::all() {
        let events = log.events_after(partition, Position::ZERO, 10_000).await.expect("events");
        // Its checkpoints are right, as are all columns but for what the bug makes.
        statements.extend(counted_twice(&events).into_iter().map(|(account, (balance, frozen))| {
            format!(
                "update balances set balance = {balance}, frozen = {frozen}, available = {} where account_id = '{account}'",
                balance - frozen
            )
        }));
    }
    log.close().await;
    Vandal::arrive(&database.url).await.run(&statements).await;
    let (code, verified) = replay_tool(&database.url, &["verify"]);
    assert_eq!(code, 1, "{verified:#}");
    assert_eq!(verified["findings_count"], 1, "{verified:#}");
    let finding = &verified["findings"][0];
    assert_eq!(finding["kind"], "balance_mismatch");
    assert_eq!(finding["partition"], ledger.partition.number());
    assert_eq!((&finding["user_id"], &finding["credit_type"]), (&json!("ann"), &json!("points")));
    // 1000 − 200 + 50 − 10 + 5 + 7, and 50 too many.
    assert!(finding["expected"].as_str().is_some_and(|text| text.starts_with("balance 852 ")), "{finding:#}");
    assert!(finding["found"].as_str().is_some_and(|text| text.starts_with("balance 902 ")), "{finding:#}");
    assert_eq!(finding["remedy"], "replay-tool rebuild");
    let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!((code, &rebuilt["digest"]), (0, &digest), "{rebuilt:#}");
    assert_eq!(verify_consistent(&database.url)["digest"], digest);
}

async fn a_cut_log_is_found_against_the_stream(database: NewDatabase) {
    let nats = Nats::start();
    let ledger = ledger(&database, &["--nats-url", &nats.url()]).await;
    let p = ledger.partition;
    let against_stream = ["verify", "--nats-url", &nats.url()].map(str::to_owned);
    let against_stream = against_stream.each_ref().map(String::as_str);
    let (code, verified) = replay_tool(&database.url, &against_stream);
    assert_eq!(code, 0, "{verified:#}");
    let vandal = Vandal::arrive(&database.url).await;
    let nothing = vandal.blob(&[0; 32]);
    let mut statements = vec![
        format!("delete from events where partition = {p} and position > 8"),
        format!(
            "update partition_heads set position = 8, \
             hash = (select hash from kept_events where partition = {p} and position = 8) where partition = {p}"
        ),
        "delete from publisher_checkpoints".to_owned(),
    ];
    for table in ["account_positions", "key_positions", "related_positions", "balances", "freezes"] {
        statements.push(format!("delete from {table} where partition = {p}"));
    }
    for table in ["index_checkpoints", "projection_checkpoints"] {
        statements.push(format!("update {table} set position = 0, hash = {nothing} where partition = {p}"));
    }
    vandal.run(&statements).await;
    verify_consistent(&database.url);
    let (code, verified) = replay_tool(&database.url, &against_stream);
    assert_eq!(code, 1, "{verified:#}");
    assert!(named(&verified, &[("truncated_tail", p, Some(9))]), "{verified:#}");
    assert!(verified["findings"][0]["expected"].as_str().is_some_and(|text| text.starts_with("positions 9 to 10 ")));
    vandal.undo().await;
    vandal.lie(p, 6, &|event, _| event.metadata = Some("{}".into())).await;
    vandal.run(&["delete from publisher_checkpoints"]).await;
    verify_consistent(&database.url);
    let (code, verified) = replay_tool(&database.url, &against_stream);
    assert_eq!(code, 1, "{verified:#}");
    assert!(named(&verified, &[("anchor_mismatch", p, Some(NEWEST))]), "{verified:#}");
}

async fn rebuild_mends_the_read_models_while_commands_go_on(database: NewDatabase) {
    let service = Service::start(&database.url, &["--proof-round", "0"]);
    Load::open_accounts(&service).await;
    let load = Load::default();
    let services = [&service];
    let vandal = Vandal::arrive(&database.url).await;
    let rebuild = async {
        for _ in 0..3 {
            let edit = "update balances set balance = balance + 5, available = available + 5 where balance > 0";
            vandal.run(&[edit]).await;
            let url = database.url.clone();
            let rebuilt = tokio::task::spawn_blocking(move || replay_tool(&url, &["rebuild"])).await.expect("no panic");
            assert_eq!(rebuilt.0, 0, "{:#}", rebuilt.1);
        }
        let again = load.acknowledged();
        while load.acknowledged() < again + 200 {
            tokio::task::yield_now().await;
        }
        load.stop();
    };
    tokio::join!(load.run(&services, 8), rebuild);
    load.check(&service).await;
    // The service's projector goes on where the rebuilt tables stand, by itself.
    for user in 0..tests::load::ACCOUNTS {
        let strong = service.get(&format!("/v1/accounts/load-{user}/points?consistency=strong")).await.expect(200);
        let version = strong["version"].as_u64().expect("a number");
        let served = service.get(&format!("/v1/accounts/load-{user}/points?min_version={version}")).await.expect(200);
        assert_eq!(served, strong);
    }
    wait_until_projected(&service).await;
    let verified = verify_consistent(&database.url);
    let (code, rebuilt) = replay_tool(&database.url, &["rebuild"]);
    assert_eq!((code, &rebuilt["digest"]), (0, &verified["digest"]));
}

async fn what_is_no_ledger_is_refused_in_one_line(database: NewDatabase) {
    for command in ["verify", "rebuild"] {
        let (code, printed) = replay_tool(&database.url, &[command]);
        assert_eq!((code, printed), (2, Value::Null));
    }
    let (code, _) = replay_tool("mysql://secret@host/db", &["verify"]);
    assert_eq!(code, 2);
}
