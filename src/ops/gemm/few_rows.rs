//! How products of few rows are laid over a card: blocks that own rows of B and read them once.

use super::SWIGLU;
use crate::contracts::GemmParams;
use crate::device::Geometry;

/// Threads of a block: 8 warps, which divide k.
const THREADS: u32 = 256;
/// Rows up to which reading B takes longer than multiplying.
const MOST_ROWS: i64 = 16;

/// True if the entries of `gemv.cu` are for this product, whose operands 16-byte loads can reach.
pub(super) fn fits(p: &GemmParams) -> bool {
    let most = if p.activation == SWIGLU { 8 } else { MOST_ROWS };
    p.m <= most && p.k < 1 << 30 && p.n < 1 << 31
}

/// `_rows8`: 16 rows of B a block, for up to 8 rows of A; else `_rows16`: 32 rows of B.
pub(super) fn geometry(p: &GemmParams) -> Geometry {
    let (variant, tile, rows) = if p.m <= 8 { ("_rows8", 16, 8) } else { ("_rows16", 32, 16) };
    let blocks = (p.n as u64).div_ceil(tile) as u32;
    // `sizeof(FewRowsShared)`: a float for every warp and cell.
    let shared = THREADS / 32 * rows * tile as u32 * 4;
    Geometry { variant, shared, ..Geometry::linear(blocks, THREADS) }
}
