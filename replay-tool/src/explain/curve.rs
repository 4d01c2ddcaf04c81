//! A balance over an account's whole life, in bounded memory.

/// Points that are kept: more than a picture shows.
const POINTS_MAX: usize = 1_000;

/// Every `stride`th value, where the stride doubles whenever there are too many.
#[derive(Debug)]
pub(super) struct Curve {
    points: Vec<(u64, u64)>,
    newest: Option<(u64, u64)>,
    stride: u64,
}

impl Default for Curve {
    fn default() -> Self {
        Self { points: Vec::new(), newest: None, stride: 1 }
    }
}

impl Curve {
    /// The value after the `number`th event, from 1.
    pub(super) fn add(&mut self, number: u64, value: u64) {
        self.newest = Some((number, value));
        if (number - 1).is_multiple_of(self.stride) {
            self.points.push((number, value));
        }
        if self.points.len() > POINTS_MAX {
            self.stride *= 2;
            let stride = self.stride;
            self.points.retain(|(number, _)| (number - 1).is_multiple_of(stride));
        }
    }

    /// The points, the newest among them.
    pub(super) fn points(&self) -> Vec<(f64, f64)> {
        let newest = self.newest.filter(|newest| self.points.last() != Some(newest));
        #[expect(clippy::cast_precision_loss, reason = "a picture is no wider for one unit in 2^52")]
        let point = |(number, value): &(u64, u64)| (*number as f64, *value as f64);
        self.points.iter().chain(newest.as_ref()).map(point).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_life_is_thinned_out_evenly_and_keeps_both_ends() {
        let mut curve = Curve::default();
        (1..=123_457).for_each(|number| curve.add(number, number * 2));
        let points = curve.points();
        assert!((POINTS_MAX / 2..=POINTS_MAX + 1).contains(&points.len()), "{}", points.len());
        assert_eq!((points.first(), points.last()), (Some(&(1.0, 2.0)), Some(&(123_457.0, 246_914.0))));
        let steps: Vec<_> = points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(steps[..steps.len() - 1].iter().all(|step| (step - steps[0]).abs() < 0.5), "{steps:?}");
    }
}
