//! The tensor-core entries of `gemm`: how each is laid over a card, and what it should take.

use super::SWIGLU;
use crate::DType;
use crate::contracts::GemmParams;
use crate::device::{Chip, Geometry, Stream, TensorMap};
use crate::ops::layout::{groups, is_packable};

/// A tensor-core entry: the tile of C that a block computes, and what a block takes.
#[derive(Debug, PartialEq)]
pub(super) struct Tile {
    pub variant: &'static str,
    pub rows: i64,
    pub cols: i64,
    pub threads: u32,
    pub shared: u32,
    /// Blocks that a multiprocessor holds.
    pub resident: i64,
    /// Share of a multiprocessor's products that a block alone on it reaches.
    pub alone: f64,
    /// A and B come by tensor maps, in steps of 64, to blocks that take tile after tile.
    pub is_hopper: bool,
    /// A tile's epilogue runs beside the next one's products; its k is not split.
    pub in_turns: bool,
}

/// What a tile is unless it says otherwise.
const USUAL: Tile = Tile {
    variant: "",
    rows: 0,
    cols: 0,
    threads: 0,
    shared: 0,
    resident: 0,
    alone: 0.0,
    is_hopper: false,
    in_turns: false,
};

/// `sizeof(GemmShared)`: A and B stages of 32 columns, and a flag in a line of its own.
const fn sm80(variant: &'static str, side: i64, stages: u32, resident: i64, alone: f64) -> Tile {
    let shared = 2 * side as u32 * 32 * 2 * stages + 128;
    let (rows, cols) = (side, side);
    Tile { variant, rows, cols, threads: 128, shared, resident, alone, ..USUAL }
}

/// `sizeof(GemmSm90Shared)`: A and B stages of 64 columns, 36 columns of sums on their way out, and
/// barriers. A warpgroup for every 64 rows, and one that copies.
const fn sm90(variant: &'static str, rows: i64, cols: i64, stages: u32, resident: i64) -> Tile {
    let shared = (rows + cols) as u32 * 64 * 2 * stages + rows as u32 * 36 * 4 + 1024;
    let threads = (rows as u32 / 64 + 1) * 128;
    let alone = 0.9;
    Tile { variant, rows, cols, threads, shared, resident, alone, is_hopper: true, ..USUAL }
}

/// Of `gemm_quantized`, `sizeof(TilesShared)`: 3 or 4 stages of 64 rows of A and 128 of B, of which
/// a stage has 64 bytes each, and a flag in a line of its own.
const fn few_bits(variant: &'static str, k: u32, stages: u32) -> Tile {
    let shared = (64 * k * 2 + 128 * 64) * stages + 128;
    let (rows, cols, threads) = (64, 128, 128);
    let (resident, alone) = (2, 0.4);
    Tile { variant, rows, cols, threads, shared, resident, alone, ..USUAL }
}
pub(super) static INT8_TILES: Tile = few_bits("_int8_tiles", 64, 4);
pub(super) static INT4_TILES: Tile = few_bits("_int4_tiles", 128, 3);

const fn sm90_turns(variant: &'static str) -> Tile {
    Tile { in_turns: true, ..sm90(variant, 128, 128, 6, 1) }
}

/// Hopper's own, of [`TILES`] the first.
pub(super) const HOPPER: usize = 7;
/// All of `gemm`.
pub(super) static TILES: [Tile; HOPPER + 3] = [
    sm90("_sm90_128x256", 128, 256, 4, 1),
    sm90("_sm90_128x192", 128, 192, 5, 1),
    sm90("_sm90_128x176", 128, 176, 5, 1),
    sm90("_sm90_128x128", 128, 128, 6, 1),
    sm90("_sm90_64x128", 64, 128, 4, 2),
    sm90("_sm90_64x64", 64, 64, 6, 2),
    sm90_turns("_sm90_turns_128x128"),
    sm80("_128x128", 128, 4, 2, 0.7),
    sm80("_64x64", 64, 4, 4, 0.4),
    sm80("_plain", 64, 2, 4, 0.2),
];
/// The parts that k may be split into.
pub(super) const PARTS: [i64; 6] = [1, 2, 3, 4, 6, 8];

/// Steps of k below which a part is not worth its sums' way through memory.
const LEAST_PART: i64 = 512;
/// Counters and floats of the stream's workspace.
const COUNTERS: i64 = 16384;
pub(super) const ROOM: i64 = Stream::WORKSPACE as i64 / 4 - COUNTERS;

/// What a multiprocessor of a chip does in a clock, by its data sheet: multiply-adds of 16-bit
/// numbers, and bytes from L2; and measured, bytes from memory.
struct Rates {
    products: f64,
    l2_bytes: f64,
    memory_bytes: f64,
    clocks_per_us: f64,
}

