//! Training data: shards that are made here, golden batches, and shards that mean harm.

mod books;
mod hostile;
mod order;
mod samples;

use medflamingo::image::Preprocess;
use medflamingo::text::{Tokenizer, prepare};
use medflamingo::train::Sample;
use medflamingo::train::data::{
    LabelRules, Rules, Source, Stream, StreamOptions, tar::Writer as TarWriter,
};
use std::path::{Path, PathBuf};

/// Side of the pictures that the tests train on.
const SIDE: usize = 8;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn tokenizer(model: &str) -> Tokenizer {
    prepare(&golden(&format!("{model}/lm"))).unwrap().tokenizer
}

/// A gray picture of `width` x `height` whose pixels depend on `seed`.
fn png(seed: u32, width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let wave = |i: u32| (i.wrapping_mul(seed.wrapping_mul(2_654_435_761) | 1) >> 13) as u8;
    let pixels: Vec<u8> = (0..width * height).map(wave).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    bytes
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |n, i| n << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

type Files<'a> = &'a [(&'a str, &'a [u8])];

fn tar(files: Files) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    files.iter().for_each(|(name, bytes)| writer.append(name, bytes).unwrap());
    writer.finish().unwrap()
}

/// Shards of pairs in `folder`: `counts[s]` of them in shard s, captions "pair s i".
fn pairs(folder: &Path, counts: &[usize]) -> Source {
    for (s, &count) in counts.iter().enumerate() {
        let mut writer = TarWriter::new(Vec::new());
        for i in 0..count {
            let picture = png((s * 100 + i) as u32, 9, 8);
            writer.append(&format!("{i:04}.png"), &picture).unwrap();
            writer.append(&format!("{i:04}.txt"), format!("pair {s} {i}").as_bytes()).unwrap();
        }
        std::fs::write(folder.join(format!("{s:03}.tar")), writer.finish().unwrap()).unwrap();
    }
    source(folder)
}

fn source(folder: &Path) -> Source {
    Source::Pairs { shards: vec![folder.to_str().unwrap().to_string()] }
}

fn open(source: &Source, options: StreamOptions) -> Stream {
    let rules = match source {
        Source::Interleaved { .. } => Rules::interleaved(LabelRules::V2),
        _ => Rules::pairs(LabelRules::V2),
    };
    open_with(source, rules, options)
}

fn open_with(source: &Source, rules: Rules, options: StreamOptions) -> Stream {
    let (tokenizer, preprocess) = (tokenizer("llama-tiny"), Preprocess::clip(SIDE));
    Stream::open(source.clone(), rules, tokenizer, preprocess, options).unwrap()
}

fn all(stream: &mut Stream) -> Vec<Sample> {
    std::iter::from_fn(|| stream.next().unwrap()).collect()
}

/// The text of a sample, markers left out.
fn text(sample: &Sample) -> String {
    tokenizer("llama-tiny").decode(&sample.ids, true).trim().to_string()
}
