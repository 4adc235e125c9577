//! How products are laid over a card: which tile, and into how many parts k is split.

use super::few_rows;
use crate::DType;
use crate::contracts::GemmParams;
use crate::device::{Chip, Geometry, Stream};
use crate::ops::layout;

/// A tensor-core entry: the tile of a block, and how many blocks a multiprocessor holds.
struct Tile {
    variant: &'static str,
    rows: i64,
    cols: i64,
    shared: u32,
    resident: i64,
    /// Share of the peak that a full wave of it reaches; what it cannot reuse, it waits for.
    efficiency: f64,
}

/// `sizeof(GemmShared)`: A and B stages of 32 columns, and a flag in a line of its own.
const fn shared(rows: u32, cols: u32, stages: u32) -> u32 {
    (rows + cols) * 32 * 2 * stages + 128
}

const LARGE: Tile = Tile {
    variant: "_128x128",
    rows: 128,
    cols: 128,
    shared: shared(128, 128, 4),
    resident: 2,
    efficiency: 1.0,
};
const SMALL: Tile = Tile {
    variant: "_64x64",
    rows: 64,
    cols: 64,
    shared: shared(64, 64, 4),
    resident: 4,
    efficiency: 0.7,
};
const PLAIN: Tile = Tile {
    variant: "_plain",
    rows: 64,
    cols: 64,
    shared: shared(64, 64, 2),
    resident: 4,
    efficiency: 0.2,
};

/// Steps of k below which a part is not worth its sums' way through memory.
const LEAST_PART: i64 = 512;
/// Counters and floats of the stream's workspace.
const COUNTERS: i64 = 16384;
const ROOM: i64 = Stream::WORKSPACE as i64 / 4 - COUNTERS;

impl Tile {
    fn tiles(&self, p: &GemmParams) -> (i64, i64) {
        (groups(p.m, self.rows), groups(p.n, self.cols))
    }

    /// Time of the product in parts of k, in multiply-adds of one multiprocessor.
    fn time(&self, p: &GemmParams, chip: &Chip, parts: i64) -> f64 {
        let (down, across) = self.tiles(p);
        let blocks = down * across * parts;
        let places = i64::from(chip.multiprocessors) * self.resident;
        // Blocks of one multiprocessor share it: a partly filled last wave runs faster.
        let full = blocks / places;
        let rest = groups(blocks % places, i64::from(chip.multiprocessors));
        let rounds = (full * self.resident + rest) as f64;
        let cell = (self.rows * self.cols) as f64;
        let part = (p.k as f64 / parts as f64).max(32.0) * cell / self.efficiency;
        // Sums of a part are written and read again; a multiprocessor does about 64 multiply-adds
        // in the time that it moves one byte.
        let merge = if parts > 1 { 2.0 * 4.0 * 64.0 * cell } else { 0.0 };
        rounds * (part + merge)
    }

    fn fits(&self, p: &GemmParams, parts: i64) -> bool {
        let (down, across) = self.tiles(p);
        let tiles = down * across;
        parts == 1
            || (p.k / parts >= LEAST_PART
                && tiles <= COUNTERS
                && tiles * parts * self.rows * self.cols <= ROOM)
    }

    fn geometry(&self, p: &GemmParams, parts: i64) -> Geometry {
        let (down, across) = self.tiles(p);
        Geometry {
            variant: self.variant,
            grid: [across as u32, down as u32, parts as u32],
            threads: 128,
            shared: self.shared,
            cluster: 1,
            maps: [None; 4],
        }
    }
}

