//! `kv_append`: new keys and values go to their slots in the pages of a KV pool.

use super::batch::Ragged;
use super::check;
use super::layout;
use super::rows::{Rows, for_row_ranges};
use crate::contracts::KvAppendParams;
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
/// # Errors
/// If a shape or dtype differs.
pub fn kv_append(
    stream: &Stream,
    mut pages: ViewMut<'_>,
    qkv: View<'_>,
    batch: &Ragged,
    heads: usize,
    head_dim: usize,
) -> Result<()> {
    let width = check::width("kv_append", 3, heads, head_dim)?;
    check::matrix("kv_append", "qkv", &qkv, batch.rows(), width)?;
    check::dtype("kv_append", "qkv", &qkv, pages.dtype())?;
    check_pages("kv_append", &pages.as_view(), batch, heads, head_dim)?;
    let params = KvAppendParams {
        pages: pages.ptr(),
        qkv: qkv.ptr(),
        slots: batch.slots(),
        rows: batch.rows() as i64,
        row_stride: qkv.stride() as i64,
        page_stride: pages.stride() as i64,
        heads: check::small("kv_append", "heads", heads)?,
        head_dim: check::small("kv_append", "head_dim", head_dim)?,
        page_tokens: check::small("kv_append", "page_tokens", batch.page_tokens())?,
        reserved: 0,
    };
    // SAFETY: shapes and dtypes were checked; slots are distinct and inside `pages`.
    unsafe { stream.launch(&KV_APPEND, qkv.dtype(), &params) }
}

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
    let head_dim = i64::from(p.head_dim);
    let distances = [head_dim, p.row_stride, p.page_stride];
    let packable = layout::is_packable(&[p.pages.cast_const(), p.qkv], &distances, dtype);
    layout::packed_cells(2 * p.rows * i64::from(p.heads) * head_dim, dtype, packable)
}

fn cost(p: &KvAppendParams, dtype: DType) -> Cost {
    let cells = p.rows as f64 * 2.0 * p.heads as f64 * p.head_dim as f64;
    Cost { bytes: 2.0 * cells * dtype.size() as f64, flops: 0.0 }
}

/// # Safety
/// As [`Stream::launch`].
pub(super) unsafe fn kv_append_twin<T: Real>(p: &KvAppendParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (rows, page_tokens) = (p.rows as usize, p.page_tokens as usize);
    let inner = heads * head_dim;
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
