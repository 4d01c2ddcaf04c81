//! How fast events may be replayed.

use std::{num::NonZeroU32, sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

/// A rate that several workers share.
#[derive(Debug)]
pub(crate) struct Pace {
    max_rate: Option<NonZeroU32>,
    /// When what was taken so far is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(max_rate: Option<NonZeroU32>) -> Self {
        Self { max_rate, paid: Mutex::new(Instant::now()) }
    }

    /// Waits until so many events, which were taken a moment ago, fit the rate.
    pub(crate) async fn pay(&self, events: usize) {
        let Some(rate) = self.max_rate else { return };
        let cost =
            Duration::from_secs_f64(f64::from(u32::try_from(events).unwrap_or(u32::MAX)) / f64::from(rate.get()));
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // What was not used while nothing was taken is not saved up.
            *paid = (*paid).max(Instant::now()) + cost;
            *paid
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn workers_share_one_rate() {
        let pace = Pace::new(NonZeroU32::new(10_000));
        let began = Instant::now();
        tokio::join!(pace.pay(500), pace.pay(500), pace.pay(500));
        assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
        let unlimited = Pace::new(None);
        unlimited.pay(usize::MAX).await;
    }
}
