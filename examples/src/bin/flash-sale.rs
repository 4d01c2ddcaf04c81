//! A flash sale: many buyers, few units, and nobody pays for what is not there.
//!
//! The stock is an account of its own, so the ledger counts units as it counts points. A purchase is one atomic batch: it
//! freezes one unit of the stock and debits the buyer's points. Either both happen or neither; the ledger decides in order, so
//! exactly as many purchases succeed as there are units, without a lock or a queue of the shop's own.
//!
//!     cargo run -p api &
//!     cargo run -p examples --bin flash-sale

use std::process::ExitCode;

use clap::Parser;
use examples::{Ledger, Unreachable};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use uuid::Uuid;

/// Sells units of one article for points, to many buyers at once.
#[derive(Parser)]
struct Settings {
    /// The ledger.
    #[arg(long, env = "LEDGER_URL", default_value = "http://127.0.0.1:8080")]
    ledger: String,
    /// An API key with the scopes credit, debit, freeze and read, where the ledger asks for one.
    #[arg(long, env = "LEDGER_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Names the sale: each has a stock and buyers of its own.
    #[arg(long, default_value_t = Uuid::new_v4().to_string())]
    sale: String,
    /// How many want one.
    #[arg(long, default_value_t = 5_000)]
    buyers: usize,
    /// How many there are.
    #[arg(long, default_value_t = 100)]
    units: u64,
    /// What one costs, in points.
    #[arg(long, default_value_t = 30)]
    price: u64,
    /// How many buy at the same moment.
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

impl Settings {
    fn stock(&self) -> String {
        format!("stock:{}", self.sale)
    }

    fn buyer(&self, number: usize) -> String {
        format!("{}:buyer-{number}", self.sale)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    match sell(&settings).await {
        Ok(report) => {
            println!("{report:#}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("flash-sale: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn sell(settings: &Settings) -> Result<Value, Unreachable> {
    let ledger = Ledger::new(&settings.ledger, settings.key.as_deref())?;
    prepare(&ledger, settings).await?;
    let purchases = stream::iter(0..settings.buyers).map(|buyer| buy(&ledger, settings, buyer));
    let outcomes: Vec<_> = purchases.buffer_unordered(settings.connections).collect().await;
    let (mut sold, mut sold_out) = (0_u64, 0_u64);
    for outcome in outcomes {
        match outcome? {
            true => sold += 1,
            false => sold_out += 1,
        }
    }
    let (_, stock) = ledger.get(&format!("/v1/accounts/{}/units?consistency=strong", settings.stock())).await?;
    Ok(json!({ "sale": settings.sale, "sold": sold, "sold_out": sold_out, "stock_left": stock["available"] }))
}

/// Fills the stock and gives each buyer the price of one unit.
async fn prepare(ledger: &Ledger, settings: &Settings) -> Result<(), Unreachable> {
    let credit = |user: String, credit_type: &str, amount: u64| {
        json!({ "type": "credit", "user_id": user, "credit_type": credit_type, "amount": amount,
            "business_code": "sale.open", "business_id": settings.sale })
    };
    let mut commands = vec![credit(settings.stock(), "units", settings.units)];
    commands.extend((0..settings.buyers).map(|number| credit(settings.buyer(number), "points", settings.price)));
    for commands in commands.chunks(1_000) {
        let (status, answer) = ledger.post("/v1/batches", &json!({ "commands": commands })).await?;
        assert!(status.is_success(), "the sale cannot be opened: {answer}");
    }
    Ok(())
}

/// One purchase; false when there was none left.
async fn buy(ledger: &Ledger, settings: &Settings, number: usize) -> Result<bool, Unreachable> {
    let buyer = settings.buyer(number);
    let order = format!("{}/{number}", settings.sale);
    // Both commands belong to the order's operation: whoever loses the answer asks what became of it, and
    // POST /v1/operations/{id}/compensate takes the order back as a whole.
    let operation = Uuid::new_v4();
    let purchase = json!({ "commands": [
        { "type": "freeze", "user_id": settings.stock(), "credit_type": "units", "amount": 1,
          "business_code": "order.reserve", "business_id": order, "operation_id": operation },
        { "type": "debit", "user_id": buyer, "credit_type": "points", "amount": settings.price,
          "business_code": "order.pay", "business_id": order, "operation_id": operation },
    ] });
    let (status, answer) = ledger.post("/v1/batches", &purchase).await?;
    match answer["problem"]["code"].as_str() {
        None if status.is_success() => Ok(true),
        Some("insufficient_balance") if answer["index"] == 0 => Ok(false),
        _ => panic!("every buyer has the price, and yet: {answer}"),
    }
}
