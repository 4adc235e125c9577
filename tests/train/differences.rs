//! Gradients of whole models against finite differences of the loss: every part trained, vision and
//! language included, in every family.

use crate::golden_folder::Model;
use crate::runs::{batch, model, options};
use medflamingo::device::Stream;
use medflamingo::image::Preprocess;
use medflamingo::model::Config;
use medflamingo::train::{Batch, Parameter, Trained, Trainer};
use medflamingo::weights::{SINGLE, Weights};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

/// The weighted loss of a batch, as gradients are of.
fn loss(trainer: &mut Trainer, batch: &Batch) -> f64 {
    let losses = trainer.evaluate(batch).unwrap();
    losses.iter().map(|l| l.loss * trainer.options().loss_weight(l.source)).sum()
}

/// Moves a parameter by `step` times `direction`.
fn moved(trainer: &mut Trainer, p: &Parameter, at: &[f32], direction: &[f32], step: f64) {
    let mut flat = at.to_vec();
    for (x, d) in flat[p.range.clone()].iter_mut().zip(direction) {
        *x = (f64::from(*x) + step * f64::from(*d)) as f32;
    }
    trainer.exchange(&mut |_, mut to| to.write(&flat)).unwrap();
}

/// The loss changes along each parameter's gradient as that says, and in random directions too.
fn check(trainer: &mut Trainer, batch: &Batch, at: &str) {
    trainer.accumulate(batch, 1).unwrap();
    let gradients = trainer.gradients().unwrap().read::<f32>().unwrap();
    let start = trainer.flat().to_f32().unwrap();
    let parameters = trainer.parameters().to_vec();
    for p in &parameters {
        let own = &gradients[p.range.clone()];
        let norm = own.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{at} {}: no gradient", p.name);
        let along: Vec<f32> = own.iter().map(|&g| (f64::from(g) / norm) as f32).collect();
        // A step that changes the loss by a hundredth, or the parameter by a twentieth.
        let size = start[p.range.clone()].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let step = (5e-3 / norm).min(0.05 * size.sqrt().max(0.02));
        moved(trainer, p, &start, &along, step);
        let above = loss(trainer, batch);
        moved(trainer, p, &start, &along, -step);
        let below = loss(trainer, batch);
        let found = (above - below) / (2.0 * step);
        // The loss itself is known to some 1e-6 of 10.
        let limit = 0.02 * norm + 1e-5 / step;
        assert!((found - norm).abs() <= limit, "{at} {}: {norm:e}, measured {found:e}", p.name);
    }
    trainer.exchange(&mut |_, mut to| to.write(&start)).unwrap();
}

/// One sequence with an image, one with two, one with none.
fn short(mut batch: Batch) -> Batch {
    batch.sequences.truncate(3);
    batch
}

fn all_trainable(model: &Model, seed: u32) {
    let mut trainer = crate::runs::trainer(model, "f32", options(Trained::ALL), 2);
    let batch = short(batch(model, &trainer, seed));
    check(&mut trainer, &batch, &model.name);
}

#[test]
fn a_llama_with_rotary_positions() {
    all_trainable(&model("llama-tiny"), 1);
}

#[test]
fn an_mpt_with_linear_biases_and_a_tied_head() {
    all_trainable(&model("mpt-tiny"), 2);
}

#[test]
fn a_neox_with_biases_and_parallel_residuals() {
    all_trainable(&model("neox-tiny"), 3);
}

/// As MPT-1B has them, of which there is no recording.
#[test]
fn an_mpt_with_norms_of_queries_and_keys() {
    let model = model("mpt-tiny");
    let folder = model.convert("f32");
    let mut config = Config::read(&folder.join("config.json")).unwrap();
    config.language.qk_norm = true;
    let made = tempfile::tempdir().unwrap();
    with_norms(&folder, made.path(), &config);
    let mut weights = Weights::open(made.path()).unwrap();
    let (stream, options) = (Stream::host(2), options(Trained::ALL));
    let bytes = Preprocess::clip(config.vision.image_size);
    let mut trainer = Trainer::new(stream, &mut weights, &config, &bytes, options, None).unwrap();
    let batch = short(batch(&model, &trainer, 4));
    check(&mut trainer, &batch, "mpt-tiny with qk_norm");
}

/// The weights of `from` with norms of queries and keys, near 1.
fn with_norms(from: &Path, to: &Path, config: &Config) {
    let bytes = std::fs::read(from.join(SINGLE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let width = config.language.width;
    let scales: Vec<u8> =
        (0..width).flat_map(|i| (0.7 + 0.6 * (i * 7 % 11) as f32 / 11.0).to_le_bytes()).collect();
    let mut tensors: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    for layer in 0..config.language.layers {
        for part in ["q_norm", "k_norm"] {
            let name = format!("language.layers.{layer}.attn.{part}.weight");
            let view = TensorView::new(Dtype::F32, vec![width], &scales).unwrap();
            tensors.insert(name, view);
        }
    }
    let written = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(to.join(SINGLE), written).unwrap();
}
