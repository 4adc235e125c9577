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
