//! Trainers of the models that come with the sources, and what is read out of them.

use crate::golden_folder::{Model, models};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::engine::ModelFolder;
use medflamingo::tensor::{Tensor, View};
use medflamingo::train::{Batch, Memory, NO_LABEL, Sample, Sums, TrainOptions, Trained, Trainer};
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn model(name: &str) -> Model {
    models().into_iter().find(|m| m.name == name).unwrap()
}

/// A trainer of a converted model on so many threads.
pub fn trainer(model: &Model, dtype: &str, options: TrainOptions, threads: usize) -> Trainer {
    on(model, dtype, options, Stream::host(threads), None)
}

/// As [`trainer`], wherever launches run, one of several ranks if there are sums over them.
pub fn on(
    model: &Model,
    dtype: &str,
    options: TrainOptions,
    stream: Stream,
    sums: Option<Box<dyn Sums>>,
) -> Trainer {
    made(ModelFolder::open(&model.convert(dtype)).unwrap(), options, stream, sums)
}

fn made(
    mut folder: ModelFolder,
    options: TrainOptions,
    stream: Stream,
    sums: Option<Box<dyn Sums>>,
) -> Trainer {
    let ModelFolder { config, weights, preprocess, .. } = &mut folder;
    Trainer::new(stream, weights, config, preprocess, options, sums).unwrap()
}

/// A token that [`batch`] does not use.
const POISON: u32 = 390;

/// As [`trainer`] in f32, of a model in which one token is not a number.
pub fn with_poison(model: &Model, options: TrainOptions, threads: usize) -> Trainer {
    let stream = Stream::host(threads);
    let mut folder = ModelFolder::open(&model.convert("f32")).unwrap();
    let (name, l) = ("language.embedding.weight", &folder.config.language);
    let mut embedding = Tensor::zeros(&stream, DType::F32, &[l.vocabulary, l.width]).unwrap();
    let own = folder.weights.get(name, &[l.vocabulary, l.width]).unwrap();
    embedding.view_mut().copy_from(own.view()).unwrap();
    let row = POISON as usize..POISON as usize + 1;
    let mut row = embedding.view_mut().block(row, 0..l.width).unwrap();
    row.write(&vec![f32::NAN; l.width]).unwrap();
    folder.weights.replace(BTreeMap::from([(name.to_string(), embedding)]));
    made(folder, options, stream, None)
}

/// `batch`, one of whose tokens is that one.
pub fn poisoned(batch: &Batch) -> Batch {
    let mut bad = batch.clone();
    bad.sequences[0].ids[1] = POISON;
    bad
}

/// Upstream's choice of options but for what tests need: a rate from the first step on.
pub fn options(trained: Trained) -> TrainOptions {
    let mut options = TrainOptions { trained, ..TrainOptions::default() };
    options.schedule.lr = 1e-3;
    options.schedule.warmup_steps = 0;
    options
}

/// Pages and captions of the model's own tokens and images, from two sources; one sequence has no
/// image, one has text before its first, one has two next to each other.
pub fn batch(model: &Model, trainer: &Trainer, seed: u32) -> Batch {
    let tokens = &trainer.config().tokens;
    let (image, end) = (tokens.image, tokens.end_of_chunk);
    let mut state = seed.wrapping_mul(2654435761) | 1;
    let mut word = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        3 + (state >> 8) % 380
    };
    let mut words = |n: usize| (0..n).map(|_| word()).collect::<Vec<u32>>();
    let forms = [
        ([vec![image], words(6), vec![end]].concat(), 0),
        ([words(3), vec![image], words(4), vec![end, image], words(19), vec![end]].concat(), 1),
        ([words(5), vec![end]].concat(), 1),
        ([vec![image, image], words(3), vec![end]].concat(), 1),
    ];
    let mut next = seed as usize;
    let sequences = forms.into_iter().map(|(ids, source)| {
        let count = ids.iter().filter(|&&id| id == image).count();
        let images = (0..count).map(|_| {
            next += 1;
            Arc::new(model.pixels(next % 7))
        });
        let label = |&id: &u32| if id == image { NO_LABEL } else { id as i32 };
        Sample { labels: ids.iter().map(label).collect(), images: images.collect(), source, ids }
    });
    Batch { sequences: sequences.collect() }
}

/// Gradients of one batch, in the order of the flat tensor.
pub fn gradients(trainer: &mut Trainer, batches: &[Batch]) -> Vec<f32> {
    for batch in batches {
        trainer.accumulate(batch, batches.len()).unwrap();
    }
    trainer.gradients().unwrap().read::<f32>().unwrap()
}

/// A saved state, under its names.
pub fn saved(trainer: &Trainer) -> BTreeMap<String, Vec<u8>> {
    let bytes = |view: View<'_>| match view.dtype() {
        DType::U8 => view.read::<u8>().unwrap(),
        DType::BF16 => {
            let values = view.read::<half::bf16>().unwrap();
            values.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        _ => view.read::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    trainer.state().unwrap().into_iter().map(|t| (t.name, bytes(t.view))).collect()
}

/// Gives `trainer` the state of another.
pub fn restore(trainer: &mut Trainer, from: &Trainer) {
    let tensors = from.state().unwrap();
    let progress = from.progress().clone();
    trainer
        .restore(progress, &mut |name, mut to| {
            to.copy_from(tensors.iter().find(|t| t.name == name).unwrap().view)
        })
        .unwrap();
}

/// What a trainer holds after a step of this size, however many follow.
pub fn held(trainer: &mut Trainer, batch: &[Batch]) -> Memory {
    trainer.step(batch).unwrap();
    trainer.step(batch).unwrap();
    let held = trainer.memory();
    trainer.step(batch).unwrap();
    assert_eq!(trainer.memory(), held);
    held
}
