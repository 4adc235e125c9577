//! `self_attention`: causal attention of a ragged batch over paged keys and values.

use super::batch::Ragged;
use super::check;
use super::kv_append::check_pages;
use super::lanes::{self, Grid, Lanes};
use super::layout::{self, Attend};
use super::rows::Rows;
use super::softmax::{self, Keys, Queries, Run};
use crate::contracts::SelfAttentionParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};
use std::ops::Range;

/// See `kernels/self_attention.h`.
pub static SELF_ATTENTION: Kernel<SelfAttentionParams> = Kernel {
    name: "self_attention",
    twins: twins!(self_attention_twin),
    geometry,
    cost,
    accounting: 2,
};

/// Causal attention of the batch's rows over the pages of one layer; o and q (rows,
/// heads*head_dim), pages (pages, 2*heads*page_tokens*head_dim), ALiBi slopes (heads) f32 if any.
/// Rows of q and pages may be strided; the rows' own keys are in the pages already (`kv_append`).
///
/// Keys that few rows would walk through one tile after another are split over blocks, which merge
/// what they come to in the stream's workspace; where their room there is too small, heads are
/// launched apart.
///
/// # Errors
/// If a shape, stride or dtype differs.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn self_attention(
    stream: &Stream,
    mut o: ViewMut<'_>,
    q: View<'_>,
    pages: View<'_>,
    batch: &Ragged,
    slopes: Option<View<'_>>,
    heads: usize,
    head_dim: usize,
    scale: f32,
) -> Result<()> {
    let op = "self_attention";
    let width = check::width(op, 1, heads, head_dim)?;
    check::matrix(op, "q", &q, batch.rows(), width)?;
    check::matrix(op, "o", &o.as_view(), batch.rows(), width)?;
    check::dense(op, "o", &o.as_view())?;
    check::dtype(op, "o", &o.as_view(), q.dtype())?;
    check::dtype(op, "pages", &pages, q.dtype())?;
    check_pages(op, &pages, batch, heads, head_dim)?;
    check_slopes(op, slopes.as_ref(), heads)?;
    let all = SelfAttentionParams {
        o: o.ptr(),
        q: q.ptr(),
        pages: pages.ptr(),
        workspace: stream.workspace()?,
        tables: batch.tables(),
        q_begin: batch.q_begin(),
        kv_len: batch.kv_len(),
        slopes: slopes.map_or(std::ptr::null(), |s| s.ptr()),
        rows: batch.rows() as i64,
        sequences: batch.sequences() as i64,
        table_stride: batch.table_stride(),
        q_stride: q.stride() as i64,
        page_stride: pages.stride() as i64,
        heads: check::small(op, "heads", heads)?,
        head_dim: check::small(op, "head_dim", head_dim)?,
        page_tokens: check::small(op, "page_tokens", batch.page_tokens())?,
        first_head: 0,
        some_heads: check::small(op, "heads", heads)?,
        parts: 1,
        scale: check::scale(op, scale)?,
        reserved: 0,
        pairs: batch.pairs() as i64,
        keys: batch.keys() as i64,
    };
    let split = stream.chip().and_then(|chip| split(&all, chip));
    let (parts, some_heads) = split.unwrap_or((all.parts, all.heads));
    for first_head in (0..all.heads).step_by(some_heads as usize) {
        let some_heads = some_heads.min(all.heads - first_head);
        let some = SelfAttentionParams { first_head, some_heads, parts, ..all };
        // SAFETY: shapes, strides and dtypes were checked, the batch when it was made; o is
        // exclusive.
        unsafe { stream.launch(&SELF_ATTENTION, q.dtype(), &some)? };
    }
    Ok(())
}

/// Keys of a block where they are split.
const PART: i64 = 64;

/// Row tiles of a launch: every sequence may end within one.
fn row_tiles(p: &SelfAttentionParams) -> i64 {
    p.rows / 64 + p.sequences
}

/// Parts that keys are split into and heads of a launch, where one block for a row tile and head
/// would leave multiprocessors idle.
fn split(p: &SelfAttentionParams, chip: &Chip) -> Option<(i32, i32)> {
    const COUNTERS: usize = 16384;
    /// Sums of 64 rows of at most 128 features; a maximum and a sum of two rows for 128 threads.
    const PART_FLOATS: usize = 64 * 128 + 4 * 128;
    let parts = layout::groups(p.table_stride * i64::from(p.page_tokens), PART);
    let (tiles, heads) = (row_tiles(p), i64::from(p.heads));
    let at_once = (Stream::WORKSPACE / size_of::<f32>() - COUNTERS) / PART_FLOATS;
    let at_once = at_once as i64 / parts.saturating_mul(tiles);
    let is_idle = tiles * heads < i64::from(chip.multiprocessors);
    // As many in each launch.
    let some_heads = |at_once| layout::groups(heads, layout::groups(heads, at_once)) as i32;
    (is_idle && parts > 1 && at_once > 0).then(|| (parts as i32, some_heads(at_once)))
}

