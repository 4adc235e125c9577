//! Products with quantised weights: a few rows of B become f32 in a scratch that stays in the
//! second cache, and the f32 inner loops take them from there. Memory is read as it is stored.

use super::epilogue::Epilogue;
use super::inner::{Dots, Inner, padded};
use super::{portable, scratch};
use crate::contracts::GemmParams;
use crate::device::{Host, Isa};
use crate::dtype::Real;

/// Rows of A that are multiplied at a time.
const ROWS: usize = 8;
/// Rows of B that a piece of work expands and multiplies.
const COLS: usize = 16;
/// Weights of a row with a scale in common, in 4 bits.
pub(in crate::ops) const GROUP: usize = 128;

/// How B is stored; its rows are `ldb` bytes apart, whatever the element type of the launch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Stored {
    /// Signed bytes, a scale per row.
    Int8,
    /// Nibbles, a scale per row and [`GROUP`].
    Int4,
}

/// B: its format and scales.
pub(in crate::ops) struct Weights {
    pub stored: Stored,
    pub scales: *const f32,
}

// SAFETY: only read while shared.
unsafe impl Sync for Weights {}

/// A launch, with A widened.
struct Task<'a> {
    p: &'a GemmParams,
    weights: &'a Weights,
    epilogue: Epilogue,
    a: *const u32,
    expand: unsafe fn(Stored, *const u8, *const f32, &mut [f32]),
    dots: unsafe fn(&Dots),
    finish: unsafe fn(&Epilogue, usize, usize, &mut [f32]),
}

// SAFETY: threads write disjoint columns of C and only read the rest.
unsafe impl Sync for Task<'_> {}

/// # Safety
/// The params are valid for element type `T`, but for B, which is `weights`; m and n are not 0;
/// the inner loops are for f32 and for `T`, and for the host's processor.
pub(super) unsafe fn run<T: Real>(
    p: &GemmParams,
    weights: &Weights,
    host: &Host,
    (loops, own): (&Inner, &Inner),
) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    scratch::with(&scratch::SHARED, m * padded(k), |a| {
        for i in 0..m {
            // SAFETY: row i of A, and of the scratch.
            unsafe {
                let row = p.a.cast::<T>().add(i * p.lda as usize);
                portable::prepare::<T>(row.cast(), k, a.add(i * padded(k)).cast());
            }
        }
        let (dots, finish) = (loops.dots, own.finish);
        // SAFETY: the caller's.
        let epilogue = unsafe { Epilogue::new::<T>(p) };
        let expand = expand_for(host.isa);
        let task = Task { p, weights, epilogue, a: a.cast_const(), expand, dots, finish };
        // SAFETY: columns below n, each once; A stays until every piece is done.
        host.pool.run(n.div_ceil(COLS), |piece| unsafe { task.piece(piece * COLS) });
    });
}

impl Task<'_> {
    /// # Safety
    /// `col < n`, and no other thread has a column of `col .. col + COLS`.
    unsafe fn piece(&self, col: usize) {
        let (m, n, k) = (self.p.m as usize, self.p.n as usize, self.p.k as usize);
        let (width, cols) = (padded(k), COLS.min(n - col));
        scratch::with(&scratch::OWN, COLS * width, |b| {
            for j in 0..cols {
                // SAFETY: a row of B, its scales, and a row of the scratch.
                unsafe { self.expand_row(col + j, b.add(j * width).cast()) };
            }
            let mut sums = [0f32; ROWS * COLS];
            for row in (0..m).step_by(ROWS) {
                let rows = ROWS.min(m - row);
                // SAFETY: rows below m, columns below n; `sums` has `rows` rows of COLS.
                unsafe {
                    (self.dots)(&Dots {
                        out: sums.as_mut_ptr(),
                        out_stride: COLS,
                        a: self.a.add(row * width).cast(),
                        a_stride: width * 4,
                        b: b.cast_const().cast(),
                        b_stride: width * 4,
                        m: rows,
                        rows: cols,
                        k,
                    });
                    for (i, sums) in sums.chunks_mut(COLS).take(rows).enumerate() {
                        (self.finish)(&self.epilogue, row + i, col, &mut sums[..cols]);
                    }
                }
            }
        });
    }

    /// # Safety
    /// `row < n`, and `to` has room for k floats.
    unsafe fn expand_row(&self, row: usize, to: *mut f32) {
        let k = self.p.k as usize;
        let scales = match self.weights.stored {
            Stored::Int8 => 1,
            Stored::Int4 => k / GROUP,
        };
        // SAFETY: the caller's; the row's bytes and scales are in B.
        unsafe {
            let bytes = self.p.b.cast::<u8>().add(row * self.p.ldb as usize);
            let to = std::slice::from_raw_parts_mut(to, k);
            (self.expand)(self.weights.stored, bytes, self.weights.scales.add(row * scales), to);
        }
    }
}

fn expand_for(isa: Isa) -> unsafe fn(Stored, *const u8, *const f32, &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx2 => expand_avx2,
        _ => expand,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn expand_avx2(stored: Stored, row: *const u8, scales: *const f32, to: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { expand(stored, row, scales, to) }
}

/// The weights of a row, scaled: the same bits on every instruction set.
///
/// # Safety
/// `row` and `scales` hold as many weights as `to`, in this format.
#[inline(always)]
unsafe fn expand(stored: Stored, row: *const u8, scales: *const f32, to: &mut [f32]) {
    if stored == Stored::Int8 {
        // SAFETY: the caller's.
        let scale = unsafe { *scales };
        for (i, x) in to.iter_mut().enumerate() {
            // SAFETY: as above.
            *x = f32::from(unsafe { *row.cast::<i8>().add(i) }) * scale;
        }
        return;
    }
    for (group, to) in to.chunks_exact_mut(GROUP).enumerate() {
        // SAFETY: the caller's.
        let scale = unsafe { *scales.add(group) };
        for (i, eight) in to.chunks_exact_mut(8).enumerate() {
            // SAFETY: 4 bytes for 8 weights.
            let at = unsafe { row.add(group * GROUP / 2 + 4 * i) };
            // SAFETY: as above.
            let word = u32::from_le(unsafe { at.cast::<u32>().read_unaligned() });
            for (j, x) in eight.iter_mut().enumerate() {
                let nibble = word >> (4 * (j / 2) + 16 * (j % 2)) & 15;
                *x = (nibble as i32 - 8) as f32 * scale;
            }
        }
    }
}
