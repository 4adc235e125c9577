//! Losses, gradients and parameters of upstream's training loop (`train/` of the golden folders).

use crate::golden_folder::{Model, device, models, relative_l2};
use crate::runs::on;
use medflamingo::train::{
    Batch, NO_LABEL, Parameter, Recompute, Sample, Schedule, ScheduleKind, TrainOptions, Trainer,
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// What the project promises of gradients in f32.
const PROMISED: f64 = 1e-4;

/// Upstream's run on one model.
struct Run {
    model: Model,
    json: Value,
    batches: Vec<u8>,
}

/// Every recorded run; at least the one that comes with the sources.
fn runs() -> Vec<Run> {
    let run = |model: Model| {
        let folder = model.folder().join("train");
        let text = std::fs::read_to_string(folder.join("train.json")).ok()?;
        let batches = std::fs::read(folder.join("batches.safetensors")).unwrap();
        Some(Run { model, json: serde_json::from_str(&text).unwrap(), batches })
    };
    let found: Vec<Run> = models().into_iter().filter_map(run).collect();
    assert!(!found.is_empty(), "llama-tiny/train comes with the sources");
    found
}

/// Upstream's sources, in the order of ours.
const SOURCES: [&str; 2] = ["laion", "mmc4"];

impl Run {
    fn number(&self, name: &str) -> f64 {
        self.json["config"][name].as_f64().unwrap()
    }

    fn options(&self) -> TrainOptions {
        let kind = match self.json["config"]["lr_scheduler"].as_str().unwrap() {
            "constant" => ScheduleKind::Constant,
            "linear" => ScheduleKind::Linear,
            other => panic!("{other}"),
        };
        let mut options = TrainOptions {
            loss_weights: SOURCES
                .iter()
                .map(|source| self.number(&format!("loss_multiplier_{source}")))
                .collect(),
            schedule: Schedule {
                kind,
                lr: self.number("lr"),
                warmup_steps: self.number("warmup_steps") as u64,
                total_steps: self.number("total_training_steps") as u64,
            },
            clip: self.number("clip_grad_norm"),
            ..TrainOptions::default()
        };
        options.optimizer.weight_decay = self.number("weight_decay") as f32;
        options
    }

    fn trainer(&self, change: impl FnOnce(&mut TrainOptions)) -> Trainer {
        let mut options = self.options();
        change(&mut options);
        on(&self.model, "f32", options, device().open(2).unwrap(), None)
    }

    /// Both sources' sequences of step `k`, without upstream's padding.
    fn batch(&self, k: usize) -> Batch {
        let file = SafeTensors::deserialize(&self.batches).unwrap();
        let mut sequences = Vec::new();
        for (source, name) in SOURCES.iter().enumerate() {
            let read = |what: &str| integers(&file, &format!("batch{k}.{name}.{what}"));
            let (ids, mask, labels) = (read("input_ids"), read("attention_mask"), read("labels"));
            let indices = &self.json["batches"][k][name]["image_indices"];
            for row in 0..ids.len() {
                let length = mask[row].iter().filter(|&&m| m == 1).count();
                let own = match &indices[row] {
                    Value::Array(list) => list.iter().map(|i| i.as_u64().unwrap()).collect(),
                    one => vec![one.as_u64().unwrap()],
                };
                let pixels = |&i: &u64| Arc::new(self.model.pixels(i as usize));
                sequences.push(Sample {
                    ids: ids[row][..length].iter().map(|&id| id as u32).collect(),
                    labels: labels[row][..length].iter().map(|&l| l as i32).collect(),
                    images: own.iter().map(pixels).collect(),
                    source,
                });
            }
        }
        Batch { sequences }
    }

    /// A recorded tensor under our name and with our rows; none if it was not recorded.
    fn tensor(&self, file: &str, p: &Parameter) -> Option<Vec<f32>> {
        let bytes = std::fs::read(self.model.folder().join("train").join(file)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let found = file.tensors().into_iter().find(|(name, _)| ours(name) == p.name)?;
        let all = found.1.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let all: Vec<f32> = all.collect();
        let Some(rows) = &p.rows else { return Some(all) };
        let width = p.shape[1];
        let row = |r: usize| &all[r * width..(r + 1) * width];
        if found.0.ends_with(".rows") {
            // <image> first; ours are in the order of ids.
            let media = self.number("media_token_id") as u32;
            return Some(
                rows.iter().flat_map(|&r| row(usize::from(r != media))).copied().collect(),
            );
        }
        Some(rows.iter().flat_map(|&r| row(r as usize)).copied().collect())
    }
}

fn integers(file: &SafeTensors<'_>, name: &str) -> Vec<Vec<i64>> {
    let t = file.tensor(name).unwrap();
    let all = t.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b));
    let all: Vec<i64> = all.collect();
    all.chunks(t.shape()[1]).map(<[i64]>::to_vec).collect()
}