/// ALiBi slopes are one f32 per head.
pub(super) fn check_slopes(op: &str, slopes: Option<&View<'_>>, heads: usize) -> Result<()> {
    let Some(slopes) = slopes else { return Ok(()) };
    check::vector(op, "slopes", slopes, heads)?;
    check::dtype(op, "slopes", slopes, DType::F32)
}

/// Parts of a block, so that a multiprocessor's two blocks are all that it gets: a second round
/// would take as long again. A bound: which parts there are is in device memory.
fn parts_of_a_block(p: &SelfAttentionParams, chip: &Chip) -> i64 {
    let blocks = 2 * i64::from(chip.multiprocessors) / (row_tiles(p) * i64::from(p.some_heads));
    layout::groups(p.parts.into(), blocks.max(1))
}

fn geometry(p: &SelfAttentionParams, dtype: DType, chip: &Chip) -> Geometry {
    let addresses = [p.o.cast_const(), p.q, p.pages];
    let distances = [i64::from(p.head_dim), p.q_stride, p.page_stride];
    let attend = Attend {
        blocks: row_tiles(p),
        rows: p.rows,
        batch: layout::groups(p.parts.into(), parts_of_a_block(p, chip)),
        heads: p.some_heads,
        head_dim: p.head_dim,
        // Queries, and two stages of keys and of values.
        tiles: 5,
    };
    layout::attend(&attend, dtype, layout::is_packable(&addresses, &distances, dtype))
}

fn cost(p: &SelfAttentionParams, dtype: DType) -> Cost {
    let width = p.some_heads as f64 * p.head_dim as f64;
    Cost {
        bytes: 2.0 * (p.rows + p.keys) as f64 * width * dtype.size() as f64,
        flops: 4.0 * p.pairs as f64 * width,
    }
}

struct Task<T> {
    o: Rows<T>,
    q: Rows<T>,
    pages: Rows<T>,
    tables: Rows<i32>,
    begin: Rows<i32>,
    kv_len: Rows<i32>,
    slopes: Option<Rows<f32>>,
    heads: usize,
    /// Those that are computed.
    some: Range<usize>,
    head_dim: usize,
    page_tokens: usize,
    scale: f32,
}

/// The keys of one sequence and head.
struct PagedKeys<'a, T> {
    pages: Rows<T>,
    table: &'a [i32],
    page_tokens: usize,
    head_dim: usize,
    /// Where the head's keys and values begin in a page.
    k: usize,
    v: usize,
}

impl<T> Keys<T> for PagedKeys<'_, T> {
    #[inline(always)]
    unsafe fn run(&self, j: usize) -> Run<T> {
        let (page, offset) = (self.table[j / self.page_tokens] as usize, j % self.page_tokens);
        let skip = offset * self.head_dim;
        // SAFETY: the caller's; tables name pages of the pool.
        let (k, v) = unsafe {
            (
                self.pages.part(page, self.k + skip, self.head_dim).as_ptr(),
                self.pages.part(page, self.v + skip, self.head_dim).as_ptr(),
            )
        };
        Run { k, v, stride: self.head_dim, len: self.page_tokens - offset }
    }
}

