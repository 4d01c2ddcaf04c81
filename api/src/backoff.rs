//! How long to wait before something is tried again.

use std::time::Duration;

/// The pause after the `failures`th failure in a row: doubled each time from `first` up to `longest`, and shortened by
/// chance by up to a half, so that many that failed together do not come again together.
pub(crate) fn pause(failures: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    let whole = doubled.min(longest);
    // Without random numbers all wait the whole pause.
    let chance = getrandom::u32().unwrap_or(u32::MAX);
    whole / 2 + (whole / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        for (failures, whole) in [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (u32::MAX, 60)] {
            let whole = Duration::from_secs(whole);
            for _ in 0..100 {
                let pause = pause(failures, first, longest);
                assert!(pause >= whole / 2 && pause <= whole, "{failures}: {pause:?}");
            }
        }
    }
}
