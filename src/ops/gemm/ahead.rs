//! What a product begins with: what the launch before it asks L2 for, so that memory is not idle
//! while one ends and the other begins.

use super::SWIGLU;
use super::few_rows::Stored;
use crate::contracts::{self, GemmParams, GemmQuantizedParams};
use crate::device::Ahead;
use crate::ops::layout::groups;
use std::mem::offset_of;

/// All of it, bytes: what an H200 reads in the 4 us in which one launch ends and the next has its
/// rows of A. Of a row, as much at once.
const ENOUGH: i64 = 16 << 20;
const OF_ROW: i64 = 4096;
/// Rows of A whose products take no longer than their weights: of more, memory can wait.
const MOST_ROWS: i64 = 256;

/// Of so many blocks that take all those tiles of 16 rows, their first.
pub(super) fn of_few_rows(p: &GemmParams, b: Stored, tiles: u32, blocks: u32) -> Ahead {
    let (stride, row) = match b {
        Stored::Elements => (2 * p.ldb, 2 * p.k),
        Stored::Int8 => (p.ldb, p.k),
        Stored::Int4 => (p.ldb, p.k / 2),
    };
    let bytes = row.min(OF_ROW);
    let enough = ENOUGH / (16 * bytes.max(1));
    // Of SwiGLU a tile is eight gates and their values.
    let (pitch, away) = if p.activation == SWIGLU { (8, p.n / 2) } else { (16, 8) };
    let tiles = i64::from(tiles).min(enough.max(i64::from(blocks)));
    ahead(&contracts::Ahead { from: p.b, stride, tiles, pitch, away, rows: p.n, bytes })
}

/// Of blocks that begin with all rows of B at once, as much of each, in lines.
pub(super) fn of_all_rows(p: &GemmParams) -> Option<Ahead> {
    let bytes = (2 * p.k).min(ENOUGH / p.n.max(1) / 128 * 128);
    let (stride, tiles) = (2 * p.ldb, groups(p.n, 16));
    let all = contracts::Ahead { from: p.b, stride, tiles, pitch: 16, away: 8, rows: p.n, bytes };
    (p.m <= MOST_ROWS && bytes > 0 && bytes % 16 == 0).then(|| ahead(&all))
}

const _: () = assert!(offset_of!(GemmQuantizedParams, product) == 0, "`next` is where it is");

/// In the order of the contract.
fn ahead(a: &contracts::Ahead) -> Ahead {
    let numbers = [a.stride, a.tiles, a.pitch, a.away, a.rows, a.bytes];
    let mut words = [a.from.addr() as u64; Ahead::WORDS];
    words[1..].iter_mut().zip(numbers).for_each(|(word, n)| *word = n as u64);
    Ahead { words, at: offset_of!(GemmParams, next) }
}
