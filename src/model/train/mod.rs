//! The training pass: forward as a straight list of launches that keeps what backward reads, and
//! backward written out beside it, part by part. There is no graph: which gradients are computed
//! follows from which parts are trained.
//!
//! | part | kept per layer | gradients |
//! |---|---|---|
//! | frozen vision | nothing | none |
//! | resampler, gated blocks, trained layers | inputs of every launch with a backward | all |
//! | frozen decoder layers | what the gradient of their input needs | of their input only |

mod packed;
mod parameters;
mod pass;
mod room;

pub use packed::{Packed, Targets};
pub use parameters::{ALIGN, Gradients, Parameter, Parameters, Trained};
pub use pass::Recompute;

use super::config::Config;
use crate::device::Stream;
use crate::weights::Weights;
use crate::{Error, Result};

/// A model in training; its weights are in [`Parameters`].
pub struct Training;

/// What a pass is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// The losses.
    Evaluate,
    /// The losses and, added up, the gradients of their scaled sum.
    Train {
        /// The factor of each source's sum of losses.
        scales: &'a [f32],
        recompute: Recompute,
    },
}

impl Training {
    /// The parts of `config`, of which `trained` are trained.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load(_: &Stream, _: &Weights, _: &Config, _: &Parameters, _: Trained) -> Result<Self> {
        Ok(Training)
    }

    /// # Errors
    /// Always: backward is on its way.
    pub fn run(
        &mut self,
        _: &Stream,
        _: &Parameters,
        _: &mut Gradients,
        _: &Packed<'_>,
        _: usize,
        _: Purpose<'_>,
    ) -> Result<Vec<f32>> {
        Err(Error::invalid("training", "a build with backward", "one without"))
    }

    /// Bytes of activations and scratch that the passes so far have needed.
    pub fn bytes(&self) -> usize {
        0
    }
}
