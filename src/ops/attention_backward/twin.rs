//! The twin of `attention_backward`: both launches, a head of a batch entry at a time.
//!
//! Keys and values of a task are packed once, transposed, so that scores and dP of some queries
//! are register tiles; rows of both then become weights and dS in place. The first launch holds
//! whole rows, the second those of [`KEPT`] queries, whose transposes it multiplies.

use crate::contracts::{AttendedRow, AttentionBackwardParams, MediaSpan};
use crate::device::Host;
use crate::dtype::Real;
use crate::ops::lanes::{self, Grid, Lanes, PAD, exp, max, sum, widen_row};
use crate::ops::rows::{Rows, narrow};
use crate::ops::softmax::tile;
use std::ops::Range;

/// Queries of a task of the first launch, keys of one of the second.
const OWN: usize = 384;
/// Queries whose weights and dS the second launch holds: a multiple of every tile's rows.
const KEPT: usize = 48;

struct Task<T> {
    dq: Rows<T>,
    d_o: Rows<T>,
    q: Rows<T>,
    segments: [Segment<T>; 2],
    statistics: Rows<AttendedRow>,
    begin: Option<Rows<i32>>,
    spans: Option<Rows<MediaSpan>>,
    slopes: Option<Rows<f32>>,
    entries: usize,
    q_len: usize,
    heads: usize,
    head_dim: usize,
    scale: f32,
    latents: usize,
    is_keys: bool,
    /// Keys of a task, at most.
    most: usize,
}

struct Segment<T> {
    dk: Rows<T>,
    dv: Rows<T>,
    k: Rows<T>,
    v: Rows<T>,
    len: usize,
}

/// One head of one batch entry.
#[derive(Clone, Copy)]
struct Head {
    index: usize,
    /// First rows of queries, and of each segment's keys.
    q: usize,
    k: [usize; 2],
    queries: usize,
    keys: usize,
    /// Keys of the first segment.
    first: usize,
    slope: f32,
}

/// The keys that a query sees; if uniform, it averages their values.
struct Sight {
    keys: Range<usize>,
    is_uniform: bool,
}

