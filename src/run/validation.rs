//! Losses on what is not trained on, from the same sequences every time.

use super::config::RunConfig;
use super::feed;
use crate::comm::Comm;
use crate::engine::ModelFolder;
use crate::phantom::Split;
use crate::train::Trainer;
use crate::{Error, Result};

/// What one source came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub name: String,
    /// Mean over all tokens that are predicted, nats.
    pub loss: f64,
    pub targets: usize,
}

/// Measures all validation sources; ranks share the sequences.
///
/// # Errors
/// Data that is not there, a failed device, a rank that is gone.
pub fn run(
    config: &RunConfig,
    model: &ModelFolder,
    comm: &Comm,
    trainer: &mut Trainer,
) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for source in &config.validation {
        let (seed, ranks) = ((config.run.seed, 0), (comm.rank(), comm.world()));
        let opened = feed::open(source, Split::Validation, seed, ranks, model);
        let mut stream = opened.map_err(|e| e.within(format!("[[validation]] {}", source.name)))?;
        let mut left = config.run.validation_sequences.div_ceil(comm.world());
        let (mut sum, mut targets) = (0.0, 0u64);
        while left > 0 {
            let Some(batch) = stream.batch(source.batch.min(left))? else { break };
            left -= batch.sequences.len();
            for own in trainer.evaluate(&batch)? {
                sum += own.loss * own.targets as f64;
                targets += own.targets as u64;
            }
        }
        let message = [sum.to_le_bytes(), targets.to_le_bytes()].concat();
        let (mut total, mut count) = (0.0, 0);
        for bytes in comm.exchange(&message)?.iter() {
            let damaged = || Error::invalid("validation", "sums of every rank", "something else");
            let (a, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
            let (b, _) = rest.split_first_chunk().ok_or_else(damaged)?;
            total += f64::from_le_bytes(*a);
            count += u64::from_le_bytes(*b);
        }
        let loss = total / count as f64;
        all.push(Measured { name: source.name.clone(), loss, targets: count as usize });
    }
    Ok(all)
}
