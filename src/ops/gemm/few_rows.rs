//! How products of few rows are laid over a card: blocks that own rows of B and read them once.

use super::SWIGLU;
use crate::contracts::GemmParams;
use crate::device::{Chip, Geometry};

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
    let (variant, tile, rows) = match p.m {
        _ if p.norm != 0 => ("_rows8_normed", 16, 8),
        ..=8 => ("_rows8", 16, 8),
        _ => ("_rows16", 32, 16),
    };
    let blocks = (p.n as u64).div_ceil(tile) as u32;
    Geometry { variant, shared: shared(p, rows, tile), ..Geometry::linear(blocks, THREADS) }
}

/// Shared memory of a block of `rows` rows of A and `cols` rows of B, bytes.
pub(in crate::ops) fn shared(p: &GemmParams, rows: u64, cols: u64) -> u32 {
    // `sizeof(FewRowsShared)`: a float for every warp and cell.
    let sums = THREADS / 32 * (rows * cols) as u32 * 4;
    if p.norm == 0 { sums } else { sums + normed(p.m as u32, p.k as u32, !p.norm_bias.is_null()) }
}

/// What `NormedShared` has more, of A (m,k): three sums of every warp, then weight, bias and rows.
fn normed(m: u32, k: u32, has_bias: bool) -> u32 {
    3 * THREADS / 32 * 4 + 2 * ((1 + u32::from(has_bias)) * k + m * (k + 8))
}

/// True if a block has room for the norm of A (m,k), beside one more.
pub(super) fn has_room(m: usize, k: usize, has_bias: bool, chip: &Chip) -> bool {
    let most = (chip.shared_bytes / 2) as usize;
    m <= 8 && k < most && (normed(m as u32, k as u32, has_bias) as usize) + 4096 + 1024 <= most
}
