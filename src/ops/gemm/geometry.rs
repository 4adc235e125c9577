//! How products are laid over a card: which tile, and into how many parts k is split.

use super::few_rows;
use crate::DType;
use crate::contracts::GemmParams;
use crate::device::{Chip, Geometry, Stream, Swizzle, TensorMap};
use crate::ops::layout;

/// A tensor-core entry: the tile of a block, and how many blocks a multiprocessor holds.
struct Tile {
    variant: &'static str,
    rows: i64,
    cols: i64,
    threads: u32,
    shared: u32,
    resident: i64,
    /// Share of the peak that a full wave of it reaches; what it cannot reuse, it waits for.
    efficiency: f64,
    /// A and B come by tensor maps, in steps of 64, to blocks that take tile after tile.
    is_hopper: bool,
}

const fn tile(variant: &'static str, rows: i64, cols: i64) -> Tile {
    Tile {
        variant,
        rows,
        cols,
        threads: 128,
        shared: 0,
        resident: 1,
        efficiency: 1.0,
        is_hopper: false,
    }
}

/// `sizeof(GemmShared)`: A and B stages of 32 columns, and a flag in a line of its own.
const fn shared(rows: u32, cols: u32, stages: u32) -> u32 {
    (rows + cols) * 32 * 2 * stages + 128
}

/// `sizeof(GemmSm90Shared)`: A and B stages of 64 columns, and their barriers.
const fn shared_sm90(rows: u32, cols: u32, stages: u32) -> u32 {
    (rows + cols) * 64 * 2 * stages + 1024
}

const LARGE: Tile = Tile { shared: shared(128, 128, 4), resident: 2, ..tile("_128x128", 128, 128) };
const SMALL: Tile =
    Tile { shared: shared(64, 64, 4), resident: 4, efficiency: 0.7, ..tile("_64x64", 64, 64) };
const PLAIN: Tile = Tile { shared: shared(64, 64, 2), resident: 4, ..tile("_plain", 64, 64) };

const HOPPER: [Tile; 3] = [
    Tile {
        threads: 288,
        shared: shared_sm90(128, 256, 4),
        is_hopper: true,
        ..tile("_sm90_128x256", 128, 256)
    },
    Tile {
        threads: 288,
        shared: shared_sm90(128, 128, 3),
        resident: 2,
        efficiency: 0.9,
        is_hopper: true,
        ..tile("_sm90_128x128", 128, 128)
    },
    Tile {
        threads: 160,
        shared: shared_sm90(64, 128, 4),
        resident: 2,
        efficiency: 0.8,
        is_hopper: true,
        ..tile("_sm90_64x128", 64, 128)
    },
];
const AMPERE: [Tile; 2] = [LARGE, SMALL];

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

    fn geometry(&self, p: &GemmParams, parts: i64, chip: &Chip) -> Geometry {
        let (down, across) = self.tiles(p);
        let places = i64::from(chip.multiprocessors) * self.resident;
        let (grid, maps) = if self.is_hopper {
            let map = |address, rows, stride: i64, tile_rows| {
                Some(TensorMap {
                    address,
                    sizes: [p.k as u64, rows as u64],
                    stride: stride as u64 * 2,
                    tile: [64, tile_rows as u32],
                    swizzle: Swizzle::Bytes128,
                })
            };
            let a = map(p.a, p.m, p.lda, self.rows);
            let b = map(p.b, p.n, p.ldb, self.cols);
            ([groups(places, parts).min(down * across), 1, parts], [a, b, None, None])
        } else {
            ([across, down, parts], [None; 4])
        };
        Geometry {
            variant: self.variant,
            grid: grid.map(|n| n as u32),
            threads: self.threads,
            shared: self.shared,
            cluster: 1,
            maps,
        }
    }
}

