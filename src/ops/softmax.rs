//! Softmax-weighted sums of values: the core of all three attentions.
//!
//! Many queries are taken in blocks: keys and values of a block are widened to f32 once, keys
//! transposed, and both products are register tiles; the softmax is the running one of
//! arXiv:1805.02867. Few queries read keys and values where they lie. How keys are cut into
//! blocks depends on their index only. Rows of a tile share its values: a NaN or infinite value
//! that one of them sees makes NaN of the others, masked or not (0 times NaN).

use super::lanes::{Lanes, PAD, exp, load, max, sum};
use super::rows::narrow;
use crate::dtype::Real;

/// Keys per block: both operands of a block and 384 rows of output stay in a 1 MiB cache at
/// head width 128.
const KEYS: usize = 384;
/// Queries per task.
pub(super) const QUERIES: usize = 384;
/// Below this, reading keys in place beats transposing them.
const MANY: usize = 8;
/// Consecutive keys and values, `stride` elements apart.
pub(super) struct Run<T> {
    pub k: *const T,
    pub v: *const T,
    pub stride: usize,
    pub len: usize,
}

/// Where one head's keys and values lie.
pub(super) trait Keys<T> {
    /// The run that begins at key `j`.
    ///
    /// # Safety
    /// The launch's params are valid and the key exists.
    unsafe fn run(&self, j: usize) -> Run<T>;
}

/// The queries of one head, and what each of them sees.
pub(super) struct Queries<T> {
    pub o: *mut T,
    pub q: *const T,
    pub o_stride: usize,
    pub q_stride: usize,
    pub rows: usize,
    pub head_dim: usize,
    /// Row i sees the keys below `seen + i * step`, at least one.
    pub seen: usize,
    pub step: usize,
    pub scale: f32,
    /// Times (key - last seen key), added to the scaled score.
    pub slope: f32,
}

impl<T> Queries<T> {
    fn seen(&self, row: usize) -> usize {
        self.seen + row * self.step
    }
}

/// Floats of scratch for [`attend`] with tiles of `m` rows.
pub(super) fn scratch(head_dim: usize, m: usize) -> usize {
    let padded = head_dim.next_multiple_of(PAD);
    let rows = QUERIES.next_multiple_of(m);
    2 * KEYS * padded + m * (KEYS + padded) + rows * (padded + 2) + 4 * PAD
}

/// o = softmax(scale * q k^T + bias) v for all queries.
///
/// # Safety
/// As [`Grid::task`](super::lanes::Grid::task); rows of o belong to the caller; scratch is as
/// long as [`scratch`] says.
#[inline(always)]
pub(super) unsafe fn attend<T: Real, L: Lanes, const M: usize>(
    queries: &Queries<T>,
    keys: &impl Keys<T>,
    scratch: &mut [f32],
) {
    // SAFETY: the caller's.
    unsafe {
        if queries.rows <= MANY {
            for row in 0..queries.rows {
                one_query::<T, L>(queries, row, keys, scratch);
            }
        } else {
            blocks::<T, L, M>(queries, keys, scratch);
        }
    }
}

/// The running maximum and sum of one row of scores.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

const NOTHING: Running = Running { max: f32::NEG_INFINITY, sum: 0.0 };

impl Running {
    /// Turns `scores`, a multiple of L::N with -inf for masked ones, into weights. Returns what
    /// earlier sums must be multiplied by.
    #[inline(always)]
    unsafe fn update<L: Lanes>(&mut self, scores: &mut [f32]) -> f32 {
        // SAFETY: the caller's; chunks are of L::N.
        unsafe {
            let mut top = L::splat(self.max);
            for chunk in scores.chunks_exact(L::N) {
                top = L::max(top, L::load(chunk.as_ptr()));
            }
            let new = max::<L>(top);
            // With nothing but -inf so far, any finite number gives weights of 0.
            let safe = if new == f32::NEG_INFINITY { 0.0 } else { new };
            let mut total = L::splat(0.0);
            for chunk in scores.chunks_exact_mut(L::N) {
                let weight = exp::<L>(L::sub(L::load(chunk.as_ptr()), L::splat(safe)));
                L::store(chunk.as_mut_ptr(), weight);
                total = L::add(total, weight);
            }
            let factor = (self.max - safe).exp();
            self.sum = self.sum * factor + sum::<L>(total);
            self.max = new;
            factor
        }
    }
}

