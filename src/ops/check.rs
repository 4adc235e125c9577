//! What wrappers check before a launch. Every failure names the kernel and the argument, such as
//! `layernorm: w: expected (4096), found (1024)`.

use crate::tensor::View;
use crate::{DType, Error, Result};
use std::fmt::Display;

/// `view` has `rows` rows (all dimensions but the last, flattened) of `cols`.
pub(super) fn matrix(
    op: &str,
    name: impl Display,
    view: &View<'_>,
    rows: usize,
    cols: usize,
) -> Result<()> {
    if (view.rows(), view.cols()) == (rows, cols) {
        return Ok(());
    }
    Err(Error::invalid(format!("{op}: {name}"), format!("({rows}, {cols})"), view.shape()))
}

/// `view` holds `cols` consecutive elements, as (cols) or (1, cols).
pub(super) fn vector(op: &str, name: &str, view: &View<'_>, cols: usize) -> Result<()> {
    if (view.rows(), view.cols()) == (1, cols) {
        return Ok(());
    }
    Err(Error::invalid(format!("{op}: {name}"), format!("({cols})"), view.shape()))
}

/// `view` begins at a multiple of `bytes`, for kernels that have no slower path.
pub(super) fn aligned(op: &str, name: &str, view: &View<'_>, bytes: usize) -> Result<()> {
    let at = view.ptr::<u8>().addr();
    if at.is_multiple_of(bytes) {
        return Ok(());
    }
    let found = format!("one {} bytes beyond such a multiple", at % bytes);
    Err(Error::invalid(format!("{op}: {name}"), format!("a multiple of {bytes} as address"), found))
}

/// `view` holds `count` elements of `dtype` without gaps, in whatever shape.
pub(super) fn flat(
    op: &str,
    name: &str,
    view: &View<'_>,
    count: usize,
    expected: DType,
) -> Result<()> {
    if view.rows() * view.cols() != count {
        let expected = format!("{count} elements");
        return Err(Error::invalid(format!("{op}: {name}"), expected, view.shape()));
    }
    dtype(op, name, view, expected)?;
    dense(op, name, view)
}

pub(super) fn dtype(op: &str, name: &str, view: &View<'_>, expected: DType) -> Result<()> {
    if view.dtype() == expected {
        return Ok(());
    }
    Err(Error::invalid(format!("{op}: {name}"), expected, view.dtype()))
}

/// Rows of `view` follow each other without gaps.
pub(super) fn dense(op: &str, name: impl Display, view: &View<'_>) -> Result<()> {
    if view.stride() == view.cols() || view.rows() <= 1 {
        return Ok(());
    }
    let found = format!("a row stride of {}", view.stride());
    Err(Error::invalid(format!("{op}: {name}"), format!("dense rows of {}", view.cols()), found))
}

/// A size that the contract stores as `int32_t`.
pub(super) fn small(op: &str, name: &str, value: usize) -> Result<i32> {
    i32::try_from(value)
        .map_err(|_| Error::invalid(format!("{op}: {name}"), "less than 2^31", value))
}

/// The columns of `heads` heads of `head_dim`, `parts` of them side by side.
pub(super) fn width(op: &str, parts: usize, heads: usize, head_dim: usize) -> Result<usize> {
    let width = heads.checked_mul(head_dim).and_then(|inner| inner.checked_mul(parts));
    match width {
        Some(width) if width > 0 && width <= i32::MAX as usize => Ok(width),
        _ => {
            let found = format!("{heads} of {head_dim}");
            Err(Error::invalid(format!("{op}: heads"), "at least one, of width 1 or more", found))
        }
    }
}

/// What scores are multiplied by: the largest stays the largest.
pub(super) fn scale(op: &str, value: f32) -> Result<f32> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::invalid(format!("{op}: scale"), "a number above 0", value))
}

/// The width of one of `heads` heads of `cols` features together.
pub(super) fn head_dim(op: &str, name: &str, cols: usize, heads: usize) -> Result<usize> {
    if heads > 0 && cols > 0 && cols.is_multiple_of(heads) {
        return Ok(cols / heads);
    }
    let expected = format!("{heads} heads of equal width");
    Err(Error::invalid(format!("{op}: {name}"), expected, format!("{cols} columns")))
}