/// True if rows of A and B can be copied as boxes: 16-byte bases and strides, 32-bit coordinates.
fn is_mappable(p: &GemmParams, dtype: DType) -> bool {
    let is_small = |n: i64| n > 0 && n < 1 << 30;
    layout::is_packable(&[p.a, p.b], &[p.lda, p.ldb], dtype)
        && [p.m, p.n, p.k, groups(p.m, 64) * groups(p.n, 128)].into_iter().all(is_small)
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
    let is_packable = layout::is_packable(&[p.a, p.b], &[p.lda, p.ldb, p.k], dtype);
    if is_packable && few_rows::fits(p) {
        return few_rows::geometry(p);
    }
    let tiles = if chip.has_wgmma() && is_mappable(p, dtype) {
        &HOPPER[..]
    } else if is_packable {
        &AMPERE[..]
    } else {
        return PLAIN.geometry(p, 1, chip);
    };
    let (tile, parts) = fastest(tiles, p, chip);
    tile.geometry(p, parts, chip)
}

fn fastest<'a>(tiles: &'a [Tile], p: &GemmParams, chip: &Chip) -> (&'a Tile, i64) {
    let splits = if p.workspace.is_null() { &[1][..] } else { &[1, 2, 3, 4, 6, 8][..] };
    let mut best = (&tiles[0], 1);
    let mut least = f64::INFINITY;
    for tile in tiles {
        for &parts in splits.iter().filter(|&&parts| tile.fits(p, parts)) {
            let time = tile.time(p, chip, parts);
            if time < least {
                (best, least) = ((tile, parts), time);
            }
        }
    }
    best
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
        }
        let large = (8192, 22016, 4096);
        assert_eq!(choice(&Chip::A100, large.0, large.1, large.2), ("_128x128", [172, 64, 1]));
        assert_eq!(choice(&Chip::H200, large.0, large.1, large.2), ("_sm90_128x256", [132, 1, 1]));
    }

    /// Useful products of a launch by those of the waves it fills.
    fn fill(chip: &Chip, m: i64, n: i64, k: i64) -> f64 {
        let tiles: &[Tile] = if chip.has_wgmma() { &HOPPER } else { &AMPERE };
        let (tile, parts) = fastest(tiles, &params(m, n, k), chip);
        let (down, across) = tile.tiles(&params(m, n, k));
        let waves = groups(down * across * parts, i64::from(chip.multiprocessors));
        let cells = waves * i64::from(chip.multiprocessors) * tile.rows * tile.cols;
        (m * n * parts) as f64 / cells as f64
    }

    /// The products of a 9B model over a 250-token prompt and seven images.
    #[test]
    fn the_models_products_fill_the_card() {
        for (m, n, k) in [
            (250, 12288, 4096),
            (250, 4096, 4096),
            (250, 22016, 4096),
            (250, 4096, 11008),
            (250, 4096, 16384),
            (250, 16384, 4096),
            (1799, 3072, 1024),
            (1799, 4096, 1024),
            (1799, 1024, 4096),
            (1792, 6144, 1024),
        ] {
            for (chip, least) in [(Chip::A100, 0.77), (Chip::H200, 0.84)] {
                let fill = fill(&chip, m, n, k);
                assert!(fill > least, "{m} {n} {k} on sm_{}: {fill:.2}", chip.capability);
            }
        }
    }

    #[test]
    fn tensor_maps_cover_the_operands() {
        let mut p = params(250, 4096, 1000);
        (p.lda, p.ldb) = (1008, 1024);
        let g = geometry(&p, DType::BF16, &Chip::H200);
        let [Some(a), Some(b), None, None] = g.maps else { panic!("{:?}", g.maps) };
        assert_eq!((a.sizes, a.stride), ([1000, 250], 2016));
        assert_eq!((b.sizes, b.stride), ([1000, 4096], 2048));
        p.lda = 1001;
        assert_eq!(geometry(&p, DType::BF16, &Chip::H200).variant, "_plain");
        assert_eq!(geometry(&p, DType::BF16, &Chip::A100).maps, [None; 4]);
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
                let tile = HOPPER.iter().chain(&AMPERE).find(|t| t.variant == variant).unwrap();
                let (down, across) = tile.tiles(&params(m, n, k));
                let sums = down * across * i64::from(grid[2]) * tile.rows * tile.cols;
                assert!(grid[2] == 1 || sums <= ROOM, "{variant} {grid:?}");
            }
        }
    }
}
