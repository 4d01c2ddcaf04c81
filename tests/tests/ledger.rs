//! The writer and its database, without a service around them.

use std::time::{Duration, Instant};

use ledger_core::{Account, BusinessKey, Event, Rejection};
use ledger_store::{BatchError, CommandError, Database, Ledger, LedgerOptions, Unavailable};
use sqlx::Connection;
use tests::{
    on_both_databases,
    store::{NewDatabase, capture, credit, debit, freeze, postgres, refund, sqlite, ticking_clock, unfreeze},
};

on_both_databases!(
    an_order_that_is_cancelled_leaves_the_account_as_it_was,
    the_past_is_found_by_version_and_by_time,
    a_repeat_is_answered_after_a_restart_and_whatever_the_account_holds,
    two_ledgers_on_one_database_never_lose_or_repeat_a_command,
    an_atomic_batch_is_done_whole_or_not_at_all,
    what_is_remembered_is_not_fresh_once_another_process_has_written,
    indexes_that_cannot_be_written_are_told_and_keep_nobody,
);

async fn start(database: &NewDatabase) -> Ledger {
    let database = Database::open(&database.url).await.expect("the database opens");
    Ledger::start(database, LedgerOptions::default()).await.expect("the ledger starts")
}

fn account(user: &str) -> Account {
    Account::new(user, "points").expect("valid")
}

fn holdings(event: &Event) -> (u64, u64, u64) {
    (event.after.balance, event.after.frozen, event.after.available())
}

async fn an_order_that_is_cancelled_leaves_the_account_as_it_was(database: NewDatabase) {
    let ledger = start(&database).await;
    ledger.execute(credit("ann", 1_000, "1")).await.expect("credited");
    let frozen = ledger.execute(freeze("ann", 500, "order")).await.expect("frozen").event;
    assert_eq!(holdings(&frozen), (1_000, 500, 500));
    let released = ledger.execute(unfreeze(frozen.transaction_id, None, "order")).await.expect("released").event;
    assert_eq!(holdings(&released), (1_000, 0, 1_000));
    assert_eq!(released.related_id, Some(frozen.transaction_id));
    assert_eq!(
        ledger.execute(unfreeze(frozen.transaction_id, None, "again")).await.expect_err("settled"),
        CommandError::Rejected(Rejection::InsufficientFrozen { required: 1, remaining: 0 })
    );
    assert_eq!(
        ledger.execute(debit("bob", 1, "1")).await.expect_err("never credited"),
        CommandError::Rejected(Rejection::AccountNotFound)
    );
    ledger.stop().await;
}

async fn the_past_is_found_by_version_and_by_time(database: NewDatabase) {
    let url = Database::open(&database.url).await.expect("the database opens");
    let ledger = Ledger::start(url, ticking_clock()).await.expect("the ledger starts");
    let mut events = Vec::new();
    for number in 0..600_u64 {
        // Another account of every partition in between, so that positions and versions differ.
        ledger.execute(credit(&format!("other-{number}"), 1, "1")).await.expect("credited");
        events.push(ledger.execute(credit("ann", number + 1, &number.to_string())).await.expect("credited").event);
    }
    for restart in [false, true] {
        let ledger = if restart {
            ledger.stop().await;
            start(&database).await
        } else {
            ledger.clone()
        };
        for version in [1, 2, 255, 256, 257, 300, 511, 512, 513, 600] {
            let wanted = &events[version - 1];
            let found = ledger.at_version(&account("ann"), version as u64).await.expect("read");
            assert_eq!(found.as_ref(), Some(wanted), "version {version}, after a restart: {restart}");
            let found = ledger.at_time(&account("ann"), wanted.recorded_at).await.expect("read");
            assert_eq!(found.as_ref(), Some(wanted), "time of version {version}, after a restart: {restart}");
        }
        assert_eq!(ledger.at_version(&account("ann"), 601).await.expect("read"), None);
        assert_eq!(ledger.at_version(&account("ann"), 0).await.expect("read"), None);

        let mut before = None;
        let mut listed = Vec::new();
        loop {
            let (page, next) = ledger.history(&account("ann"), before, 70, None).await.expect("read");
            listed.extend(page);
            before = next;
            if before.is_none() {
                break;
            }
        }
        assert!(listed.iter().rev().eq(events.iter().map(|event| &**event)), "after a restart: {restart}");
    }
}

