//! Weights of few bits: how they are laid out, and products of few rows with them.
//!
//! A row's codes go from memory through registers into f32 multiply-adds, so that the time is that
//! of reading what is stored. Products of many rows are those of [`blocked`](super::blocked).

use super::epilogue::Epilogue;
use super::math::{narrow, widen};
use super::scratch;
use crate::contracts::{GemmParams, GemmQuantizedParams};
use crate::device::{Host, Isa};
use crate::dtype::Real;
use crate::ops::lanes::{self, Grid, Lanes};
use half::bf16;
use std::marker::PhantomData;

/// Weights of 4 bits with a scale in common.
pub(in crate::ops) const GROUP: usize = 128;
/// The nibble of a word, from the lowest, that holds each of its weights: see the contract.
const PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
/// Bytes of a row that are multiplied at a time: a line of memory; 64 or [`GROUP`] weights.
const LINE: usize = 64;
/// Bytes of codes per piece of work, as in `stream`.
const PIECE: usize = 256 << 10;
/// Columns of C whose sums are kept before they are finished.
const COLS: usize = 64;
/// How far ahead a line is asked for at least, bytes.
const AHEAD: usize = 16 << 10;

/// How B is stored.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    pub bits: usize,
    scales: *const bf16,
    /// Scales of a row.
    groups: usize,
}

// SAFETY: only read while shared.
unsafe impl Sync for Codes {}

impl Codes {
    pub(super) fn new(p: &GemmQuantizedParams) -> Self {
        let groups = if p.bits == 8 { 1 } else { p.product.k as usize / GROUP };
        Codes { bits: p.bits as usize, scales: p.scales.cast(), groups }
    }

    /// The scale of `row` at `k`.
    ///
    /// # Safety
    /// They are in B.
    #[inline(always)]
    pub(super) unsafe fn scale(&self, row: usize, k: usize) -> f32 {
        let group = if self.bits == 8 { 0 } else { k / GROUP };
        // SAFETY: the caller's.
        widen(unsafe { *self.scales.add(row * self.groups + group) })
    }
}

/// The codes at `from` as numbers, without their scale: exact in every `T`.
pub(super) type Expand<T> = unsafe fn(usize, *const u8, &mut [T]);

pub(super) fn expand_for<T: Real>(isa: Isa) -> Expand<T> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx2 => expand_avx2::<T>,
        _ => expand::<T>,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn expand_avx2<T: Real>(bits: usize, from: *const u8, to: &mut [T]) {
    // SAFETY: the caller's.
    unsafe { expand(bits, from, to) }
}

/// # Safety
/// `from` holds as many codes as `to`; those of 4 bits begin with a word.
#[inline(always)]
unsafe fn expand<T: Real>(bits: usize, from: *const u8, to: &mut [T]) {
    if bits == 8 {
        for (i, x) in to.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *x = narrow(f32::from(unsafe { *from.cast::<i8>().add(i) }));
        }
        return;
    }
    for (i, eight) in to.chunks_exact_mut(8).enumerate() {
        // SAFETY: 4 bytes for 8 weights.
        let word = u32::from_le(unsafe { from.add(4 * i).cast::<u32>().read_unaligned() });
        for (x, place) in eight.iter_mut().zip(PLACE) {
            *x = narrow(((word >> (4 * place) & 15) as i32 - 8) as f32);
        }
    }
}

