//! Launch geometry that several kernels share: cells of matrices, and rows held in registers.

use crate::DType;
use crate::device::Geometry;
use std::ffi::c_void;

/// `THREADS` of the row kernels and `CELL_THREADS` of the elementwise ones.
const THREADS: u32 = 256;

/// True if 16-byte accesses are legal at every address and every multiple of every distance, which
/// is counted in elements of `dtype`.
pub(super) fn is_packable(addresses: &[*const c_void], distances: &[i64], dtype: DType) -> bool {
    let bytes = distances.iter().map(|d| *d as usize * dtype.size());
    addresses.iter().map(|a| a.addr()).chain(bytes).all(|n| n.is_multiple_of(16))
}

/// `count` in groups of `by`.
pub(super) fn groups(count: i64, by: i64) -> i64 {
    (count + by - 1) / by
}

/// Blocks for one thread per group of `group` out of `cells`.
pub(super) fn cells(cells: i64, group: usize) -> Geometry {
    let blocks = (cells.max(0) as u64).div_ceil(u64::from(THREADS) * group as u64);
    Geometry::linear(blocks as u32, THREADS)
}

/// As [`cells`], 16 bytes a thread if `is_packable`, else one element by the `_plain` entry.
pub(super) fn packed_cells(count: i64, dtype: DType, is_packable: bool) -> Geometry {
    match is_packable {
        true => cells(count, 16 / dtype.size()),
        false => Geometry { variant: "_plain", ..cells(count, 1) },
    }
}

/// As [`row_blocks`], but a warp per row, eight a block, where a warp's registers hold it.
pub(super) fn rows_in_registers(
    rows: i64,
    cols: i64,
    dtype: DType,
    is_packable: bool,
    sums: u32,
) -> Geometry {
    const PACKS: usize = 4;
    if is_packable && cols as usize * dtype.size() <= 32 * PACKS * 16 {
        let blocks = groups(rows, i64::from(THREADS / 32)) as u32;
        // A block's sums have a float for each warp of a row.
        let shared = sums * size_of::<f32>() as u32;
        return Geometry { variant: "_warp", shared, ..Geometry::linear(blocks, THREADS) };
    }
    row_blocks(rows, cols, dtype, is_packable, sums)
}

/// A block per row, the row in registers where it fits; `sums` is how many block sums the kernel
/// keeps in shared memory.
pub(super) fn row_blocks(
    rows: i64,
    cols: i64,
    dtype: DType,
    is_packable: bool,
    sums: u32,
) -> Geometry {
    let packs = (cols as usize * dtype.size()).div_ceil(16 * THREADS as usize);
    let variant = match (is_packable, packs) {
        (true, 0 | 1) => "_packs1",
        (true, 2) => "_packs2",
        (true, 3 | 4) => "_packs4",
        _ => "_plain",
    };
    let shared = sums * THREADS / 32 * size_of::<f32>() as u32;
    Geometry { variant, shared, ..Geometry::linear(rows as u32, THREADS) }
}

/// What the attention kernels share: rows and heads.
pub(super) struct Attend {
    /// Blocks in x where rows are taken in tiles.
    pub blocks: i64,
    /// Rows of all batch entries.
    pub rows: i64,
    /// Batch entries, or parts of the keys, which are blocks in z.
    pub batch: i64,
    pub heads: i32,
    pub head_dim: i32,
    /// Tiles of 64 rows that a block keeps in shared memory.
    pub tiles: u32,
}

/// Tensor-core tiles of `ATTEND_THREADS` threads for 16-bit types where `is_packable`, else a warp
/// per row.
pub(super) fn attend(a: &Attend, dtype: DType, is_packable: bool) -> Geometry {
    const ATTEND_THREADS: u32 = 128;
    let head_dim = a.head_dim as usize;
    if dtype.size() != 2 || !is_packable || head_dim > 128 {
        let rows = groups(a.rows, i64::from(ATTEND_THREADS / 32)) as u32;
        let grid = [rows, a.heads as u32, head_dim.div_ceil(256) as u32];
        return Geometry { variant: "_row", grid, ..Geometry::linear(rows, ATTEND_THREADS) };
    }
    let (variant, width) = if head_dim <= 64 { ("_64", 64) } else { ("_128", 128) };
    let shared = a.tiles * 64 * width * dtype.size() as u32;
    let grid = [a.blocks as u32, a.heads as u32, a.batch as u32];
    Geometry { variant, grid, shared, ..Geometry::linear(0, ATTEND_THREADS) }
}
