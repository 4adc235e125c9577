//! The training pass: forward as a straight list of launches that keeps what backward reads, and
//! backward written out beside it, part by part. There is no graph: which gradients are computed
//! follows from which parts are trained.
//!
//! | part | kept per layer | gradients |
//! |---|---|---|
//! | frozen vision | nothing | none |
//! | resampler, gated blocks, trained layers | inputs of every launch with a backward | all |
//! | frozen decoder layers | what the gradient of their input needs | of their input only |
//!
//! Frozen matrices may have 8 or 4 bits a weight. Forward multiplies with the codes; backward makes
//! numbers of one matrix at a time, on the way to its transpose, so that there is never a copy of
//! the model in its own type.

mod buckets;
mod decoder;
mod gradients;
mod head;
mod images;
mod layers;
mod packed;
mod parameters;
mod pass;
mod resampler;
mod room;
mod vision;
mod xattn;

pub use buckets::{BUCKET, Buckets, Shard};
pub use gradients::{Gradients, Sums};
pub use packed::{Packed, Targets};
pub use parameters::{ALIGN, Parameter, Parameters, Trained};
pub use pass::Recompute;

use super::config::Config;
use crate::Result;
use crate::device::Stream;
use crate::image::Preprocess;
use crate::weights::Weights;
use decoder::{Decoder, Text};
use head::Scales;
use images::Images;
use pass::Pass;
use room::Room;
use xattn::Seen;

/// A model in training; its weights are in [`Parameters`].
pub struct Training {
    images: Images,
    decoder: Decoder,
    rooms: [Room; 3],
}

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
    /// The parts of `config`, of which `trained` are trained; of `preprocess` what bytes of pixels
    /// stand for.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load(
        stream: &Stream,
        weights: &Weights,
        config: &Config,
        preprocess: &Preprocess,
        params: &Parameters,
        trained: Trained,
    ) -> Result<Self> {
        let first = match trained.language || trained.embedding_rows {
            true => 0,
            false => config.gated_layers().next().unwrap_or(config.language.layers),
        };
        Ok(Training {
            images: Images::load(stream, weights, config, preprocess, params, trained)?,
            decoder: Decoder::new(stream, params, config, first)?,
            rooms: [Room::new(), Room::new(), Room::new()],
        })
    }

    /// The sums of the losses of each source's targets, nats; with [`Purpose::Train`] gradients are
    /// added to `grads`. At most `logit_rows` rows of logits exist at a time.
    ///
    /// # Errors
    /// An id or a label outside the vocabulary, too little memory, a failed device.
    pub fn run(
        &mut self,
        stream: &Stream,
        params: &Parameters,
        grads: &mut Gradients,
        packed: &Packed<'_>,
        logit_rows: usize,
        purpose: Purpose<'_>,
    ) -> Result<Vec<f32>> {
        let zeros = vec![0.0; packed.targets.len()];
        let (scales, recompute) = match purpose {
            Purpose::Evaluate => (&zeros[..], None),
            Purpose::Train { scales, recompute } => (scales, Some(recompute)),
        };
        if packed.targets.iter().all(|t| t.rows.is_empty()) {
            return Ok(zeros);
        }
        let pass = &mut Pass::new(stream, params, grads, &mut self.rooms)?;
        let looked = self.images.forward(pass, packed, recompute)?;
        let (mut text, spans) = Text::new(pass, packed, &self.decoder.shape)?;
        let seen = Seen { latents: &looked.latents, spans: &spans, images: packed.images.len() };
        let (x, saved) = {
            let _phase = stream.phase("decoder");
            self.decoder.forward(pass, &mut text, &seen, recompute)?
        };
        let (sums, d) = {
            let _phase = stream.phase("loss");
            let trains = recompute.is_some();
            let scales = Scales { of_source: scales, logit_rows, trains };
            self.decoder.losses(pass, &x, &packed.targets, &scales)?
        };
        if recompute.is_some() {
            let mut dlatents = self.images.gradient(pass, &looked)?;
            {
                let _phase = stream.phase("decoder backward");
                self.decoder.backward(pass, d, saved, &mut text, &seen, dlatents.as_mut())?;
            }
            if let Some(dlatents) = dlatents {
                self.images.backward(pass, looked, &dlatents)?;
            }
        }
        sums.view().read()
    }

    /// Bytes of activations and scratch that the passes so far have needed.
    pub fn bytes(&self) -> usize {
        self.images.bytes() + self.rooms.iter().map(Room::bytes).sum::<usize>()
    }
}