async fn a_repeat_is_answered_after_a_restart_and_whatever_the_account_holds(database: NewDatabase) {
    let ledger = start(&database).await;
    ledger.execute(credit("ann", 100, "1")).await.expect("credited");
    let first = ledger.execute(debit("ann", 100, "all")).await.expect("deducted");
    for restart in [false, true] {
        let ledger = if restart {
            ledger.stop().await;
            start(&database).await
        } else {
            ledger.clone()
        };
        let repeat = ledger.execute(debit("ann", 100, "all")).await.expect("answered again");
        assert!(repeat.replayed);
        assert_eq!(repeat.event, first.event);
        assert_eq!(
            ledger.execute(debit("ann", 99, "all")).await.expect_err("other content"),
            CommandError::Rejected(Rejection::IdempotencyConflict { transaction_id: first.event.transaction_id })
        );
        let key = BusinessKey::new("test.debit", "all").expect("valid");
        assert_eq!(ledger.find(&account("ann"), &key).await.expect("read"), Some(first.event.clone()));
        assert_eq!(ledger.find_all(&key, 1).await.expect("read"), (vec![(*first.event).clone()], false));
        // A refund needs the original, which only the log knows after the restart.
        let part = ledger
            .execute(refund(first.event.transaction_id, Some(10), &format!("{restart}")))
            .await
            .expect("refunded");
        assert_eq!(part.event.remaining, Some(if restart { 80 } else { 90 }));
    }
}

async fn two_ledgers_on_one_database_never_lose_or_repeat_a_command(database: NewDatabase) {
    tests::show_log();
    let ledgers = [start(&database).await, start(&database).await];
    ledgers[0].execute(credit("ann", 1_000, "seed")).await.expect("credited");
    let tasks = (0..800_u64).map(|number| {
        let ledger = ledgers[usize::from(number % 3 == 0)].clone();
        // Every key is sent twice, mostly to different ledgers.
        tokio::spawn(async move { ledger.execute(debit("ann", 1, &(number / 2).to_string())).await.expect("deducted") })
    });
    let outcomes = futures::future::join_all(tasks).await;
    let mut first = std::collections::HashMap::new();
    for outcome in outcomes.into_iter().map(|joined| joined.expect("no panic")) {
        let known = first.entry(outcome.event.key.clone()).or_insert_with(|| (outcome.event.clone(), 0));
        assert_eq!(known.0, outcome.event);
        known.1 += u32::from(!outcome.replayed);
    }
    assert_eq!(first.len(), 400);
    assert!(first.values().all(|(_, done)| *done == 1));
    for ledger in &ledgers {
        let newest = ledger.newest(&account("ann")).await.expect("read").expect("there");
        assert_eq!((newest.after.balance, newest.after.version), (600, 401));
    }
    for ledger in ledgers {
        ledger.stop().await;
    }
}

