//! `config.json` from a stranger: whatever its bytes, an answer or an error, never a panic, and no
//! sizes whose products overflow.

use medflamingo::model::config::Config;
use medflamingo::model::{PRESETS, preset};
use std::time::{Duration, Instant};

fn check(bytes: &[u8]) -> bool {
    let Ok(config) = Config::parse(bytes) else { return false };
    // What is accepted can be laid out.
    let elements = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
    if config.language.layers <= 64 && config.vision.layers <= 64 {
        assert!(config.tensors().iter().all(|(_, shape)| elements(shape).is_some()));
    }
    true
}

#[test]
fn every_prefix_and_bit_flip_is_answered() {
    let json = serde_json::to_vec_pretty(&preset("tiny").unwrap()).unwrap();
    assert!(check(&json));
    for end in 0..json.len() {
        assert!(!check(&json[..end]), "{end}");
        for bit in 0..8 {
            let mut flipped = json.clone();
            flipped[end] ^= 1 << bit;
            check(&flipped);
        }
    }
}

#[test]
fn a_file_that_never_ends_is_refused() {
    let error = Config::read("/dev/zero".as_ref()).unwrap_err().to_string();
    assert!(error.contains("at most 1048576 bytes"), "{error}");
}

#[test]
fn mutations_for_a_while() {
    let seconds = std::env::var("MEDFLAMINGO_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(3.0));
    let seeds: Vec<Vec<u8>> =
        PRESETS.iter().map(|p| serde_json::to_vec(&preset(p).unwrap()).unwrap()).collect();
    let pieces: [&[u8]; 12] = [
        b"0",
        b"-1",
        b"1e999",
        b"18446744073709551615",
        b"null",
        b"[]",
        b"{}",
        b"\"\"",
        b",",
        b"}",
        b"65536",
        b"1.5",
    ];
    let (mut state, mut tried, mut accepted) = (0x9e3779b97f4a7c15u64, 0, 0);
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % n
    };
    while Instant::now() < end {
        let mut bytes = seeds[random(seeds.len())].clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.drain(at..(at + 1 + random(8)).min(bytes.len()))),
                2 => drop(bytes.splice(at..at, pieces[random(pieces.len())].iter().copied())),
                _ => {
                    // A number or word becomes another.
                    let stop = |b: &u8| b",}:".contains(b);
                    let length = bytes[at..].iter().position(stop).unwrap_or(0);
                    let piece = pieces[random(pieces.len())].iter().copied();
                    drop(bytes.splice(at..at + length, piece));
                }
            }
            if bytes.is_empty() {
                bytes.push(b'{');
            }
        }
        tried += 1;
        accepted += usize::from(check(&bytes));
    }
    println!("{tried} files, {accepted} accepted");
    assert!(tried > 100 && accepted > 0, "{tried} {accepted}");
}