/// Tasks that `rows` query rows of one head are cut into.
fn chunks(rows: usize) -> usize {
    rows.div_ceil(softmax::QUERIES)
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, m: usize) -> usize {
        softmax::scratch(self.head_dim, m)
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, mut task: usize, scratch: &mut [f32]) {
        let (heads, head_dim, some) = (self.heads, self.head_dim, self.some.len());
        // SAFETY: the caller's; (row, head) of o is of this task only.
        unsafe {
            let begin = self.begin.get(0);
            let rows_of = |s: usize| (begin[s + 1] - begin[s]) as usize;
            let mut s = 0;
            while task >= some * chunks(rows_of(s)) {
                task -= some * chunks(rows_of(s));
                s += 1;
            }
            let (chunk, head) = (task / some, self.some.start + task % some);
            let per_chunk = rows_of(s).div_ceil(chunks(rows_of(s)));
            let first = chunk * per_chunk;
            let row = begin[s] as usize + first;
            let queries = Queries {
                o: self.o.part_mut(row, head * head_dim, head_dim).as_mut_ptr(),
                q: self.q.part(row, head * head_dim, head_dim).as_ptr(),
                o_stride: self.o.stride(),
                q_stride: self.q.stride(),
                rows: per_chunk.min(rows_of(s) - first),
                head_dim,
                seen: self.kv_len.get(0)[s] as usize - rows_of(s) + first + 1,
                step: 1,
                scale: self.scale,
                slope: self.slopes.map_or(0.0, |slopes| slopes.get(0)[head]),
            };
            let keys = PagedKeys {
                pages: self.pages,
                table: self.tables.get(s),
                page_tokens: self.page_tokens,
                head_dim,
                k: head * self.page_tokens * head_dim,
                v: (heads + head) * self.page_tokens * head_dim,
            };
            softmax::attend::<T, L, M>(&queries, &keys, scratch);
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
pub(super) unsafe fn self_attention_twin<T: Real>(p: &SelfAttentionParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (first, some) = (p.first_head as usize, p.some_heads as usize);
    let sequences = p.sequences as usize;
    let grid = Task {
        o: Rows::<T>::dense(p.o, heads * head_dim),
        q: Rows::new(p.q, p.q_stride, 0),
        pages: Rows::new(p.pages, p.page_stride, 0),
        tables: Rows::new(p.tables.cast(), p.table_stride, p.table_stride as usize),
        begin: Rows::dense(p.q_begin.cast(), sequences + 1),
        kv_len: Rows::dense(p.kv_len.cast(), sequences),
        slopes: (!p.slopes.is_null()).then(|| Rows::dense(p.slopes.cast(), heads)),
        heads,
        some: first..first + some,
        head_dim,
        page_tokens: p.page_tokens as usize,
        scale: p.scale,
    };
    // SAFETY: the caller's.
    unsafe {
        let begin = grid.begin.get(0);
        let tasks = begin.windows(2).map(|w| some * chunks((w[1] - w[0]) as usize)).sum();
        lanes::run(host, tasks, &grid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A suffix of a prompt of the 9B model; nothing behind its pointers is read.
    fn params(rows: i64, sequences: i64, keys: i64) -> SelfAttentionParams {
        SelfAttentionParams {
            o: std::ptr::null_mut(),
            q: std::ptr::null(),
            pages: std::ptr::null(),
            workspace: std::ptr::null_mut(),
            tables: std::ptr::null(),
            q_begin: std::ptr::null(),
            kv_len: std::ptr::null(),
            slopes: std::ptr::null(),
            rows,
            sequences,
            table_stride: (keys as u64).div_ceil(16).next_power_of_two() as i64,
            q_stride: 3 * 4096,
            page_stride: 2 * 4096 * 16,
            heads: 32,
            head_dim: 128,
            page_tokens: 16,
            first_head: 0,
            some_heads: 32,
            parts: 1,
            scale: 1.0,
            reserved: 0,
            pairs: rows * keys,
            keys,
        }
    }

    #[test]
    fn keys_of_few_rows_are_split_over_the_card() {
        for (rows, sequences, keys, a100, h200) in [
            (35, 1, 300, Some((8, 32)), Some((8, 32))),
            (250, 1, 250, None, Some((4, 32))),
            (35, 1, 64, None, None),
            (35, 1, 65, Some((2, 32)), Some((2, 32))),
            (300, 1, 300, None, None),
            (40, 8, 2000, None, None),
            // More than the workspace holds: heads apart, and nothing but a walk in the end.
            (35, 1, 2048, Some((32, 16)), Some((32, 16))),
            (35, 1, 32_768, Some((512, 1)), Some((512, 1))),
            (35, 1, 131_072, None, None),
        ] {
            let p = params(rows, sequences, keys);
            let found = [Chip::A100, Chip::H200].map(|chip| split(&p, &chip));
            assert_eq!(found, [a100, h200], "{rows} of {keys}");
            for (parts, some_heads) in found.into_iter().flatten() {
                let some = SelfAttentionParams { parts, some_heads, ..p };
                let g = geometry(&some, DType::BF16, &Chip::H200);
                let [tiles, heads, blocks] = g.grid;
                assert_eq!((g.variant, tiles), ("_128", row_tiles(&p) as u32));
                // Two blocks a multiprocessor, and no round more; every part is somebody's.
                assert!(heads == some_heads as u32 && tiles * heads * blocks <= 264, "{g:?}");
                let each = parts_of_a_block(&some, &Chip::H200) as u32;
                assert!(each * blocks >= parts as u32 && each * (blocks - 1) < parts as u32);
                let floats = (tiles * heads) as usize * parts as usize * 68 * 128;
                assert!((floats + 16384) * 4 <= Stream::WORKSPACE);
            }
        }
    }
}
