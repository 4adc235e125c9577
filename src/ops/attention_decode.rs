//! `attention_decode`: rotary positions, append and causal attention of a step in which every
//! sequence has one row, in one launch.

use super::batch::Ragged;
use super::check;
use super::kv_append::{check_pages, kv_append_twin};
use super::layout;
use super::rope::{Rotary, check_rotary};
use super::rows::Rows;
use super::self_attention::{check_slopes, self_attention_twin};
use crate::contracts::{AttentionDecodeParams, KvAppendParams, SelfAttentionParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};
use std::ffi::c_void;

/// See `kernels/attention_decode.h`.
pub static ATTENTION_DECODE: Kernel<AttentionDecodeParams> = Kernel {
    name: "attention_decode",
    twins: twins!(attention_decode_twin),
    geometry,
    cost,
    accounting: 1,
};

/// Turns queries and keys of qkv (rows, 3*heads*head_dim), appends keys and values to the batch's
/// slots of `pages` (pages, 2*heads*page_tokens*head_dim), and attends as
/// [`self_attention`](super::self_attention()); o (rows, heads*head_dim). What is left in qkv is
/// unspecified.
///
/// # Errors
/// If a sequence has more rows than one, or a shape, stride or dtype differs.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn attention_decode(
    stream: &Stream,
    mut o: ViewMut<'_>,
    mut qkv: ViewMut<'_>,
    mut pages: ViewMut<'_>,
    batch: &Ragged,
    rotary: Rotary,
    slopes: Option<View<'_>>,
    heads: usize,
    scale: f32,
) -> Result<()> {
    let op = "attention_decode";
    if batch.rows() != batch.sequences() {
        let expected = format!("one for each of {} sequences", batch.sequences());
        return Err(Error::invalid("attention_decode: rows", expected, batch.rows()));
    }
    let head_dim = check::head_dim(op, "o", o.as_view().cols(), heads)?;
    check::matrix(op, "qkv", &qkv.as_view(), batch.rows(), check::width(op, 3, heads, head_dim)?)?;
    check::matrix(op, "o", &o.as_view(), batch.rows(), heads * head_dim)?;
    check::dense(op, "o", &o.as_view())?;
    check::dtype(op, "o", &o.as_view(), qkv.dtype())?;
    check::dtype(op, "pages", &pages.as_view(), qkv.dtype())?;
    check_pages(op, &pages.as_view(), batch, heads, head_dim)?;
    check_slopes(op, slopes.as_ref(), heads)?;
    if let Some((dims, base)) = rotary {
        check_rotary(op, dims, base, head_dim)?;
    }
    let (dims, base) = rotary.unwrap_or((0, 1.0));
    let all = AttentionDecodeParams {
        o: o.ptr(),
        qkv: qkv.ptr(),
        pages: pages.ptr(),
        workspace: stream.workspace()?,
        tables: batch.tables(),
        kv_len: batch.kv_len(),
        slopes: slopes.map_or(std::ptr::null(), |s| s.ptr()),
        rows: batch.rows() as i64,
        table_stride: batch.table_stride(),
        row_stride: qkv.stride() as i64,
        page_stride: pages.stride() as i64,
        heads: check::small(op, "heads", heads)?,
        head_dim: check::small(op, "head_dim", head_dim)?,
        page_tokens: check::small(op, "page_tokens", batch.page_tokens())?,
        rotary: check::small(op, "rotary", dims)?,
        base,
        scale,
        keys: batch.keys() as i64,
    };
    let room = all.table_stride * i64::from(all.page_tokens);
    let once = if all.workspace.is_null() { batch.rows() } else { rows_at_once(room, heads)? };
    for first in (0..batch.rows()).step_by(once) {
        let some = cut(&all, first, once.min(batch.rows() - first), qkv.dtype());
        // SAFETY: shapes, strides and dtypes were checked, the batch when it was made; o, qkv and
        // pages are exclusive.
        unsafe { stream.launch(&ATTENTION_DECODE, qkv.dtype(), &some)? };
    }
    Ok(())
}

/// The launch of `rows` rows from `first` on out of that of all.
fn cut(
    all: &AttentionDecodeParams,
    first: usize,
    rows: usize,
    dtype: DType,
) -> AttentionDecodeParams {
    let width = all.heads as usize * all.head_dim as usize;
    let skip = |ptr: *mut c_void, stride: usize| {
        ptr.cast::<u8>().wrapping_add(first * stride * dtype.size()).cast()
    };
    AttentionDecodeParams {
        o: skip(all.o, width),
        qkv: skip(all.qkv, all.row_stride as usize),
        tables: all.tables.wrapping_add(first * all.table_stride as usize),
        kv_len: all.kv_len.wrapping_add(first),
        rows: rows as i64,
        keys: all.keys * rows as i64 / all.rows,
        ..*all
    }
}

/// Keys of a block.
const PART: i64 = 64;

