//! How products of few rows are laid over a card: blocks that own rows of B and read them once.

use crate::contracts::GemmParams;
use crate::device::Geometry;

/// Threads of a block: 8 warps, which divide k.
const THREADS: u32 = 256;
/// Rows up to which reading B takes longer than multiplying.
const MOST_ROWS: i64 = 16;

/// True if the entries of `gemv.cu` are for this product, whose operands 16-byte loads can reach.
pub(super) fn fits(p: &GemmParams) -> bool {
    p.m <= MOST_ROWS && p.k < 1 << 30
}

/// `_rows8`: 16 rows of B a block, for up to 8 rows of A; else `_rows16`: 32 rows of B.
pub(super) fn geometry(p: &GemmParams) -> Geometry {
    let (variant, tile, rows) = if p.m <= 8 { ("_rows8", 16, 8) } else { ("_rows16", 32, 16) };
    let blocks = (p.n as u64).div_ceil(tile) as u32;
    // `sizeof(FewRowsShared)`: a float for every warp and cell.
    let shared = THREADS / 32 * rows * tile as u32 * 4;
    Geometry { variant, shared, ..Geometry::linear(blocks, THREADS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Chip;

    fn params(m: i64, n: i64, k: i64) -> GemmParams {
        // SAFETY: integers and pointers, for which zero is a value.
        let zero: GemmParams = unsafe { std::mem::zeroed() };
        GemmParams { m, n, k, lda: k, ldb: k, ldc: n, ..zero }
    }

    #[test]
    fn blocks_cover_the_rows_of_the_models() {
        for n in [12288, 4096, 22016, 32003, 16384, 512] {
            for m in 1..=16 {
                let p = params(m, n, 4096);
                assert!(fits(&p));
                let g = geometry(&p);
                let tile = if m <= 8 { 16 } else { 32 };
                let blocks = i64::from(g.grid[0]);
                assert!(blocks * tile >= n && (blocks - 1) * tile < n, "{m} {n}: {g:?}");
            }
        }
        assert!(!fits(&params(17, 4096, 4096)));
    }

    #[test]
    fn one_row_fills_every_multiprocessor() {
        for chip in [Chip::A100, Chip::H200] {
            for n in [12288, 4096, 22016, 32003, 16384] {
                assert!(geometry(&params(1, n, 4096)).grid[0] >= chip.multiprocessors);
            }
        }
    }
}