/// # Safety
/// The params are valid for element type `T`, with 1 <= m <= `MAX_ROWS`.
pub(super) unsafe fn run<T: Real, const MAX_ROWS: usize>(
    p: &GemmParams,
    codes: &Codes,
    host: &Host,
) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let line = LINE * 8 / codes.bits;
    let width = k.next_multiple_of(line);
    scratch::with(&scratch::SHARED, m * width, |words| {
        // SAFETY: `m` rows of `width` words, which are initialised.
        let a = unsafe { std::slice::from_raw_parts_mut(words.cast::<f32>(), m * width) };
        for (i, to) in a.chunks_exact_mut(width.max(1)).enumerate() {
            // SAFETY: row i of A.
            let row =
                unsafe { std::slice::from_raw_parts(p.a.cast::<T>().add(i * p.lda as usize), k) };
            prepare(codes.bits, row, to);
        }
        let row_bytes = (k * codes.bits / 8).max(1);
        let rows = (PIECE / row_bytes).min(n / (8 * host.pool.threads()));
        let rows = rows.next_multiple_of(COLS / 2).max(COLS / 2);
        // SAFETY: the caller's.
        let epilogue = unsafe { Epilogue::new::<T>(p) };
        let b = p.b.cast::<u8>();
        let few = Few::<T, MAX_ROWS> {
            p,
            codes,
            epilogue,
            a: a.as_ptr(),
            width,
            b,
            rows,
            element: PhantomData,
        };
        // SAFETY: columns below n, each once; A stays until every piece is done.
        unsafe { lanes::run(host, n.div_ceil(rows), &few) };
    });
}

/// `row` in the order in which `line` multiplies it, zeros behind: as it is for 8 bits; for 4, of
/// 16 words first what their lowest nibbles are multiplied by, then the next.
fn prepare<T: Real>(bits: usize, row: &[T], to: &mut [f32]) {
    for (i, x) in to.iter_mut().enumerate() {
        *x = row.get(i).map_or(0.0, |x| widen(*x));
    }
    if bits == 4 {
        for group in to.chunks_exact_mut(GROUP) {
            let plain: [f32; GROUP] = std::array::from_fn(|i| group[i]);
            for (i, x) in plain.into_iter().enumerate() {
                group[PLACE[i % 8] * 16 + i / 8] = x;
            }
        }
    }
}

/// A launch, with A prepared: rows of `width`.
struct Few<'a, T, const MAX_ROWS: usize> {
    p: &'a GemmParams,
    codes: &'a Codes,
    epilogue: Epilogue,
    a: *const f32,
    width: usize,
    b: *const u8,
    /// Of B, per piece of work.
    rows: usize,
    element: PhantomData<T>,
}

// SAFETY: threads write disjoint columns of C and only read the rest.
unsafe impl<T, const MAX_ROWS: usize> Sync for Few<'_, T, MAX_ROWS> {}

impl<T: Real, const MAX_ROWS: usize> Grid for Few<'_, T, MAX_ROWS> {
    fn scratch(&self, _: usize) -> usize {
        MAX_ROWS * COLS
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, sums: &mut [f32]) {
        let (m, n) = (self.p.m as usize, self.p.n as usize);
        let end = n.min((task + 1) * self.rows);
        for col in (task * self.rows..end).step_by(COLS) {
            let cols = COLS.min(end - col);
            for row in (0..m).step_by(4) {
                let out = &mut sums[row * COLS..];
                // SAFETY: rows below m and columns below n.
                unsafe {
                    match m - row {
                        1 => self.columns::<L, 1, 4>(row, col, cols, out),
                        2 => self.columns::<L, 2, 4>(row, col, cols, out),
                        3 => self.columns::<L, 3, 2>(row, col, cols, out),
                        _ => self.columns::<L, 4, 2>(row, col, cols, out),
                    }
                }
            }
            for (i, sums) in sums.chunks_exact_mut(COLS).take(m).enumerate() {
                let sums = &mut sums[..cols];
                if self.codes.bits == 8 {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: a row of B.
                        *sum *= unsafe { self.codes.scale(col + j, 0) };
                    }
                }
                // SAFETY: columns below n of C, which no other task has.
                unsafe { self.epilogue.finish::<T>(i, col, sums) };
            }
        }
    }
}

