//! What a published model launches: its own forward pass, on a stream that only writes down.

use super::roofline::Card;
use medflamingo::device::{Launched, Stream};
use medflamingo::model::{
    Config, Flamingo, KvPool, MaskMode, Media, Origin, Probe, Rows, Session, Step,
};
use medflamingo::tensor::Arena;
use medflamingo::weights::{SINGLE, Weights};
use medflamingo::{DType, Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
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

/// The three shapes that everything is measured by: one decoded token after 300, the published
/// demo's prompt (250 tokens, 7 images), and 2048 tokens with 3 images as in training.
pub fn phases(config: &Config, card: &Card) -> Result<Vec<Phase>> {
    let folder = Hollow::new(config)?;
    let weights = Weights::open(&folder.path)?;
    let stream = Stream::planning(card.chip);
    let model = Flamingo::load(&stream, &weights, config)?;
    let pool = model.kv_pool(&stream, 4096)?;
    let mut runner = Runner { arena: Arena::new(&stream, 0)?, stream, model, pool };
    let side = config.vision.image_size;
    let image = vec![0.0; 3 * side * side];
    let mut see = |images| runner.see(&vec![image.as_slice(); images]);
    let (seven, demo_images) = see(7)?;
    let (three, training_images) = see(3)?;
    let mut context = Session::new(config, MaskMode::V2, 1, seven[..1].to_vec());
    runner.run(&mut context, CONTEXT, Origin::Prompt, Rows::None)?;
    let decode = runner.run(&mut context, 1, Origin::Generated, Rows::Last)?;
    let mut prompt = |media: Vec<Arc<Media>>, rows, logits| {
        let mut session = Session::new(config, MaskMode::V2, media.len(), media);
        runner.run(&mut session, rows, Origin::Prompt, logits)
    };
    let demo = prompt(seven, 250, Rows::Last)?;
    let rows = config.language.context.min(2048);
    let training = prompt(three, rows, Rows::All)?;
    let phase = |name, rows, launches| Phase { name, rows, launches };
    Ok(vec![
        phase("decode, batch 1, 300 tokens before", 1, decode),
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
    fn see(&mut self, pixels: &[&[f32]]) -> Result<(Vec<Arc<Media>>, Vec<Launched>)> {
        self.stream.record();
        let media = self.model.see(&self.stream, &mut self.arena, pixels, &mut Probe::none())?;
        Ok((media, self.stream.recording()?.launches))
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

/// A model folder of holes: it has every tensor, reads as zeros and takes no space.
struct Hollow {
    path: PathBuf,
}

impl Hollow {
    fn new(config: &Config) -> Result<Self> {
        let name = format!("medflamingo-kernels-{}", std::process::id());
        let folder = Hollow { path: std::env::temp_dir().join(name) };
        std::fs::create_dir_all(&folder.path).map_err(|e| Error::io("create", &folder.path, e))?;
        let file = folder.path.join(SINGLE);
        write_holes(config, &file).map_err(|e| Error::io("write", &file, e))?;
        Ok(folder)
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn write_holes(config: &Config, path: &Path) -> std::io::Result<()> {
    let dtype = DType::from(config.dtype);
    let mut header = serde_json::Map::new();
    let mut end = 0;
    // A card's memory is aligned tensor by tensor; here, what has an odd size comes last.
    let mut tensors = config.tensors();
    tensors.sort_by_key(|(_, shape)| !shape.iter().product::<usize>().is_multiple_of(64));
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * dtype.size();
        let entry = serde_json::json!({
            "dtype": dtype.name().to_uppercase(), "shape": shape, "data_offsets": [begin, end],
        });
        header.insert(name, entry);
    }
    let mut text = serde_json::Value::Object(header).to_string();
    while !(8 + text.len()).is_multiple_of(256) {
        text.push(' ');
    }
    let mut file = std::fs::File::create(path)?;
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    file.set_len((8 + text.len() + end) as u64)
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
        let (_, images) = cost("7 images");
        assert!((1.19..1.26).contains(&images), "{images} TFLOP");
        let (_, prompt) = cost("demo's prompt");
        assert!((3.7..3.95).contains(&prompt), "{prompt} TFLOP");
    }
}
