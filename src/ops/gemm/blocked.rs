//! Many rows of A: both operands are packed for the registers, B block by block on the fly.
//!
//! ```text
//! pack A                                            panels of tile rows, all of k   shared
//! for each block of C (in parallel):
//!   for each block of k, for each panel of B:       packed when it is needed        per thread
//!     for each panel of A:                          sums += tile                    per thread
//!   finish the sums
//! ```
//! Packing costs one pass over B per block of rows; B itself is never kept in another form. Weights
//! of few bits become elements just before they are packed, and their scales multiply the sums of a
//! block of k, which never crosses a group. The summation order of an element depends on k alone.

use super::codes::{Codes, Expand, GROUP, expand_for};
use super::epilogue::Epilogue;
use super::inner::{Fetch, Inner, Panel, Tile};
use super::scratch;
use crate::contracts::GemmParams;
use crate::device::Host;
use crate::dtype::Real;

/// Units of k per panel of B, at most.
const K_UNITS: usize = 256;
/// Columns of a panel of B, on any instruction set, at most.
const MOST_COLS: usize = 32;
/// Most columns of C per block.
const COLS: usize = 256;
/// Most rows of C per block: its part of A, ROWS * K_UNITS * 4 = 512 KiB, stays in the second
/// cache.
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

/// A part of B that becomes one panel: columns of C from `col` on, of a block from `start` to
/// `end`, and units of k from `unit` on.
#[derive(Clone, Copy)]
struct Part {
    col: usize,
    start: usize,
    end: usize,
    unit: usize,
    /// First column of the next block.
    guess: usize,
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
    /// How B is stored, if not as elements.
    codes: Option<&'a Codes>,
    /// Units of k per panel of B.
    k_units: usize,
    /// Columns and panels of A per block.
    cols: usize,
    tall: usize,
}

// SAFETY: threads write disjoint panels of A, then disjoint blocks of C, and read the rest.
unsafe impl Sync for Pass<'_> {}

