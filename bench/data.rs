//! Pictures per second of the training data: tar shards of JPEG files to ids and normalised pixels,
//! by number of threads, with nobody else at work.
//!
//! `cargo bench --bench data -- [--shards PATTERN] [--side N] [--samples N] [--threads LIST]
//! [--make FOLDER [--pairs N]] [--json]`
//!
//! Without --shards it makes its own: pairs of a caption and a 640 x 480 JPEG file of some 60 KB.
//! With --make it makes them in FOLDER, for a run of `medflamingo train`, and measures nothing.

use medflamingo::image::Preprocess;
use medflamingo::text::{Tokenizer, prepare};
use medflamingo::train::data::tar::Writer;
use medflamingo::train::data::{LabelRules, Rules, Source, Stream, StreamOptions};
use medflamingo::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

const SIZE: [usize; 2] = [640, 480];
/// Pairs in a shard that is made here.
const A_SHARD: usize = 250;

struct Options {
    shards: Option<String>,
    side: usize,
    samples: usize,
    threads: Vec<usize>,
    make: Option<PathBuf>,
    pairs: usize,
    json: bool,
}

fn options() -> Options {
    let mut options = Options {
        shards: None,
        side: 224,
        samples: 400,
        threads: vec![1, 2],
        make: None,
        pairs: 500,
        json: false,
    };
    let mut arguments = std::env::args().skip(1);
    let number = |text: Option<String>| text.and_then(|t| t.parse().ok()).expect("a number");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--shards" => options.shards = Some(arguments.next().expect("--shards PATTERN")),
            "--side" => options.side = number(arguments.next()),
            "--samples" => options.samples = number(arguments.next()),
            "--pairs" => options.pairs = number(arguments.next()),
            "--threads" => {
                let list = arguments.next().expect("--threads LIST");
                options.threads = list.split(',').map(|n| number(Some(n.into()))).collect();
            }
            "--make" => options.make = Some(arguments.next().expect("--make FOLDER").into()),
            "--json" => options.json = true,
            "--bench" => {}
            other => panic!("unknown argument {other}; see the first lines of bench/data.rs"),
        }
    }
    options
}

fn main() -> Result<()> {
    let options = options();
    if let Some(folder) = &options.make {
        return make(folder, options.pairs);
    }
    let scratch = tempfile::tempdir().map_err(|e| Error::io("make", "a scratch folder", e))?;
    let shards = match &options.shards {
        Some(shards) => shards.clone(),
        None => {
            make(scratch.path(), options.pairs)?;
            scratch.path().display().to_string()
        }
    };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/phantom");
    let tokenizer = prepare(&model)?.tokenizer;
    for &threads in &options.threads {
        let rate = measure(&shards, &tokenizer, &options, threads)?;
        match options.json {
            true => println!("{}", json!({"threads": threads, "pictures_per_s": rate})),
            false => println!("{threads:2} threads  {rate:7.0} pictures/s"),
        }
    }
    Ok(())
}

/// Pictures per second after a buffer's worth of them.
fn measure(shards: &str, tokenizer: &Tokenizer, o: &Options, threads: usize) -> Result<f64> {
    let source = Source::Pairs { shards: vec![shards.into()] };
    let how = StreamOptions { threads, ..StreamOptions::default() };
    let (warm, preprocess) = (how.ahead, Preprocess::clip(o.side));
    let rules = Rules::pairs(LabelRules::V2);
    let mut stream = Stream::open(source, rules, tokenizer.clone(), preprocess, how)?;
    for _ in 0..warm {
        stream.next()?;
    }
    let start = Instant::now();
    let mut pictures = 0;
    for _ in 0..o.samples {
        pictures += stream.next()?.map_or(0, |sample| sample.images.len());
    }
    Ok(pictures as f64 / start.elapsed().as_secs_f64())
}

fn make(folder: &Path, pairs: usize) -> Result<()> {
    let fail = |e| Error::io("write", folder, e);
    std::fs::create_dir_all(folder).map_err(fail)?;
    for first in (0..pairs).step_by(A_SHARD) {
        let mut writer = Writer::new(Vec::new());
        for i in first..pairs.min(first + A_SHARD) {
            let caption = format!("The {} lesion is {} .", ["left", "right"][i % 2], i % 7);
            writer.append(&format!("{i:06}.jpg"), &picture(i as u32)).map_err(fail)?;
            writer.append(&format!("{i:06}.txt"), caption.as_bytes()).map_err(fail)?;
        }
        let bytes = writer.finish().map_err(fail)?;
        let file = folder.join(format!("{:03}.tar", first / A_SHARD));
        std::fs::write(file, bytes).map_err(fail)?;
    }
    Ok(())
}

/// Waves and grain: a file as large as a radiograph's of the same size.
fn picture(seed: u32) -> Vec<u8> {
    let [width, height] = SIZE;
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let (fx, fy) = (x as f32 / 40.0 + seed as f32, y as f32 / 25.0);
            let wave = 120.0 + 60.0 * fx.sin() * fy.cos() + 30.0 * (fx * 0.3 + fy * 0.7).sin();
            let grain = (state >> 27) as f32;
            rgb.extend([wave + grain, wave * 0.95 + grain, wave * 0.9 + grain].map(|v| v as u8));
        }
    }
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(width, height);
    encoder.set_quality(85.0);
    encoder.set_fastest_defaults();
    let mut encoder = encoder.start_compress(Vec::new()).expect("a vector takes all");
    encoder.write_scanlines(&rgb).expect("as many rows as were stated");
    encoder.finish().expect("a vector takes all")
}
