//! What a target tensor is made of, and how it streams out: a list of pieces, each a few MiB at
//! most in memory whatever its size.

use super::cast::Caster;
use crate::checkpoint::Entry;
use crate::{DType, Result};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// Source bytes converted at a time.
const CHUNK: usize = 1 << 20;

/// A run of rows of a target tensor.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// Ranges of elements (start, count) of a source tensor, row-major, one after another.
    Ranges { entry: Entry, ranges: Vec<(usize, usize)> },
    /// A matrix with rows and columns exchanged.
    Transposed(Entry),
    /// The bytes of a source tensor as they are: codes and their scales.
    Stored(Entry),
    /// Zeros.
    Zeros(usize),
    /// Normal numbers with this deviation, from a generator of its own.
    Normal { count: usize, seed: u64, stream: u64, deviation: f32 },
}

impl Piece {
    /// The whole of `entry`.
    pub(super) fn whole(entry: &Entry) -> Self {
        Piece::Ranges { entry: entry.clone(), ranges: vec![(0, entry.count())] }
    }

    /// Rows `[head: q k v]` of `entry` as `q | k | v` over all `heads`; its first size is divisible
    /// by three times `heads`.
    pub(super) fn split_heads(entry: &Entry, heads: usize) -> Self {
        let part = entry.count() / (3 * heads);
        let start = |which: usize, head: usize| (head * 3 + which) * part;
        let ranges = (0..3).flat_map(|w| (0..heads).map(move |h| (start(w, h), part))).collect();
        Piece::Ranges { entry: entry.clone(), ranges }
    }

    /// Number of elements.
    pub(super) fn count(&self) -> usize {
        match self {
            Piece::Ranges { ranges, .. } => ranges.iter().map(|r| r.1).sum(),
            Piece::Transposed(entry) | Piece::Stored(entry) => entry.count(),
            Piece::Zeros(count) | Piece::Normal { count, .. } => *count,
        }
    }

    /// The type in the source, if it has one.
    pub(super) fn dtype(&self) -> Option<DType> {
        match self {
            Piece::Ranges { entry, .. } | Piece::Transposed(entry) | Piece::Stored(entry) => {
                Some(entry.dtype)
            }
            _ => None,
        }
    }

    /// Passes the elements as `dtype` to `out`, a MiB or so at a time.
    ///
    /// # Errors
    /// Numbers that `dtype` cannot hold, and those of `out`.
    pub(super) fn stream(
        &self,
        dtype: DType,
        caster: &mut Caster,
        out: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = Vec::new();
        let mut pass = |from: DType, bytes: &[u8]| {
            for bytes in bytes.chunks(CHUNK) {
                buffer.clear();
                caster.cast(from, bytes, dtype, &mut buffer)?;
                out(&buffer)?;
            }
            Ok(())
        };
        match self {
            Piece::Ranges { entry, ranges } => {
                let is_whole = ranges.as_slice() == [(0, entry.count())];
                if is_whole && entry.contiguous().is_none() {
                    return entry.read(&mut |bytes| pass(entry.dtype, bytes));
                }
                let bytes = entry.contiguous().map_or_else(|| entry.to_vec().into(), Cow::Borrowed);
                let size = entry.dtype.size();
                let mut ranges = ranges.iter();
                ranges
                    .try_for_each(|&(at, n)| pass(entry.dtype, &bytes[at * size..(at + n) * size]))
            }
            Piece::Transposed(entry) => pass(entry.dtype, &transposed(entry)),
            Piece::Stored(entry) => entry.read(out),
            Piece::Zeros(count) => {
                let zeros = [0u8; 4096];
                let mut left = count * 4;
                while left > 0 {
                    let n = left.min(zeros.len());
                    pass(DType::F32, &zeros[..n])?;
                    left -= n;
                }
                Ok(())
            }
            Piece::Normal { count, seed, stream, deviation } => {
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                rng.set_stream(*stream);
                let mut left = *count;
                while left > 0 {
                    let n = left.min(CHUNK / 4);
                    let values = (0..n).flat_map(|_| (normal(&mut rng) * deviation).to_le_bytes());
                    pass(DType::F32, &values.collect::<Vec<u8>>())?;
                    left -= n;
                }
                Ok(())
            }
        }
    }
}

fn transposed(entry: &Entry) -> Vec<u8> {
    let bytes = entry.contiguous().map_or_else(|| entry.to_vec().into(), Cow::Borrowed);
    let (rows, cols) = (entry.shape[0], entry.shape[1]);
    let size = entry.dtype.size();
    let mut out = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

/// A standard normal number (Box and Muller, 1958).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let unit = |bits: u32| (f64::from(bits) + 0.5) / 4294967296.0;
    let (u, v) = (unit(rng.next_u32()), unit(rng.next_u32()));
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// All pieces as f32, for small tensors that are compared.
pub(super) fn values(pieces: &[Piece]) -> Result<Vec<f32>> {
    let mut bytes = Vec::new();
    let mut caster = Caster::default();
    for piece in pieces {
        piece.stream(DType::F32, &mut caster, &mut |b| {
            bytes.extend_from_slice(b);
            Ok(())
        })?;
    }
    Ok(bytes
        .chunks_exact(4)
        .filter_map(|b| b.first_chunk().map(|b| f32::from_le_bytes(*b)))
        .collect())
}

/// SHA-256 in hexadecimal.
pub(super) fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
