//! The model: its configuration, its weights arranged as layers, and the forward pass as a straight
//! list of launches.

pub mod config;
mod decoder;
mod kv;
mod layers;
mod media;
pub mod presets;
mod probe;
mod resampler;
mod session;
mod train;
mod vision;
mod xattn;

pub use config::{Config, Family};
pub use decoder::{Rows, Step};
pub use kv::{KvPool, PAGE_TOKENS};
pub use media::{MaskMode, Media, Origin};
pub use presets::{PRESETS, preset};
pub use probe::Probe;
pub use session::Session;
pub use train::{
    ALIGN, BUCKET, Buckets, Gradients, Packed, Parameter, Parameters, Purpose, Recompute, Shard,
    Sums, Targets, Trained, Training,
};

use crate::device::Stream;
use crate::image::Preprocess;
use crate::ops::TokenIds;
use crate::tensor::{Arena, Tensor};
use crate::weights::Weights;
use crate::{DType, Error, Result};
use decoder::Decoder;
use resampler::Resampler;
use std::sync::Arc;
use vision::Vision;

/// The weights arranged as layers.
///
/// Below [`crate::engine`], for those who score or search on their own:
///
/// ```no_run
/// use medflamingo::device::Stream;
/// use medflamingo::engine::ModelFolder;
/// use medflamingo::model::{Flamingo, MaskMode, Origin, Probe, Rows, Session, Step};
/// use medflamingo::tensor::Arena;
///
/// # fn main() -> medflamingo::Result<()> {
/// let folder = ModelFolder::open("model".as_ref())?;
/// let stream = Stream::host(0);
/// let model = Flamingo::load(&stream, &folder.weights, &folder.config, &folder.preprocess)?;
/// let (mut arena, mut pool) = (Arena::new(&stream, 0)?, model.kv_pool(&stream, 4096)?);
/// let ids = folder.tokenizer.encode_prompt("Question: Is it large? Answer:")?;
/// let mut context = Session::new(&folder.config, MaskMode::V2, 0, Vec::new());
/// let mut run = |session: &mut Session, ids: &[u32], origin, logits| {
///     let mut steps = [Step { session, ids, origin, logits }];
///     let probe = &mut Probe::none();
///     model.forward(&stream, &mut arena, &mut pool, &mut steps, probe)?.view().to_f32()
/// };
/// run(&mut context, &ids, Origin::Prompt, Rows::None)?;
/// for answer in [" yes", " no"] {
///     // Forks share the context's pages: only the answer is computed.
///     let tail = folder.tokenizer.encode_text(answer)?;
///     let logits = run(&mut context.fork(), &tail, Origin::Generated, Rows::All)?;
///     println!("{answer}: {} rows of logits", logits.len() / folder.config.language.vocabulary);
/// }
/// # Ok(())
/// # }
/// ```
///
/// Inference takes `&self`; what changes is in [`Session`],
/// [`KvPool`] and [`Arena`].
pub struct Flamingo {
    config: Config,
    vision: Vision,
    resampler: Resampler,
    decoder: Decoder,
}

