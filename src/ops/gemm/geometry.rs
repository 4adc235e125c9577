//! Which entry a product is launched with, and into how many parts k is split.

use super::few_rows::{self, Rows, Stored};
use super::table;
use super::tile::{HOPPER, INT4_TILES, INT8_TILES, PARTS, TILES, Tile, is_mappable};
use crate::DType;
use crate::contracts::GemmParams;
use crate::device::{Chip, Geometry};
use crate::ops::layout::{groups, is_packable};

/// The launch of `p`: few rows by their own entries, the rest by the tile and the parts of k that
/// should take the least time.
pub(super) fn geometry(p: &GemmParams, dtype: DType, chip: &Chip) -> Geometry {
    if p.m <= 0 || p.n <= 0 {
        return Geometry::linear(0, 1);
    }
    if dtype == DType::F32 {
        let grid = [groups(p.n, 64) as u32, groups(p.m, 64) as u32, 1];
        return Geometry { grid, shared: 2 * 16 * 64 * 4, ..Geometry::linear(1, 256) };
    }
    if (9..=16).contains(&p.m) && is_mappable(p, dtype) && chip.has_wgmma() {
        return few_rows::hopper(p, chip);
    }
    if is_packable(&[p.a, p.b], &[p.lda, p.ldb, p.k], dtype)
        && let Some(rows) = Rows::of(p, Stored::Elements, chip)
    {
        let variants = ["_rows8", "_rows8_kept", "_rows16"];
        return rows.geometry(p, Stored::Elements, variants, chip);
    }
    let (tile, parts) = fastest(p, dtype, chip);
    tile.geometry(p, parts, chip)
}

/// The launch of `_tiles` of `gemm_quantized`.
pub(in crate::ops) fn few_bits(p: &GemmParams, is_int8: bool, chip: &Chip) -> Geometry {
    let tile = if is_int8 { &INT8_TILES } else { &INT4_TILES };
    let (_, parts) = predicted(std::slice::from_ref(tile), p, chip);
    tile.geometry(p, parts, chip)
}

/// A tile that was chosen by the caller, who asked whether it can be.
pub(super) fn forced<const TILE: usize, const PART: usize>(
    p: &GemmParams,
    _: DType,
    chip: &Chip,
) -> Geometry {
    TILES[TILE].geometry(p, PARTS[PART], chip)
}

/// What the table knows; else what should be fastest, of Hopper's own tiles where they can be, else
/// of those of sm_80; else the tile that always can be.
fn fastest(p: &GemmParams, dtype: DType, chip: &Chip) -> (&'static Tile, i64) {
    let (hopper, others) = (&TILES[..HOPPER], &TILES[HOPPER..]);
    let tiles = match hopper[0].takes(p, dtype, chip) {
        true => hopper,
        false if others[0].takes(p, dtype, chip) => &others[..2],
        false => return (&others[2], 1),
    };
    table::fastest(p, dtype, chip).unwrap_or_else(|| predicted(tiles, p, chip))
}

