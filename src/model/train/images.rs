//! From pixels to latents and back: the vision encoder, frozen or trained, and the resampler.

use super::super::config::Config;
use super::super::probe::Probe;
use super::super::vision as frozen;
use super::packed::Packed;
use super::parameters::{Parameters, Trained};
use super::pass::{Keep, Pass, Recompute};
use super::resampler::{self, Resampler};
use super::vision;
use crate::device::Stream;
use crate::image::Preprocess;
use crate::tensor::{Arena, Tensor};
use crate::weights::Weights;
use crate::{DType, Error, Result};

pub(super) struct Images {
    vision: Vision,
    resampler: Resampler,
    trained: Trained,
    patches: usize,
    side: usize,
}

enum Vision {
    /// The one of inference, with memory of its own.
    Frozen(Box<frozen::Vision>, Arena),
    Trained(Box<vision::Vision>),
}

/// What the language model sees, and what backward reads of how it came to be.
pub(super) struct Looked {
    /// (images*L, Dv)
    pub latents: Tensor,
    saved: resampler::Saved,
    /// Patch tokens, (images*P, Dv).
    media: Tensor,
    saved_vision: Option<vision::Saved>,
    images: usize,
}

/// Images that a frozen vision encoder sees at a time.
const TOGETHER: usize = 16;

impl Images {
    pub fn load(
        stream: &Stream,
        weights: &Weights,
        config: &Config,
        preprocess: &Preprocess,
        params: &Parameters,
        trained: Trained,
    ) -> Result<Self> {
        let vision = if trained.vision {
            Vision::Trained(Box::new(vision::Vision::new(stream, params, config, preprocess)?))
        } else {
            let tower = frozen::Vision::load(stream, weights, config, preprocess)?;
            Vision::Frozen(Box::new(tower), Arena::new(stream, 0)?)
        };
        Ok(Images {
            vision,
            resampler: Resampler::new(params, config)?,
            trained,
            patches: config.patches(),
            side: config.vision.image_size,
        })
    }

    /// Latents of all images; without a policy for `recompute` nothing is kept for a backward.
    pub fn forward(
        &mut self,
        pass: &mut Pass<'_>,
        packed: &Packed<'_>,
        recompute: Option<Recompute>,
    ) -> Result<Looked> {
        let (stream, images, trained) = (pass.stream, packed.images.len(), self.trained);
        let keep = |is_trained: bool| match recompute {
            Some(policy) if is_trained => policy.keep(false),
            _ => Keep::Nothing,
        };
        let (media, saved_vision) = {
            let _phase = stream.phase("vision");
            let pixels = upload(pass, packed, self.side)?;
            self.vision.forward(pass, &pixels, self.patches, keep(trained.vision))?
        };
        let _phase = stream.phase("resampler");
        let keep = keep(trained.resampler || trained.vision);
        let (latents, saved) = self.resampler.forward(pass, &media, images, keep)?;
        Ok(Looked { latents, saved, media, saved_vision, images })
    }

    /// Room for the gradient of the latents, if anything wants it.
    pub fn gradient(&self, pass: &mut Pass<'_>, looked: &Looked) -> Result<Option<Tensor>> {
        let is_wanted = looked.images > 0 && (self.trained.resampler || self.trained.vision);
        let shape = looked.latents.shape();
        pass.lasting_if(is_wanted, shape.rows(), shape.cols())
    }

    /// Adds up the gradients of all that is trained, given that of the latents.
    pub fn backward(&self, pass: &mut Pass<'_>, looked: Looked, dlatents: &Tensor) -> Result<()> {
        let (stream, Looked { saved, media, saved_vision, images, .. }) = (pass.stream, looked);
        let (rows, cols) = (media.shape().rows(), media.shape().cols());
        let mut dmedia = pass.lasting_if(self.trained.vision, rows, cols)?;
        {
            let _phase = stream.phase("resampler backward");
            let to = dmedia.as_mut();
            self.resampler.backward(pass, dlatents, saved, &media, images, to)?;
        }
        match (&self.vision, dmedia, saved_vision) {
            (Vision::Trained(tower), Some(dmedia), Some(saved)) => {
                let _phase = stream.phase("vision backward");
                tower.backward(pass, &dmedia, saved, images)
            }
            _ => Ok(()),
        }
    }

    /// Bytes of a frozen encoder's own memory.
    pub fn bytes(&self) -> usize {
        match &self.vision {
            Vision::Frozen(_, arena) => arena.bytes(),
            Vision::Trained(_) => 0,
        }
    }
}

impl Vision {
    fn width(&self) -> usize {
        match self {
            Vision::Frozen(tower, _) => tower.width(),
            Vision::Trained(tower) => tower.width(),
        }
    }

    /// Patch tokens (images*P, Dv) of `pixels`, and what backward reads if there is one.
    fn forward(
        &mut self,
        pass: &mut Pass<'_>,
        pixels: &Tensor,
        patches: usize,
        keep: Keep,
    ) -> Result<(Tensor, Option<vision::Saved>)> {
        if pixels.shape().elements() == 0 {
            return Ok((pass.lasting(pass.dtype(), &[0, self.width()])?, None));
        }
        match self {
            Vision::Frozen(tower, arena) => {
                Ok((run_frozen(pass, tower, arena, pixels, patches)?, None))
            }
            Vision::Trained(tower) => {
                let (media, saved) = tower.forward(pass, pixels, keep)?;
                Ok((media, Some(saved)))
            }
        }
    }
}

/// Pixels of all images, (images, 3, S, S) u8.
fn upload(pass: &mut Pass<'_>, packed: &Packed<'_>, side: usize) -> Result<Tensor> {
    let mut pixels = pass.lasting(DType::U8, &[packed.images.len(), 3, side, side])?;
    for (i, image) in packed.images.iter().enumerate() {
        let rows = i * 3 * side..(i + 1) * 3 * side;
        pixels.view_mut().block(rows, 0..side)?.write(image)?;
    }
    Ok(pixels)
}

/// Patch tokens (images*P, Dv) from the encoder of inference, a few images at a time.
fn run_frozen(
    pass: &mut Pass<'_>,
    tower: &frozen::Vision,
    arena: &mut Arena,
    pixels: &Tensor,
    patches: usize,
) -> Result<Tensor> {
    let stream = pass.stream;
    let &[images, _, side, _] = pixels.shape().sizes() else {
        return Err(Error::invalid("pixels", "(images, 3, S, S)", pixels.shape()));
    };
    let d = tower.width();
    let mut media = pass.lasting(pass.dtype(), &[images * patches, d])?;
    for start in (0..images).step_by(TOGETHER) {
        let count = TOGETHER.min(images - start);
        let pixels_bytes = Arena::footprint(DType::U8, count * 3 * side * side);
        arena.reset(stream, tower.scratch(count) + pixels_bytes)?;
        let mut own = arena.take(DType::U8, &[count, 3, side, side])?;
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
