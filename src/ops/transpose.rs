//! `transpose`: y[c, r] = x[r, c], with zeros behind the rows of y.

use super::check;
use super::layout;
use super::rows::Rows;
use crate::contracts::TransposeParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/transpose.h`.
pub static TRANSPOSE: Kernel<TransposeParams> =
    Kernel { name: "transpose", twins: twins!(transpose_twin), geometry, cost, accounting: 0 };

/// y[c, r] = x[r, c]; x (rows, cols), y (cols, rows or more): what is more becomes 0. Rows of both
/// may be strided. A product over y's rows is fastest where they are whole 16-byte packs.
///
/// # Errors
/// If a shape or dtype differs.
pub fn transpose(stream: &Stream, mut y: ViewMut<'_>, x: View<'_>) -> Result<()> {
    let op = "transpose";
    if y.rows() != x.cols() || y.cols() < x.rows() {
        let expected = format!("({}, {} or more)", x.cols(), x.rows());
        return Err(Error::invalid("transpose: y", expected, y.shape()));
    }
    check::dtype(op, "y", &y.as_view(), x.dtype())?;
    let params = TransposeParams {
        y: y.ptr(),
        x: x.ptr(),
        rows: x.rows() as i64,
        cols: x.cols() as i64,
        y_cols: y.cols() as i64,
        y_stride: y.stride() as i64,
        x_stride: x.stride() as i64,
    };
    // SAFETY: shapes and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&TRANSPOSE, x.dtype(), &params) }
}

/// Elements of a side of a block's tile: eight packs.
fn side(dtype: DType) -> i64 {
    8 * 16 / dtype.size() as i64
}

fn geometry(p: &TransposeParams, dtype: DType, _: &Chip) -> Geometry {
    let distances = [p.cols, p.y_cols, p.y_stride, p.x_stride];
    let packable = layout::is_packable(&[p.y.cast_const(), p.x], &distances, dtype);
    let side = side(dtype);
    let tiles = layout::groups(p.cols, side) * layout::groups(p.y_cols, side);
    let (variant, gap) = if packable { ("", 0) } else { ("_plain", 4) };
    // `sizeof(TransposeShared)`.
    let shared = (side * (side * dtype.size() as i64 + gap)) as u32;
    Geometry { variant, shared, ..Geometry::linear(tiles as u32, 256) }
}

fn cost(p: &TransposeParams, dtype: DType) -> Cost {
    let cells = p.cols as f64 * (p.rows + p.y_cols) as f64;
    Cost { bytes: cells * dtype.size() as f64, flops: 0.0 }
}

/// Columns of x of one task, and rows of x at a time: a tile that stays in the first cache.
const TILE: usize = 32;

/// # Safety
/// As [`Stream::launch`].
unsafe fn transpose_twin<T: Real>(p: &TransposeParams, host: &Host) {
    let (rows, cols, y_cols) = (p.rows as usize, p.cols as usize, p.y_cols as usize);
    let y = Rows::<T>::new(p.y, p.y_stride, y_cols);
    let x = Rows::<T>::new(p.x, p.x_stride, cols);
    host.pool.run(cols.div_ceil(TILE), |task| {
        let (start, zero) = (task * TILE, T::from_f32(0.0));
        let width = TILE.min(cols - start);
        let mut tile = [[zero; TILE]; TILE];
        for top in (0..y_cols).step_by(TILE) {
            let height = TILE.min(y_cols - top);
            for (i, line) in tile[..height].iter_mut().enumerate() {
                if top + i < rows {
                    // SAFETY: the row exists.
                    line[..width].copy_from_slice(unsafe { x.part(top + i, start, width) });
                } else {
                    line.fill(zero);
                }
            }
            for j in 0..width {
                // SAFETY: the row exists and is this task's only.
                let y = unsafe { y.part_mut(start + j, top, height) };
                for (y, line) in y.iter_mut().zip(&tile) {
                    *y = line[j];
                }
            }
        }
    });
}