/// The keys that any of some rows see.
fn union(sights: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    let seen = sights.filter(|keys| !keys.is_empty());
    seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// `keys` as counted from the first of `of`, none beyond.
fn within(keys: &Range<usize>, of: &Range<usize>) -> Range<usize> {
    let start = keys.start.clamp(of.start, of.end) - of.start;
    start..(keys.end.clamp(of.start, of.end) - of.start).max(start)
}

impl<T: Real> Task<T> {
    fn entry(&self, entry: usize, index: usize) -> Head {
        let [a, b] = &self.segments;
        // SAFETY: one slope per head, one more beginning than sequences.
        let (slope, begin) = unsafe {
            (self.slopes.map_or(0.0, |s| s.get(0)[index]), self.begin.map(|begin| begin.get(0)))
        };
        match begin {
            Some(begin) => {
                let first = begin[entry] as usize;
                let rows = begin[entry + 1] as usize - first;
                let (k, queries, keys) = ([first, 0], rows, rows);
                Head { index, q: first, k, queries, keys, first: rows, slope }
            }
            None => Head {
                index,
                q: entry * self.q_len,
                k: [entry * a.len, entry * b.len],
                queries: self.q_len,
                keys: a.len + b.len,
                first: a.len,
                slope,
            },
        }
    }

    fn sight(&self, h: &Head, i: usize) -> Sight {
        if let Some(spans) = self.spans {
            // SAFETY: a span per row.
            let span = unsafe { spans.get(0)[h.q + i] };
            let at = |image: i32| image as usize * self.latents;
            // A row that sees nothing may be anywhere among the images.
            let keys = if span.begin < span.end { at(span.begin)..at(span.end) } else { 0..0 };
            return Sight { keys, is_uniform: span.uniform != 0 };
        }
        let end = if self.begin.is_some() { i + 1 } else { h.keys };
        Sight { keys: 0..end, is_uniform: false }
    }

    /// Where key `j` is, and whose.
    #[inline(always)]
    fn key(&self, h: &Head, j: usize) -> (&Segment<T>, usize) {
        match j.checked_sub(h.first) {
            None => (&self.segments[0], h.k[0] + j),
            Some(j) => (&self.segments[1], h.k[1] + j),
        }
    }

    /// Rows of one task among the `rows` of a head.
    fn chunk(&self, rows: usize) -> usize {
        match self.is_keys && self.spans.is_some() {
            // Other rows look at another image.
            true => self.latents.clamp(1, OWN),
            false => rows.div_ceil(rows.div_ceil(OWN).max(1)).max(1),
        }
    }

    /// The tasks of entry `entry`: heads, and chunks of a head.
    fn chunks(&self, entry: usize) -> [usize; 2] {
        let h = self.entry(entry, 0);
        let rows = if self.is_keys { h.keys } else { h.queries };
        [self.heads, rows.div_ceil(self.chunk(rows))]
    }

    fn tasks(&self) -> usize {
        (0..self.entries).map(|entry| self.chunks(entry).iter().product::<usize>()).sum()
    }

    /// The head and the rows of a task.
    fn find(&self, mut task: usize) -> (Head, Range<usize>) {
        let mut entry = 0;
        loop {
            let [heads, chunks] = self.chunks(entry);
            if task < heads * chunks {
                let h = self.entry(entry, task / chunks);
                let rows = if self.is_keys { h.keys } else { h.queries };
                let first = task % chunks * self.chunk(rows);
                return (h, first..rows.min(first + self.chunk(rows)));
            }
            task -= heads * chunks;
            entry += 1;
        }
    }

    /// The first of `rows` that look at the same images: the others' values may be anything.
    fn alike(&self, h: &Head, rows: Range<usize>) -> Range<usize> {
        let keys = self.sight(h, rows.start).keys;
        let same = |i: &usize| self.spans.is_none() || self.sight(h, *i).keys == keys;
        rows.start..rows.start + rows.clone().take_while(same).count()
    }

    /// The keys that the task has packed.
    fn packed(&self, h: &Head, rows: &Range<usize>) -> Range<usize> {
        match self.is_keys {
            true => rows.clone(),
            false => union(rows.clone().map(|i| self.sight(h, i).keys)),
        }
    }
}

/// Scratch of a task, cut up.
struct Parts<'a> {
    /// (keys / 2N, head_dim, 2N): transposed.
    k: &'a mut [f32],
    v: &'a mut [f32],
    /// (held, padded): scaled queries, and gradients of their outputs.
    q: &'a mut [f32],
    d_o: &'a mut [f32],
    /// (held, width): scores, then weights, then in the first launch dS.
    p: &'a mut [f32],
    /// (held, width): dP, then in the second launch dS.
    ds: &'a mut [f32],
    /// The first launch's keys (keys, padded) and dq (m, padded); the second's dk and dv, (keys +
    /// m, padded).
    sums: [&'a mut [f32]; 2],
    padded: usize,
    width: usize,
}

/// Rows of `p` for `keys` keys: whole panels, and a tile of keys beyond.
fn width(keys: usize) -> usize {
    keys.next_multiple_of(2 * PAD) + PAD
}

/// The lengths of [`Parts`], in order.
fn lengths(keys: usize, head_dim: usize, is_keys: bool, m: usize) -> [usize; 8] {
    let (padded, held) = (head_dim.next_multiple_of(PAD), if is_keys { KEPT } else { m });
    let packed = (keys.next_multiple_of(2 * PAD) * head_dim).next_multiple_of(PAD);
    let (rows, scores) = (held * padded, held * width(keys));
    let sums = [(keys + m) * padded, if is_keys { keys + m } else { m } * padded];
    [packed, packed, rows, rows, scores, scores, sums[0], sums[1]]
}

impl<'a> Parts<'a> {
    fn new(mut rest: &'a mut [f32], keys: usize, task: &Task<impl Real>, m: usize) -> Self {
        let [k, v, q, d_o, p, ds, a, b] =
            lengths(keys, task.head_dim, task.is_keys, m).map(|len| {
                let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
                rest = after;
                part
            });
        let padded = task.head_dim.next_multiple_of(PAD);
        Parts { k, v, q, d_o, p, ds, sums: [a, b], padded, width: width(keys) }
    }
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, m: usize) -> usize {
        lengths(self.most, self.head_dim, self.is_keys, m).iter().sum()
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let (h, rows) = self.find(task);
        let keys = self.packed(&h, &rows);
        let mut parts = Parts::new(scratch, keys.len(), self, M);
        // SAFETY: the caller's; rows of dq, or of dk and dv, are of this task only.
        unsafe {
            self.pack::<L>(&h, &keys, &mut parts);
            match self.is_keys {
                true => self.gradients_of_keys::<L, M>(&h, &keys, &mut parts),
                false => self.gradients_of_queries::<L, M>(&h, rows, &keys, &mut parts),
            }
        }
    }
}

