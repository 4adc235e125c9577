//! `attention_decode`: rotary positions, append and causal attention of a step in which every
//! sequence has one row, in one launch.

use super::batch::Ragged;
use super::check;
use super::kv_append::{check_pages, kv_append_twin};
use super::layout;
use super::rope::{check_rotary, rope_twin};
use super::self_attention::self_attention_twin;
use crate::contracts::{AttentionDecodeParams, KvAppendParams, RopeParams, SelfAttentionParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/attention_decode.h`.
pub static ATTENTION_DECODE: Kernel<AttentionDecodeParams> =
    Kernel { name: "attention_decode", twins: twins!(attention_decode_twin), geometry, cost };

/// Where the positions of keys enter: features that turn and the base of their angles, or nothing.
pub type Rotary = Option<(usize, f32)>;

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
    if let Some(slopes) = &slopes {
        check::vector(op, "slopes", slopes, heads)?;
        check::dtype(op, "slopes", slopes, DType::F32)?;
    }
    if let Some((dims, base)) = rotary {
        check_rotary(op, dims, base, head_dim)?;
    }
    let (dims, base) = rotary.unwrap_or((0, 1.0));
    let room = batch.table_stride() * batch.page_tokens() as i64;
    let params = AttentionDecodeParams {
        o: o.ptr(),
        qkv: qkv.ptr(),
        pages: pages.ptr(),
        workspace: stream.workspace()?,
        slots: batch.slots(),
        positions: batch.positions(),
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
        part: part(room, batch.rows() as i64 * heads as i64),
        base,
        scale,
        reserved: 0,
    };
    // SAFETY: shapes, strides and dtypes were checked, the batch when it was made; o, qkv and pages
    // are exclusive.
    unsafe { stream.launch(&ATTENTION_DECODE, qkv.dtype(), &params) }
}

/// Keys of a part: few enough that a long sequence has many parts, and the same for every batch
/// whose parts fit the workspace. `room` is the most keys of a sequence, `heads` of all rows.
fn part(room: i64, heads: i64) -> i32 {
    const KEYS: i64 = 256;
    const MOST_PARTS: i64 = 64;
    /// As in the kernel: counters, then a maximum, a sum and an output for every part.
    const COUNTERS: i64 = 16384;
    const PART_FLOATS: i64 = 2 + 128;
    let floats = Stream::WORKSPACE as i64 / size_of::<f32>() as i64 - COUNTERS;
    let fits = |part: i64| {
        let parts = (room + part - 1) / part;
        let is_small = parts <= MOST_PARTS && heads * parts * PART_FLOATS <= floats;
        parts <= 1 || (is_small && heads <= COUNTERS)
    };
    let mut part = KEYS;
    while !fits(part) {
        part *= 2;
    }
    part.min(i64::from(i32::MAX)) as i32
}

fn geometry(p: &AttentionDecodeParams, dtype: DType, _: &Chip) -> Geometry {
    const THREADS: u32 = 256;
    const WARPS: u32 = THREADS / 32;
    let addresses = [p.qkv.cast_const(), p.pages.cast_const()];
    let distances = [i64::from(p.head_dim), p.row_stride, p.page_stride];
    let parts =
        (p.table_stride * i64::from(p.page_tokens) + i64::from(p.part) - 1) / i64::from(p.part);
    let (variant, features, parts) = match p.head_dim {
        _ if !layout::is_packable(&addresses, &distances, dtype) => ("_plain", 256, 1),
        ..=64 => ("_64", 64, parts),
        65..=128 => ("_128", 128, parts),
        _ => ("_plain", 256, 1),
    };
    // `DecodeShared`: outputs, maxima and sums of the warps, the query, a flag.
    let shared = ((WARPS + 1) * features + 2 * WARPS + 1) * size_of::<f32>() as u32;
    let grid = [p.rows as u32, p.heads as u32, parts as u32];
    Geometry { variant, grid, shared, ..Geometry::linear(0, THREADS) }
}

fn cost(p: &AttentionDecodeParams, dtype: DType) -> Cost {
    // SAFETY: a launch's params point at the batch's host-readable sizes.
    let kv_len = unsafe { std::slice::from_raw_parts(p.kv_len, p.rows as usize) };
    let (rows, width) = (p.rows as f64, p.heads as f64 * p.head_dim as f64);
    let keys: f64 = kv_len.iter().map(|n| *n as f64).sum();
    // Keys and values but the new ones; qkv, o, and the new ones written.
    let cells = (2.0 * (keys - rows) + 6.0 * rows) * width;
    Cost { bytes: cells * dtype.size() as f64, flops: 4.0 * keys * width }
}

/// The three twins, one after the other: what they share is in the caches.
///
/// # Safety
/// As [`Stream::launch`].
unsafe fn attention_decode_twin<T: Real>(p: &AttentionDecodeParams, host: &Host) {
    let &AttentionDecodeParams { rows, heads, head_dim, page_tokens, row_stride, .. } = p;
    // SAFETY: the caller's, of each; row s is sequence s.
    unsafe {
        if p.rotary > 0 {
            let rope = RopeParams {
                qkv: p.qkv,
                positions: p.positions,
                rows,
                row_stride,
                heads,
                head_dim,
                rotary: p.rotary,
                base: p.base,
            };
            rope_twin::<T>(&rope, host);
        }
        let append = KvAppendParams {
            pages: p.pages,
            qkv: p.qkv,
            slots: p.slots,
            rows,
            row_stride,
            page_stride: p.page_stride,
            heads,
            head_dim,
            page_tokens,
            reserved: 0,
        };
        kv_append_twin::<T>(&append, host);
        let begin: Vec<i32> = (0..=rows as i32).collect();
        let attention = SelfAttentionParams {
            o: p.o,
            q: p.qkv,
            pages: p.pages,
            tables: p.tables,
            q_begin: begin.as_ptr(),
            kv_len: p.kv_len,
            slopes: p.slopes,
            rows,
            sequences: rows,
            table_stride: p.table_stride,
            q_stride: row_stride,
            page_stride: p.page_stride,
            heads,
            head_dim,
            page_tokens,
            scale: p.scale,
        };
        self_attention_twin::<T>(&attention, host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_the_workspace_and_do_not_depend_on_the_batch() {
        assert_eq!([part(1, 32), part(2048, 32), part(2048, 32 * 32)], [256; 3]);
        assert_eq!(part(1 << 17, 32), 2048);
        // More heads than counters: one part.
        assert_eq!(part(2048, 16385), 2048);
        assert!(part(i64::from(i32::MAX), 1) > 1 << 24);
    }

    #[test]
    fn a_launch_is_the_same_from_token_to_token() {
        let p = AttentionDecodeParams {
            o: std::ptr::null_mut(),
            qkv: std::ptr::null_mut(),
            pages: std::ptr::null_mut(),
            workspace: std::ptr::null_mut(),
            // Not read: which blocks have work is decided on the card.
            slots: std::ptr::null(),
            positions: std::ptr::null(),
            tables: std::ptr::null(),
            kv_len: std::ptr::null(),
            slopes: std::ptr::null(),
            rows: 2,
            table_stride: 128,
            row_stride: 3 * 4096,
            page_stride: 2 * 4096 * 16,
            heads: 32,
            head_dim: 128,
            page_tokens: 16,
            rotary: 128,
            part: 256,
            base: 1e4,
            scale: 1.0,
            reserved: 0,
        };
        for chip in [Chip::A100, Chip::H200] {
            let g = geometry(&p, DType::BF16, &chip);
            assert_eq!((g.variant, g.grid, g.threads, g.shared), ("_128", [2, 32, 8], 256, 4676));
            let neox = AttentionDecodeParams { head_dim: 80, ..p };
            assert_eq!(geometry(&neox, DType::F32, &chip).variant, "_128");
            let odd = AttentionDecodeParams { head_dim: 63, ..p };
            let g = geometry(&odd, DType::BF16, &chip);
            assert_eq!((g.variant, g.grid), ("_plain", [2, 32, 1]));
        }
    }
}