/// Asks until what is remembered counts as fresh.
async fn fresh(ledger: &Ledger, user: &str) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(balance) = ledger.fresh(&account(user)) {
            return balance.state.version;
        }
        assert!(Instant::now() < deadline, "{user} is not remembered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn what_is_remembered_is_not_fresh_once_another_process_has_written(database: NewDatabase) {
    let (ours, theirs) = (start(&database).await, start(&database).await);
    ours.execute(credit("ann", 1_000, "1")).await.expect("credited");
    assert_eq!(fresh(&ours, "ann").await, 1);
    assert_eq!(theirs.fresh(&account("ann")), None, "nothing was written there");
    for caught_up in ["event by event", "from the indexes"] {
        let theirs_newest = theirs.execute(credit("ann", 1, caught_up)).await.expect("credited").event.after.version;
        let is_told = Instant::now() + Duration::from_millis(250);
        while Instant::now() < is_told {
            // Reads go on meanwhile, and each asks for the heads to be compared.
            let _ = ours.fresh(&account("ann"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..20 {
            assert_eq!(ours.fresh(&account("ann")), None, "another process wrote more than 250 ms ago");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if caught_up == "from the indexes" {
            // It writes its indexes, past what the other knows.
            theirs.stop().await;
        }
        // A strong read catches up with whoever wrote.
        let newest = ours.newest(&account("ann")).await.expect("read").expect("there");
        assert_eq!(newest.after.version, theirs_newest);
        if caught_up == "event by event" {
            assert_eq!(fresh(&ours, "ann").await, theirs_newest);
        } else {
            assert_eq!(ours.fresh(&account("ann")), None, "its newest event is not among those that were read");
            let next = ours.execute(credit("ann", 1, "ours")).await.expect("credited").event;
            assert_eq!(fresh(&ours, "ann").await, next.after.version);
        }
    }
    ours.stop().await;
}

async fn run(url: &str, sql: &'static str) {
    let done = if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(url).await.expect("the file opens");
        sqlx::raw_sql(sql).execute(&mut connection).await.map(drop)
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("the database opens");
        sqlx::raw_sql(sql).execute(&mut connection).await.map(drop)
    };
    done.expect(sql);
}

async fn indexes_that_cannot_be_written_are_told_and_keep_nobody(database: NewDatabase) {
    const FLUSH_EVENTS: u64 = 20;
    let options = || LedgerOptions { flush_events: 20, ..LedgerOptions::default() };
    let opened = Database::open(&database.url).await.expect("the database opens");
    let ledger = Ledger::start(opened, options()).await.expect("the ledger starts");
    let (no_keys, keys_again) = if database.url.starts_with("sqlite") {
        (
            "create trigger no_keys before insert on key_positions begin select raise(abort, 'no keys'); end",
            "drop trigger no_keys",
        )
    } else {
        (
            "create function no_keys() returns trigger language plpgsql as 'begin raise exception ''no keys''; end';
             create trigger no_keys before insert on key_positions for each row execute function no_keys()",
            "drop function no_keys cascade",
        )
    };
    run(&database.url, no_keys).await;
    let mut done = 0;
    let mut until_refused = async |ledger: &Ledger| loop {
        match ledger.execute(credit("ann", 1, &done.to_string())).await {
            Ok(_) => done += 1,
            Err(error) => break error,
        }
        assert!(done < 10 * FLUSH_EVENTS, "memory has an end");
    };
    assert_eq!(until_refused(&ledger).await, CommandError::Unavailable(Unavailable::Store));
    assert!(ledger.trouble().is_some_and(|why| why.contains("no keys")), "{:?}", ledger.trouble());
    // It goes on by itself once it can.
    run(&database.url, keys_again).await;
    tokio::time::timeout(Duration::from_secs(60), async {
        while ledger.execute(credit("ann", 1, "again")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is served again");
    assert_eq!(ledger.trouble(), None);
    // And it can be stopped while it cannot.
    run(&database.url, no_keys).await;
    until_refused(&ledger).await;
    tokio::time::timeout(Duration::from_secs(60), ledger.stop()).await.expect("it stops");
    run(&database.url, keys_again).await;
    let ledger = start(&database).await;
    let newest = ledger.newest(&account("ann")).await.expect("it is read").expect("there is one");
    assert_eq!(newest.after.balance, done + 1, "what was answered, and no more");
    ledger.stop().await;
}

async fn an_atomic_batch_is_done_whole_or_not_at_all(database: NewDatabase) {
    let ledger = start(&database).await;
    let seeds = (0..50).map(|user| credit(&format!("user-{user}"), 10, "seed")).collect();
    let seeded = ledger.execute_atomic(seeds).await.expect("credited");
    let id = seeded[0].event.batch.expect("marked").id;
    for (index, recorded) in seeded.iter().enumerate() {
        let mark = recorded.event.batch.expect("marked");
        assert_eq!((mark.id, mark.size, mark.index as usize), (id, 50, index));
    }
    let spend = |units: u64, name: &str| -> Vec<_> {
        (0..50).map(|user| debit(&format!("user-{user}"), if user == 36 { units } else { 5 }, name)).collect()
    };
    assert_eq!(
        ledger.execute_atomic(spend(11, "too-much")).await.expect_err("one cannot pay"),
        BatchError::Rejected { index: 36, rejection: Rejection::InsufficientBalance { required: 11, available: 10 } }
    );
    let newest = ledger.newest(&account("user-0")).await.expect("read").expect("there");
    assert_eq!(newest.after.version, 1);
    ledger.execute_atomic(spend(10, "enough")).await.expect("all can pay");
    let again = ledger.execute_atomic(spend(10, "enough")).await.expect("answered again");
    assert!(again.iter().all(|recorded| recorded.replayed));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_commands_with_the_same_clock_give_the_same_events_on_both_databases() {
    let mut logs = Vec::new();
    for database in [sqlite(), postgres()] {
        let opened = Database::open(&database.url).await.expect("the database opens");
        let ledger = Ledger::start(opened, ticking_clock()).await.expect("the ledger starts");
        let mut events = Vec::new();
        for user in ["ann", "bob", "zoë 💶"] {
            events.push(ledger.execute(credit(user, 1_000, "1")).await.expect("credited").event);
            let frozen = ledger.execute(freeze(user, 500, "2")).await.expect("frozen").event;
            let taken =
                ledger.execute(capture(frozen.transaction_id, Some(200), true, "3")).await.expect("taken").event;
            let back = ledger.execute(refund(taken.transaction_id, None, "4")).await.expect("refunded").event;
            events.extend([frozen, taken, back]);
        }
        let batch = (0..20).map(|user| credit(&format!("user-{user}"), 7, "batch")).collect();
        events.extend(ledger.execute_atomic(batch).await.expect("credited").into_iter().map(|recorded| recorded.event));
        // What the database gives back is what was decided, to the hash.
        let stored = Database::open_existing(&database.url).await.expect("the database opens");
        for event in &events {
            assert_eq!(stored.transaction(event.transaction_id).await.expect("read").as_ref(), Some(&**event));
        }
        logs.push(events);
    }
    assert_eq!(logs[0], logs[1]);
}