impl Rates {
    fn of(chip: &Chip) -> Rates {
        if chip.has_wgmma() {
            // 132 of them: 989 TFLOP/s, 5120 bytes a clock from L2, 4.3 TB/s.
            let (products, clocks_per_us) = (2048.0, 1755.0);
            return Rates { products, l2_bytes: 39.0, memory_bytes: 18.6, clocks_per_us };
        }
        // 108 of them: 312 TFLOP/s, 5120 bytes a clock from L2, 1.7 TB/s.
        Rates { products: 1024.0, l2_bytes: 47.0, memory_bytes: 11.2, clocks_per_us: 1410.0 }
    }
}

impl Tile {
    /// Tiles down and across C.
    pub fn tiles(&self, p: &GemmParams) -> (i64, i64) {
        (groups(p.m, self.rows), groups(p.n, self.cols))
    }

    /// True if the entry can compute `p` at all.
    pub fn takes(&self, p: &GemmParams, dtype: DType, chip: &Chip) -> bool {
        match self.variant {
            "_plain" => p.activation != SWIGLU,
            _ if self.is_hopper => chip.has_wgmma() && is_mappable(p, dtype),
            _ => is_packable(&[p.a, p.b], &[p.lda, p.ldb, p.k], dtype),
        }
    }

    /// True if k can be split into so many parts.
    pub fn splits(&self, p: &GemmParams, parts: i64) -> bool {
        let (down, across) = self.tiles(p);
        let tiles = down * across;
        parts == 1
            || (!self.in_turns
                && !p.workspace.is_null()
                && p.k / parts >= LEAST_PART
                && tiles <= COUNTERS
                && tiles * parts * self.rows * self.cols <= ROOM)
    }

    /// What the product should take, us: products, bytes from L2 and from memory, whichever is
    /// slowest, in the rounds that the card needs for all blocks. Not a measurement.
    pub fn predicted_us(&self, p: &GemmParams, chip: &Chip, parts: i64) -> f64 {
        /// Clocks until the first product, and from the last one to the next block.
        const START: f64 = 3000.0;
        /// Clocks until the last part knows that it is.
        const MEET: f64 = 2000.0;
        let rates = Rates::of(chip);
        let (down, across) = self.tiles(p);
        let blocks = groups(down * across * parts, i64::from(chip.multiprocessors));
        let rounds = groups(blocks, self.resident) as f64;
        let cells = (self.rows * self.cols) as f64;
        let bytes = 2.0 * (self.rows + self.cols) as f64;
        let product = (cells / rates.products).max(bytes / rates.l2_bytes);
        let part = product * p.k as f64 / parts as f64;
        let merge = match parts {
            1 => 0.0,
            _ => MEET + (parts + 1) as f64 * 4.0 * cells / rates.l2_bytes,
        };
        let each = part.max(rounds * part / self.alone / blocks as f64) + merge;
        let starts = if self.in_turns { 1.0 } else { rounds };
        let clocks = blocks as f64 * each + starts * START;
        let once = 2.0 * (p.m * p.k + p.n * p.k + p.m * p.n) as f64;
        let least = once / rates.memory_bytes / f64::from(chip.multiprocessors);
        clocks.max(least) / rates.clocks_per_us
    }

    pub fn geometry(&self, p: &GemmParams, parts: i64, chip: &Chip) -> Geometry {
        let (down, across) = self.tiles(p);
        let (grid, maps) = if self.is_hopper {
            let a = TensorMap::for_wgmma(p.a, [p.m, p.k], p.lda, self.rows);
            // In two halves, which of SwiGLU lie apart.
            let b = TensorMap::for_wgmma(p.b, [p.n, p.k], p.ldb, self.cols / 2);
            // As many blocks as there is room for.
            let places = i64::from(chip.multiprocessors) * self.resident;
            let blocks = (places / parts).clamp(1, down * across);
            ([blocks, 1, parts], [Some(a), Some(b), None, None])
        } else {
            ([down * across, 1, parts], [None; 4])
        };
        Geometry {
            variant: self.variant,
            grid: grid.map(|n| n as u32),
            shared: self.shared,
            maps,
            ..Geometry::linear(0, self.threads)
        }
    }
}

/// True if rows of A and B can be copied as boxes: 16-byte bases and strides, 32-bit coordinates.
pub(super) fn is_mappable(p: &GemmParams, dtype: DType) -> bool {
    let is_small = |n: i64| n > 0 && n < 1 << 30;
    is_packable(&[p.a, p.b], &[p.lda, p.ldb], dtype)
        && [p.m, p.n, p.k, groups(p.m, 64) * groups(p.n, 128)].into_iter().all(is_small)
}
