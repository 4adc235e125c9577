//! `cross_attention`: text rows attend to the latents of the images they may see.

use super::batch::{Media, MediaSpans};
use super::check;
use super::lanes::{self, Grid, Lanes};
use super::layout::{self, Attend};
use super::rows::Rows;
use super::softmax::{self, Keys, Queries, Run};
use crate::contracts::{CrossAttentionParams, MediaSpan};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream, TensorMap};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/cross_attention.h`.
pub static CROSS_ATTENTION: Kernel<CrossAttentionParams> = Kernel {
    name: "cross_attention",
    twins: twins!(cross_attention_twin),
    geometry,
    cost,
    accounting: 1,
};

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
        rows: check::small(op, "rows", q.rows())?.into(),
        images: media.images() as i64,
        latents: check::small(op, "latents", media.latents())?,
        heads: check::small(op, "heads", heads)?,
        head_dim: check::small(op, "head_dim", head_dim)?,
        scale: check::scale(op, scale)?,
        visible: spans.visible() as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked, spans and media when they were made.
    unsafe { stream.launch(&CROSS_ATTENTION, q.dtype(), &params) }
}

fn geometry(p: &CrossAttentionParams, dtype: DType, chip: &Chip) -> Geometry {
    // Images are tensors of their own and begin at multiples of 16 bytes.
    let packable = layout::is_packable(&[p.o.cast_const(), p.q], &[i64::from(p.head_dim)], dtype);
    // With less than a tile for each multiprocessor, blocks that split tiles keep more at work.
    let is_many = rows_of_place(p, chip) > TILE;
    let is_usual = packable && dtype.size() == 2 && (p.head_dim, p.latents) == (64, 64);
    if is_many && is_usual && chip.has_wgmma() {
        return of_many_rows(p, chip);
    }
    let attend = Attend {
        blocks: layout::groups(p.rows, run(p, chip)),
        rows: p.rows,
        batch: 1,
        heads: p.heads,
        head_dim: p.head_dim,
        // Two stages of queries, keys and values.
        tiles: 6,
    };
    layout::attend(&attend, dtype, packable)
}

/// Rows that the tensor cores take at once.
const TILE: i64 = 64;

/// Rows of all heads for each multiprocessor.
fn rows_of_place(p: &CrossAttentionParams, chip: &Chip) -> i64 {
    layout::groups(p.rows * i64::from(p.heads), chip.multiprocessors.into())
}

/// Consecutive rows of a block: one run a multiprocessor, or if those are longer than a tile, whole
/// tiles, so that three blocks a multiprocessor take all at once.
fn run(p: &CrossAttentionParams, chip: &Chip) -> i64 {
    match rows_of_place(p, chip) {
        few @ ..=TILE => few.max(1),
        many => layout::groups(many, 3 * TILE) * TILE,
    }
}

/// A block a multiprocessor takes a run of whole tiles: `kernels/cross_attention_sm90.cu`.
fn of_many_rows(p: &CrossAttentionParams, chip: &Chip) -> Geometry {
    /// `sizeof(CrossSm90Shared)`, `sizeof(Seen)` and `GROUPS`.
    const SHARED: u32 = 193 << 10;
    const SEEN: u32 = 16;
    const ROUND: u32 = 4;
    let tiles = layout::groups(p.rows, TILE);
    let runs = (i64::from(chip.multiprocessors) / i64::from(p.heads)).max(1);
    let room = (chip.shared_bytes - SHARED) / SEEN - (ROUND - 1);
    let run = layout::groups(tiles, runs).min(room.into());
    let width = i64::from(p.heads) * 64;
    let map =
        |address, tile_rows| Some(TensorMap::for_wgmma(address, [p.rows, width], width, tile_rows));
    Geometry {
        variant: "_sm90_64",
        grid: [layout::groups(tiles, run) as u32, p.heads as u32, 1],
        // A tile of queries; the rows of one warp.
        maps: [map(p.q, 64), map(p.o.cast_const(), 16), None, None],
        shared: SHARED + (run as u32 + ROUND - 1) * SEEN,
        ..Geometry::linear(0, 640)
    }
}

fn cost(p: &CrossAttentionParams, dtype: DType) -> Cost {
    let width = p.heads as f64 * p.head_dim as f64;
    let seen = p.visible as f64 * p.latents as f64;
    let kv = p.images as f64 * p.latents as f64;
    Cost {
        bytes: 2.0 * (p.rows as f64 + kv) * width * dtype.size() as f64,
        flops: 4.0 * seen * width,
    }
}

struct Task<T> {
    o: Rows<T>,
    q: Rows<T>,
    media: Rows<i64>,
    spans: Rows<MediaSpan>,
    rows: usize,
    latents: usize,
    heads: usize,
    head_dim: usize,
    scale: f32,
}

/// The keys of the images from `begin` on, for one head.
struct MediaKeys<'a> {
    media: &'a [i64],
    begin: usize,
    latents: usize,
    width: usize,
    start: usize,
}

impl<T> Keys<T> for MediaKeys<'_> {
    #[inline(always)]
    unsafe fn run(&self, j: usize) -> Run<T> {
        let (image, latent) = (self.begin + j / self.latents, j % self.latents);
        let address = std::ptr::with_exposed_provenance::<T>(self.media[image] as usize);
        // SAFETY: the caller's; the table's images are (latents, 2*width).
        let k = unsafe { address.add(latent * 2 * self.width + self.start) };
        // SAFETY: values follow keys in each row.
        let v = unsafe { k.add(self.width) };
        Run { k, v, stride: 2 * self.width, len: self.latents - latent }
    }
}

impl<T: Real> Task<T> {
    /// Rows `first .. first + rows`, which have the same span.
    #[inline(always)]
    unsafe fn same_span<L: Lanes, const M: usize>(
        &self,
        span: MediaSpan,
        (first, rows): (usize, usize),
        head: usize,
        scratch: &mut [f32],
    ) {
        let (start, head_dim) = (head * self.head_dim, self.head_dim);
        let seen = (span.end - span.begin) as usize * self.latents;
        // SAFETY: the caller's; (row, head) of o is of this task only.
        unsafe {
            if seen == 0 {
                for r in first..first + rows {
                    self.o.part_mut(r, start, head_dim).fill(T::from_f32(0.0));
                }
                return;
            }
            let queries = Queries {
                o: self.o.part_mut(first, start, head_dim).as_mut_ptr(),
                q: self.q.part(first, start, head_dim).as_ptr(),
                o_stride: self.o.stride(),
                q_stride: self.q.stride(),
                rows,
                head_dim,
                seen,
                step: 0,
                // Equal scores average the values.
                scale: if span.uniform != 0 { 0.0 } else { self.scale },
                slope: 0.0,
            };
            let keys = MediaKeys {
                media: self.media.get(0),
                begin: span.begin as usize,
                latents: self.latents,
                width: self.heads * head_dim,
                start,
            };
            softmax::attend::<T, L, M>(&queries, &keys, scratch);
        }
    }
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, m: usize) -> usize {
        softmax::scratch(self.head_dim, m)
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let (mut first, head) = (task / self.heads * softmax::QUERIES, task % self.heads);
        let end = (first + softmax::QUERIES).min(self.rows);
        // SAFETY: the caller's; one span per row.
        unsafe {
            let spans = self.spans.get(0);
            while first < end {
                let span = spans[first];
                let same = |s: &&MediaSpan| {
                    (s.begin, s.end, s.uniform) == (span.begin, span.end, span.uniform)
                };
                let rows = spans[first..end].iter().take_while(same).count();
                self.same_span::<L, M>(span, (first, rows), head, scratch);
                first += rows;
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn cross_attention_twin<T: Real>(p: &CrossAttentionParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let rows = p.rows as usize;
    let grid = Task {
        o: Rows::<T>::dense(p.o, heads * head_dim),
        q: Rows::dense(p.q, heads * head_dim),
        media: Rows::dense(p.kv.cast(), p.images as usize),
        spans: Rows::dense(p.spans.cast(), rows),
        rows,
        latents: p.latents as usize,
        heads,
        head_dim,
        scale: p.scale,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, rows.div_ceil(softmax::QUERIES) * heads, &grid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rows` of the 9B model that see one image each, of `images`.
    fn params(rows: i64, images: i64) -> CrossAttentionParams {
        CrossAttentionParams {
            o: std::ptr::null_mut(),
            q: std::ptr::null(),
            kv: std::ptr::null(),
            spans: std::ptr::null(),
            rows,
            images,
            latents: 64,
            heads: 8,
            head_dim: 64,
            scale: 0.125,
            visible: rows,
        }
    }

    #[test]
    fn few_rows_are_spread_and_many_share_an_image() {
        for (rows, a100, h200) in [
            // Decoded sequences: each looks at an image of its own.
            (1, [1, 1], [1, 1]),
            (16, [2, 8], [1, 16]),
            // The published demo's prompt, a training step, and a batch of them.
            (250, [19, 14], [16, 16]),
            (2048, [64, 32], [64, 32]),
            (8192, [256, 32], [192, 43]),
        ] {
            for (chip, [of_block, blocks]) in [(Chip::A100, a100), (Chip::H200, h200)] {
                let p = params(rows, 1);
                assert_eq!(run(&p, &chip), of_block, "{rows}");
                // Of 63 latents also those of many rows on Hopper.
                let p = CrossAttentionParams { latents: 63, ..p };
                let g = geometry(&p, DType::BF16, &chip);
                assert_eq!((g.variant, g.grid), ("_64", [blocks as u32, 8, 1]), "{rows}");
                assert!(3 * g.shared <= chip.shared_bytes);
                let wide = CrossAttentionParams { head_dim: 128, ..p };
                assert!(geometry(&wide, DType::F16, &chip).shared <= chip.shared_bytes);
            }
        }
    }

    #[test]
    fn many_rows_on_hopper_are_a_run_of_tiles_a_multiprocessor() {
        for (rows, tiles, blocks) in
            [(1057, 2, 9), (2048, 2, 16), (8192, 8, 16), (8193, 9, 15), (1 << 20, 1024, 16)]
        {
            let p = params(rows, 1);
            let g = geometry(&p, DType::F16, &Chip::H200);
            assert_eq!((g.variant, g.grid), ("_sm90_64", [blocks, 8, 1]), "{rows}");
            assert_eq!(g.shared, (193 << 10) + (tiles + 3) * 16);
            assert!(g.shared <= Chip::H200.shared_bytes);
        }
        // As many as there is room for.
        let g = geometry(&params(1 << 24, 1), DType::BF16, &Chip::H200);
        assert!((1 << 18) / 16 < g.grid[0] * 2200 && g.shared <= Chip::H200.shared_bytes);
        for (rows, dtype, chip) in [
            (1056, DType::BF16, Chip::H200),
            (8192, DType::F32, Chip::H200),
            (8192, DType::BF16, Chip::A100),
        ] {
            assert_ne!(geometry(&params(rows, 1), dtype, &chip).variant, "_sm90_64");
        }
    }

    #[test]
    fn counted_bytes_are_the_least_that_must_move() {
        let cost = cost(&params(8192, 3), DType::BF16);
        // Queries and outputs, and every image's keys and values, once.
        assert_eq!(cost.bytes, 2.0 * (8192.0 + 3.0 * 64.0) * 512.0 * 2.0);
        assert_eq!(cost.flops, 4.0 * 8192.0 * 64.0 * 512.0);
    }
}