/// Our name of a tensor of upstream's.
fn ours(name: &str) -> String {
    let name = name.strip_suffix(".rows").unwrap_or(name);
    if name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight") {
        return "language.embedding.weight".into();
    }
    let layers = ["perceiver.layers.", "model.layers.", "transformer.blocks."];
    let Some(rest) = layers.iter().find_map(|at| name.split_once(at)).map(|(_, rest)| rest) else {
        return name.replace("perceiver.", "resampler.");
    };
    let (layer, part) = rest.split_once('.').unwrap();
    let (at, mut part) = match part.split_once('.').unwrap() {
        ("gated_cross_attn_layer", part) => ("xattn", part.to_string()),
        ("0", part) => ("resampler.layers", format!("attn.{part}")),
        (_, part) => ("resampler.layers", format!("ff.{part}")),
    };
    for (theirs, own) in [
        ("attn_gate", "attn.gate"),
        ("ff_gate", "mlp.gate"),
        (".to_", "."),
        ("ff.0.", "mlp.norm."),
        ("ff.1.", "mlp.fc1."),
        ("ff.3.", "mlp.fc2."),
    ] {
        part = part.replace(theirs, own);
    }
    format!("{at}.{layer}.{part}")
}

#[test]
fn names_of_upstream_are_found() {
    for (theirs, own) in [
        ("perceiver.latents", "resampler.latents"),
        ("perceiver.norm.bias", "resampler.norm.bias"),
        ("perceiver.layers.1.0.norm_media.bias", "resampler.layers.1.attn.norm_media.bias"),
        ("perceiver.layers.0.0.to_kv.weight", "resampler.layers.0.attn.kv.weight"),
        ("perceiver.layers.1.1.0.weight", "resampler.layers.1.mlp.norm.weight"),
        ("perceiver.layers.1.1.3.weight", "resampler.layers.1.mlp.fc2.weight"),
        ("lang_encoder.model.layers.1.gated_cross_attn_layer.ff_gate", "xattn.1.mlp.gate"),
        (
            "lang_encoder.transformer.blocks.0.gated_cross_attn_layer.attn.to_q.weight",
            "xattn.0.attn.q.weight",
        ),
        ("lang_encoder.transformer.wte.weight.rows", "language.embedding.weight"),
    ] {
        assert_eq!(ours(theirs), own);
    }
}

fn near(found: f64, expected: f64, relative: f64, at: &str) {
    let error = (found - expected).abs() / expected.abs().max(1e-30);
    assert!(error <= relative, "{at}: {found}, recorded {expected}");
}

#[test]
fn losses_and_gradients_are_upstreams() {
    for run in runs() {
        let mut trainer = run.trainer(|_| {});
        trainer.accumulate(&run.batch(0), 1).unwrap();
        let recorded = &run.json["steps"][0]["micro"][0];
        let at = &run.model.name;
        near(trainer.loss(), recorded["combined"].as_f64().unwrap(), 1e-5, at);
        let flat = trainer.gradients().unwrap().read::<f32>().unwrap();
        let (mut compared, mut worst) = (0, (0.0, String::new()));
        for p in trainer.parameters() {
            let own = &flat[p.range.clone()];
            let Some(expected) = run.tensor("grads_step0.safetensors", p) else { continue };
            let error = relative_l2(own, &expected);
            // A scalar is a sum of thousands of terms of both signs.
            let limit = if own.len() == 1 { 1e-3 } else { PROMISED };
            assert!(error <= limit, "{at} {}: {error:.2e}", p.name);
            compared += 1;
            if own.len() > 1 && error > worst.0 {
                worst = (error, p.name.clone());
            }
        }
        let summary = run.json["grad_summary_step0"].as_object().unwrap();
        for (name, of) in summary {
            let p = trainer.parameters().iter().find(|p| p.name == ours(name));
            let p = p.unwrap_or_else(|| panic!("{at}: {name} has no gradient here"));
            let own = flat[p.range.clone()].iter();
            let norm = own.map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            near(norm, of["l2"].as_f64().unwrap(), 1e-3, &format!("{at} {name}"));
        }
        assert_eq!(summary.len(), trainer.parameters().len(), "{at}");
        println!("{at}: {compared} gradients, worst {:.2e} ({})", worst.0, worst.1);
    }
}

