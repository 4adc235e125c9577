//! Steps of a trainer on one model folder: time, tokens per second, and where the time goes, by
//! part of the pass and by kernel.
//!
//! `cargo bench --bench train -- --model DIR [--sequences N] [--tokens N] [--images N] [--all]
//! [--recompute none|blocks|all] [--bits 8|32] [--reps N] [--threads N] [--batch FILE] [--json]
//! [--serve]`
//!
//! What the words mean does not matter here; every token has a label. A batch of its own is a
//! safetensors file: `ids` and `labels` (B, T) i64, and `pixels` (N, 3, S, S) u8 of the images in
//! the order of their markers. With --serve nothing is measured until a line comes on standard
//! input: each is one step, answered with a line of JSON (as `bench/peers/compare_training.py`
//! asks for it).

use medflamingo::Result;
use medflamingo::device::{Device, Recording};
use medflamingo::engine::ModelFolder;
use medflamingo::train::{Batch, Recompute, Sample, TrainOptions, Trained, Trainer};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

struct Options {
    model: PathBuf,
    sequences: usize,
    tokens: usize,
    images: usize,
    reps: usize,
    threads: usize,
    batch: Option<PathBuf>,
    json: bool,
    serve: bool,
    train: TrainOptions,
}

fn options() -> Options {
    let mut options = Options {
        model: PathBuf::new(),
        sequences: 8,
        tokens: 64,
        images: 2,
        reps: 5,
        threads: 0,
        batch: None,
        json: false,
        serve: false,
        train: TrainOptions::default(),
    };
    options.train.schedule.warmup_steps = 0;
    let mut arguments = std::env::args().skip(1);
    let number = |text: Option<String>| text.and_then(|t| t.parse().ok()).expect("a number");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--model" => options.model = arguments.next().expect("--model DIR").into(),
            "--sequences" => options.sequences = number(arguments.next()),
            "--tokens" => options.tokens = number(arguments.next()),
            "--images" => options.images = number(arguments.next()),
            "--reps" => options.reps = number(arguments.next()),
            "--threads" => options.threads = number(arguments.next()),
            "--bits" => options.train.optimizer.bits = number(arguments.next()) as u32,
            "--all" => options.train.trained = Trained::ALL,
            "--recompute" => {
                let name = arguments.next().unwrap_or_default();
                options.train.recompute = name.parse::<Recompute>().expect("none, blocks or all");
            }
            "--batch" => options.batch = Some(arguments.next().expect("--batch FILE").into()),
            "--json" => options.json = true,
            "--serve" => options.serve = true,
            "--bench" => {}
            other => panic!("unknown argument {other}; see the first lines of bench/train.rs"),
        }
    }
    options
}

