//! Which steps are left out: those that are not finite, and those far from the ones before.

use super::options::Outliers;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Why a step changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// The loss or a gradient is infinite or not a number.
    NotFinite,
    /// The loss is so many standard deviations above its mean.
    LossOutlier(f64),
    /// As for the loss, of the norm of the gradient.
    GradientOutlier(f64),
}

/// What is remembered of the steps before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    losses: VecDeque<f64>,
    norms: VecDeque<f64>,
}

/// Steps before which nothing counts as unusual.
const LEAST: usize = 8;

impl Guard {
    /// Looks at a step, and remembers it unless it is to be skipped.
    pub(super) fn judge(&mut self, options: &Outliers, loss: f64, norm: f64) -> Option<Skipped> {
        if !loss.is_finite() || !norm.is_finite() {
            return Some(Skipped::NotFinite);
        }
        let unusual = |seen: &VecDeque<f64>, value: f64, most: f64| {
            let z = deviations(seen, value).filter(|_| most > 0.0)?;
            (z > most).then_some(z)
        };
        if let Some(z) = unusual(&self.losses, loss, options.loss_z) {
            return Some(Skipped::LossOutlier(z));
        }
        if let Some(z) = unusual(&self.norms, norm, options.gradient_z) {
            return Some(Skipped::GradientOutlier(z));
        }
        for (seen, value) in [(&mut self.losses, loss), (&mut self.norms, norm)] {
            seen.push_back(value);
            while seen.len() > options.window {
                seen.pop_front();
            }
        }
        None
    }
}

/// How many standard deviations `value` is above the mean; none if too little is known.
fn deviations(seen: &VecDeque<f64>, value: f64) -> Option<f64> {
    if seen.len() < LEAST {
        return None;
    }
    let n = seen.len() as f64;
    let mean = seen.iter().sum::<f64>() / n;
    let variance = seen.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    Some((value - mean) / variance.sqrt().max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_skipped_and_not_remembered() {
        let (mut guard, options) = (Guard::default(), Outliers::default());
        assert_eq!(guard.judge(&options, f64::NAN, 1.0), Some(Skipped::NotFinite));
        assert_eq!(guard.judge(&options, 1.0, f64::INFINITY), Some(Skipped::NotFinite));
        assert_eq!(guard, Guard::default());
        assert_eq!(guard.judge(&options, 1e9, 1e9), None);
    }

    #[test]
    fn outliers_are_skipped_once_there_is_something_to_compare_with() {
        let options = Outliers { loss_z: 4.0, gradient_z: 4.0, window: 16 };
        let mut guard = Guard::default();
        for i in 0..32 {
            let wobble = f64::from(i % 3);
            assert_eq!(guard.judge(&options, 2.0 + 0.1 * wobble, 1.0 + 0.1 * wobble), None, "{i}");
        }
        assert_eq!(guard.losses.len(), 16);
        assert!(
            matches!(guard.judge(&options, 9.0, 1.0), Some(Skipped::LossOutlier(z)) if z > 4.0)
        );
        let judged = guard.judge(&options, 2.1, 50.0);
        assert!(matches!(judged, Some(Skipped::GradientOutlier(_))));
        assert_eq!(guard.judge(&options, 0.0, 0.0), None, "below is welcome");
    }
}
