//! Few rows of A: every weight is read from memory once, in place, and that is the time it takes.
//! An element of C is a dot product along k; its summation order depends on k alone.

use super::epilogue::Epilogue;
use super::inner::{Dots, Inner, padded};
use super::scratch;
use crate::contracts::GemmParams;
use crate::device::Host;
use crate::dtype::Real;

/// Rows of A up to which reading B dominates.
pub(super) const MAX_ROWS: usize = 8;

/// Weights per piece of work, bytes: long enough for what is fetched ahead to be used by the same
/// thread, short enough to balance.
const PIECE: usize = 256 << 10;

/// Columns of C whose sums are kept before they are finished.
const COLS: usize = 64;

/// Where the rows of A are, in the form `dots` wants.
struct Left {
    rows: *const u8,
    stride: usize,
}

// SAFETY: only read while shared.
unsafe impl Sync for Left {}

/// # Safety
/// The params are valid for element type `T`, with 1 <= m <= MAX_ROWS, and `inner` is for `T` and
/// this processor.
pub(super) unsafe fn run<T: Real>(p: &GemmParams, host: &Host, inner: &Inner) {
    let size = size_of::<T>();
    let (m, k) = (p.m as usize, p.k as usize);
    let Some(prepare) = inner.prepare else {
        let left = Left { rows: p.a.cast(), stride: p.lda as usize * size };
        // SAFETY: the caller's.
        return unsafe { pieces::<T>(p, host, inner, &left) };
    };
    scratch::with(&scratch::SHARED, m * padded(k), |words| {
        for i in 0..m {
            // SAFETY: row i of A, and of the scratch.
            unsafe {
                let row = p.a.cast::<T>().add(i * p.lda as usize);
                prepare(row.cast(), k, words.add(i * padded(k)).cast());
            }
        }
        let left = Left { rows: words.cast_const().cast(), stride: padded(k) * 4 };
        // SAFETY: the caller's; the prepared rows live until every piece is done.
        unsafe { pieces::<T>(p, host, inner, &left) }
    });
}

unsafe fn pieces<T: Real>(p: &GemmParams, host: &Host, inner: &Inner, left: &Left) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let b_stride = p.ldb as usize * size_of::<T>();
    // SAFETY: the caller's.
    let epilogue = unsafe { Epilogue::new::<T>(p) };
    let rows = (PIECE / (k * size_of::<T>()).max(1)).min(n / (8 * host.pool.threads()));
    let rows = rows.next_multiple_of(COLS / 2).max(COLS / 2);
    let b = Left { rows: p.b.cast(), stride: b_stride };
    host.pool.run(n.div_ceil(rows), |piece| {
        let (left, b) = (left, &b);
        let mut sums = [0f32; MAX_ROWS * COLS];
        let end = n.min((piece + 1) * rows);
        for col in (piece * rows..end).step_by(COLS) {
            let cols = COLS.min(end - col);
            // SAFETY: columns below n of C and rows below n of B; `sums` has m rows of COLS, and
            // pieces are disjoint.
            unsafe {
                (inner.dots)(&Dots {
                    out: sums.as_mut_ptr(),
                    out_stride: COLS,
                    a: left.rows,
                    a_stride: left.stride,
                    b: b.rows.add(col * b.stride),
                    b_stride: b.stride,
                    m,
                    rows: cols,
                    k,
                });
                for (i, row) in sums.chunks_mut(COLS).take(m).enumerate() {
                    (inner.finish)(&epilogue, i, col, &mut row[..cols]);
                }
            }
        }
    });
}
