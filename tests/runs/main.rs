//! Whole training runs of a tiny model, as a user starts them and as ranks of one process: what
//! they write, that they go on to the bit, and what they refuse.

mod checkpoints;
mod config;
mod killed;
mod quantized;
mod ranks;
mod refused;
mod written;

use medflamingo::comm::Comm;
use medflamingo::convert::synth;
use medflamingo::device::Stream;
use medflamingo::model::config::StoredDType;
use medflamingo::run::{Checkpoints, Disk, Ended, Event, RunConfig, Start, Stop, train};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A model folder with random weights, made once per seed.
fn model(seed: u64) -> PathBuf {
    static MADE: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    let make = || {
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("runs-model-{seed}"));
        let options = synth::Options {
            preset: "tiny".into(),
            output: output.clone(),
            seed,
            dtype: StoredDType::F32,
            max_shard: 1 << 30,
            is_forced: true,
            start: synth::Start::default(),
        };
        synth::synth(&options, &|_, _| {}).unwrap();
        output
    };
    MADE[seed as usize].get_or_init(make).clone()
}

/// Pictures of gray waves with their captions.
fn pairs(folder: &Path, count: u32) {
    std::fs::create_dir_all(folder).unwrap();
    let mut lines = String::new();
    for n in 0..count {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 48, 48);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        let pixels: Vec<u8> = (0..48 * 48).map(|i: u32| (i * (n + 3) % 251) as u8).collect();
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        std::fs::write(folder.join(format!("{n}.png")), bytes).unwrap();
        let _ =
            writeln!(lines, r#"{{"image": "{n}.png", "caption": "wave {n} of {}"}}"#, n * 7 % 5);
    }
    std::fs::write(folder.join("pairs.jsonl"), lines).unwrap();
}

/// A folder with data and a configuration of `steps` steps; `more` goes to `[run]`.
fn prepared(scratch: &Path, steps: u64, more: &str) -> PathBuf {
    pairs(&scratch.join("data"), 24);
    let model = model(0);
    let text = format!(
        r#"[run]
folder = "out"
steps = {steps}
device = "cpu"
threads = 1
{more}
[model]
folder = "{}"
[train.schedule]
lr = 0.001
warmup_steps = 1
kind = "cosine"
total_steps = 100
[train.optimizer]
bits = 8
[[source]]
name = "waves"
form = "lines"
file = "data/pairs.jsonl"
images = "data"
threads = 1
buffer = 8
"#,
        model.display()
    );
    let path = scratch.join("run.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Trains in this process as one of the ranks.
fn trained(
    config: &Path,
    resume: bool,
    comm: Comm,
    disk: Disk,
) -> (medflamingo::Result<Ended>, Vec<String>) {
    let mut notes = Vec::new();
    let start = Start {
        config: RunConfig::read(config).unwrap(),
        is_resumed: resume,
        stop: Stop::default(),
        disk,
    };
    let ended = train(start, comm, Stream::host(1), &mut |event| {
        if let Event::Note(what) = event {
            notes.push(what);
        }
    });
    (ended, notes)
}

fn alone(config: &Path, resume: bool) -> medflamingo::Result<Ended> {
    trained(config, resume, Comm::Single, Disk::default()).0
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo"));
    command.args(["train", config.to_str().unwrap(), "--resume"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Step, and checksums of the tensors, of the newest checkpoint that holds.
fn newest(config: &Path) -> Option<(u64, BTreeMap<String, String>)> {
    let folder = RunConfig::read(config).unwrap().run.folder.join("checkpoints");
    let (saved, damaged) = Checkpoints::new(&folder, 1, Disk::default()).newest();
    assert!(damaged.is_empty(), "{damaged:?}");
    let saved = saved?;
    let tensors = saved.manifest.files.iter().filter(|f| f.name.ends_with(".safetensors"));
    let mut sums: BTreeMap<_, _> = tensors.map(|f| (f.name.clone(), f.sha256.clone())).collect();
    // Where it is in the data, and what the guard remembers; paths differ from run to run.
    let state = saved.state(0).unwrap();
    sums.insert("progress".into(), state["progress"].to_string());
    // The same place can be written as a snapshot and a count in several ways.
    sums.insert("kept".into(), state["sources"][0]["tally"].to_string());
    Some((saved.manifest.step, sums))
}
