//! What a published model launches: its own forward pass, on a stream that only writes down.

use super::roofline::Card;
use medflamingo::Result;
use medflamingo::convert::quantize::{Choice, Precision};
use medflamingo::convert::{Spec, synth};
use medflamingo::device::{Launched, Stream};
use medflamingo::image::Preprocess;
use medflamingo::model::{
    Config, Flamingo, KvPool, MaskMode, Media, Origin, Probe, Rows, Session, Step,
};
use medflamingo::tensor::Arena;
use medflamingo::weights::Weights;
use std::sync::Arc;

/// A piece of work with a name.
pub struct Phase {
    pub name: &'static str,
    /// New tokens.
    pub rows: usize,
    pub launches: Vec<Launched>,
}

/// The tokens that stand in a sequence when its next one is decoded.
const CONTEXT: usize = 300;

/// The three shapes that everything is measured by: one decoded token after 300 (with weights of 8
/// and of 4 bits, too), the published demo's prompt (250 tokens, 7 images), and 2048 tokens with 3
/// images as in training.
pub fn phases(config: &Config, card: &Card) -> Result<Vec<Phase>> {
    let mut runner = Runner::new(config, card, None)?;
    let (seven, demo_images) = runner.see(7)?;
    let (three, training_images) = runner.see(3)?;
    let decode = runner.decode(&seven)?;
    let mut prompt = |media: Vec<Arc<Media>>, rows, logits| {
        let mut session = Session::new(config, MaskMode::V2, media.len(), media);
        runner.run(&mut session, rows, Origin::Prompt, logits)
    };
    let demo = prompt(seven, 250, Rows::Last)?;
    let rows = config.language.context.min(2048);
    let training = prompt(three, rows, Rows::All)?;
    let few_bits = |weights| {
        let mut runner = Runner::new(config, card, Some(weights))?;
        let (media, _) = runner.see(1)?;
        runner.decode(&media)
    };
    let phase = |name, rows, launches| Phase { name, rows, launches };
    Ok(vec![
        phase("decode, batch 1, 300 tokens before", 1, decode),
        phase("decode with int8 weights", 1, few_bits(Precision::Int8)?),
        phase("decode with int4 weights", 1, few_bits(Precision::Int4)?),
        phase("7 images of the demo's prompt", 0, demo_images),
        phase("demo's prompt, 250 tokens", 250, demo),
        phase("3 images in training", 0, training_images),
        phase("training size, all logits", rows, training),
    ])
}

struct Runner {
    stream: Stream,
    model: Flamingo,
    arena: Arena,
    pool: KvPool,
}

impl Runner {
    fn new(config: &Config, card: &Card, weights: Option<Precision>) -> Result<Self> {
        let folder = synth::hollow(&stored(config, weights))?;
        let weights = Weights::open(folder.path())?;
        let stream = Stream::planning(card.chip);
        let preprocess = Preprocess::clip(config.vision.image_size);
        let model = Flamingo::load(&stream, &weights, config, &preprocess)?;
        let pool = model.kv_pool(&stream, 4096)?;
        Ok(Runner { arena: Arena::new(&stream, 0)?, stream, model, pool })
    }

    fn see(&mut self, images: usize) -> Result<(Vec<Arc<Media>>, Vec<Launched>)> {
        let side = self.model.config().vision.image_size;
        let image = vec![0; 3 * side * side];
        let pixels = vec![image.as_slice(); images];
        self.stream.record();
        let media = self.model.see(&self.stream, &mut self.arena, &pixels, &mut Probe::none())?;
        Ok((media, self.stream.recording()?.launches))
    }

    /// One token after [`CONTEXT`] others and the first of `media`.
    fn decode(&mut self, media: &[Arc<Media>]) -> Result<Vec<Launched>> {
        let config = self.model.config();
        let mut context = Session::new(config, MaskMode::V2, 1, media[..1].to_vec());
        self.run(&mut context, CONTEXT, Origin::Prompt, Rows::None)?;
        self.run(&mut context, 1, Origin::Generated, Rows::Last)
    }

    /// `rows` new tokens, image markers spread over those of a prompt.
    fn run(
        &mut self,
        session: &mut Session,
        rows: usize,
        origin: Origin,
        logits: Rows,
    ) -> Result<Vec<Launched>> {
        let tokens = &self.model.config().tokens;
        let mut ids = vec![tokens.end_of_chunk; rows];
        if origin == Origin::Prompt {
            let markers = session.media().len().min(rows);
            (0..markers).for_each(|i| ids[i * rows / markers] = tokens.image);
        }
        let mut steps = [Step { session, ids: &ids, origin, logits }];
        let probe = &mut Probe::none();
        let (stream, arena, pool) = (&self.stream, &mut self.arena, &mut self.pool);
        stream.record();
        self.model.forward(stream, arena, pool, &mut steps, probe)?;
        Ok(self.stream.recording()?.launches)
    }
}

/// Every tensor of the model, matrices of `weights` if that is given.
fn stored(config: &Config, weights: Option<Precision>) -> Vec<Spec> {
    let dense = |(name, shape)| Spec { name, shape, dtype: config.dtype.into() };
    match weights {
        Some(weights) => Choice::all(weights).stored(config),
        None => config.tensors().into_iter().map(dense).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::roofline::CARDS;
    use medflamingo::model::preset;

    #[test]
    fn the_forward_pass_is_planned_whole() {
        let config = preset("med-flamingo-9b").unwrap();
        let found = phases(&config, &CARDS[1]).unwrap();
        let cost = |name: &str| {
            let phase = found.iter().find(|p| p.name.starts_with(name)).unwrap();
            let sum = |f: fn(&Launched) -> f64| phase.launches.iter().map(f).sum::<f64>();
            (sum(|l| l.cost.bytes) / 1e9, sum(|l| l.cost.flops) / 1e12)
        };
        // 7.71 G weights once, and little else; 162 + 11.5 + 1.07 GFLOP an image; 15.2 a token.
        let (gb, _) = cost("decode");
        assert!((15.3..16.0).contains(&gb), "{gb} GB");
        // As many weights of 8 bits, or 4.125 and a head of 8, and 301 tokens' keys and values.
        let (gb, _) = cost("decode with int8");
        assert!((7.85..8.0).contains(&gb), "{gb} GB");
        let (gb, _) = cost("decode with int4");
        assert!((4.15..4.35).contains(&gb), "{gb} GB");
        let (_, images) = cost("7 images");
        assert!((1.19..1.26).contains(&images), "{images} TFLOP");
        // The resampler's keys and values of 7 * 256 patch tokens: one product for all 6 layers.
        let phase = found.iter().find(|p| p.name.starts_with("7 images")).unwrap();
        let (rows, cols, k) = (7.0 * 256.0, 6.0 * 2.0 * 512.0, 1024.0);
        let is_media = |l: &&Launched| l.kernel == "gemm" && l.cost.flops == 2.0 * rows * cols * k;
        assert_eq!(phase.launches.iter().filter(is_media).count(), 1);
        let (_, prompt) = cost("demo's prompt");
        assert!((3.7..3.95).contains(&prompt), "{prompt} TFLOP");
    }
}