impl<T, const MAX_ROWS: usize> Few<'_, T, MAX_ROWS> {
    /// M rows of A from `row` on against `cols` rows of B, R at a time.
    #[inline(always)]
    unsafe fn columns<L: Lanes, const M: usize, const R: usize>(
        &self,
        row: usize,
        col: usize,
        cols: usize,
        out: &mut [f32],
    ) {
        let whole = cols / R * R;
        // SAFETY: the caller's.
        unsafe {
            for j in (0..whole).step_by(R) {
                self.group::<L, M, R>(row, col + j, &mut out[j..]);
            }
            for j in whole..cols {
                self.group::<L, M, 1>(row, col + j, &mut out[j..]);
            }
        }
    }

    /// `out[i * COLS + j]` = row `row + i` of A . row `col + j` of B. The next rows of B are asked
    /// for in the order of their addresses: `avx512` says why.
    #[inline(always)]
    unsafe fn group<L: Lanes, const M: usize, const R: usize>(
        &self,
        row: usize,
        col: usize,
        out: &mut [f32],
    ) {
        let stride = self.p.ldb as usize;
        let bytes = self.p.k as usize * self.codes.bits / 8;
        // SAFETY: rows of A and B; lines of them; the last line of B is a copy with zeros behind.
        unsafe {
            let (mut a, mut b) = ([self.a; M], [self.b; R]);
            for (i, a) in a.iter_mut().enumerate() {
                *a = a.add((row + i) * self.width);
            }
            for (j, b) in b.iter_mut().enumerate() {
                *b = b.add((col + j) * stride);
            }
            let mut next = b[0].wrapping_add((R * stride).max(AHEAD));
            let mut sums = [[L::splat(0.0); R]; M];
            for at in (0..bytes / LINE * LINE).step_by(LINE) {
                for j in 0..R {
                    L::fetch(next.wrapping_add(j * LINE));
                }
                next = next.wrapping_add(R * LINE);
                let mut lines = b;
                for line in &mut lines {
                    *line = line.add(at);
                }
                self.line::<L, M, R>(col, at, a, lines, &mut sums);
            }
            let rest = bytes % LINE;
            if rest > 0 {
                let (mut last, mut lines) = ([[0u8; LINE]; R], b);
                for (last, line) in last.iter_mut().zip(&mut lines) {
                    std::ptr::copy_nonoverlapping(line.add(bytes - rest), last.as_mut_ptr(), rest);
                    *line = last.as_ptr();
                }
                self.line::<L, M, R>(col, bytes - rest, a, lines, &mut sums);
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    out[i * COLS + j] = lanes::sum::<L>(sum);
                }
            }
        }
    }

    /// Adds the products of the lines `b`, which are `at` bytes into their rows. Plain loops: what
    /// a closure does is not always compiled for the instruction set.
    #[inline(always)]
    unsafe fn line<L: Lanes, const M: usize, const R: usize>(
        &self,
        col: usize,
        at: usize,
        a: [*const f32; M],
        b: [*const u8; R],
        sums: &mut [[L::V; R]; M],
    ) {
        // SAFETY: 64 or 128 elements of A and as many codes at each pointer.
        unsafe {
            let mut q = [L::splat(0.0); R];
            if self.codes.bits == 8 {
                for i in (0..LINE).step_by(L::N) {
                    for (q, b) in q.iter_mut().zip(b) {
                        *q = L::load_i8(b.add(i));
                    }
                    add::<L, M, R>(a, at + i, q, sums);
                }
                return;
            }
            let k = 2 * at;
            let mut scales = [L::scale(0.0); R];
            for (j, scale) in scales.iter_mut().enumerate() {
                *scale = L::scale(self.codes.scale(col + j, k));
            }
            for first in (0..LINE / 4).step_by(L::N) {
                let mut words = [L::words(b[0].add(4 * first)); R];
                for (words, b) in words.iter_mut().zip(b) {
                    *words = L::words(b.add(4 * first));
                }
                for nibble in 0..8 {
                    for ((q, words), scale) in q.iter_mut().zip(words).zip(scales) {
                        *q = L::nibble(words, 4 * nibble as u32, scale);
                    }
                    add::<L, M, R>(a, k + nibble * 16 + first, q, sums);
                }
            }
        }
    }
}

/// Adds the products of `q` and what A has at `k`.
#[inline(always)]
unsafe fn add<L: Lanes, const M: usize, const R: usize>(
    a: [*const f32; M],
    k: usize,
    q: [L::V; R],
    sums: &mut [[L::V; R]; M],
) {
    for (i, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let a = L::load(a[i].add(k));
            for (sum, q) in sums.iter_mut().zip(q) {
                *sum = L::fma(a, q, *sum);
            }
        }
    }
}