fn main() -> Result<()> {
    let options = options();
    if options.model.as_os_str().is_empty() {
        // `cargo bench` without arguments runs every bench; this one needs a model.
        eprintln!("train: skipped, no --model DIR (make one with medflamingo-tools synth)");
        return Ok(());
    }
    let mut folder = ModelFolder::open(&options.model)?;
    let stream = Device::Auto.open(options.threads)?;
    let free = stream.free_memory()?;
    let ModelFolder { config, weights, preprocess, .. } = &mut folder;
    let how = options.train.clone();
    let mut trainer = Trainer::new(stream, weights, config, preprocess, how, None)?;
    let batch = [match &options.batch {
        Some(path) => read(&trainer, path),
        None => made_up(&trainer, &options),
    }];
    if options.serve {
        return serve(&mut trainer, &batch);
    }
    let tokens = batch[0].tokens();
    trainer.step(&batch)?;
    let mut gradients = Vec::new();
    let mut updates = Vec::new();
    for _ in 0..options.reps {
        let seconds = trainer.step(&batch)?.seconds;
        gradients.push(seconds.gradients * 1e3);
        updates.push(seconds.optimizer * 1e3);
    }
    trainer.stream().record();
    trainer.step(&batch)?;
    let recording = trainer.stream().recording()?;
    let ms = median(&mut gradients) + median(&mut updates);
    let left = trainer.stream().free_memory()?;
    let report = json!({
        "model": options.model.file_name().map(|n| n.to_string_lossy()),
        "device": trainer.stream().chip().map_or("cpu".into(), |chip| format!("{chip:?}")),
        "tokens": tokens,
        "images": batch[0].images(),
        "step_ms": ms,
        "optimizer_ms": median(&mut updates),
        "tokens_per_s": tokens as f64 / ms * 1e3,
        "memory": trainer.memory(),
        // What a card has given, frozen weights and what is kept for later included.
        "card_bytes": free.zip(left).map(|(free, left)| free - left),
        "phases_ms": phases(&recording),
        "kernels_ms": kernels(&recording),
    });
    match options.json {
        true => println!("{report}"),
        false => println!("{}", serde_json::to_string_pretty(&report).expect("numbers and names")),
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A step for each line on standard input, after a line that says that it can begin.
fn serve(trainer: &mut Trainer, batch: &[Batch]) -> Result<()> {
    println!("{}", json!({"ready": batch[0].tokens(), "memory": trainer.memory()}));
    for line in std::io::stdin().lines() {
        assert_eq!(line.expect("standard input").trim(), "step");
        let start = Instant::now();
        let report = trainer.step(batch)?;
        let step = start.elapsed().as_secs_f64() * 1e3;
        let gradients = report.seconds.gradients * 1e3;
        let answer = json!({
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "skipped": report.skipped,
            "step_ms": step,
            "gradients_ms": gradients,
            "optimizer_ms": step - gradients,
        });
        println!("{answer}");
    }
    Ok(())
}

/// A batch that somebody else has made.
fn read(trainer: &Trainer, path: &Path) -> Batch {
    let bytes = std::fs::read(path).expect("--batch FILE");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = |name| file.tensor(name).expect("ids, labels and pixels");
    let integers = |name| -> Vec<i64> {
        tensor(name).data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    };
    let (ids, labels, pixels) = (integers("ids"), integers("labels"), tensor("pixels"));
    let (tokens, side) = (tensor("ids").shape()[1], trainer.config().vision.image_size);
    let mut images = pixels.data().chunks(3 * side * side).map(|image| Arc::new(image.to_vec()));
    let marker = i64::from(trainer.config().tokens.image);
    let sequence = |(ids, labels): (&[i64], &[i64])| Sample {
        images: ids.iter().filter(|&&id| id == marker).map_while(|_| images.next()).collect(),
        ids: ids.iter().map(|&id| id as u32).collect(),
        labels: labels.iter().map(|&label| label as i32).collect(),
        source: 0,
    };
    Batch { sequences: ids.chunks(tokens).zip(labels.chunks(tokens)).map(sequence).collect() }
}

/// Sequences of images with as much text after each.
fn made_up(trainer: &Trainer, options: &Options) -> Batch {
    let config = trainer.config();
    let side = config.vision.image_size;
    let pixels = |i: usize| (0..3 * side * side).map(move |k| ((k * 7 + i) % 256) as u8);
    let sequence = |s: usize| {
        let each = options.tokens / options.images.max(1);
        let words = config.language.vocabulary.min(config.tokens.image as usize) - 3;
        let token = |i: usize| match i % each.max(1) {
            0 if i / each < options.images => config.tokens.image,
            _ => (3 + (s * 131 + i * 29) % words) as u32,
        };
        let ids: Vec<u32> = (0..options.tokens).map(token).collect();
        let count = ids.iter().filter(|&&id| id == config.tokens.image).count();
        let images = (0..count).map(|i| Arc::new(pixels(s + i).collect()));
        let labels = ids.iter().map(|&id| id as i32).collect();
        Sample { labels, images: images.collect(), source: s % 2, ids }
    };
    Batch { sequences: (0..options.sequences).map(sequence).collect() }
}

/// Time of the launches in each phase, ms.
fn phases(recording: &Recording) -> Vec<Value> {
    let of = |p: &medflamingo::device::Phase| {
        let us: f64 = recording.launches[p.begin..p.end].iter().map(|l| l.us).sum();
        json!({"name": p.name, "launches": p.end - p.begin, "ms": us / 1e3})
    };
    recording.phases.iter().map(of).collect()
}

/// Launches and time of each kernel, most time first, ms.
fn kernels(recording: &Recording) -> Vec<Value> {
    let mut by_name: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for launch in &recording.launches {
        let sum = by_name.entry(launch.kernel).or_default();
        *sum = (sum.0 + 1, sum.1 + launch.us / 1e3);
    }
    let mut all: Vec<_> = by_name.into_iter().collect();
    all.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let of = |(name, (launches, ms))| json!({"name": name, "launches": launches, "ms": ms});
    all.into_iter().map(of).collect()
}