/// The launch of `p`: the tile and the parts of k that take the least time by a simple count.
pub(super) fn geometry(p: &GemmParams, dtype: DType, chip: &Chip) -> Geometry {
    if p.m <= 0 || p.n <= 0 {
        return Geometry::linear(0, 1);
    }
    if dtype == DType::F32 {
        let grid = [groups(p.n, 64) as u32, groups(p.m, 64) as u32, 1];
        return Geometry { grid, shared: 2 * 16 * 64 * 4, ..Geometry::linear(1, 256) };
    }
    if !layout::is_packable(&[p.a, p.b], &[p.lda, p.ldb, p.k], dtype) {
        return PLAIN.geometry(p, 1);
    }
    if few_rows::fits(p) {
        return few_rows::geometry(p);
    }
    let splits = if p.workspace.is_null() { &[1][..] } else { &[1, 2, 3, 4, 6, 8][..] };
    let mut best = (&SMALL, 1);
    for tile in [&SMALL, &LARGE] {
        for &parts in splits {
            let is_better = tile.time(p, chip, parts) < best.0.time(p, chip, best.1);
            if tile.fits(p, parts) && is_better {
                best = (tile, parts);
            }
        }
    }
    best.0.geometry(p, best.1)
}

/// `count` in groups of `by`.
fn groups(count: i64, by: i64) -> i64 {
    (count + by - 1) / by
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(m: i64, n: i64, k: i64) -> GemmParams {
        let sixteen = 16 as *mut std::ffi::c_void;
        GemmParams {
            c: sixteen,
            a: sixteen,
            b: sixteen,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            gate: std::ptr::null(),
            workspace: sixteen,
            m,
            n,
            k,
            lda: k,
            ldb: k,
            ldc: n,
            activation: 0,
            c_is_f32: 0,
        }
    }

    fn choice(chip: &Chip, m: i64, n: i64, k: i64) -> (&'static str, [u32; 3]) {
        let g = geometry(&params(m, n, k), DType::BF16, chip);
        (g.variant, g.grid)
    }

    #[test]
    fn few_tiles_split_k_and_many_do_not() {
        // The projections of a 250-token prompt: 64 large tiles for 108 or 132 multiprocessors.
        for chip in [Chip::A100, Chip::H200] {
            let (_, grid) = choice(&chip, 250, 4096, 11008);
            assert!(grid[2] > 1, "{grid:?}");
            assert_eq!(choice(&chip, 8192, 22016, 4096), ("_128x128", [172, 64, 1]));
        }
    }

    #[test]
    fn what_16_byte_copies_cannot_reach_is_plain() {
        let patches = params(256, 1024, 588);
        assert_eq!(geometry(&patches, DType::BF16, &Chip::A100).variant, "_plain");
        assert_eq!(geometry(&patches, DType::F32, &Chip::A100).variant, "");
        let empty = geometry(&params(0, 5, 7), DType::BF16, &Chip::A100);
        assert!(empty.is_empty());
    }

    #[test]
    fn parts_fit_the_workspace() {
        for chip in [Chip::A100, Chip::H200] {
            for (m, n, k) in [(250, 32003, 4096), (2048, 4096, 16384), (17, 512, 65536)] {
                let (variant, grid) = choice(&chip, m, n, k);
                let side = if variant == "_128x128" { 128 } else { 64 };
                let sums = i64::from(grid[0] * grid[1] * grid[2]) * side * side;
                assert!(grid[2] == 1 || sums <= ROOM, "{variant} {grid:?}");
            }
        }
    }

    #[test]
    fn few_rows_are_covered_and_one_fills_every_multiprocessor() {
        for n in [12288, 4096, 22016, 32003, 16384, 512] {
            for m in 1..=16 {
                let (variant, [blocks, ..]) = choice(&Chip::H200, m, n, 4096);
                let (wanted, rows) = if m <= 8 { ("_rows8", 16) } else { ("_rows16", 32) };
                assert_eq!((variant, blocks), (wanted, groups(n, rows) as u32), "{m} {n}");
                assert!(m > 1 || n == 512 || blocks >= Chip::H200.multiprocessors, "{n}");
            }
        }
        assert!(!choice(&Chip::H200, 17, 4096, 4096).0.starts_with("_rows"));
    }
}