impl<T: Real> Task<T> {
    /// Widens keys and values, transposed in panels of 2N; the first launch's keys as rows too.
    #[inline(always)]
    unsafe fn pack<L: Lanes>(&self, h: &Head, keys: &Range<usize>, parts: &mut Parts<'_>) {
        let (d, panel, padded) = (self.head_dim, 2 * L::N, parts.padded);
        let whole = keys.len() / panel * panel;
        for x in [&mut parts.k[whole * d..], &mut parts.v[whole * d..]] {
            x.fill(0.0);
        }
        for j in 0..keys.len() {
            let (segment, row) = self.key(h, keys.start + j);
            let at = j / panel * panel * d + j % panel;
            // SAFETY: the row exists, and so do the panels.
            unsafe {
                for (x, to) in [(segment.k, &mut *parts.k), (segment.v, &mut *parts.v)] {
                    let x = x.part(row, h.index * d, d);
                    for (e, x) in x.iter().enumerate() {
                        *to.get_unchecked_mut(at + e * panel) = x.to_f32();
                    }
                }
                if !self.is_keys {
                    let to = &mut parts.sums[0][j * padded..][..padded];
                    widen_row::<L, T>(segment.k.part(row, h.index * d, d), &mut to[..d]);
                    to[d..].fill(0.0);
                }
            }
        }
    }

    /// Queries `here`, from row `at` of the parts on: themselves, and of the packed `keys` scores
    /// and dP of those in `of`. A query that sees none of the keys counts as 0, whatever it is.
    #[inline(always)]
    unsafe fn products<L: Lanes, const M: usize>(
        &self,
        h: &Head,
        here: Range<usize>,
        at: usize,
        [keys, of]: [&Range<usize>; 2],
        parts: &mut Parts<'_>,
    ) {
        let (d, padded, width) = (self.head_dim, parts.padded, parts.width);
        let rows = at * padded..(at + M) * padded;
        let (q, d_o) = (&mut parts.q[rows.clone()], &mut parts.d_o[rows]);
        q.fill(0.0);
        d_o.fill(0.0);
        // SAFETY: the rows exist; the buffers' sizes are those of Parts.
        unsafe {
            for (r, i) in here.enumerate() {
                let (row, start, sight) = (h.q + i, r * padded, self.sight(h, i));
                if within(&sight.keys, keys).is_empty() {
                    continue;
                }
                widen_row::<L, T>(self.d_o.part(row, h.index * d, d), &mut d_o[start..][..d]);
                // Equal scores average the values.
                if !sight.is_uniform {
                    let q = &mut q[start..][..d];
                    widen_row::<L, T>(self.q.part(row, h.index * d, d), q);
                    q.iter_mut().for_each(|q| *q *= self.scale);
                }
            }
            let steps = [padded, width, d];
            let (p, ds) = (&mut parts.p[at * width..], &mut parts.ds[at * width..]);
            product::<L, M>(p, q, parts.k, steps, of);
            product::<L, M>(ds, d_o, parts.v, steps, of);
        }
    }