/// How many rows' parts fit the workspace: counters, then outputs of at most 128 features.
fn rows_at_once(room: i64, heads: usize) -> Result<usize> {
    const COUNTERS: usize = 16384;
    const PART_FLOATS: usize = 128 + 2;
    let heads_at_once = (Stream::WORKSPACE / size_of::<f32>() - COUNTERS) / PART_FLOATS;
    match (heads_at_once / layout::groups(room, PART) as usize).min(COUNTERS) / heads {
        0 => {
            let expected =
                format!("at most {} tokens of {heads} heads", heads_at_once / heads * 64);
            Err(Error::invalid("attention_decode: context", expected, room))
        }
        rows => Ok(rows),
    }
}

fn geometry(p: &AttentionDecodeParams, dtype: DType, chip: &Chip) -> Geometry {
    const THREADS: u32 = 256;
    const WARPS: u32 = THREADS / 32;
    /// Blocks in y or z.
    const MOST_BLOCKS: u32 = 65535;
    let addresses = [p.qkv.cast_const(), p.pages.cast_const()];
    let distances = [i64::from(p.head_dim), p.row_stride, p.page_stride];
    let [rows, heads] = [p.rows as u32, p.heads as u32];
    if p.head_dim > 128 || !layout::is_packable(&addresses, &distances, dtype) {
        let grid = [rows, heads, 1];
        return Geometry { variant: "_plain", grid, ..Geometry::linear(0, THREADS) };
    }
    let is_narrow = p.head_dim <= 64;
    let features = if is_narrow { 64 } else { 128 };
    // `DecodeShared`: outputs, maxima and sums of the warps, the new query, a flag; the new key.
    let pieces = WARPS * (features + 2);
    let floats = pieces + features + 1;
    let shared = (floats * 4 + features * dtype.size() as u32).next_multiple_of(16);
    let room = p.table_stride * i64::from(p.page_tokens);
    let parts = layout::groups(room, PART) as u32;
    let all = Geometry { shared, ..Geometry::linear(0, THREADS) };
    if chip.has_wgmma() && [2, 4, 8].contains(&parts) && rows.max(heads) <= MOST_BLOCKS {
        let variant = if is_narrow { "_sm90_64" } else { "_sm90_128" };
        // `ClusterShared`: what all parts have come to, and a barrier, too.
        let shared = shared + pieces * 4 + 16;
        return Geometry { variant, grid: [parts, rows, heads], shared, cluster: parts, ..all };
    }
    let variant = if is_narrow { "_64" } else { "_128" };
    Geometry { variant, grid: [rows, heads, parts], ..all }
}

fn cost(p: &AttentionDecodeParams, dtype: DType) -> Cost {
    let (rows, width) = (p.rows as f64, p.heads as f64 * p.head_dim as f64);
    // Keys and values but the new ones; qkv, o, and the new ones written.
    let cells = (2.0 * (p.keys as f64 - rows) + 6.0 * rows) * width;
    Cost { bytes: cells * dtype.size() as f64, flops: 4.0 * p.keys as f64 * width }
}

/// Position and slot of every row's token.
///
/// # Safety
/// As [`Stream::launch`].
unsafe fn new_tokens(p: &AttentionDecodeParams) -> (Vec<i32>, Vec<i64>) {
    let kv_len = Rows::<i32>::dense(p.kv_len.cast(), p.rows as usize);
    let tables = Rows::<i32>::new(p.tables.cast(), p.table_stride, p.table_stride as usize);
    // SAFETY: the caller's.
    let positions: Vec<i32> = unsafe { kv_len.get(0) }.iter().map(|n| n - 1).collect();
    let slot = |(row, at): (usize, &i32)| {
        // SAFETY: the caller's.
        let page = unsafe { tables.get(row) }[(at / p.page_tokens) as usize];
        i64::from(page) * i64::from(p.page_tokens) + i64::from(at % p.page_tokens)
    };
    let slots = positions.iter().enumerate().map(slot).collect();
    (positions, slots)
}

/// Attention of these rows, row s that of sequence s: `begin` is 0, 1, ...
fn attention(p: &AttentionDecodeParams, begin: &[i32]) -> SelfAttentionParams {
    SelfAttentionParams {
        o: p.o,
        q: p.qkv,
        pages: p.pages,
        workspace: p.workspace,
        tables: p.tables,
        q_begin: begin.as_ptr(),
        kv_len: p.kv_len,
        slopes: p.slopes,
        rows: p.rows,
        sequences: p.rows,
        table_stride: p.table_stride,
        q_stride: p.row_stride,
        page_stride: p.page_stride,
        heads: p.heads,
        head_dim: p.head_dim,
        page_tokens: p.page_tokens,
        first_head: 0,
        some_heads: p.heads,
        parts: 1,
        scale: p.scale,
        reserved: 0,
        pairs: p.keys,
        keys: p.keys,
    }
}