/// Every step's losses, norms and rates, and the parameters after the last.
#[test]
fn three_steps_of_adamw_are_upstreams() {
    for run in runs() {
        let mut trainer = run.trainer(|_| {});
        let (at, steps) = (&run.model.name, run.json["steps"].as_array().unwrap());
        for (k, step) in steps.iter().enumerate() {
            let report = trainer.step(&[run.batch(k)]).unwrap();
            let (micro, at) = (&step["micro"][0], format!("{at} step {k}"));
            assert_eq!(report.skipped, None);
            near(report.lr + 1.0, step["lr"].as_f64().unwrap() + 1.0, 1e-12, &at);
            for loss in &report.losses {
                let recorded = &micro[format!("loss_{}", SOURCES[loss.source])];
                near(loss.loss, recorded.as_f64().unwrap(), 2e-4, &at);
            }
            assert_eq!(report.losses.len(), SOURCES.len());
            let norm = micro["total_grad_norm_before_clip"].as_f64().unwrap();
            near(report.grad_norm, norm, 2e-3, &at);
        }
        let flat = trainer.flat().to_f32().unwrap();
        let lr = run.number("lr");
        for p in trainer.parameters() {
            let Some(expected) = run.tensor("params_after_step3.safetensors", p) else { continue };
            let pairs = flat[p.range.clone()].iter().zip(&expected);
            let squares: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let rms = (squares / expected.len() as f64).sqrt();
            assert!(rms <= 0.01 * lr, "{at} {}: rms difference {rms:.2e}", p.name);
        }
        for loss in trainer.evaluate(&run.batch(0)).unwrap() {
            let recorded = &run.json["losses_on_batch0_after_step3"][SOURCES[loss.source]];
            near(loss.loss, recorded.as_f64().unwrap(), 5e-4, at);
        }
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    for run in runs() {
        let gradients = |recompute: Recompute| {
            let mut trainer = run.trainer(|o| o.recompute = recompute);
            trainer.accumulate(&run.batch(1), 1).unwrap();
            let flat = trainer.gradients().unwrap().read::<f32>().unwrap();
            (flat, trainer.memory().activations)
        };
        let (kept, most) = gradients(Recompute::None);
        let (blocks, less) = gradients(Recompute::Blocks);
        let (all, least) = gradients(Recompute::All);
        assert!(kept == blocks && kept == all, "{}", run.model.name);
        assert!(least <= less && less <= most, "{most} {less} {least}");
    }
}

/// The recorded rates of transformers' schedules, where the golden folder has them.
#[test]
fn schedules_are_upstreams() {
    let Some(root) = std::env::var_os("MEDFLAMINGO_GOLDEN") else {
        return eprintln!("skipped: MEDFLAMINGO_GOLDEN is not set");
    };
    let path = Path::new(&root).join("extras/lr_schedules.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return eprintln!("skipped: no {}", path.display());
    };
    let all: Value = serde_json::from_str(&text).unwrap();
    for recorded in all.as_array().unwrap() {
        let kind = serde_json::from_value(recorded["kind"].clone()).unwrap();
        let schedule = Schedule {
            kind,
            lr: recorded["base_lr"].as_f64().unwrap(),
            warmup_steps: recorded["warmup_steps"].as_u64().unwrap(),
            total_steps: recorded["total_steps"].as_u64().unwrap(),
        };
        let rates = recorded["lr_used_at_step_0_to_21"].as_array().unwrap();
        for (step, rate) in rates.iter().enumerate() {
            let (found, expected) = (schedule.at(step as u64), rate.as_f64().unwrap());
            assert!((found - expected).abs() <= 1e-18, "{recorded} {step}: {found}");
        }
    }
}

/// Tokens of a caption are labels, but for `<image>`.
#[test]
fn recorded_labels_leave_out_images() {
    for run in runs() {
        for sample in run.batch(0).sequences {
            let media = run.number("media_token_id") as u32;
            let pairs = sample.ids.iter().zip(&sample.labels);
            assert!(pairs.filter(|(id, _)| **id == media).all(|(_, l)| *l == NO_LABEL));
        }
    }
}