    /// Of `rows`, dq and statistics.
    #[inline(always)]
    unsafe fn gradients_of_queries<L: Lanes, const M: usize>(
        &self,
        h: &Head,
        rows: Range<usize>,
        keys: &Range<usize>,
        parts: &mut Parts<'_>,
    ) {
        let (padded, width) = (parts.padded, parts.width);
        let mut first = rows.start;
        while first < rows.end {
            let here = self.alike(h, first..rows.end.min(first + M));
            first = here.end;
            let seen = within(&union(here.clone().map(|i| self.sight(h, i).keys)), keys);
            // SAFETY: the caller's; (row, head) of dq and statistics is of this task only.
            unsafe {
                self.products::<L, M>(h, here.clone(), 0, [keys, &seen], parts);
                let from = seen.start / L::N * L::N;
                let upto = seen.end.next_multiple_of(L::N);
                for (r, i) in here.clone().enumerate() {
                    let Range { start, end } = self.sight(h, i).keys;
                    let row = r * width + from..r * width + upto.max(from);
                    let (p, dp) = (&mut parts.p[row.clone()], &parts.ds[row]);
                    // A row that sees nothing may be nowhere near what the others see.
                    let own = within(&(start..end), keys);
                    let [first, last] =
                        [own.start, own.end].map(|j| j.clamp(from, upto.max(from)) - from);
                    let own = first..last;
                    p[..own.start].fill(f32::NEG_INFINITY);
                    p[own.end..].fill(f32::NEG_INFINITY);
                    add_bias(&mut p[own], h.slope, start as f32 - (end as f32 - 1.0));
                    let (lse, delta) = weigh::<L>(p, dp);
                    let [lo, hi] = [start, end].map(|j| j as i32);
                    let to = self.statistics.part_mut(h.index, h.q + i, 1);
                    to[0] = AttendedRow { lse, delta, lo, hi };
                }
                let (keys, dq) = parts.sums.split_at_mut(1);
                let a = (parts.p.as_ptr().add(from), [width, 1]);
                let b = keys[0].as_ptr().add(from * padded);
                let of = seen.end.saturating_sub(from);
                times_rows::<L, M, false>(dq[0].as_mut_ptr(), a, b, padded, of);
                for (r, i) in here.enumerate() {
                    let dq = &mut dq[0][r * padded..][..self.head_dim];
                    match self.sight(h, i).is_uniform {
                        true => dq.fill(0.0),
                        false => dq.iter_mut().for_each(|d| *d *= self.scale),
                    }
                    let to = self.dq.part_mut(h.q + i, h.index * self.head_dim, self.head_dim);
                    narrow(dq, to);
                }
            }
        }
    }

