//! `patchify`: images to rows of patches; `vision_tokens`: class embedding and positions, and their
//! gradients.

use super::check;
use super::gemm::{Out, math};
use super::layout;
use super::rows::{Rows, for_row_ranges};
use crate::contracts::{PatchifyParams, VisionTokensBackwardParams, VisionTokensParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/patchify.h`.
pub static PATCHIFY: Kernel<PatchifyParams> = Kernel {
    name: "patchify",
    twins: twins!(patchify_twin),
    geometry: patchify_geometry,
    cost: patchify_cost,
    accounting: 0,
};

/// See `kernels/patchify.h`.
pub static VISION_TOKENS: Kernel<VisionTokensParams> = Kernel {
    name: "vision_tokens",
    twins: twins!(vision_tokens_twin),
    geometry: vision_tokens_geometry,
    cost: vision_tokens_cost,
    accounting: 0,
};

/// Cuts pixels (images, 3, side, side) u8 into rows y (images*(side/patch)^2, cols) in the order
/// (channel, y, x); a byte of channel c becomes levels[c, byte] of (3, 256) f32. Columns of y
/// beyond the 3*patch*patch of a patch become zeros.
///
/// # Errors
/// If pixels or levels are no such tensors, `side` is not a multiple of `patch`, or y does not fit.
pub fn patchify(
    stream: &Stream,
    mut y: ViewMut<'_>,
    pixels: View<'_>,
    levels: View<'_>,
    patch: usize,
) -> Result<()> {
    check::dtype("patchify", "pixels", &pixels, DType::U8)?;
    check::dense("patchify", "pixels", &pixels)?;
    check::matrix("patchify", "levels", &levels, 3, 256)?;
    check::dtype("patchify", "levels", &levels, DType::F32)?;
    check::dense("patchify", "levels", &levels)?;
    let shape = pixels.shape();
    let &[images, 3, side, width] = shape.sizes() else {
        return Err(Error::invalid("patchify: pixels", "(images, 3, side, side)", shape));
    };
    if width != side || patch == 0 || !side.is_multiple_of(patch) {
        let expected = format!("(images, 3, side, side) with side a multiple of {patch}");
        return Err(Error::invalid("patchify: pixels", expected, shape));
    }
    check::small("patchify", "pixels", shape.elements())?;
    let per_image = (side / patch) * (side / patch);
    let cols = y.shape().cols().max(3 * patch * patch);
    check::matrix("patchify", "y", &y.as_view(), images * per_image, cols)?;
    check::dense("patchify", "y", &y.as_view())?;
    check::small("patchify", "y", y.shape().elements())?;
    let params = PatchifyParams {
        y: y.ptr(),
        pixels: pixels.ptr(),
        levels: levels.ptr(),
        images: images as i64,
        cols: cols as i64,
        side: check::small("patchify", "side", side)?,
        patch: check::small("patchify", "patch", patch)?,
    };
    // SAFETY: shapes, strides and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&PATCHIFY, y.dtype(), &params) }
}

/// y[i,0] = cls + pos[0]; y[i,1+p] = x[i,p] + pos[1+p]; y (images, 1+patches, cols),
/// x (images, patches, cols), cls (cols), pos (1+patches, cols); all dense.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn vision_tokens(
    stream: &Stream,
    mut y: ViewMut<'_>,
    x: View<'_>,
    cls: View<'_>,
    pos: View<'_>,
) -> Result<()> {
    let op = "vision_tokens";
    let (tokens, cols) = (pos.rows(), pos.cols());
    if tokens < 2 || !x.rows().is_multiple_of(tokens - 1) {
        let expected = format!("(images * {}, {cols}) for pos {}", tokens.max(1) - 1, pos.shape());
        return Err(Error::invalid("vision_tokens: x", expected, x.shape()));
    }
    let images = x.rows() / (tokens - 1);
    check::matrix(op, "y", &y.as_view(), images * tokens, cols)?;
    check::matrix(op, "x", &x, images * (tokens - 1), cols)?;
    check::vector(op, "cls", &cls, cols)?;
    for (name, view) in [("y", &y.as_view()), ("x", &x), ("cls", &cls), ("pos", &pos)] {
        check::dtype(op, name, view, x.dtype())?;
        check::dense(op, name, view)?;
    }
    check::small(op, "y", y.shape().elements())?;
    let params = VisionTokensParams {
        y: y.ptr(),
        x: x.ptr(),
        cls: cls.ptr(),
        pos: pos.ptr(),
        images: images as i64,
        patches: (tokens - 1) as i64,
        cols: cols as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&VISION_TOKENS, x.dtype(), &params) }
}

fn patchify_geometry(p: &PatchifyParams, _: DType, _: &Chip) -> Geometry {
    let across = i64::from(p.side / p.patch.max(1));
    layout::cells(p.images * across * across * p.cols, 1)
}

fn vision_tokens_geometry(p: &VisionTokensParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.y.cast_const(), p.x, p.cls, p.pos], &[p.cols], dtype);
    layout::packed_cells(p.images * (1 + p.patches) * p.cols, dtype, packable)
}

fn patchify_cost(p: &PatchifyParams, dtype: DType) -> Cost {
    let (images, side) = (p.images as f64, f64::from(p.side));
    let patches = images * (side / f64::from(p.patch)).powi(2);
    let y = patches * p.cols as f64 * dtype.size() as f64;
    Cost { bytes: images * 3.0 * side * side + y + 3.0 * 256.0 * 4.0, flops: 0.0 }
}

fn vision_tokens_cost(p: &VisionTokensParams, dtype: DType) -> Cost {
    let (images, patches, cols) = (p.images as f64, p.patches as f64, p.cols as f64);
    let rows = images * (2.0 * patches + 1.0) + patches + 2.0;
    Cost { bytes: rows * cols * dtype.size() as f64, flops: images * (patches + 1.0) * cols }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn patchify_twin<T: Real>(p: &PatchifyParams, host: &Host) {
    let (side, patch) = (p.side as usize, p.patch as usize);
    let across = side / patch;
    let rows = p.images as usize * across * across;
    let (own, cols) = (3 * patch * patch, p.cols as usize);
    let y = Rows::<T>::dense(p.y, cols);
    let lines = Rows::<u8>::dense(p.pixels.cast(), side);
    let levels = Rows::<f32>::dense(p.levels.cast(), 256);
    for_row_ranges(host, rows, cols, |range| {
        for r in range {
            let (image, down, right) = (r / (across * across), r / across % across, r % across);
            // SAFETY: each row of y is of one task only.
            let (y, rest) = unsafe { y.get_mut(r) }.split_at_mut(own);
            rest.fill(math::narrow(0.0));
            for (piece, y) in y.chunks_exact_mut(patch).enumerate() {
                let (channel, dy) = (piece / patch, piece % patch);
                let line = (image * 3 + channel) * side + down * patch + dy;
                // SAFETY: `line` is one of the images' 3 * side lines, `channel` one of three.
                let (line, levels) = unsafe { (lines.get(line), levels.get(channel)) };
                for (y, &x) in y.iter_mut().zip(&line[right * patch..(right + 1) * patch]) {
                    *y = math::narrow(levels[usize::from(x)]);
                }
            }
        }
    });
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn vision_tokens_twin<T: Real>(p: &VisionTokensParams, host: &Host) {
    let (patches, cols) = (p.patches as usize, p.cols as usize);
    let tokens = patches + 1;
    let (y, x) = (Rows::<T>::dense(p.y, cols), Rows::<T>::dense(p.x, cols));
    let (cls, pos) = (Rows::<T>::dense(p.cls, cols), Rows::<T>::dense(p.pos, cols));
    for_row_ranges(host, p.images as usize * tokens, cols, |range| {
        for r in range {
            let (image, token) = (r / tokens, r % tokens);
            // SAFETY: rows inside the contract's extent; each row of y is of one task only.
            let (y, pos) = unsafe { (y.get_mut(r), pos.get(token)) };
            // SAFETY: as above.
            let x =
                unsafe { if token == 0 { cls.get(0) } else { x.get(image * patches + token - 1) } };
            for ((y, x), pos) in y.iter_mut().zip(x).zip(pos) {
                *y = math::narrow(math::widen(*x) + math::widen(*pos));
            }
        }
    });
}

/// See `kernels/patchify.h`.
pub static VISION_TOKENS_BACKWARD: Kernel<VisionTokensBackwardParams> = Kernel {
    name: "vision_tokens_backward",
    twins: twins!(vision_tokens_backward_twin),
    geometry: backward_geometry,
    cost: backward_cost,
    accounting: 0,
};

/// The gradients of [`vision_tokens`], given dy (images, 1+patches, cols): dcls (cols) f32 and dpos
/// (1+patches, cols) f32 are (+)= sums over the images, dx (images, patches, cols), where it is
/// wanted, the rows of the patches; all dense.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn vision_tokens_backward(
    stream: &Stream,
    mut dx: Option<ViewMut<'_>>,
    mut dcls: ViewMut<'_>,
    mut dpos: ViewMut<'_>,
    out: Out,
    dy: View<'_>,
) -> Result<()> {
    let op = "vision_tokens_backward";
    let (tokens, cols) = (dpos.rows(), dpos.cols());
    if tokens < 2 || !dy.rows().is_multiple_of(tokens) || dy.cols() != cols {
        let expected = format!("(images * {tokens}, {cols}) for dpos {}", dpos.shape());
        return Err(Error::invalid("vision_tokens_backward: dy", expected, dy.shape()));
    }
    let (images, patches) = (dy.rows() / tokens, tokens - 1);
    check::flat(op, "dpos", &dpos.as_view(), tokens * cols, DType::F32)?;
    check::flat(op, "dcls", &dcls.as_view(), cols, DType::F32)?;
    check::dense(op, "dy", &dy)?;
    if let Some(dx) = dx.as_ref().map(ViewMut::as_view) {
        check::matrix(op, "dx", &dx, images * patches, cols)?;
        check::dtype(op, "dx", &dx, dy.dtype())?;
        check::dense(op, "dx", &dx)?;
    }
    let params = VisionTokensBackwardParams {
        dx: dx.as_mut().map_or(std::ptr::null_mut(), ViewMut::ptr),
        dcls: dcls.ptr(),
        dpos: dpos.ptr(),
        dy: dy.ptr(),
        images: images as i64,
        patches: patches as i64,
        cols: cols as i64,
        accumulate: i32::from(out == Out::Accumulate),
        reserved: 0,
    };
    // SAFETY: shapes, strides and dtypes were checked; what is written is borrowed exclusively.
    unsafe { stream.launch(&VISION_TOKENS_BACKWARD, dy.dtype(), &params) }
}

fn backward_geometry(p: &VisionTokensBackwardParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.dx.cast_const(), p.dy], &[p.cols], dtype);
    layout::packed_cells((1 + p.patches) * p.cols, dtype, packable)
}

fn backward_cost(p: &VisionTokensBackwardParams, dtype: DType) -> Cost {
    let (images, patches, cols) = (p.images as f64, p.patches as f64, p.cols as f64);
    let (read, copied) = (images * (patches + 1.0), images * patches);
    let moved = read + if p.dx.is_null() { 0.0 } else { copied };
    let sums = (2.0 + patches) * if p.accumulate == 0 { 4.0 } else { 8.0 };
    Cost { bytes: cols * (moved * dtype.size() as f64 + sums), flops: read * cols }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn vision_tokens_backward_twin<T: Real>(p: &VisionTokensBackwardParams, host: &Host) {
    let (images, patches, cols) = (p.images as usize, p.patches as usize, p.cols as usize);
    let (tokens, accumulates) = (patches + 1, p.accumulate != 0);
    let copied = if p.dx.is_null() { 0 } else { images };
    let (dx, dy) = (Rows::<T>::dense(p.dx, cols), Rows::<T>::dense(p.dy, cols));
    let (dcls, dpos) =
        (Rows::<f32>::dense(p.dcls.cast(), cols), Rows::<f32>::dense(p.dpos.cast(), cols));
    for_row_ranges(host, tokens, images.max(1) * cols, |range| {
        for token in range {
            // SAFETY: each token's rows are of one task only, and so is dcls, of token 0's.
            let (dpos, dcls) =
                unsafe { (dpos.get_mut(token), (token == 0).then(|| dcls.get_mut(0))) };
            add_images(dpos, accumulates, images, |i| {
                // SAFETY: a row of the contract's extent.
                unsafe { dy.get(i * tokens + token) }
            });
            if let Some(dcls) = dcls {
                // SAFETY: as above.
                add_images(dcls, accumulates, images, |i| unsafe { dy.get(i * tokens) });
            }
            for i in 0..if token == 0 { 0 } else { copied } {
                // SAFETY: as above.
                unsafe {
                    dx.get_mut(i * patches + token - 1).copy_from_slice(dy.get(i * tokens + token));
                }
            }
        }
    });
}

/// sum (+)= the images' rows, in their order.
fn add_images<'a, T: Real>(
    sum: &mut [f32],
    accumulates: bool,
    images: usize,
    row: impl Fn(usize) -> &'a [T],
) {
    if !accumulates {
        sum.fill(0.0);
    }
    for i in 0..images {
        for (sum, x) in sum.iter_mut().zip(row(i)) {
            *sum += math::widen(*x);
        }
    }
}
