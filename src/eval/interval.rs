//! Shares with intervals.

use serde::Serialize;
use std::fmt;

/// `right` of `count`, and Wilson's 95 % interval of the share (Wilson 1927, J. Am. Stat. Assoc.
/// 22, 209).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    pub right: usize,
    pub count: usize,
    pub share: f64,
    pub low: f64,
    pub high: f64,
}

impl Rate {
    /// Of nothing, the share is 0 and the interval is everything.
    pub fn new(right: usize, count: usize) -> Self {
        // The 97.5 % point of the normal distribution.
        const Z: f64 = 1.959_963_984_540_054;
        if count == 0 {
            return Rate { right, count, share: 0.0, low: 0.0, high: 1.0 };
        }
        let (n, share) = (count as f64, right as f64 / count as f64);
        let shrink = 1.0 + Z * Z / n;
        let centre = (share + Z * Z / (2.0 * n)) / shrink;
        let reach = Z / shrink * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let (low, high) = ((centre - reach).max(0.0), (centre + reach).min(1.0));
        Rate { right, count, share, low, high }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |x: f64| 100.0 * x;
        let (share, low, high) = (percent(self.share), percent(self.low), percent(self.high));
        write!(f, "{share:5.1} % [{low:.1}, {high:.1}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The roots p of n (share - p)^2 = Z^2 p (1 - p), found by bisection with 30 digits.
    #[test]
    fn intervals_are_wilsons() {
        for (right, count, low, high) in [
            (0, 10, 0.0, 0.277_532_8),
            (5, 10, 0.236_593_1, 0.763_406_9),
            (10, 10, 0.722_467_2, 1.0),
            (270, 300, 0.860_833_5, 0.929_052_1),
        ] {
            let rate = Rate::new(right, count);
            assert!((rate.low - low).abs() < 1e-6, "{right} of {count}: {}", rate.low);
            assert!((rate.high - high).abs() < 1e-6, "{right} of {count}: {}", rate.high);
        }
        assert_eq!((Rate::new(0, 0).low, Rate::new(0, 0).high), (0.0, 1.0));
        assert_eq!(Rate::new(270, 300).to_string(), " 90.0 % [86.1, 92.9]");
    }

    /// The interval holds the truth about as often as it says.
    #[test]
    fn intervals_cover() {
        let mut dice = crate::phantom::Dice::new(1, "cover", 0);
        let covered = (0..2000).filter(|_| {
            let right = (0..300).filter(|_| dice.below(10) < 3).count();
            let rate = Rate::new(right, 300);
            rate.low <= 0.3 && 0.3 <= rate.high
        });
        let covered = covered.count();
        assert!((1860..=1940).contains(&covered), "{covered} of 2000");
    }
}
