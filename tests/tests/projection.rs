//! A projector never skips an event, however late it commits.

use std::time::Duration;

use ledger_core::{Account, Partition};
use ledger_store::{Database, Ledger, LedgerOptions};
use projector::{balances::Reader, runner::Runner};
use sqlx::{Connection, Executor, PgConnection};
use tests::store::{credit, postgres};

/// A user whose account is in `partition`.
fn user_in(partition: Partition) -> String {
    (0_u32..)
        .map(|number| format!("user-{number}"))
        .find(|user| Account::new(user, "points").expect("valid").partition() == partition)
        .expect("some user is in each partition")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_held_open_while_others_commit_is_not_skipped() {
    let database = postgres();
    let opened = Database::open(&database.url).await.expect("opens");
    let ledger = Ledger::start(opened.clone(), LedgerOptions::default()).await.expect("starts");
    let runner = Runner::start(opened.clone(), Some(ledger.feed()));
    let [held, other] = [1, 2].map(|number| Partition::new(number).expect("there is one"));
    ledger.execute(credit(&user_in(held), 1, "before")).await.expect("credited");

    // Another writer's append, held open: the head is locked and moved, the event written, nothing committed.
    let mut slow = PgConnection::connect(&database.url).await.expect("connects");
    slow.execute("begin").await.expect("begun");
    slow.execute("select 1 from partition_heads where partition = 1 for update").await.expect("locked");

    // Others commit meanwhile, in another partition, and the projector follows them.
    let fast = Ledger::start(opened.clone(), LedgerOptions::default()).await.expect("starts");
    for number in 0..20 {
        fast.execute(credit(&user_in(other), 1, &number.to_string())).await.expect("credited");
    }
    let waiting = tokio::spawn({
        let ledger = ledger.clone();
        let user = user_in(held);
        async move { ledger.execute(credit(&user, 1, "late")).await }
    });
    let mut progress = runner.progress();
    let reached = progress.wait_for(|progress| progress.positions[2].0 == 20 && progress.positions[1].0 == 1);
    tokio::time::timeout(Duration::from_secs(30), reached).await.expect("the projector follows").expect("it runs");
    assert!(!waiting.is_finished(), "the late command waits for the lock");

    // The late one commits after all the others, at the place that was its own all the time.
    slow.execute("rollback").await.expect("let go");
    let late = waiting.await.expect("no panic").expect("credited").event;
    assert_eq!((late.partition, late.position.0), (held, 2));
    let reached = progress.wait_for(|progress| progress.positions[1].0 == 2);
    tokio::time::timeout(Duration::from_secs(30), reached).await.expect("it is applied").expect("it runs");
    let row = Reader::start(opened.clone()).find(&late.account).await.expect("read").expect("there");
    assert_eq!((row.state.balance, row.state.version), (2, 2));
    runner.stop().await;
    fast.stop().await;
    ledger.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_projectors_at_once_apply_each_event_once() {
    for database in [tests::store::sqlite(), postgres()] {
        let opened = Database::open(&database.url).await.expect("opens");
        let ledger = Ledger::start(opened.clone(), LedgerOptions::default()).await.expect("starts");
        let runners = [
            Runner::start(opened.clone(), Some(ledger.feed())),
            Runner::start(Database::open(&database.url).await.expect("opens"), None),
            Runner::start(Database::open(&database.url).await.expect("opens"), Some(ledger.feed())),
        ];
        for number in 0..300_u64 {
            ledger.execute(credit(&format!("user-{}", number % 7), 1, &number.to_string())).await.expect("credited");
        }
        let committed = ledger.committed();
        for runner in &runners {
            let mut progress = runner.progress();
            let reached = progress.wait_for(|progress| progress.positions == committed);
            tokio::time::timeout(Duration::from_secs(30), reached).await.expect("in time").expect("it runs");
        }
        let mut sum = 0;
        for user in 0..7 {
            let account = Account::new(&format!("user-{user}"), "points").expect("valid");
            sum += Reader::start(opened.clone()).find(&account).await.expect("read").expect("there").state.balance;
        }
        assert_eq!(sum, 300);
        for runner in runners {
            runner.stop().await;
        }
        // That one was quicker than the other is no inconsistency.
        assert_eq!(inconsistencies(&opened).await, Vec::<String>::new());
        ledger.stop().await;
    }
}

/// What projectors found that cannot be.
async fn inconsistencies(database: &Database) -> Vec<String> {
    let sql = "select projection || ' ' || kind || ' ' || expected || ' ' || found from inconsistencies";
    let found = match database {
        Database::Postgres(database) => sqlx::query_scalar(sql).fetch_all(database.pool()).await,
        Database::Sqlite(database) => sqlx::query_scalar(sql).fetch_all(database.readers()).await,
    };
    found.expect("read")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_balance_stops_its_partition_and_no_other_until_a_rebuild() {
    for database in [tests::store::sqlite(), postgres()] {
        let opened = Database::open(&database.url).await.expect("opens");
        let ledger = Ledger::start(opened.clone(), LedgerOptions::default()).await.expect("starts");
        let runner = Runner::start(opened.clone(), Some(ledger.feed()));
        let [one, other] = [1, 2].map(|number| user_in(Partition::new(number).expect("there is one")));
        for user in [&one, &other] {
            ledger.execute(credit(user, 10, "1")).await.expect("credited");
        }
        let mut progress = runner.progress();
        let applied = progress.wait_for(|progress| progress.positions[1].0 == 1 && progress.positions[2].0 == 1);
        tokio::time::timeout(Duration::from_secs(30), applied).await.expect("in time").expect("it runs");

        let edit = format!("update balances set balance = 11, available = 11 where user_id = '{one}'");
        vandalize(&opened, edit).await;
        for user in [&one, &other] {
            ledger.execute(credit(user, 10, "2")).await.expect("credited");
        }
        let halted = progress.wait_for(|progress| {
            progress.positions[2].0 == 2 && progress.halted == [Partition::new(1).expect("there is one")]
        });
        tokio::time::timeout(Duration::from_secs(30), halted).await.expect("in time").expect("it runs");
        assert_eq!(inconsistencies(&opened).await, ["balances balance 21 20"]);

        projector::rebuild::rebuild(&opened, &mut |_| {}).await.expect("rebuilt");
        let mended = progress.wait_for(|progress| progress.halted.is_empty() && progress.positions[1].0 == 2);
        tokio::time::timeout(Duration::from_secs(30), mended).await.expect("in time").expect("it runs");
        runner.stop().await;
        ledger.stop().await;
    }
}

/// Runs a statement of somebody who has no business in the read models.
async fn vandalize(database: &Database, sql: String) {
    let sql = sqlx::AssertSqlSafe(sql);
    match database {
        Database::Postgres(database) => drop(sqlx::query(sql).execute(database.pool()).await.expect("edited")),
        Database::Sqlite(database) => {
            let mut turn = database.relaxed_turn().await.expect("a turn");
            sqlx::query(sql).execute(turn.connection()).await.expect("edited");
        }
    }
}

/// The projector does not read the rows that it writes, it compares them: with whatever column is edited, and with a row
/// that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_any_column_that_the_fold_builds_on_stops_its_partition() {
    const EDITS: [&str; 8] = [
        "update balances set position = position + 1",
        "update balances set version = version + 1",
        "update balances set balance = 11, available = 11",
        "update balances set frozen = 1, available = 9",
        "update balances set available = 11",
        "update balances set status = 'locked'",
        "update balances set user_id = user_id || 'x'",
        "delete from balances",
    ];
    for database in [tests::store::sqlite(), postgres()] {
        let opened = Database::open(&database.url).await.expect("opens");
        let ledger = Ledger::start(opened.clone(), LedgerOptions::default()).await.expect("starts");
        let runner = Runner::start(opened.clone(), Some(ledger.feed()));
        let partitions: Vec<_> = Partition::all().take(EDITS.len() + 1).collect();
        let users: Vec<_> = partitions.iter().map(|partition| user_in(*partition)).collect();
        let mut progress = runner.progress();
        for user in &users {
            ledger.execute(credit(user, 10, "1")).await.expect("credited");
        }
        let applied = progress.wait_for(|progress| progress.positions[..users.len()].iter().all(|at| at.0 == 1));
        tokio::time::timeout(Duration::from_secs(30), applied).await.expect("in time").expect("it runs");
        for (edit, user) in EDITS.iter().zip(&users) {
            vandalize(&opened, format!("{edit} where user_id = '{user}'")).await;
        }
        for user in &users {
            ledger.execute(credit(user, 10, "2")).await.expect("credited");
        }
        let (edited, sound) = partitions.split_at(EDITS.len());
        let halted = progress
            .wait_for(|progress| progress.positions[sound[0].index()].0 == 2 && progress.halted.len() == edited.len());
        let halted = tokio::time::timeout(Duration::from_secs(30), halted).await.expect("in time").expect("it runs");
        assert_eq!(halted.halted, edited);
        drop(halted);
        runner.stop().await;
        ledger.stop().await;
    }
}
