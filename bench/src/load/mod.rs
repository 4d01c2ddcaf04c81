//! What is sent: commands as shops send them.

mod batches;
mod fill;
mod shop;
mod singles;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Zipf};

pub(crate) use batches::{Batches, Opening};
pub(crate) use fill::{Fill, Filling};
pub(crate) use shop::Shop;
pub(crate) use singles::{Echoes, Reads, Singles};

/// How accounts are chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Accounts {
    /// One for all.
    Hot,
    /// Each of so many as often as the others.
    Uniform(u32),
    /// Some far more often than others: the n-th as often as 1/n.
    Zipf(u32),
}

impl Accounts {
    fn choose(self, random: &mut StdRng) -> u32 {
        match self {
            Self::Hot => 0,
            Self::Uniform(count) => random.random_range(0..count),
            Self::Zipf(count) => {
                let zipf = Zipf::new(f64::from(count), 1.0).expect("there are accounts");
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a rank is from 1 to count"
                )]
                let rank = zipf.sample(random) as u32 - 1;
                // Ranks next to each other are not neighbours in any order.
                (u64::from(rank) * 2_654_435_761 % u64::from(count)).try_into().expect("below count")
            }
        }
    }
}

/// The name of the load: business ids of two loads never meet.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    name: String,
    next: u64,
}

impl Origin {
    pub(crate) fn new(load: &str, source: usize) -> Self {
        Self { name: format!("{load}.{source}"), next: 0 }
    }

    /// Writes a business id that was not there before.
    fn fresh(&mut self) -> String {
        self.next += 1;
        format!("{}.{}", self.name, self.next)
    }
}

/// The same for the same load and source, so that a run can be repeated; another for each load, so that a load does not
/// visit the very accounts that the load before it left in the caches.
fn random(load: &str, source: usize) -> StdRng {
    let mut hasher = DefaultHasher::new();
    (load, source).hash(&mut hasher);
    StdRng::seed_from_u64(hasher.finish())
}

fn command(body: &mut Vec<u8>, kind: Option<&str>, account: u32, amount: u64, business_id: &str) {
    body.extend_from_slice(b"{");
    if let Some(kind) = kind {
        write!(body, "\"type\":\"{kind}\",").expect("a buffer takes all");
    }
    write!(
        body,
        "\"user_id\":\"user-{account:07}\",\"credit_type\":\"points\",\"amount\":{amount},\
         \"business_code\":\"shop.order\",\"business_id\":\"{business_id}\",\"description\":\"order of 2026-11\"}}"
    )
    .expect("a buffer takes all");
}