/// Adds slope * (key - position) for the keys `first ..`.
#[inline(always)]
fn add_bias(scores: &mut [f32], slope: f32, first: usize, position: usize) {
    if slope != 0.0 {
        for (j, s) in scores.iter_mut().enumerate() {
            *s += slope * ((first + j) as f32 - position as f32);
        }
    }
}

/// One query against keys where they lie.
#[inline(always)]
unsafe fn one_query<T: Real, L: Lanes>(
    queries: &Queries<T>,
    row: usize,
    keys: &impl Keys<T>,
    scratch: &mut [f32],
) {
    let d = queries.head_dim;
    let (q, rest) = scratch.split_at_mut(d.next_multiple_of(PAD));
    let (o, rest) = rest.split_at_mut(d.next_multiple_of(PAD));
    let scores = &mut rest[..KEYS];
    let seen = queries.seen(row);
    // SAFETY: the caller's; all keys below `seen` exist.
    unsafe {
        for (i, q) in q[..d].iter_mut().enumerate() {
            *q = (*queries.q.add(row * queries.q_stride + i)).to_f32() * queries.scale;
        }
        o.fill(0.0);
        let mut running = NOTHING;
        for first in (0..seen).step_by(KEYS) {
            let block = KEYS.min(seen - first);
            let mut j = 0;
            while j < block {
                let run = keys.run(first + j);
                let len = run.len.min(block - j);
                for (i, score) in scores[j..j + len].iter_mut().enumerate() {
                    *score = dot::<T, L>(&q[..d], run.k.add(i * run.stride));
                }
                j += len;
            }
            add_bias(&mut scores[..block], queries.slope, first, seen - 1);
            let padded = block.next_multiple_of(L::N);
            scores[block..padded].fill(f32::NEG_INFINITY);
            let factor = running.update::<L>(&mut scores[..padded]);
            o.iter_mut().for_each(|o| *o *= factor);
            let mut j = 0;
            while j < block {
                let run = keys.run(first + j);
                let len = run.len.min(block - j);
                add_values::<T, L>(&mut o[..d], &scores[j..j + len], run.v, run.stride);
                j += len;
            }
        }
        finish(queries, row, o, running.sum);
    }
}

#[inline(always)]
unsafe fn finish<T: Real>(queries: &Queries<T>, row: usize, o: &mut [f32], sum: f32) {
    let o = &mut o[..queries.head_dim];
    o.iter_mut().for_each(|o| *o /= sum);
    // SAFETY: rows of o belong to the caller.
    unsafe {
        let out = queries.o.add(row * queries.o_stride);
        narrow(o, std::slice::from_raw_parts_mut(out, queries.head_dim));
    }
}

#[inline(always)]
unsafe fn dot<T: Real, L: Lanes>(q: &[f32], k: *const T) -> f32 {
    let whole = q.len() / L::N * L::N;
    // SAFETY: the key has as many elements as q.
    unsafe {
        let (mut a, mut b) = (L::splat(0.0), L::splat(0.0));
        let mut i = 0;
        while i + 2 * L::N <= whole {
            a = L::fma(L::load(q.as_ptr().add(i)), load::<L, T>(k.add(i)), a);
            b = L::fma(L::load(q.as_ptr().add(i + L::N)), load::<L, T>(k.add(i + L::N)), b);
            i += 2 * L::N;
        }
        if i < whole {
            a = L::fma(L::load(q.as_ptr().add(i)), load::<L, T>(k.add(i)), a);
        }
        let mut total = sum::<L>(L::add(a, b));
        for (i, q) in q.iter().enumerate().skip(whole) {
            total += q * (*k.add(i)).to_f32();
        }
        total
    }
}

