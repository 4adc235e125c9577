//! Rows of matrices behind the raw pointers of a contract, and how their work is shared out.

use super::gemm::math;
use crate::device::Host;
use crate::dtype::Real;
use std::cell::RefCell;
use std::ffi::c_void;
use std::ops::Range;

/// An address that threads may share: what is behind it is split among them by rows.
pub(super) struct Rows<T> {
    ptr: *mut T,
    stride: usize,
    cols: usize,
}

// Not derived: an address can be copied whatever is behind it.
impl<T> Clone for Rows<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Rows<T> {}

// SAFETY: only an address; the unsafe methods say who may use which row.
unsafe impl<T: Send> Send for Rows<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Rows<T> {}

impl<T> Rows<T> {
    /// Rows of `cols` elements, `stride` elements apart.
    pub(super) fn new(ptr: *const c_void, stride: i64, cols: usize) -> Self {
        Rows { ptr: ptr.cast_mut().cast(), stride: stride as usize, cols }
    }

    /// Rows without gaps.
    pub(super) fn dense(ptr: *const c_void, cols: usize) -> Self {
        Rows::new(ptr, cols as i64, cols)
    }

    /// Elements between rows.
    #[inline(always)]
    pub(super) fn stride(self) -> usize {
        self.stride
    }

    /// Row `r`.
    ///
    /// # Safety
    /// The row exists and nobody writes to it while the result lives.
    #[inline(always)]
    pub(super) unsafe fn get<'a>(self, r: usize) -> &'a [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts(self.ptr.add(r * self.stride), self.cols) }
    }

    /// Row `r`, exclusively.
    ///
    /// # Safety
    /// The row exists and nobody else uses it while the result lives.
    #[inline(always)]
    pub(super) unsafe fn get_mut<'a>(self, r: usize) -> &'a mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(r * self.stride), self.cols) }
    }

    /// `len` elements of row `r` from column `start`.
    ///
    /// # Safety
    /// They exist and nobody writes to them while the result lives.
    #[inline(always)]
    pub(super) unsafe fn part<'a>(self, r: usize, start: usize, len: usize) -> &'a [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts(self.ptr.add(r * self.stride + start), len) }
    }

    /// `len` elements of row `r` from column `start`, exclusively.
    ///
    /// # Safety
    /// They exist and nobody else uses them while the result lives.
    #[inline(always)]
    pub(super) unsafe fn part_mut<'a>(self, r: usize, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(r * self.stride + start), len) }
    }
}

/// Elements below which a launch is not worth waking a thread.
const GRAIN: usize = 16 * 1024;

fn rows_per_task(cols: usize) -> usize {
    (GRAIN / cols.max(1)).max(1)
}

/// How many tasks of about [`GRAIN`] elements there are, whatever the number of threads.
pub(super) fn row_tasks(rows: usize, cols: usize) -> usize {
    rows.div_ceil(rows_per_task(cols))
}

/// The rows of one task.
#[inline(always)]
pub(super) fn row_range(task: usize, rows: usize, cols: usize) -> Range<usize> {
    let per_task = rows_per_task(cols);
    task * per_task..((task + 1) * per_task).min(rows)
}

/// Calls `f` with the rows of each task, for work that needs no vectors.
pub(super) fn for_row_ranges(
    host: &Host,
    rows: usize,
    cols: usize,
    f: impl Fn(Range<usize>) + Sync,
) {
    host.pool.run(row_tasks(rows, cols), |task| f(row_range(task, rows, cols)));
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` floats of this thread from a cache line's start, left as the last user left them;
/// grows once, then allocates nothing. Not to be nested.
pub(super) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    const LINE: usize = 64;
    SCRATCH.with_borrow_mut(|buffer| {
        if buffer.len() < len + LINE / size_of::<f32>() {
            buffer.resize(len + LINE / size_of::<f32>(), 0.0);
        }
        let start = buffer.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        f(&mut buffer[start..start + len])
    })
}

/// `out[i] = x[i]`, rounded to nearest even.
#[inline(always)]
pub(super) fn narrow<T: Real>(x: &[f32], out: &mut [T]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = math::narrow(*x);
    }
}
