//! Many rows of A: both operands are packed for the registers, B block by block on the fly.
//!
//! ```text
//! pack A                                            panels of tile rows, all of k   shared
//! for each block of C (in parallel):
//!   for each block of k:
//!     pack B                                        stays in the second cache       per thread
//!     for each panel of A, for each panel of B:     sums += tile                    per thread
//!   finish the sums
//! ```
//! Packing costs one pass over B per block of rows; B itself is never kept in another form. The
//! summation order of an element depends on k alone.

use super::epilogue::Epilogue;
use super::inner::{Inner, Panel, Tile};
use super::scratch;
use crate::contracts::GemmParams;
use crate::device::Host;
use crate::dtype::Real;

/// Units of k per packed block of B.
const K_UNITS: usize = 512;
/// Most columns of C per block: B's block is K_UNITS * COLS * 4 = 512 KiB.
const COLS: usize = 256;
/// Most rows of C per block.
const ROWS: usize = 512;
/// Most words of packed A: 24 MiB.
const A_WORDS: usize = 6 << 20;

/// Rows of A, divided into panels whose heights differ by one at most.
#[derive(Clone, Copy)]
struct Panels {
    rows: usize,
    count: usize,
}

impl Panels {
    fn new(rows: usize, most: usize) -> Self {
        Panels { rows, count: rows.div_ceil(most) }
    }

    /// First row of panel `i`; `start(count)` is the number of rows.
    fn start(self, i: usize) -> usize {
        let (height, taller) = (self.rows / self.count, self.rows % self.count);
        i * height + i.min(taller)
    }
}

/// One pass over B for as many rows of A as are packed at a time.
struct Pass<'a> {
    p: &'a GemmParams,
    inner: &'a Inner,
    epilogue: &'a Epilogue,
    /// First row of A and C.
    row: usize,
    panels: Panels,
    a: *mut u32,
    units: usize,
    size: usize,
    /// Columns and panels of A per block.
    cols: usize,
    tall: usize,
}

// SAFETY: threads write disjoint panels of A, then disjoint blocks of C, and read the rest.
unsafe impl Sync for Pass<'_> {}

/// # Safety
/// The params are valid for element type `T`, m and n are not 0, and `inner` is for `T` and this
/// processor.
pub(super) unsafe fn run<T: Real>(p: &GemmParams, host: &Host, inner: &Inner) {
    // SAFETY: the caller's.
    let epilogue = unsafe { Epilogue::new::<T>(p) };
    let units = (p.k as usize).div_ceil(inner.pair);
    let most = (A_WORDS / units.max(1)).max(inner.rows);
    let (m, n) = (p.m as usize, p.n as usize);
    for row in (0..m).step_by(most) {
        let panels = Panels::new(most.min(m - row), inner.rows);
        let tall = panels.count.div_ceil(panels.rows.div_ceil(ROWS));
        let stacks = panels.count.div_ceil(tall);
        let mut cols = COLS;
        while cols > 2 * inner.cols && n.div_ceil(cols) * stacks < 4 * host.pool.threads() {
            cols /= 2;
        }
        scratch::with(&scratch::SHARED, panels.rows * units, |a| {
            let size = size_of::<T>();
            let epilogue = &epilogue;
            let pass = Pass { p, inner, epilogue, row, panels, a, units, size, cols, tall };
            // SAFETY: panels and blocks inside their ranges, each once; A is packed before it is
            // used, because `run` returns when all pieces are done.
            host.pool.run(panels.count, |i| unsafe { pass.pack_a(i) });
            host.pool.run(n.div_ceil(cols) * stacks, |i| unsafe {
                pass.block(i / stacks * cols, i % stacks * tall)
            });
        });
    }
}

impl Pass<'_> {
    unsafe fn pack_a(&self, panel: usize) {
        let (first, end) = (self.panels.start(panel), self.panels.start(panel + 1));
        let stride = self.p.lda as usize * self.size;
        // SAFETY: rows first .. end of this pass are in A, and their panel is in the scratch.
        unsafe {
            let src = self.p.a.cast::<u8>().add((self.row + first) * stride);
            let rows = end - first;
            let panel = Panel { src, stride, rows, lanes: rows, k: self.p.k as usize };
            (self.inner.pack)(&panel, self.a.add(first * self.units));
        }
    }

    /// Columns from `col` on of the panels from `top` on.
    unsafe fn block(&self, col: usize, top: usize) {
        let bottom = self.panels.count.min(top + self.tall);
        let cols = self.cols.min(self.p.n as usize - col);
        let width = cols.next_multiple_of(self.inner.cols);
        let rows = self.panels.start(bottom) - self.panels.start(top);
        let b_words = width * K_UNITS.min(self.units);
        scratch::with(&scratch::OWN, b_words + rows * width, |b| {
            // SAFETY: the sums follow the block of B in the scratch.
            let sums = unsafe { b.add(b_words) }.cast::<f32>();
            if self.units == 0 {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(sums, rows * width) }.fill(0.0);
            }
            for unit in (0..self.units).step_by(K_UNITS) {
                let units = K_UNITS.min(self.units - unit);
                // SAFETY: columns col .. col + cols and units unit .. unit + units exist.
                unsafe {
                    self.pack_b(col, cols, unit, units, b);
                    for panel in top..bottom {
                        self.multiply(panel, top, width, (unit, units), b, sums);
                    }
                }
            }
            // SAFETY: every sum has been computed.
            unsafe { self.finish((col, cols), (top, bottom), width, sums) };
        });
    }

    unsafe fn pack_b(&self, col: usize, cols: usize, unit: usize, units: usize, b: *mut u32) {
        let (pair, lanes) = (self.inner.pair, self.inner.cols);
        let stride = self.p.ldb as usize * self.size;
        let k = (units * pair).min(self.p.k as usize - unit * pair);
        for first in (0..cols).step_by(lanes) {
            // SAFETY: the caller's; a panel has `units * lanes` words.
            unsafe {
                let src = self.p.b.cast::<u8>().add((col + first) * stride);
                let src = src.add(unit * pair * self.size);
                let panel = Panel { src, stride, rows: lanes.min(cols - first), lanes, k };
                (self.inner.pack)(&panel, b.add(first * units));
            }
        }
    }

    unsafe fn multiply(
        &self,
        panel: usize,
        top: usize,
        width: usize,
        (unit, units): (usize, usize),
        b: *const u32,
        sums: *mut f32,
    ) {
        let (first, end) = (self.panels.start(panel), self.panels.start(panel + 1));
        let (rows, row) = (end - first, first - self.panels.start(top));
        for col in (0..width).step_by(self.inner.cols) {
            // SAFETY: inside A's panel, B's block and the block of sums.
            unsafe {
                let tile = Tile {
                    c: sums.add(row * width + col),
                    ldc: width,
                    a: self.a.add(first * self.units + unit * rows),
                    b: b.add(col * units),
                    units,
                    accumulate: unit > 0,
                };
                (self.inner.tile)(rows, &tile);
            }
        }
    }

    unsafe fn finish(
        &self,
        (col, cols): (usize, usize),
        (top, bottom): (usize, usize),
        width: usize,
        sums: *mut f32,
    ) {
        let (first, end) = (self.panels.start(top), self.panels.start(bottom));
        for row in first..end {
            // SAFETY: a row of the sums, and the same part of C.
            unsafe {
                let start = sums.add((row - first) * width);
                let row_sums = std::slice::from_raw_parts_mut(start, cols);
                (self.inner.finish)(self.epilogue, self.row + row, col, row_sums);
            }
        }
    }
}