/// o += sum over j of weights[j] * v[j].
#[inline(always)]
unsafe fn add_values<T: Real, L: Lanes>(
    o: &mut [f32],
    weights: &[f32],
    v: *const T,
    stride: usize,
) {
    let whole = o.len() / L::N * L::N;
    // SAFETY: there is a value of o's length for each weight.
    unsafe {
        for (group, weights) in weights.chunks(4).enumerate() {
            let v = v.add(group * 4 * stride);
            for i in (0..whole).step_by(L::N) {
                let mut sum = L::load(o.as_ptr().add(i));
                for (j, w) in weights.iter().enumerate() {
                    sum = L::fma(L::splat(*w), load::<L, T>(v.add(j * stride + i)), sum);
                }
                L::store(o.as_mut_ptr().add(i), sum);
            }
            for (i, o) in o.iter_mut().enumerate().skip(whole) {
                for (j, w) in weights.iter().enumerate() {
                    *o += w * (*v.add(j * stride + i)).to_f32();
                }
            }
        }
    }
}

/// Scratch of [`blocks`], cut up.
struct Parts<'a> {
    /// (KEYS / 2N, head_dim, 2N): keys, transposed.
    k: &'a mut [f32],
    /// (KEYS, padded)
    v: &'a mut [f32],
    /// (M, head_dim)
    q: &'a mut [f32],
    /// (M, KEYS)
    scores: &'a mut [f32],
    /// (rows, padded)
    o: &'a mut [f32],
    /// (rows, 2): maximum, sum.
    running: &'a mut [f32],
    padded: usize,
}

impl<'a> Parts<'a> {
    fn new(scratch: &'a mut [f32], head_dim: usize, rows: usize, m: usize) -> Self {
        let padded = head_dim.next_multiple_of(PAD);
        let rows = rows.next_multiple_of(m);
        let (k, rest) = scratch.split_at_mut(KEYS * padded);
        let (v, rest) = rest.split_at_mut(KEYS * padded);
        let (q, rest) = rest.split_at_mut((m * padded).next_multiple_of(PAD));
        let (scores, rest) = rest.split_at_mut(m * KEYS);
        let (o, rest) = rest.split_at_mut(rows * padded);
        Parts { k, v, q, scores, o, running: &mut rest[..2 * rows], padded }
    }
}

#[inline(always)]
unsafe fn blocks<T: Real, L: Lanes, const M: usize>(
    queries: &Queries<T>,
    keys: &impl Keys<T>,
    scratch: &mut [f32],
) {
    let mut parts = Parts::new(scratch, queries.head_dim, queries.rows, M);
    parts.o.fill(0.0);
    for running in parts.running.chunks_exact_mut(2) {
        running.copy_from_slice(&[NOTHING.max, NOTHING.sum]);
    }
    let seen = queries.seen(queries.rows - 1);
    // SAFETY: the caller's.
    unsafe {
        for first in (0..seen).step_by(KEYS) {
            let block = KEYS.min(seen - first);
            pack::<T, L>(&mut parts, queries.head_dim, keys, first, block);
            for row in (0..queries.rows).step_by(M) {
                let last = (row + M).min(queries.rows) - 1;
                if queries.seen(last) > first {
                    let block = block.min(queries.seen(last) - first);
                    tile_of_queries::<T, L, M>(queries, &mut parts, row, first, block);
                }
            }
        }
        for row in 0..queries.rows {
            let o = &mut parts.o[row * parts.padded..][..parts.padded];
            finish(queries, row, o, parts.running[2 * row + 1]);
        }
    }
}

/// Widens keys, transposed in panels of 2N, and values of a block.
#[inline(always)]
unsafe fn pack<T: Real, L: Lanes>(
    parts: &mut Parts<'_>,
    d: usize,
    keys: &impl Keys<T>,
    first: usize,
    block: usize,
) {
    let (panel, padded) = (2 * L::N, parts.padded);
    let mut j = 0;
    while j < block {
        // SAFETY: the keys of the block exist, and so do d elements of each.
        unsafe {
            let run = keys.run(first + j);
            for i in 0..run.len.min(block - j) {
                let (k, v) = (run.k.add(i * run.stride), run.v.add(i * run.stride));
                let column = &mut parts.k[j / panel * panel * d + j % panel..];
                for e in 0..d {
                    *column.get_unchecked_mut(e * panel) = (*k.add(e)).to_f32();
                }
                let value = &mut parts.v[j * padded..][..padded];
                let whole = d / L::N * L::N;
                for e in (0..whole).step_by(L::N) {
                    L::store(value.as_mut_ptr().add(e), load::<L, T>(v.add(e)));
                }
                for (e, value) in value[..d].iter_mut().enumerate().skip(whole) {
                    *value = (*v.add(e)).to_f32();
                }
                value[d..].fill(0.0);
                j += 1;
            }
        }
    }
}

