//! `cross_attention`: text rows attend to the latents of the images they may see.

use super::batch::{Media, MediaSpans};
use super::check;
use super::rows::{Rows, for_row_ranges, with_scratch};
use crate::contracts::{CrossAttentionParams, MediaSpan};
use crate::device::{Cost, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/cross_attention.h`.
pub static CROSS_ATTENTION: Kernel<CrossAttentionParams> =
    Kernel { name: "cross_attention", twins: twins!(cross_attention_twin), cost };

/// O = softmax(scale * Q K^T) V per row and head over the latents of the images in the row's span;
/// o, q (rows, heads*head_dim) dense. Rows that see no image become 0.
///
/// # Errors
/// If a shape, stride or dtype differs, or the spans were checked against more images.
pub fn cross_attention(
    stream: &Stream,
    mut o: ViewMut<'_>,
    q: View<'_>,
    media: &Media<'_>,
    spans: &MediaSpans,
    heads: usize,
    scale: f32,
) -> Result<()> {
    let op = "cross_attention";
    let head_dim = check::head_dim(op, "q", q.cols(), heads)?;
    check::matrix(op, "q", &q, spans.rows(), q.cols())?;
    check::matrix(op, "o", &o.as_view(), q.rows(), q.cols())?;
    check::dtype(op, "o", &o.as_view(), q.dtype())?;
    check::dense(op, "o", &o.as_view())?;
    check::dense(op, "q", &q)?;
    if media.images() < spans.images() {
        let expected = format!("{} images", spans.images());
        return Err(Error::invalid("cross_attention: media", expected, media.images()));
    }
    if media.dtype().is_some_and(|d| (d, media.width()) != (q.dtype(), q.cols())) {
        let expected = format!("(latents, 2*{}) {}", q.cols(), q.dtype());
        let found = format!("({}, 2*{})", media.latents(), media.width());
        return Err(Error::invalid("cross_attention: media", expected, found));
    }
    let params = CrossAttentionParams {
        o: o.ptr(),
        q: q.ptr(),
        kv: media.table(),
        spans: spans.spans(),
        rows: q.rows() as i64,
        images: media.images() as i64,
        latents: check::small(op, "latents", media.latents())?,
        heads: check::small(op, "heads", heads)?,
        head_dim: check::small(op, "head_dim", head_dim)?,
        scale,
    };
    // SAFETY: shapes, strides and dtypes were checked, spans and media when they were made.
    unsafe { stream.launch(&CROSS_ATTENTION, q.dtype(), &params) }
}

fn cost(p: &CrossAttentionParams, dtype: DType) -> Cost {
    // SAFETY: a launch's params point at the step's host-readable spans.
    let spans = unsafe { std::slice::from_raw_parts(p.spans, p.rows as usize) };
    let width = p.heads as f64 * p.head_dim as f64;
    let seen: f64 = spans.iter().map(|s| (s.end - s.begin) as f64).sum::<f64>() * p.latents as f64;
    let kv = p.images as f64 * p.latents as f64;
    Cost {
        bytes: 2.0 * (p.rows as f64 + kv) * width * dtype.size() as f64,
        flops: 4.0 * seen * width,
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn cross_attention_twin<T: Real>(p: &CrossAttentionParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (rows, latents, images) = (p.rows as usize, p.latents as usize, p.images as usize);
    let (width, scale) = (heads * head_dim, p.scale);
    let (o, q) = (Rows::<T>::dense(p.o, width), Rows::<T>::dense(p.q, width));
    let spans = Rows::<MediaSpan>::dense(p.spans.cast(), rows);
    let media = Rows::<i64>::dense(p.kv.cast(), images);
    for_row_ranges(host, rows, width * 64, |range| {
        for r in range {
            // SAFETY: one span per row.
            let span = unsafe { spans.get(0)[r] };
            let (begin, end) = (span.begin as usize, span.end as usize);
            let keys = (end - begin) * latents;
            with_scratch(keys + head_dim, |scratch| {
                let (weights, sums) = scratch.split_at_mut(keys);
                for h in 0..heads {
                    // SAFETY: spans are inside the table; row r of o is of this task only.
                    unsafe {
                        let o = o.part_mut(r, h * head_dim, head_dim);
                        if keys == 0 {
                            o.fill(T::from_f32(0.0));
                            continue;
                        }
                        let scale = if span.uniform != 0 { 0.0 } else { scale };
                        super::softmax::plain(
                            q.part(r, h * head_dim, head_dim),
                            scale,
                            weights,
                            sums,
                            |j| {
                                let address = media.get(0)[begin + j / latents] as usize;
                                let image = std::ptr::with_exposed_provenance(address);
                                let kv = Rows::<T>::dense(image, 2 * width);
                                let k = kv.part(j % latents, h * head_dim, head_dim);
                                (k, kv.part(j % latents, width + h * head_dim, head_dim), 0.0)
                            },
                            o,
                        );
                    }
                }
            });
        }
    });
}
