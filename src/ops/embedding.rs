//! `embedding`: y[r] = w[ids[r]].

use super::batch::TokenIds;
use super::check;
use super::layout;
use super::rows::{Rows, for_row_ranges};
use crate::contracts::EmbeddingParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/embedding.h`.
pub static EMBEDDING: Kernel<EmbeddingParams> =
    Kernel { name: "embedding", twins: twins!(embedding_twin), geometry, cost, accounting: 0 };

/// y[r] = w[ids[r]]; y (rows, cols), w (vocabulary, cols), both dense.
///
/// # Errors
/// If a shape, stride or dtype differs, or the ids were checked against a larger vocabulary.
pub fn embedding(stream: &Stream, mut y: ViewMut<'_>, ids: &TokenIds, w: View<'_>) -> Result<()> {
    check::matrix("embedding", "y", &y.as_view(), ids.rows(), w.cols())?;
    check::dtype("embedding", "y", &y.as_view(), w.dtype())?;
    check::dense("embedding", "y", &y.as_view())?;
    check::dense("embedding", "w", &w)?;
    if w.rows() < ids.vocabulary() {
        let expected = format!("at least {} rows", ids.vocabulary());
        return Err(Error::invalid("embedding: w", expected, w.shape()));
    }
    let params = EmbeddingParams {
        y: y.ptr(),
        ids: ids.ids(),
        w: w.ptr(),
        rows: ids.rows() as i64,
        cols: w.cols() as i64,
        vocabulary: w.rows() as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked, the ids when they were made.
    unsafe { stream.launch(&EMBEDDING, w.dtype(), &params) }
}

fn geometry(p: &EmbeddingParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.y.cast_const(), p.w], &[p.cols], dtype);
    layout::packed_cells(p.rows * p.cols, dtype, packable)
}

fn cost(p: &EmbeddingParams, dtype: DType) -> Cost {
    let row = 2.0 * p.cols as f64 * dtype.size() as f64 + 4.0;
    Cost { bytes: p.rows as f64 * row, flops: 0.0 }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn embedding_twin<T: Real>(p: &EmbeddingParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let (y, w) = (Rows::<T>::dense(p.y, cols), Rows::<T>::dense(p.w, cols));
    let ids = Rows::<i32>::dense(p.ids.cast(), rows);
    for_row_ranges(host, rows, cols, |range| {
        for r in range {
            // SAFETY: ids are inside the vocabulary; each row of y is of one task only.
            unsafe { y.get_mut(r).copy_from_slice(w.get(ids.get(0)[r] as usize)) };
        }
    });
}
