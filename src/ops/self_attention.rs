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
    let params = SelfAttentionParams {
        o: o.ptr(),
        q: q.ptr(),
        pages: pages.ptr(),
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
        scale,
        pairs: batch.pairs() as i64,
        keys: batch.keys() as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked, the batch when it was made; o is exclusive.
    unsafe { stream.launch(&SELF_ATTENTION, q.dtype(), &params) }
}

/// ALiBi slopes are one f32 per head.
pub(super) fn check_slopes(op: &str, slopes: Option<&View<'_>>, heads: usize) -> Result<()> {
    let Some(slopes) = slopes else { return Ok(()) };
    check::vector(op, "slopes", slopes, heads)?;
    check::dtype(op, "slopes", slopes, DType::F32)
}

fn geometry(p: &SelfAttentionParams, dtype: DType, _: &Chip) -> Geometry {
    let addresses = [p.o.cast_const(), p.q, p.pages];
    let distances = [i64::from(p.head_dim), p.q_stride, p.page_stride];
    let attend = Attend {
        // Every sequence may end within a tile.
        blocks: p.rows / 64 + p.sequences,
        rows: p.rows,
        batch: 1,
        heads: p.heads,
        head_dim: p.head_dim,
        // Queries, and two stages of keys and of values.
        tiles: 5,
    };
    layout::attend(&attend, dtype, layout::is_packable(&addresses, &distances, dtype))
}

fn cost(p: &SelfAttentionParams, dtype: DType) -> Cost {
    let width = p.heads as f64 * p.head_dim as f64;
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
        let (heads, head_dim) = (self.heads, self.head_dim);
        // SAFETY: the caller's; (row, head) of o is of this task only.
        unsafe {
            let begin = self.begin.get(0);
            let rows_of = |s: usize| (begin[s + 1] - begin[s]) as usize;
            let mut s = 0;
            while task >= heads * chunks(rows_of(s)) {
                task -= heads * chunks(rows_of(s));
                s += 1;
            }
            let (chunk, head) = (task / heads, task % heads);
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
        head_dim,
        page_tokens: p.page_tokens as usize,
        scale: p.scale,
    };
    // SAFETY: the caller's.
    unsafe {
        let begin = grid.begin.get(0);
        let tasks = begin.windows(2).map(|w| heads * chunks((w[1] - w[0]) as usize)).sum();
        lanes::run(host, tasks, &grid);
    }
}