    /// Of `keys`, dk and dv.
    #[inline(always)]
    unsafe fn gradients_of_keys<L: Lanes, const M: usize>(
        &self,
        h: &Head,
        keys: &Range<usize>,
        parts: &mut Parts<'_>,
    ) {
        let (d, padded, width) = (self.head_dim, parts.padded, parts.width);
        parts.sums.iter_mut().for_each(|sums| sums.fill(0.0));
        for first in (0..h.queries).step_by(KEPT) {
            let block = first..h.queries.min(first + KEPT);
            let seen = |rows: Range<usize>| {
                let own = rows.map(|i| within(&self.sight(h, i).keys, keys));
                union(own)
            };
            let of = seen(block.clone());
            if of.is_empty() {
                continue;
            }
            // SAFETY: the caller's; the first launch has written the statistics.
            unsafe {
                for row in block.clone().step_by(M) {
                    let here = row..block.end.min(row + M);
                    let of = seen(here.clone());
                    self.products::<L, M>(h, here.clone(), row - first, [keys, &of], parts);
                    for i in here {
                        let at = (i - first) * width..(i - first + 1) * width;
                        let (p, ds) = (&mut parts.p[at.clone()], &mut parts.ds[at]);
                        let row = self.statistics.part(h.index, h.q + i, 1)[0];
                        let own = within(&(row.lo as usize..row.hi as usize), keys);
                        let nearest = (keys.start + own.start) as f32 - (row.hi as f32 - 1.0);
                        add_bias(&mut p[own.clone()], h.slope, nearest);
                        weights::<L>(p, ds, &own, row);
                    }
                }
                let count = block.len();
                for j in (of.start / M * M..of.end).step_by(M) {
                    let [dk, dv] = parts.sums.each_mut().map(|s| s.as_mut_ptr().add(j * padded));
                    let transposed = [1, width];
                    let (p, ds) = (parts.p.as_ptr().add(j), parts.ds.as_ptr().add(j));
                    let (q, d_o) = (parts.q.as_ptr(), parts.d_o.as_ptr());
                    times_rows::<L, M, true>(dv, (p, transposed), d_o, padded, count);
                    times_rows::<L, M, true>(dk, (ds, transposed), q, padded, count);
                }
            }
        }
        for (r, j) in keys.clone().enumerate() {
            let (segment, row) = self.key(h, j);
            for (to, sums) in [segment.dk, segment.dv].iter().zip(&parts.sums) {
                // SAFETY: (key, head) of dk and dv is of this task only.
                unsafe { narrow(&sums[r * padded..][..d], to.part_mut(row, h.index * d, d)) };
            }
        }
    }
}

/// Adds slope * (distance + j) to score j.
#[inline(always)]
fn add_bias(scores: &mut [f32], slope: f32, distance: f32) {
    if slope != 0.0 {
        for (j, s) in scores.iter_mut().enumerate() {
            *s += slope * (distance + j as f32);
        }
    }
}

/// Scores of a row, a multiple of L::N with -inf for masked ones, become dS; the log of the sum of
/// their exponentials, infinite if all are masked, and delta.
#[inline(always)]
unsafe fn weigh<L: Lanes>(p: &mut [f32], dp: &[f32]) -> (f32, f32) {
    // SAFETY: chunks are of L::N.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        for chunk in p.chunks_exact(L::N) {
            top = L::max(top, L::load(chunk.as_ptr()));
        }
        let top = max::<L>(top);
        // With nothing but -inf, any finite number gives weights of 0.
        let top = if top == f32::NEG_INFINITY { 0.0 } else { top };
        let (mut total, mut weighted) = (L::splat(0.0), L::splat(0.0));
        for (p, dp) in p.chunks_exact_mut(L::N).zip(dp.chunks_exact(L::N)) {
            let weight = exp::<L>(L::sub(L::load(p.as_ptr()), L::splat(top)));
            L::store(p.as_mut_ptr(), weight);
            total = L::add(total, weight);
            weighted = L::fma(weight, L::load(dp.as_ptr()), weighted);
        }
        let total = sum::<L>(total);
        if total == 0.0 {
            return (f32::INFINITY, 0.0);
        }
        let (norm, delta) = (1.0 / total, sum::<L>(weighted) / total);
        for (p, dp) in p.chunks_exact_mut(L::N).zip(dp.chunks_exact(L::N)) {
            let weight = L::mul(L::load(p.as_ptr()), L::splat(norm));
            let ds = L::mul(weight, L::sub(L::load(dp.as_ptr()), L::splat(delta)));
            L::store(p.as_mut_ptr(), ds);
        }
        (top + total.ln(), delta)
    }
}

/// Scores and dP of a row become weights and dS, 0 but for the keys `own`.
#[inline(always)]
unsafe fn weights<L: Lanes>(p: &mut [f32], ds: &mut [f32], own: &Range<usize>, row: AttendedRow) {
    let (lse, delta) = (row.lse, row.delta);
    // SAFETY: rows are wider than their keys by a vector at least.
    unsafe {
        for at in (own.start / L::N * L::N..own.end).step_by(L::N) {
            let (p, ds) = (p.as_mut_ptr().add(at), ds.as_mut_ptr().add(at));
            let weight = exp::<L>(L::sub(L::load(p), L::splat(lse)));
            L::store(p, weight);
            L::store(ds, L::mul(weight, L::sub(L::load(ds), L::splat(delta))));
        }
    }
    for x in [p, ds] {
        x[..own.start].fill(0.0);
        x[own.end..].fill(0.0);
    }
}

