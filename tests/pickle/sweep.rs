//! Damage without intent: every prefix, every bit, and random mutations for a bounded time.

use super::*;
use medflamingo::checkpoint::Checkpoint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A small generator (xorshift64*), so that a failure can be repeated from its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// How many files were opened, and how many of them were accepted.
#[derive(Default)]
pub struct Tally {
    pub tried: usize,
    pub accepted: usize,
    pub slowest: Duration,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Tally { tried, accepted, slowest } = self;
        write!(f, "{tried} files, {accepted} accepted, slowest {slowest:?}")
    }
}

/// Opens a file and, if it is accepted, reads all of it. Panics, with `label`, if that panics or
/// takes longer than five seconds (which leaves room for a busy machine).
pub fn survive(tally: &mut Tally, label: impl Fn() -> String, file: Vec<u8>) {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| read_all(file)));
    let took = start.elapsed();
    let accepted = outcome.unwrap_or_else(|_| panic!("{}: panicked", label()));
    assert!(took < Duration::from_secs(5), "{}: took {took:?}", label());
    tally.slowest = tally.slowest.max(took);
    tally.tried += 1;
    tally.accepted += usize::from(accepted);
}

/// True when the file is accepted; then every tensor must have the bytes it declares.
fn read_all(file: Vec<u8>) -> bool {
    let is_small = file.len() <= 4096;
    let Ok(checkpoint) = Checkpoint::from_bytes("mutant", file) else { return false };
    for (name, entry) in checkpoint.iter() {
        assert!(checkpoint.get(name).is_some());
        let mut total = 0;
        let mut count = |piece: &[u8]| {
            total += piece.len();
            Ok(())
        };
        entry.read(&mut count).unwrap();
        assert_eq!(total, entry.bytes());
        assert_eq!(total, entry.count() * entry.dtype.size());
    }
    if is_small {
        let _ = checkpoint.verify();
    }
    true
}

/// Every prefix and every single-bit flip of a file.
pub fn prefixes_and_flips(tally: &mut Tally, name: &str, file: &[u8]) {
    for n in 0..file.len() {
        survive(tally, || format!("{name}: first {n} bytes"), file[..n].to_vec());
    }
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut flipped = file.to_vec();
            flipped[at] ^= 1 << bit;
            survive(tally, || format!("{name}: bit {bit} of byte {at}"), flipped);
        }
    }
}

/// Seconds that each fuzz loop runs.
pub fn budget() -> Duration {
    let text = std::env::var("MEDFLAMINGO_FUZZ_SECONDS").unwrap_or_default();
    Duration::from_secs_f64(text.parse().unwrap_or(3.0))
}

/// One to four random edits: bits, bytes, interesting numbers, cuts, repeats, swaps.
pub fn mutate(random: &mut Random, file: &mut Vec<u8>) {
    const NUMBERS: [u64; 8] =
        [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff];
    for _ in 0..=random.below(4) {
        if file.is_empty() {
            return;
        }
        let at = random.below(file.len());
        match random.below(8) {
            0 | 1 => file[at] ^= 1 << random.below(8),
            2 => file[at] = random.next() as u8,
            3 => {
                let number = NUMBERS[random.below(8)].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(file.len() - at);
                file[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => file.truncate(at),
            5 => drop(file.drain(at..(at + 1 + random.below(16)).min(file.len()))),
            6 => {
                let end = (at + 1 + random.below(64)).min(file.len());
                let piece = file[at..end].to_vec();
                let to = random.below(file.len());
                file.splice(to..to, piece);
            }
            _ => {
                let other = random.below(file.len());
                file.swap(at, other);
            }
        }
    }
}

/// Runs `trial` on fresh seeds until the budget is spent; returns how many ran.
pub fn fuzz(name: &str, mut trial: impl FnMut(&mut Tally, &mut Random, u64)) -> Tally {
    let seed = 0x5eed_0000_0000_0001 ^ u64::from(crc32(name.as_bytes())) << 20;
    let (start, budget, mut tally) = (Instant::now(), budget(), Tally::default());
    let mut i = 0;
    while start.elapsed() < budget {
        i += 1;
        trial(&mut tally, &mut Random(seed + i), i);
    }
    println!("{name}: seed {seed:#x}, {tally}");
    tally
}
