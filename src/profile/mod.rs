//! Where the time goes: the launches of a published model, each timed on cold operands and held
//! against what the same device gives in the same run; recordings of a request as traces.
//!
//! Nothing here knows which device it is on: the host's twins are profiled like the kernels.

mod backward;
mod cases;
mod ceilings;
mod gradients;
mod operands;
mod tiles;
mod trace;

pub use cases::{Case, NINE_B, QUICK, Sizes, cases};
pub use ceilings::{Ceilings, filled};
pub use tiles::{measured_tiles, predicted_tiles};
pub use trace::{Line, chrome, summary};

use crate::device::{Cost, Stream};
use crate::{DType, Result};
use std::time::{Duration, Instant};

/// How much work a measurement is.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Bytes of operands that launches rotate through; several times the caches.
    pub ring: usize,
    /// Timed passes; the result is their median.
    pub passes: usize,
    /// No further pass begins after this, once there are three.
    pub patience: Duration,
}

/// For a card, or a host with time.
pub const THOROUGH: Effort =
    Effort { ring: 256 << 20, passes: 21, patience: Duration::from_secs(3) };
/// For two cores and [`QUICK`].
pub const BRIEF: Effort =
    Effort { ring: 96 << 20, passes: 7, patience: Duration::from_millis(500) };

/// A case, measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The entry's variant on a card, such as `_64x64`; empty on the host.
    pub variant: String,
    /// Median time of a launch, or of those that belong together, us.
    pub us: f64,
    pub cost: Cost,
}

/// Times `case`: passes of launches that rotate through copies of the operands, so that each launch
/// finds its own cold (see [`Effort::ring`]). A pass is a [step](Stream::step), as decoding is.
///
/// # Errors
/// If the device has no room for the operands, or has failed.
pub fn measure(stream: &Stream, case: &Case, dtype: DType, effort: &Effort) -> Result<Measured> {
    let (mut times, mut first, mut cost) = (Vec::new(), None, Cost::default());
    case.with_operands(stream, dtype, effort.ring, &mut |copies, launch| {
        stream.record();
        launch(0)?;
        for l in stream.recording()?.launches {
            cost.bytes += l.cost.bytes;
            cost.flops += l.cost.flops;
            first.get_or_insert(l.entry);
        }
        // Every copy is touched once before it counts.
        let warm = stream.time(&mut || (0..copies).try_for_each(&mut *launch))? / copies as f64;
        let mut count = ((PASS_US / warm) as usize).clamp(1, 4096);
        // Passes over all copies are alike: on a card they are one graph.
        count -= if count > copies { count % copies } else { 0 };
        let (mut at, began) = (0, Instant::now());
        while times.len() < effort.passes && (times.len() < 3 || began.elapsed() < effort.patience)
        {
            let mut pass = || (at..at + count).try_for_each(|i| launch(i % copies));
            let us = stream.time(&mut || stream.step(&mut pass))?;
            times.push(us / count as f64);
            at = (at + count) % copies;
        }
        Ok(())
    })?;
    let entry: String = first.unwrap_or_default();
    let variant = entry.strip_prefix(&format!("{}_{dtype}", case.kernel)).unwrap_or("").to_string();
    Ok(Measured { variant, us: median(times), cost })
}

/// A pass is about this long, us: many launches where one is short.
const PASS_US: f64 = 4000.0;

/// The middle one; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