/// Twins, one after the other: what they share is in the caches.
///
/// # Safety
/// As [`Stream::launch`].
unsafe fn attention_decode_twin<T: Real>(p: &AttentionDecodeParams, host: &Host) {
    let begin: Vec<i32> = (0..=p.rows as i32).collect();
    // SAFETY: the caller's, of each twin; row s is sequence s.
    unsafe {
        let (positions, slots) = new_tokens(p);
        let append = KvAppendParams {
            pages: p.pages,
            qkv: p.qkv,
            slots: slots.as_ptr(),
            positions: positions.as_ptr(),
            rows: p.rows,
            row_stride: p.row_stride,
            page_stride: p.page_stride,
            heads: p.heads,
            head_dim: p.head_dim,
            page_tokens: p.page_tokens,
            rotary: p.rotary,
            base: p.base,
            reserved: 0,
        };
        kv_append_twin::<T>(&append, host);
        self_attention_twin::<T>(&attention(p, &begin), host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token of the 9B model; nothing behind its pointers is read.
    fn params() -> AttentionDecodeParams {
        AttentionDecodeParams {
            o: std::ptr::null_mut(),
            qkv: std::ptr::null_mut(),
            pages: std::ptr::null_mut(),
            workspace: std::ptr::null_mut(),
            tables: std::ptr::null(),
            kv_len: std::ptr::null(),
            slopes: std::ptr::null(),
            rows: 1,
            table_stride: 128,
            row_stride: 3 * 4096,
            page_stride: 2 * 4096 * 16,
            heads: 32,
            head_dim: 128,
            page_tokens: 16,
            rotary: 128,
            base: 1e4,
            scale: 1.0,
            keys: 300,
        }
    }

    #[test]
    fn rows_whose_parts_do_not_fit_the_workspace_are_launched_apart() {
        // 64 397 heads' parts.
        assert_eq!(rows_at_once(2048, 32).unwrap(), 62);
        assert_eq!(rows_at_once(64, 32).unwrap(), 512);
        assert_eq!(rows_at_once(128_000, 32).unwrap(), 1);
        let e = rows_at_once(129_000, 32).unwrap_err().to_string();
        assert!(e.contains("at most 128768 tokens of 32 heads"), "{e}");
        let all = AttentionDecodeParams { rows: 100, keys: 30_000, ..params() };
        let some = cut(&all, 62, 38, DType::BF16);
        assert_eq!((some.rows, some.keys), (38, 11_400));
        assert_eq!([some.o.addr(), some.qkv.addr()], [62 * 4096 * 2, 62 * 3 * 4096 * 2]);
        assert_eq!([some.tables.addr(), some.kv_len.addr()], [62 * 128 * 4, 62 * 4]);
    }

    #[test]
    fn on_hopper_the_parts_of_a_short_row_are_a_cluster() {
        let p = AttentionDecodeParams { table_stride: 32, ..params() };
        let g = geometry(&p, DType::BF16, &Chip::H200);
        assert_eq!((g.variant, g.grid, g.cluster), ("_sm90_128", [8, 1, 32], 8));
        assert_eq!(g.shared, 4944 + 4160 + 16);
        assert_eq!(geometry(&p, DType::F32, &Chip::H200).shared, 5200 + 4160 + 16);
        let narrow = AttentionDecodeParams { rows: 3, head_dim: 64, table_stride: 8, ..p };
        let g = geometry(&narrow, DType::BF16, &Chip::H200);
        assert_eq!((g.variant, g.grid, g.cluster), ("_sm90_64", [2, 3, 32], 2));
        assert_eq!(g.shared, 2512 + 2112 + 16);
        // Pages of 12 tokens: three parts.
        let others = [
            (AttentionDecodeParams { table_stride: 4, ..p }, Chip::H200),
            (AttentionDecodeParams { table_stride: 16, page_tokens: 12, ..p }, Chip::H200),
            (AttentionDecodeParams { table_stride: 64, ..p }, Chip::H200),
            (AttentionDecodeParams { rows: 65536, ..p }, Chip::H200),
            (p, Chip::A100),
        ];
        for (p, chip) in others {
            let g = geometry(&p, DType::BF16, &chip);
            assert_eq!((g.variant, g.cluster, g.shared), ("_128", 1, 4944));
        }
    }

    #[test]
    fn a_launch_is_the_same_from_token_to_token_and_fills_the_card() {
        let p = params();
        for chip in [Chip::A100, Chip::H200] {
            let g = geometry(&p, DType::BF16, &chip);
            assert_eq!((g.variant, g.grid, g.threads, g.shared), ("_128", [1, 32, 32], 256, 4944));
            // Of these, the blocks that have keys.
            assert!(32 * layout::groups(p.keys, PART) >= i64::from(chip.multiprocessors));
            let neox = AttentionDecodeParams { head_dim: 80, ..p };
            assert_eq!(geometry(&neox, DType::F32, &chip).variant, "_128");
            let odd = AttentionDecodeParams { head_dim: 63, ..p };
            let g = geometry(&odd, DType::BF16, &chip);
            assert_eq!((g.variant, g.grid), ("_plain", [1, 32, 1]));
        }
        // 300 keys and values of 4096 features: 4.9 MB, and the query, the output, the new ones.
        let cost = cost(&p, DType::BF16);
        assert_eq!(cost.bytes, (2.0 * 299.0 + 6.0) * 4096.0 * 2.0);
    }
}