/// C (M, width) = A (M, padded) B, the columns `of`; B is packed, transposed.
#[inline(always)]
unsafe fn product<L: Lanes, const M: usize>(
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
    [padded, width, d]: [usize; 3],
    of: &Range<usize>,
) {
    let (panel, a, steps) = (2 * L::N, a.as_ptr(), [padded, 1]);
    for j in (of.start / panel * panel..of.end).step_by(panel) {
        // SAFETY: the caller's; panels are whole.
        unsafe {
            let (c, b) = (c.as_mut_ptr().add(j), b.as_ptr().add(j * d));
            if j + L::N < of.end {
                tile::<L, M, 2, false>(c, width, a, steps, b, panel, d);
            } else {
                tile::<L, M, 1, false>(c, width, a, steps, b, panel, d);
            }
        }
    }
}

/// C (M, padded) = or += A (M, k) B (k, padded).
#[inline(always)]
unsafe fn times_rows<L: Lanes, const M: usize, const ADD: bool>(
    c: *mut f32,
    (a, steps): (*const f32, [usize; 2]),
    b: *const f32,
    padded: usize,
    k: usize,
) {
    let mut e = 0;
    while e < padded {
        // SAFETY: the caller's; `padded` is a multiple of L::N.
        unsafe {
            let (c, b) = (c.add(e), b.add(e));
            if e + 2 * L::N <= padded {
                tile::<L, M, 2, ADD>(c, padded, a, steps, b, padded, k);
                e += 2 * L::N;
            } else {
                tile::<L, M, 1, ADD>(c, padded, a, steps, b, padded, k);
                e += L::N;
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`](crate::device::Stream::launch).
pub(super) unsafe fn attention_backward_twin<T: Real>(p: &AttentionBackwardParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let rows = |x, stride| Rows::<T>::new(x, stride, 0);
    let [queries, q_len] = match p.begin.is_null() {
        true => [p.batch * p.q_len, p.q_len],
        false => [p.q_len; 2],
    }
    .map(|n| n as usize);
    let mut grid = Task {
        dq: rows(p.dq, p.dq_stride),
        d_o: rows(p.d_o, p.do_stride),
        q: rows(p.q, p.q_stride),
        segments: [
            Segment {
                dk: rows(p.dk0, p.dkv0_stride),
                dv: rows(p.dv0, p.dkv0_stride),
                k: rows(p.k0, p.kv0_stride),
                v: rows(p.v0, p.kv0_stride),
                len: p.k0_len as usize,
            },
            Segment {
                dk: rows(p.dk1, p.dkv1_stride),
                dv: rows(p.dv1, p.dkv1_stride),
                k: rows(p.k1, p.kv1_stride),
                v: rows(p.v1, p.kv1_stride),
                len: p.k1_len as usize,
            },
        ],
        statistics: Rows::dense(p.statistics.cast(), queries),
        begin: (!p.begin.is_null()).then(|| Rows::dense(p.begin.cast(), p.batch as usize + 1)),
        spans: (!p.spans.is_null()).then(|| Rows::dense(p.spans.cast(), queries)),
        slopes: (!p.slopes.is_null()).then(|| Rows::dense(p.slopes.cast(), heads)),
        entries: p.batch as usize,
        q_len,
        heads,
        head_dim,
        scale: p.scale,
        latents: p.latents as usize,
        is_keys: p.is_keys != 0,
        most: 0,
    };
    let tasks = grid.tasks();
    // Heads of an entry are alike.
    let keys = |task| {
        let (h, rows) = grid.find(task);
        grid.packed(&h, &rows).len()
    };
    grid.most = (0..tasks).map(keys).max().unwrap_or(0);
    // SAFETY: the caller's.
    unsafe { lanes::run(host, tasks, &grid) }
}