/// The tile and the parts of k that should take the least time.
pub(super) fn predicted(
    tiles: &'static [Tile],
    p: &GemmParams,
    chip: &Chip,
) -> (&'static Tile, i64) {
    let mut best = (&tiles[0], 1);
    let mut least = f64::INFINITY;
    for tile in tiles {
        for parts in PARTS.into_iter().filter(|&parts| tile.splits(p, parts)) {
            let us = tile.predicted_us(p, chip, parts);
            if us < least {
                (best, least) = ((tile, parts), us);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::gemm_shape;
    use super::super::tile::ROOM;
    use super::*;

    fn choice(chip: &Chip, m: i64, n: i64, k: i64) -> (&'static str, [u32; 3]) {
        let g = geometry(&gemm_shape([m, n, k]), DType::BF16, chip);
        (g.variant, g.grid)
    }

    /// Useful products of a launch, of those of the waves that its tiles fill, in percent.
    fn fill(p: &GemmParams, chip: &Chip, tile: &Tile, parts: i64) -> i64 {
        let (down, across) = tile.tiles(p);
        let waves = groups(down * across * parts, i64::from(chip.multiprocessors));
        let cells = waves * i64::from(chip.multiprocessors) * tile.rows * tile.cols;
        100 * p.m * p.n * parts / cells
    }

    /// The products of a 9B model over a 250-token prompt and seven images.
    #[test]
    fn the_models_products_fill_the_card() {
        let worst = |chip: &Chip| {
            let fills = [
                (250, 12288, 4096),
                (250, 4096, 4096),
                (250, 22016, 4096),
                (250, 4096, 11008),
                (250, 4096, 16384),
                (250, 16384, 4096),
                (1799, 3072, 1024),
                (1799, 1024, 1024),
                (1799, 4096, 1024),
                (1799, 1024, 4096),
                (1792, 6144, 1024),
                (8192, 22016, 4096),
            ]
            .map(|(m, n, k)| {
                let p = gemm_shape([m, n, k]);
                let (tile, parts) = fastest(&p, DType::BF16, chip);
                fill(&p, chip, tile, parts)
            });
            fills.into_iter().min()
        };
        // Predicted for the one, measured on the other: there the fullest is not always fastest.
        assert_eq!((worst(&Chip::A100), worst(&Chip::H200)), (Some(77), Some(84)));
    }

    /// As many tiles for each block of a token's neighbours, and k in parts where there are few.
    #[test]
    fn nine_to_sixteen_rows_have_tiles_of_their_own_on_hopper() {
        let of = |m, n, k| choice(&Chip::H200, m, n, k);
        assert_eq!(of(9, 12288, 4096), ("_sm90_rows16", [192, 1, 1]));
        assert_eq!(of(14, 22016, 4096), ("_sm90_rows16", [172, 1, 1]));
        assert_eq!(of(16, 4096, 11008), ("_sm90_rows16", [64, 1, 4]));
        assert_eq!(of(16, 512, 4096), ("_sm90_rows16", [8, 1, 8]));
        assert_ne!(of(8, 4096, 4096).0, "_sm90_rows16");
        assert_ne!(of(17, 4096, 4096).0, "_sm90_rows16");
        assert_ne!(choice(&Chip::A100, 16, 4096, 4096).0, "_sm90_rows16");
    }

    #[test]
    fn what_16_byte_copies_cannot_reach_is_plain() {
        let patches = gemm_shape([256, 1024, 588]);
        assert_eq!(geometry(&patches, DType::BF16, &Chip::A100).variant, "_plain");
        assert_eq!(geometry(&patches, DType::F32, &Chip::A100).variant, "");
        let empty = geometry(&gemm_shape([0, 5, 7]), DType::BF16, &Chip::A100);
        assert!(empty.is_empty());
    }

    /// What a launch asks of a multiprocessor, it has; what parts ask of the workspace, likewise.
    #[test]
    fn no_launch_asks_for_more_than_there_is() {
        for (chip, of_multiprocessor) in [(Chip::A100, 164 << 10), (Chip::H200, 228 << 10)] {
            for tile in &TILES {
                let [m, n, k] = [2048, 32003, 16384];
                for (m, n, k) in [(m, n, k), (17, 512, 65536), (250, 4096, k), (250, n, 4096)] {
                    let p = gemm_shape([m, n, k]);
                    let runs = tile.takes(&p, DType::BF16, &chip);
                    for parts in PARTS.into_iter().filter(|&n| runs && tile.splits(&p, n)) {
                        let g = tile.geometry(&p, parts, &chip);
                        let what = format!("{g:?}");
                        assert!(g.shared <= chip.shared_bytes, "{what}");
                        // A block takes 1 KiB for itself.
                        let resident = tile.resident * i64::from(g.shared + 1024);
                        assert!(resident <= of_multiprocessor, "{what}");
                        let (down, across) = tile.tiles(&p);
                        let sums = down * across * parts * tile.rows * tile.cols;
                        assert!(parts == 1 || sums <= ROOM, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn tensor_maps_cover_the_operands() {
        let mut p = gemm_shape([250, 4096, 1000]);
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
    fn few_rows_are_covered_and_one_fills_every_multiprocessor() {
        for n in [12288, 4096, 22016, 32003, 16384, 512] {
            for m in 1..=16 {
                let (variant, [blocks, ..]) = choice(&Chip::A100, m, n, 4096);
                let (wanted, rows) = match m {
                    ..=2 => ("_rows8_kept", 16),
                    3..=8 => ("_rows8", 16),
                    _ => ("_rows16", 32),
                };
                assert_eq!((variant, blocks), (wanted, (groups(n, rows) as u32).min(216)), "{m}");
                let (variant, [blocks, ..]) = choice(&Chip::H200, m, n, 4096);
                assert_eq!(variant == wanted, m <= 8, "{m} {n}");
                assert!(m > 8 || blocks == (groups(n, 16) as u32).min(264), "{m} {n}");
            }
        }
        assert!(!choice(&Chip::A100, 17, 4096, 4096).0.starts_with("_rows"));
    }
}