impl Flamingo {
    /// Finds every tensor of `config` in `weights`; nothing of them is copied. Of `preprocess` the
    /// model takes what bytes of pixels stand for.
    ///
    /// # Errors
    /// Names the first tensor that is missing or has another shape.
    pub fn load(
        stream: &Stream,
        weights: &Weights,
        config: &Config,
        preprocess: &Preprocess,
    ) -> Result<Self> {
        Ok(Flamingo {
            config: config.clone(),
            vision: Vision::load(stream, weights, config, preprocess)?,
            resampler: Resampler::load(weights, config)?,
            decoder: Decoder::load(stream, weights, config)?,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the language model will see of each image. `pixels`: (3, S, S) u8 per image,
    /// as [`crate::image::preprocess`] makes them.
    ///
    /// # Errors
    /// If an image has another size.
    pub fn see(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        pixels: &[&[u8]],
        probe: &mut Probe<'_>,
    ) -> Result<Vec<Arc<Media>>> {
        let side = self.config.vision.image_size;
        let each = 3 * side * side;
        if let Some(wrong) = pixels.iter().find(|p| p.len() != each) {
            return Err(Error::invalid("pixels", format!("(3, {side}, {side})"), wrong.len()));
        }
        let count = pixels.len();
        let dtype = self.dtype();
        let kv_cols = 2 * self.config.inner_widths().1;
        let rows = count * self.config.resampler.latents;
        let blocks = self.decoder.blocks().count();
        let bytes = self.vision.scratch(count)
            + self.resampler.scratch(count)
            + Arena::footprint(DType::U8, count * each)
            + Arena::footprint(dtype, blocks * rows * kv_cols);
        arena.reset(stream, bytes)?;
        let mut input = arena.take(DType::U8, &[count, 3, side, side])?;
        let cols = input.shape().cols();
        for (i, image) in pixels.iter().enumerate() {
            let rows = i * 3 * side..(i + 1) * 3 * side;
            input.view_mut().block(rows, 0..cols)?.write(image)?;
        }
        stream.overlapping(|| {
            let tokens = {
                let _phase = stream.phase("vision");
                self.vision.run(stream, arena, &input, probe)?
            };
            let latents = {
                let _phase = stream.phase("resampler");
                self.resampler.run(stream, arena, &tokens, probe)?
            };
            probe.see(|| "resampler.out".into(), latents.view());
            let _phase = stream.phase("media");
            let mut kv = arena.take(dtype, &[blocks * rows, kv_cols])?;
            self.media(stream, &latents, &mut kv, count)
        })
    }

    /// Keys and values of every gated layer, each image on its own so that it can be cached alone.
    fn media(
        &self,
        stream: &Stream,
        latents: &Tensor,
        kv: &mut Tensor,
        count: usize,
    ) -> Result<Vec<Arc<Media>>> {
        let each = self.config.resampler.latents;
        let (blocks, cols) = (self.decoder.blocks().count(), kv.shape().cols());
        for (b, block) in self.decoder.blocks().enumerate() {
            let target = b * count * each..(b + 1) * count * each;
            let target = kv.view_mut().block(target, 0..cols)?;
            block.media_kv(stream, target, latents.view())?;
        }
        // What a block has of an image is one stretch: an image is a column of stretches.
        let all = kv.view().shaped(&[blocks, count * each * cols])?;
        let mut media = Vec::with_capacity(count);
        for i in 0..count {
            let mut kv = Tensor::room(stream, self.dtype(), &[blocks * each, cols])?;
            let own = all.block(0..blocks, i * each * cols..(i + 1) * each * cols)?;
            kv.view_mut().shaped(&[blocks, each * cols])?.copy_from(own)?;
            media.push(Arc::new(Media { kv }));
        }
        Ok(media)
    }

    /// Runs new tokens through the language model; logits (rows asked for, V) f32, steps in order.
    ///
    /// # Errors
    /// If a context or the pool is too small, or an id is outside the vocabulary.
    pub fn forward(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        pool: &mut KvPool,
        steps: &mut [Step<'_>],
        probe: &mut Probe<'_>,
    ) -> Result<Tensor> {
        self.reset(stream, arena, steps)?;
        self.decoder.run(stream, arena, pool, steps, None, probe)
    }

    /// As [`Flamingo::forward`], of one generated token for each step: those that
    /// [`crate::ops::sampling`] left on the device, whatever the steps' own ids are. Nobody need
    /// have read them.
    ///
    /// # Errors
    /// As there; or if the tokens are not as many as the steps, or of another vocabulary.
    pub fn forward_chosen(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        pool: &mut KvPool,
        steps: &mut [Step<'_>],
        chosen: &TokenIds,
    ) -> Result<Tensor> {
        let found = [chosen.rows(), chosen.vocabulary()];
        let expected = [steps.len(), self.config.language.vocabulary];
        let is_one = |s: &Step<'_>| s.ids.len() == 1 && s.origin == Origin::Generated;
        if found != expected || !steps.iter().all(is_one) {
            let expected = format!("a generated token for each step, {expected:?}");
            return Err(Error::invalid("chosen tokens", expected, format!("{found:?}")));
        }
        self.reset(stream, arena, steps)?;
        self.decoder.run(stream, arena, pool, steps, Some(chosen), &mut Probe::none())
    }

    /// Makes room in `arena` for the intermediates of `steps`.
    fn reset(&self, stream: &Stream, arena: &mut Arena, steps: &[Step<'_>]) -> Result<()> {
        let rows: usize = steps.iter().map(|s| s.ids.len()).sum();
        let logits: usize = steps
            .iter()
            .map(|s| match s.logits {
                Rows::All => s.ids.len(),
                Rows::Last => 1,
                Rows::None => 0,
            })
            .sum();
        let images = steps.iter().map(|s| s.session.media().len()).sum();
        arena.reset(stream, self.decoder.scratch(rows, logits, steps.len(), images))
    }

    /// A pool for `tokens` tokens of this model.
    pub fn kv_pool(&self, stream: &Stream, tokens: usize) -> Result<KvPool> {
        let l = &self.config.language;
        KvPool::new(stream, self.dtype(), l.layers, l.width, tokens)
    }

    /// The storage type of weights and intermediates.
    pub fn dtype(&self) -> DType {
        self.config.dtype.into()
    }

    /// Bytes of weights that one decoded token reads.
    pub fn decode_bytes(&self) -> usize {
        self.decoder.decode_bytes()
    }
}
