//! The balances, for those who read them.

use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use ledger_core::{Account, AccountId, Balance};
use ledger_store::{Database, StoreError, error::chain};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{postgres, snapshot::DamagedModelRow, sqlite};

/// Statements at once: while the database works on one, the answers of the other are written.
const STATEMENTS_MAX: usize = 2;
/// Accounts of one statement.
const ACCOUNTS_MAX: usize = 256;

/// Why a balance could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The database is away. The log says more.
    #[error("the balances cannot be read")]
    Unavailable,
    /// What is stored is no balance.
    #[error("{0}")]
    Damaged(String),
}

/// Reads balances for many at once: whoever asks while a statement runs is served by the next one, together with all who
/// asked meanwhile. Alone, each would pay for a statement of its own. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Reader {
    questions: mpsc::UnboundedSender<Question>,
}

#[derive(Debug)]
struct Question {
    account: AccountId,
    answer: oneshot::Sender<Result<Option<Balance>, ReadError>>,
}

impl Reader {
    /// Starts a reader; it ends with its last handle.
    #[must_use]
    pub fn start(database: Database) -> Self {
        let (questions, asked) = mpsc::unbounded_channel();
        let asked = Arc::new(Mutex::new(asked));
        for _ in 0..STATEMENTS_MAX {
            tokio::spawn(serve(database.clone(), asked.clone()));
        }
        Self { questions }
    }

    /// An account's row, if the read model has come so far, as of a moment after this was called.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or the row is damaged.
    pub async fn find(&self, account: &Account) -> Result<Option<Balance>, ReadError> {
        let (answer, answered) = oneshot::channel();
        let question = Question { account: account.id(), answer };
        self.questions.send(question).map_err(|_| ReadError::Unavailable)?;
        answered.await.unwrap_or(Err(ReadError::Unavailable))
    }
}

async fn serve(database: Database, asked: Arc<Mutex<mpsc::UnboundedReceiver<Question>>>) {
    let mut questions = Vec::new();
    loop {
        let count = asked.lock().await.recv_many(&mut questions, ACCOUNTS_MAX).await;
        if count == 0 {
            return;
        }
        let accounts: HashSet<_> = questions.iter().map(|question| question.account).collect();
        let found = read(&database, accounts.into_iter().collect()).await;
        for question in questions.drain(..) {
            let answer = match &found {
                Ok(found) => found.get(&question.account).cloned().transpose(),
                Err(error) => Err(error.clone()),
            };
            // Whoever asked may be gone.
            let _ = question.answer.send(answer);
        }
    }
}

type Found = HashMap<AccountId, Result<Balance, ReadError>>;

async fn read(database: &Database, accounts: Vec<AccountId>) -> Result<Found, ReadError> {
    let mut found = Found::default();
    let rows = rows(database, &accounts).await?;
    if rows.iter().all(Result::is_ok) {
        found.extend(rows.into_iter().flatten().map(|balance| (balance.account.id(), Ok(balance))));
        return Ok(found);
    }
    // A damaged row does not tell reliably whose it is: asked for alone, it is the one that was asked for.
    for account in accounts {
        if let Some(row) = rows_of(database, account).await? {
            found.insert(account, row.map_err(|damage| ReadError::Damaged(damage.to_string())));
        }
    }
    Ok(found)
}

async fn rows_of(
    database: &Database,
    account: AccountId,
) -> Result<Option<Result<Balance, DamagedModelRow>>, ReadError> {
    Ok(rows(database, &[account]).await?.pop())
}

async fn rows(database: &Database, accounts: &[AccountId]) -> Result<Vec<Result<Balance, DamagedModelRow>>, ReadError> {
    let rows = match database {
        Database::Postgres(database) => postgres::balances(database.pool(), "balances", accounts).await,
        Database::Sqlite(database) => sqlite::balances(database.readers(), "balances", accounts).await,
    };
    rows.map_err(|error: StoreError| {
        tracing::warn!(error = %chain(&error), "the balances could not be read");
        ReadError::Unavailable
    })
}