/// # Safety
/// The params are valid for element type `T`, but for B if there are `codes`; m and n are not 0,
/// and `inner` is for `T` and this processor.
pub(super) unsafe fn run<T: Real>(
    p: &GemmParams,
    codes: Option<&Codes>,
    host: &Host,
    inner: &Inner,
) {
    // SAFETY: the caller's.
    let epilogue = unsafe { Epilogue::new::<T>(p) };
    let units = (p.k as usize).div_ceil(inner.pair);
    let most = (A_WORDS / units.max(1)).max(inner.rows);
    let (m, n) = (p.m as usize, p.n as usize);
    let is_grouped = codes.is_some_and(|c| c.bits == 4);
    let k_units = if is_grouped { GROUP / inner.pair } else { K_UNITS };
    let expand = expand_for::<T>(host.isa);
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
            let pass = Pass {
                p,
                inner,
                epilogue,
                row,
                panels,
                a,
                units,
                size,
                codes,
                k_units,
                cols,
                tall,
            };
            // SAFETY: panels and blocks inside their ranges, each once; A is packed before it is
            // used, because `run` returns when all pieces are done.
            host.pool.run(panels.count, |i| unsafe { pass.pack_a(i) });
            host.pool.run(n.div_ceil(cols) * stacks, |i| unsafe {
                let guess = (i + host.pool.threads()) / stacks * cols;
                pass.block(i / stacks * cols, i % stacks * tall, guess, expand)
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

    /// Columns from `col` on of the panels from `top` on. The thread's next block probably begins
    /// with column `guess`.
    unsafe fn block<T: Real>(&self, col: usize, top: usize, guess: usize, expand: Expand<T>) {
        let bottom = self.panels.count.min(top + self.tall);
        let cols = self.cols.min(self.p.n as usize - col);
        let width = cols.next_multiple_of(self.inner.cols);
        let rows = self.panels.start(bottom) - self.panels.start(top);
        let b_words = self.inner.cols * self.k_units;
        let expanded = if self.codes.is_some() { b_words } else { 0 };
        scratch::with(&scratch::OWN, b_words + rows * width + expanded, |b| {
            // SAFETY: the sums follow the panel of B in the scratch, and elements follow them.
            let (sums, elements) =
                unsafe { (b.add(b_words).cast::<f32>(), b.add(b_words + rows * width)) };
            if self.units == 0 {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(sums, rows * width) }.fill(0.0);
            }
            for unit in (0..self.units).step_by(self.k_units) {
                for first in (0..cols).step_by(self.inner.cols) {
                    let part = Part { col: col + first, start: col, end: col + cols, unit, guess };
                    // SAFETY: columns below n and units below `units`.
                    unsafe {
                        let panel = self.panel(part);
                        match self.codes {
                            None => (self.inner.pack)(&panel, b),
                            Some(codes) => {
                                let panel = expanded_panel(&panel, codes, elements.cast(), expand);
                                (self.inner.pack)(&panel, b)
                            }
                        }
                        self.multiply((top, bottom), part, b, sums.add(first), width);
                    }
                }
            }
            // SAFETY: every sum has been computed.
            unsafe { self.finish((col, cols), (top, bottom), width, sums) };
        });
    }

    /// Bytes of `k` elements of a row of B.
    fn bytes(&self, k: usize) -> usize {
        self.codes.map_or(k * self.size, |codes| k * codes.bits / 8)
    }

    /// The rows of B, and elements of them, that become one packed panel.
    fn panel(&self, part: Part) -> Panel {
        let (pair, lanes) = (self.inner.pair, self.inner.cols);
        // In bytes, where they are codes.
        let stride = self.p.ldb as usize * if self.codes.is_some() { 1 } else { self.size };
        let k = (self.k_units * pair).min(self.p.k as usize - part.unit * pair);
        let offset = part.col * stride + self.bytes(part.unit * pair);
        let src = self.p.b.cast::<u8>().wrapping_add(offset);
        Panel { src, stride, rows: lanes.min(part.end - part.col), lanes, k }
    }

    /// The panel that this thread will probably pack after `part`.
    fn after(&self, part: Part) -> Option<Panel> {
        let right = part.col + self.inner.cols;
        let below = part.unit + self.k_units;
        if right < part.end {
            Some(self.panel(Part { col: right, ..part }))
        } else if below < self.units {
            Some(self.panel(Part { col: part.start, unit: below, ..part }))
        } else {
            let (col, n) = (part.guess, self.p.n as usize);
            let part = Part { col, end: n.min(col + self.cols), unit: 0, ..part };
            (col > part.start && col < n).then(|| self.panel(part))
        }
    }

    /// Adds the products of panels `top .. bottom` of A and the packed part of B to `sums`. On the
    /// way the next part of B is asked for, so that memory works while the registers do.
    unsafe fn multiply(
        &self,
        (top, bottom): (usize, usize),
        part: Part,
        b: *const u32,
        sums: *mut f32,
        width: usize,
    ) {
        let units = self.k_units.min(self.units - part.unit);
        let next = self.after(part);
        let mut scales = [0f32; MOST_COLS];
        if let Some(codes) = self.codes {
            for (scale, row) in scales.iter_mut().zip(part.col..part.end) {
                // SAFETY: a row of B, and an element of it.
                *scale = unsafe { codes.scale(row, part.unit * self.inner.pair) };
            }
        }
        let mut fetched = 0;
        for panel in top..bottom {
            let (first, end) = (self.panels.start(panel), self.panels.start(panel + 1));
            let (rows, row) = (end - first, first - self.panels.start(top));
            let fetch = next.as_ref().map_or(Fetch::new(std::ptr::null(), 0, 0, 0), |next| {
                // Spread over the tiles, but no more than one line per unit.
                let share = next.rows.div_ceil(bottom - top).min(next.rows - fetched);
                let at = next.src.wrapping_add(fetched * next.stride);
                fetched += share;
                Fetch::new(at, next.stride, self.bytes(next.k), share)
            });
            // SAFETY: inside A's panel, B's and the block of sums.
            unsafe {
                let tile = Tile {
                    c: sums.add(row * width),
                    ldc: width,
                    a: self.a.add(first * self.units + part.unit * rows),
                    b,
                    units,
                    scales: self.codes.map(|_| scales.as_ptr()),
                    accumulate: part.unit > 0,
                    fetch,
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

/// `panel` of codes as one of elements, in `to`.
///
/// # Safety
/// The codes are there, and `to` has room for all lanes.
unsafe fn expanded_panel<T: Real>(
    panel: &Panel,
    codes: &Codes,
    to: *mut T,
    expand: Expand<T>,
) -> Panel {
    for row in 0..panel.rows {
        // SAFETY: the caller's.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to.add(row * panel.k), panel.k);
            expand(codes.bits, panel.src.add(row * panel.stride), to);
        }
    }
    Panel { src: to.cast_const().cast(), stride: panel.k * size_of::<T>(), ..*panel }
}
