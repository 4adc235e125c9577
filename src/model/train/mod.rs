//! The training pass: forward as a straight list of launches that keeps what backward reads, and
//! backward written out beside it, part by part. There is no graph: which gradients are computed
//! follows from which parts are trained.
//!
//! | part | kept per layer | gradients |
//! |---|---|---|
//! | frozen vision | nothing | none |
//! | resampler, gated blocks, trained layers | inputs of every launch with a backward | all |
//! | frozen decoder layers | what the gradient of their input needs | of their input only |

mod decoder;
mod head;
mod layers;
mod packed;
mod parameters;
mod pass;
mod resampler;
mod room;
mod vision;
mod xattn;

pub use packed::{Packed, Targets};
pub use parameters::{ALIGN, Gradients, Parameter, Parameters, Trained};
pub use pass::Recompute;

use super::config::Config;
use super::probe::Probe;
use crate::device::Stream;
use crate::ops::MediaSpans;
use crate::tensor::{Arena, Tensor};
use crate::weights::Weights;
use crate::{DType, Result};
use decoder::{Decoder, Text};
use head::Scales;
use pass::{Keep, Pass};
use resampler::Resampler;
use room::Room;
use xattn::Seen;

/// A model in training; its weights are in [`Parameters`].
pub struct Training {
    vision: Vision,
    resampler: Resampler,
    decoder: Decoder,
    trained: Trained,
    patches: usize,
    side: usize,
    rooms: [Room; 3],
}

enum Vision {
    /// The one of inference, with memory of its own.
    Frozen(Box<super::vision::Vision>, Arena),
    Trained(Box<vision::Vision>),
}