/// Rows `row .. row + M` against the first `block` keys of the packed block.
#[inline(always)]
unsafe fn tile_of_queries<T: Real, L: Lanes, const M: usize>(
    queries: &Queries<T>,
    parts: &mut Parts<'_>,
    row: usize,
    first: usize,
    block: usize,
) {
    let (d, padded, panel) = (queries.head_dim, parts.padded, 2 * L::N);
    let rows = M.min(queries.rows - row);
    // SAFETY: rows exist; the buffers' sizes are those of Parts.
    unsafe {
        for (r, q) in parts.q.chunks_exact_mut(d).take(M).enumerate() {
            if r < rows {
                let from = queries.q.add((row + r) * queries.q_stride);
                for (i, q) in q.iter_mut().enumerate() {
                    *q = (*from.add(i)).to_f32() * queries.scale;
                }
            } else {
                q.fill(0.0);
            }
        }
        let (q, scores) = (parts.q.as_ptr(), parts.scores.as_mut_ptr());
        for j in (0..block).step_by(panel) {
            let (k, c) = (parts.k.as_ptr().add(j * d), scores.add(j));
            if j + L::N < block {
                tile::<L, M, 2, false>(c, KEYS, q, [d, 1], k, panel, d);
            } else {
                tile::<L, M, 1, false>(c, KEYS, q, [d, 1], k, panel, d);
            }
        }
        let width = block.next_multiple_of(L::N);
        for r in 0..rows {
            let scores = &mut parts.scores[r * KEYS..][..width];
            let seen = queries.seen(row + r);
            let visible = seen.saturating_sub(first).min(block);
            add_bias(&mut scores[..visible], queries.slope, first, seen - 1);
            scores[visible..].fill(f32::NEG_INFINITY);
            let state = &mut parts.running[2 * (row + r)..][..2];
            let mut running = Running { max: state[0], sum: state[1] };
            let factor = running.update::<L>(scores);
            state.copy_from_slice(&[running.max, running.sum]);
            if factor != 1.0 {
                let o = &mut parts.o[(row + r) * padded..][..padded];
                o.iter_mut().for_each(|o| *o *= factor);
            }
        }
        let o = parts.o[row * padded..].as_mut_ptr();
        let mut e = 0;
        while e < padded {
            let v = parts.v.as_ptr().add(e);
            if e + panel <= padded {
                tile::<L, M, 2, true>(o.add(e), padded, scores, [KEYS, 1], v, padded, block);
                e += panel;
            } else {
                tile::<L, M, 1, true>(o.add(e), padded, scores, [KEYS, 1], v, padded, block);
                e += L::N;
            }
        }
    }
}

/// C (M, W*N) = or += A (M, k) B (k, W*N); `step_a` elements between columns of A.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, const M: usize, const W: usize, const ADD: bool>(
    c: *mut f32,
    ldc: usize,
    a: *const f32,
    [lda, step_a]: [usize; 2],
    b: *const f32,
    ldb: usize,
    k: usize,
) {
    // SAFETY: the caller's; the extents are as above.
    unsafe {
        let mut sums = [[L::splat(0.0); W]; M];
        if ADD {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(c.add(r * ldc + w * L::N));
                }
            }
        }
        for i in 0..k {
            let mut row = [L::splat(0.0); W];
            for (w, x) in row.iter_mut().enumerate() {
                *x = L::load(b.add(i * ldb + w * L::N));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = L::splat(*a.add(r * lda + i * step_a));
                for (sum, row) in sums.iter_mut().zip(row) {
                    *sum = L::fma(x, row, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (w, sum) in sums.iter().enumerate() {
                L::store(c.add(r * ldc + w * L::N), *sum);
            }
        }
    }
}
