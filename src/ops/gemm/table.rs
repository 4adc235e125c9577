//! Which tile is fastest, where that was found out: by card, weight and rows.
//!
//! `cargo bench --bench tiles` prints these rows. Without a card at hand they are what
//! [`Tile::predicted_us`] says, and marked so, until a measurement takes their place.

use super::tile::{TILES, Tile};
use crate::DType;
use crate::contracts::GemmParams;
use crate::device::Chip;
use crate::ops::layout::groups;

/// What is known of a card.
struct Table {
    chip: Chip,
    /// When and on what it was measured; None if it is predicted.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the tests hold predictions to the estimate")
    )]
    measured: Option<&'static str>,
    rows: &'static [Row],
}

/// The fastest tile of a product (m,k) by (n,k)^T.
struct Row {
    shape: [i64; 3],
    variant: &'static str,
    parts: i64,
    #[cfg_attr(not(test), expect(dead_code, reason = "for people, and the tests"))]
    us: f64,
}

const fn row(m: i64, n: i64, k: i64, variant: &'static str, parts: i64, us: f64) -> Row {
    Row { shape: [m, n, k], variant, parts, us }
}

/// The tile for the class of `p`: the same weight, and as many groups of 64 rows, so that every
/// tile has as many blocks.
pub(super) fn fastest(p: &GemmParams, dtype: DType, chip: &Chip) -> Option<(&'static Tile, i64)> {
    let table = TABLES.iter().find(|t| t.chip == *chip)?;
    let class = |m| groups(m, 64);
    let row = table
        .rows
        .iter()
        .find(|r| [p.n, p.k] == r.shape[1..] && class(p.m) == class(r.shape[0]))?;
    let tile = TILES.iter().find(|t| t.variant == row.variant)?;
    let fits = tile.takes(p, dtype, chip) && tile.splits(p, row.parts);
    fits.then_some((tile, row.parts))
}

static TABLES: [Table; 2] = [
    Table { chip: Chip::A100, measured: None, rows: A100 },
    Table { chip: Chip::H200, measured: Some("NVIDIA H200, 2026-11-26"), rows: H200 },
];

static A100: &[Row] = &[
    row(35, 12288, 4096, "_128x128", 2, 59.7),
    row(35, 4096, 4096, "_64x64", 3, 20.1),
    row(35, 22016, 4096, "_128x128", 1, 106.8),
    row(35, 4096, 11008, "_64x64", 3, 53.5),
    row(35, 16384, 4096, "_64x64", 1, 79.5),
    row(35, 4096, 16384, "_64x64", 3, 79.5),
    row(250, 12288, 4096, "_128x128", 1, 95.1),
    row(250, 4096, 4096, "_128x128", 3, 43.9),
    row(250, 22016, 4096, "_128x128", 1, 190.2),
    row(250, 4096, 11008, "_128x128", 3, 96.2),
    row(250, 16384, 4096, "_128x128", 1, 143.7),
    row(250, 4096, 16384, "_128x128", 3, 136.8),
    row(2048, 12288, 4096, "_128x128", 1, 714.2),
    row(2048, 4096, 4096, "_128x128", 1, 238.8),
    row(2048, 22016, 4096, "_128x128", 1, 1236.1),
    row(2048, 4096, 11008, "_128x128", 1, 631.0),
    row(2048, 16384, 4096, "_128x128", 1, 904.4),
    row(2048, 4096, 16384, "_128x128", 1, 936.0),
    row(250, 512, 4096, "_64x64", 6, 15.0),
    row(250, 4096, 512, "_64x64", 1, 8.1),
    row(257, 3072, 1024, "_64x64", 1, 14.0),
    row(257, 1024, 1024, "_64x64", 2, 11.4),
    row(257, 4096, 1024, "_64x64", 1, 14.0),
    row(257, 1024, 4096, "_64x64", 4, 22.0),
    row(1799, 3072, 1024, "_128x128", 1, 50.7),
    row(1799, 1024, 1024, "_64x64", 1, 24.0),
    row(1799, 4096, 1024, "_128x128", 1, 64.5),
    row(1799, 1024, 4096, "_64x64", 1, 83.4),
    row(64, 512, 1024, "_64x64", 2, 9.2),
    row(64, 1024, 512, "_64x64", 1, 7.1),
    row(64, 4096, 1024, "_64x64", 2, 11.4),
    row(64, 1024, 4096, "_64x64", 6, 11.9),
    row(448, 512, 1024, "_64x64", 2, 11.4),
    row(448, 1024, 512, "_64x64", 1, 7.1),
    row(448, 4096, 1024, "_64x64", 1, 24.0),
    row(448, 1024, 4096, "_128x128", 3, 29.6),
    row(1792, 6144, 1024, "_128x128", 1, 89.8),
    row(8192, 22016, 4096, "_128x128", 1, 4849.4),
];

