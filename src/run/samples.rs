//! What the model says in the middle of training: a few prompts, continued greedily.

use super::config::SampleOptions;
use crate::engine::ModelFolder;
use crate::image::{self, Pixels};
use crate::model::{Config, Flamingo, MaskMode, Origin, Probe, Rows, Session, Step};
use crate::ops::Summary;
use crate::prompt::{Limits, Prompt};
use crate::tensor::{Arena, Tensor};
use crate::train::Trainer;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// A prompt that has been read: its tokens and its pictures.
pub struct Sample {
    prompt: Prompt<Pixels>,
    pub text: String,
    max_new_tokens: usize,
}

/// A prompt and how it goes on.
pub struct Continued {
    pub prompt: String,
    pub text: String,
}

/// Reads the prompts of a configuration.
///
/// # Errors
/// Images that cannot be read, a prompt that is too long.
pub fn read(options: &[SampleOptions], folder: &ModelFolder) -> Result<Vec<Sample>> {
    let context = folder.config.language.context;
    let each = |(i, o): (usize, &SampleOptions)| {
        let open = |path: &std::path::PathBuf| {
            let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
            let picture = image::decode(&bytes, &image::Limits::default());
            let pixels = picture.and_then(|p| image::preprocess(&p, &folder.preprocess));
            pixels.map_err(|e| e.within(path.display()))
        };
        let images = o.images.iter().map(open).collect::<Result<_>>()?;
        let limits = Limits::tokens(context.saturating_sub(o.max_new_tokens));
        let prompt = Prompt::from_text(&folder.tokenizer, &o.prompt, images, &limits);
        let prompt = prompt.map_err(|e| e.within(format!("[[sample]] {i}")))?;
        Ok(Sample { prompt, text: o.prompt.clone(), max_new_tokens: o.max_new_tokens })
    };
    options.iter().enumerate().map(each).collect()
}

/// Continues all of them with the weights as they are now.
///
/// # Errors
/// Too little memory, a failed device.
pub fn run(
    samples: &[Sample],
    folder: &mut ModelFolder,
    trainer: &Trainer,
    mode: MaskMode,
) -> Result<Vec<Continued>> {
    let stream = trainer.stream();
    folder.weights.replace(current(folder, trainer)?);
    let model = Flamingo::load(stream, &folder.weights, &folder.config, &folder.preprocess);
    folder.weights.replace(BTreeMap::new());
    let model = model?;
    let each = |sample: &Sample| {
        let ids = continued(sample, folder, &model, trainer, mode)?;
        let text = folder.tokenizer.decode(&ids, true);
        Ok(Continued { prompt: sample.text.clone(), text })
    };
    samples.iter().map(each).collect()
}

/// Copies of what is trained, under the model's names.
fn current(folder: &ModelFolder, trainer: &Trainer) -> Result<BTreeMap<String, Tensor>> {
    let stream = trainer.stream();
    let mut all = BTreeMap::new();
    for parameter in trainer.parameters() {
        let own = trainer.flat().block(0..1, parameter.range.clone())?.shaped(&parameter.shape)?;
        let shape = whole(&folder.config, &parameter.name)?;
        let mut tensor = Tensor::zeros(stream, own.dtype(), &shape)?;
        match &parameter.rows {
            None => tensor.view_mut().copy_from(own)?,
            Some(rows) => {
                let stored = folder.weights.get(&parameter.name, &shape)?;
                tensor.view_mut().copy_from(stored.view())?;
                for (i, &row) in rows.iter().enumerate() {
                    let (row, cols) = (row as usize, shape[1]);
                    let to = tensor.view_mut().block(row..row + 1, 0..cols)?;
                    { to }.copy_from(own.block(i..i + 1, 0..cols)?)?;
                }
            }
        }
        all.insert(parameter.name.clone(), tensor);
    }
    Ok(all)
}

fn whole(config: &Config, name: &str) -> Result<Vec<usize>> {
    let found = config.tensors().into_iter().find(|(n, _)| n == name);
    found.map(|(_, shape)| shape).ok_or_else(|| Error::invalid(name, "a tensor", "no such tensor"))
}

fn continued(
    sample: &Sample,
    folder: &ModelFolder,
    model: &Flamingo,
    trainer: &Trainer,
    mode: MaskMode,
) -> Result<Vec<u32>> {
    let stream = trainer.stream();
    let (mut arena, prompt) = (Arena::new(stream, 0)?, &sample.prompt);
    let pixels: Vec<&[u8]> = prompt.images().iter().map(|p| p.data.as_slice()).collect();
    let media = match pixels.is_empty() {
        true => Vec::new(),
        false => model.see(stream, &mut arena, &pixels, &mut Probe::none())?,
    };
    let mut pool = model.kv_pool(stream, prompt.len() + sample.max_new_tokens)?;
    let mut session = Session::new(&folder.config, mode, prompt.markers().len(), media);
    let mut new: Vec<u32> = Vec::new();
    let (mut ids, mut origin) = (prompt.ids().to_vec(), Origin::Prompt);
    while new.len() < sample.max_new_tokens {
        let mut steps = [Step { session: &mut session, ids: &ids, origin, logits: Rows::Last }];
        let logits =
            model.forward(stream, &mut arena, &mut pool, &mut steps, &mut Probe::none())?;
        let mut row = logits.view().to_f32()?;
        drop(logits);
        for &id in &folder.generation.suppress_tokens {
            row[id as usize] = f32::NEG_INFINITY;
        }
        // In the middle of training numbers may be anything.
        let Ok(Summary { argmax: best, .. }) = Summary::of(&row) else { break };
        if folder.generation.eos_token_id == Some(best) {
            break;
        }
        new.push(best);
        (ids, origin) = (vec![best], Origin::Generated);
    }
    Ok(new)
}