/// Images that a frozen vision encoder sees at a time.
const TOGETHER: usize = 16;

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
    pub fn load(
        stream: &Stream,
        weights: &Weights,
        config: &Config,
        params: &Parameters,
        trained: Trained,
    ) -> Result<Self> {
        let vision = if trained.vision {
            Vision::Trained(Box::new(vision::Vision::new(params, config)?))
        } else {
            let tower = super::vision::Vision::load(weights, config)?;
            Vision::Frozen(Box::new(tower), Arena::new(stream, 0)?)
        };
        let first = match trained.language || trained.embedding_rows {
            true => 0,
            false => config.gated_layers().next().unwrap_or(config.language.layers),
        };
        Ok(Training {
            vision,
            resampler: Resampler::new(params, config)?,
            decoder: Decoder::new(stream, params, config, first)?,
            trained,
            patches: config.patches(),
            side: config.vision.image_size,
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
        let images = packed.images.len();
        let pass = &mut Pass::new(stream, params, grads, &mut self.rooms)?;
        let sees = Sees { trained: self.trained, images, recompute };
        let (media, saved_vision) = {
            let _phase = stream.phase("vision");
            let pixels = upload(pass, packed, self.side)?;
            self.vision.forward(pass, &pixels, self.patches, sees.keep(self.trained.vision))?
        };
        let (latents, saved_latents) = {
            let _phase = stream.phase("resampler");
            self.resampler.forward(pass, &media, images, sees.keep(sees.wants_latents()))?
        };
        let mut text = Text::new(pass, packed, &self.decoder.shape)?;
        let bytes = Arena::footprint(DType::I32, 3 * packed.rows());
        let spans = MediaSpans::new(pass.kept_arena(bytes)?, &packed.spans, images)?;
        let seen = Seen { latents: &latents, spans: &spans, images };
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
        if recompute.is_none() {
            return sums.view().read();
        }
        let [rows, width] = [latents.shape().rows(), latents.shape().cols()];
        let mut dlatents = pass.lasting_if(sees.wants_latents(), rows, width)?;
        {
            let _phase = stream.phase("decoder backward");
            self.decoder.backward(pass, d, saved, &mut text, &seen, dlatents.as_mut())?;
        }
        let mut dmedia = pass.lasting_if(sees.wants_media(), media.shape().rows(), width)?;
        if let Some(dlatents) = &dlatents {
            let _phase = stream.phase("resampler backward");
            let to = dmedia.as_mut();
            self.resampler.backward(pass, dlatents, saved_latents, &media, images, to)?;
        }
        if let (Some(dmedia), Some(saved), Vision::Trained(tower)) =
            (dmedia, saved_vision, &self.vision)
        {
            let _phase = stream.phase("vision backward");
            tower.backward(pass, &dmedia, saved, images)?;
        }
        sums.view().read()
    }

    /// Bytes of activations and scratch that the passes so far have needed.
    pub fn bytes(&self) -> usize {
        let own = match &self.vision {
            Vision::Frozen(_, arena) => arena.bytes(),
            Vision::Trained(_) => 0,
        };
        own + self.rooms.iter().map(Room::bytes).sum::<usize>()
    }
}

impl Vision {
    /// Patch tokens (images*P, Dv) of `pixels`, and what backward reads if there is one.
    fn forward(
        &mut self,
        pass: &mut Pass<'_>,
        pixels: &Tensor,
        patches: usize,
        keep: Keep,
    ) -> Result<(Tensor, Option<vision::Saved>)> {
        match self {
            Vision::Frozen(tower, arena) => {
                Ok((frozen(pass, tower, arena, pixels, patches)?, None))
            }
            Vision::Trained(tower) => {
                let (media, saved) = tower.forward(pass, pixels, keep)?;
                Ok((media, Some(saved)))
            }
        }
    }
}

/// Which gradients of a pass reach the images.
struct Sees {
    trained: Trained,
    images: usize,
    /// None without a backward.
    recompute: Option<Recompute>,
}

impl Sees {
    fn wants_latents(&self) -> bool {
        self.images > 0 && (self.trained.resampler || self.trained.vision)
    }

    fn wants_media(&self) -> bool {
        self.images > 0 && self.trained.vision
    }

    /// What is kept of a layer that does or does not have a backward.
    fn keep(&self, has_backward: bool) -> Keep {
        match self.recompute {
            Some(policy) if has_backward && self.images > 0 => policy.keep(false),
            _ => Keep::Nothing,
        }
    }
}

/// Pixels of all images, (images, 3, S, S) f32.
fn upload(pass: &mut Pass<'_>, packed: &Packed<'_>, side: usize) -> Result<Tensor> {
    let mut pixels = pass.lasting(DType::F32, &[packed.images.len(), 3, side, side])?;
    for (i, image) in packed.images.iter().enumerate() {
        let rows = i * 3 * side..(i + 1) * 3 * side;
        pixels.view_mut().block(rows, 0..side)?.write(image)?;
    }
    Ok(pixels)
}

/// Patch tokens (images*P, Dv) from the encoder of inference, a few images at a time.
fn frozen(
    pass: &mut Pass<'_>,
    tower: &super::vision::Vision,
    arena: &mut Arena,
    pixels: &Tensor,
    patches: usize,
) -> Result<Tensor> {
    let stream = pass.stream;
    let &[images, _, side, _] = pixels.shape().sizes() else {
        return Err(crate::Error::invalid("pixels", "(images, 3, S, S)", pixels.shape()));
    };
    let d = tower.width();
    let mut media = pass.lasting(pass.dtype(), &[images * patches, d])?;
    for start in (0..images).step_by(TOGETHER) {
        let count = TOGETHER.min(images - start);
        let pixels_bytes = Arena::footprint(DType::F32, count * 3 * side * side);
        arena.reset(stream, tower.scratch(count) + pixels_bytes)?;
        let mut own = arena.take(DType::F32, &[count, 3, side, side])?;
        let rows = start * 3 * side..(start + count) * 3 * side;
        own.view_mut().copy_from(pixels.view().block(rows, 0..side)?)?;
        let tokens = tower.run(stream, arena, &own, &mut Probe::none())?;
        let from = tokens.view().shaped(&[count, (1 + patches) * d])?;
        let to = media.view_mut().shaped(&[images, patches * d])?;
        let from = from.block(0..count, d..(1 + patches) * d)?;
        to.block(start..start + count, 0..patches * d)?.copy_from(from)?;
    }
    Ok(media)
}