static H200: &[Row] = &[
    row(35, 12288, 4096, "_sm90_64x128", 1, 34.0),
    row(35, 4096, 4096, "_sm90_64x128", 3, 18.6),
    row(35, 22016, 4096, "_sm90_64x128", 1, 52.9),
    row(35, 4096, 11008, "_sm90_64x128", 4, 33.2),
    row(35, 16384, 4096, "_sm90_64x128", 1, 40.7),
    row(35, 4096, 16384, "_sm90_64x128", 4, 44.7),
    row(250, 12288, 4096, "_sm90_128x192", 1, 41.0),
    row(250, 4096, 4096, "_sm90_128x128", 2, 23.5),
    row(250, 22016, 4096, "_sm90_128x192", 1, 74.9),
    row(250, 4096, 11008, "_sm90_128x128", 2, 41.6),
    row(250, 16384, 4096, "_sm90_128x256", 1, 52.7),
    row(250, 4096, 16384, "_sm90_128x128", 2, 55.6),
    row(2048, 12288, 4096, "_sm90_128x256", 1, 281.6),
    row(2048, 4096, 4096, "_sm90_128x256", 1, 95.3),
    row(2048, 22016, 4096, "_sm90_128x192", 1, 511.3),
    row(2048, 4096, 11008, "_sm90_128x256", 1, 236.2),
    row(2048, 16384, 4096, "_sm90_128x256", 1, 374.4),
    row(2048, 4096, 16384, "_sm90_128x256", 1, 344.8),
    row(250, 512, 4096, "_sm90_64x128", 4, 14.0),
    row(250, 4096, 512, "_sm90_64x128", 1, 8.8),
    row(257, 3072, 1024, "_sm90_64x128", 1, 11.6),
    row(257, 1024, 1024, "_sm90_64x128", 1, 10.3),
    row(257, 4096, 1024, "_sm90_128x128", 1, 13.0),
    row(257, 1024, 4096, "_sm90_64x128", 3, 16.1),
    row(1799, 3072, 1024, "_sm90_128x192", 1, 28.5),
    row(1799, 1024, 1024, "_sm90_128x128", 1, 12.6),
    row(1799, 4096, 1024, "_sm90_128x256", 1, 35.2),
    row(1799, 1024, 4096, "_sm90_128x128", 1, 27.4),
    row(64, 512, 1024, "_sm90_64x128", 1, 8.6),
    row(64, 1024, 512, "_sm90_64x128", 1, 7.5),
    row(64, 4096, 1024, "_sm90_64x128", 1, 11.0),
    row(64, 1024, 4096, "_sm90_64x128", 6, 14.2),
    row(448, 512, 1024, "_sm90_64x128", 1, 8.7),
    row(448, 1024, 512, "_sm90_64x128", 1, 8.1),
    row(448, 4096, 1024, "_sm90_128x128", 1, 13.0),
    row(448, 1024, 4096, "_sm90_64x128", 4, 17.8),
    row(1792, 6144, 1024, "_sm90_128x256", 1, 51.1),
    row(8192, 22016, 4096, "_sm90_128x256", 1, 2011.8),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gemm::{gemm_shape, gemm_tilings};

    #[test]
    fn what_is_predicted_is_what_the_estimate_says() {
        for table in TABLES.iter().filter(|t| t.measured.is_none()) {
            for row in table.rows {
                let all = gemm_tilings(&gemm_shape(row.shape), DType::BF16, &table.chip);
                let own = |v: &str| v.starts_with("_sm90") == table.chip.has_wgmma();
                let usual = all.iter().filter(|t| own(t.variant) && t.variant != "_plain");
                let best = usual.min_by(|a, b| a.predicted_us.total_cmp(&b.predicted_us)).unwrap();
                let found = (best.variant, best.parts, (best.predicted_us * 10.0).round() / 10.0);
                assert_eq!((row.variant, row.parts, row.us), found, "{:?}", row.shape);
            }
        }
    }

    #[test]
    fn a_row_stands_for_its_weight_and_as_many_groups_of_rows() {
        let choice = |shape, chip| {
            fastest(&gemm_shape(shape), DType::BF16, chip).map(|(t, n)| (t.variant, n))
        };
        for m in [193, 250, 256] {
            let found = choice([m, 4096, 16384], &Chip::H200);
            assert_eq!(found, Some(("_sm90_128x128", 2)), "{m}");
        }
        for other in [[192, 4096, 16384], [257, 4096, 16384], [250, 4096, 16392]] {
            assert_eq!(choice(other, &Chip::H200), None);
        }
        let another = Chip { multiprocessors: 114, ..Chip::H200 };
        assert_eq!(choice([250, 4096, 16384], &another), None);
        // Without a workspace the row's parts cannot be.
        let alone =
            GemmParams { workspace: std::ptr::null_mut(), ..gemm_shape([250, 4096, 16384]) };
        assert!(fastest(&alone, DType::BF16, &Chip::H200).is_none());
    }
}
