//! `kv_append`: new keys and values go to their slots in the pages of a KV pool, turned on the way
//! if positions are rotary.

use super::batch::Ragged;
use super::check;
use super::layout;
use super::rope::{Rotary, check_rotary, rope_twin};
use super::rows::{Rows, for_row_ranges};
use crate::contracts::{KvAppendParams, RopeParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/kv_append.h`.
pub static KV_APPEND: Kernel<KvAppendParams> =
    Kernel { name: "kv_append", twins: twins!(kv_append_twin), geometry, cost, accounting: 0 };

/// Copies the key and value parts of qkv (rows, 3*heads*head_dim) to the batch's slots of `pages`
/// (pages, 2*heads*page_tokens*head_dim), the pages of one layer. Rows of both may be strided.
///
/// If there is a `rotary`, as after [`rope`](super::rope()): queries are turned in place, keys on
/// their way, and the key part of qkv is unspecified afterwards.
///
/// # Errors
/// If a shape or dtype differs, or `rotary` is odd, does not fit a head, or is more than 4096.
pub fn kv_append(
    stream: &Stream,
    mut pages: ViewMut<'_>,
    mut qkv: ViewMut<'_>,
    batch: &Ragged,
    heads: usize,
    head_dim: usize,
    rotary: Rotary,
) -> Result<()> {
    let op = "kv_append";
    let width = check::width(op, 3, heads, head_dim)?;
    check::matrix(op, "qkv", &qkv.as_view(), batch.rows(), width)?;
    check::dtype(op, "qkv", &qkv.as_view(), pages.dtype())?;
    check_pages(op, &pages.as_view(), batch, heads, head_dim)?;
    if let Some((dims, base)) = rotary {
        check_rotary(op, dims, base, head_dim.min(MOST_ROTARY))?;
    }
    let (dims, base) = rotary.unwrap_or((0, 1.0));
    let params = KvAppendParams {
        pages: pages.ptr(),
        qkv: qkv.ptr(),
        slots: batch.slots(),
        positions: batch.positions(),
        rows: batch.rows() as i64,
        row_stride: qkv.stride() as i64,
        page_stride: pages.stride() as i64,
        heads: check::small(op, "heads", heads)?,
        head_dim: check::small(op, "head_dim", head_dim)?,
        page_tokens: check::small(op, "page_tokens", batch.page_tokens())?,
        rotary: check::small(op, "rotary", dims)?,
        base,
        reserved: 0,
    };
    // SAFETY: shapes and dtypes were checked; slots are distinct and inside `pages`; the batch
    // holds a position per row; qkv is exclusive.
    unsafe { stream.launch(&KV_APPEND, qkv.dtype(), &params) }
}

/// Features whose angles a block has room for.
const MOST_ROTARY: usize = 4096;

/// `pages` has room for the pages that the batch was checked against.
pub(super) fn check_pages(
    op: &str,
    pages: &View<'_>,
    batch: &Ragged,
    heads: usize,
    head_dim: usize,
) -> Result<()> {
    let inner = check::width(op, 2, heads, head_dim)?;
    let cols = inner.saturating_mul(batch.page_tokens());
    if pages.rows() >= batch.pages() && pages.cols() == cols {
        return Ok(());
    }
    let expected = format!("at least ({}, {cols})", batch.pages());
    Err(Error::invalid(format!("{op}: pages"), expected, pages.shape()))
}

fn geometry(p: &KvAppendParams, dtype: DType, _: &Chip) -> Geometry {
    const THREADS: u32 = 256;
    let distances = [p.head_dim.into(), i64::from(p.rotary / 2), p.row_stride, p.page_stride];
    let addresses = [p.pages.cast_const(), p.qkv.cast_const()];
    let (variant, group) = match layout::is_packable(&addresses, &distances, dtype) {
        true => ("", 16 / dtype.size()),
        false => ("_plain", 1),
    };
    // A row's angles: a sine and a cosine for each pair of features; the kernel names the first.
    let shared = p.rotary.max(1) as u32 * size_of::<f32>() as u32;
    let pairs = (p.head_dim as usize / group).div_ceil(2) as i64;
    let blocks = layout::groups(i64::from(p.heads) * pairs, THREADS.into()) as u32;
    let grid = [p.rows as u32, blocks, 1];
    Geometry { variant, grid, shared, ..Geometry::linear(0, THREADS) }
}

fn cost(p: &KvAppendParams, dtype: DType) -> Cost {
    let lines = p.rows as f64 * 2.0 * p.heads as f64;
    // Keys and values; queries as far as they turn.
    let cells = lines * (f64::from(p.head_dim) + f64::from(p.rotary) / 2.0);
    let flops = 3.0 * lines * f64::from(p.rotary);
    Cost { bytes: 2.0 * cells * dtype.size() as f64, flops }
}

/// `rope` in place, then copies.
///
/// # Safety
/// As [`Stream::launch`].
pub(super) unsafe fn kv_append_twin<T: Real>(p: &KvAppendParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (rows, page_tokens) = (p.rows as usize, p.page_tokens as usize);
    let inner = heads * head_dim;
    if p.rotary > 0 {
        let rope = RopeParams {
            qkv: p.qkv,
            positions: p.positions,
            rows: p.rows,
            row_stride: p.row_stride,
            heads: p.heads,
            head_dim: p.head_dim,
            rotary: p.rotary,
            base: p.base,
            is_inverse: 0,
            reserved: 0,
        };
        // SAFETY: the caller's.
        unsafe { rope_twin::<T>(&rope, host) };
    }
    let qkv = Rows::<T>::new(p.qkv, p.row_stride, 3 * inner);
    let slots = Rows::<i64>::dense(p.slots.cast(), rows);
    let pages = Rows::<T>::new(p.pages, p.page_stride, 2 * inner * page_tokens);
    for_row_ranges(host, rows, 2 * inner, |range| {
        for r in range {
            // SAFETY: row r exists.
            let (row, slot) = unsafe { (qkv.get(r), slots.get(0)[r] as usize) };
            let (page, offset) = (slot / page_tokens, slot % page_tokens);
            for (h, head) in row[inner..].chunks_exact(head_dim).enumerate() {
                let start = (h * page_tokens + offset) * head_dim;
                // SAFETY: slots are distinct, so these cells of the page are of this row only.
                unsafe { pages.part_mut(page, start, head_dim).copy_from_slice(head) };
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_9b_model_is_a_block_of_two_groups_a_thread() {
        let p = KvAppendParams {
            pages: std::ptr::null_mut(),
            qkv: std::ptr::null_mut(),
            slots: std::ptr::null(),
            positions: std::ptr::null(),
            rows: 250,
            row_stride: 3 * 4096,
            page_stride: 2 * 4096 * 16,
            heads: 32,
            head_dim: 128,
            page_tokens: 16,
            rotary: 128,
            base: 1e4,
            reserved: 0,
        };
        let of = |p, dtype| {
            let g = geometry(&p, dtype, &Chip::H200);
            (g.variant, g.grid, g.shared)
        };
        assert_eq!(of(p, DType::BF16), ("", [250, 1, 1], 512));
        assert_eq!(of(p, DType::F32), ("", [250, 2, 1], 512));
        assert_eq!(of(KvAppendParams { rotary: 0, ..p }, DType::BF16), ("", [250, 1, 1], 4));
        // Groups of ten features that turn are not whole.
        let partial = KvAppendParams { rotary: 20, head_dim: 80, ..p };
        assert_eq!(of(partial, DType::BF16), ("_plain", [250, 5, 1], 80));
        // 12288 cells read and as many written, 8192 of them turned.
        assert_eq!(cost(&p, DType::BF16).bytes, 250.0 * 2.0 * 12288.0 * 2.0);
        assert_eq!(cost(&p, DType::BF16).flops, 250.0 * 3.0 * 8192.0);
    }
}
