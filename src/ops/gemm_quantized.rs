//! Products with weights of 8 or 4 bits: `gemm` in everything but how B is stored.

use super::check;
use super::gemm::{Epilogue, GROUP, Out, Stored, Weights, quantised_twin};
use super::layout::is_packable;
use crate::contracts::{GemmInt4Params, GemmInt8Params, GemmParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};
use std::ptr::{null, null_mut};

/// See `kernels/gemm_quantized.h`.
pub static GEMM_INT8: Kernel<GemmInt8Params> = Kernel {
    name: "gemm_int8",
    twins: twins!(int8_twin),
    geometry: |p, dtype, _: &Chip| geometry(&plain(p), Stored::Int8, dtype),
    cost: |p, dtype| cost(&plain(p), Stored::Int8, dtype),
};

/// See `kernels/gemm_quantized.h`.
pub static GEMM_INT4: Kernel<GemmInt4Params> = Kernel {
    name: "gemm_int4",
    twins: twins!(int4_twin),
    geometry: |p, dtype, _: &Chip| geometry(&plain(p), Stored::Int4, dtype),
    cost: |p, dtype| cost(&plain(p), Stored::Int4, dtype),
};

/// Threads of a block, and most blocks in y.
const THREADS: u32 = 256;
const MOST_BLOCKS: usize = 65535;
/// Beyond the longest row.
const LONG: usize = 1 << 30;

/// The params of the product, of either format.
trait Product {
    fn product(&self) -> GemmParams;
}

/// Both structs have the members of [`GemmParams`] but the workspace.
macro_rules! products {
    ($($params:ident),*) => {$(
        impl Product for $params {
            fn product(&self) -> GemmParams {
                let Self { c, a, b, bias, residual, gate, m, n, k, .. } = *self;
                let Self { lda, ldb, ldc, activation, c_is_f32, .. } = *self;
                GemmParams {
                    c, a, b, bias, residual, gate, m, n, k,
                    lda, ldb, ldc, activation, c_is_f32,
                    workspace: null_mut(),
                }
            }
        }

        impl $params {
            fn quantised(p: GemmParams, scales: *const f32) -> Self {
                let GemmParams { c, a, b, bias, residual, gate, m, n, k, .. } = p;
                let GemmParams { lda, ldb, ldc, activation, c_is_f32, .. } = p;
                $params {
                    c, a, b, scales, bias, residual, gate, m, n, k,
                    lda, ldb, ldc, activation, c_is_f32,
                }
            }
        }
    )*};
}
products!(GemmInt8Params, GemmInt4Params);

fn plain<P: Product>(p: &P) -> GemmParams {
    p.product()
}

/// C = [C +] tanh(gate) * f(A B^T + bias); C (m,n), A (m,k), B quantised: (n,k) of i8 with scales
/// (n), or (n,k/2) of u8, two weights each, with scales (n,k/128). C has A's dtype, or f32.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn gemm_quantized(
    stream: &Stream,
    mut c: ViewMut<'_>,
    a: View<'_>,
    (b, scales): (View<'_>, View<'_>),
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let op = "gemm_quantized";
    let (m, n, k) = (a.rows(), b.rows(), a.cols());
    let stored = stored(op, &b, k)?;
    let (row, groups) = match stored {
        Stored::Int8 => (k, 1),
        Stored::Int4 => (k / 2, k / GROUP),
    };
    check::matrix(op, "b", &b, n, row)?;
    check::dtype(op, "scales", &scales, DType::F32)?;
    if scales.shape().elements() != n * groups || scales.stride() != scales.cols() {
        let expected = format!("{} values without gaps", n * groups);
        return Err(Error::invalid(format!("{op}: scales"), expected, scales.shape()));
    }
    if m > MOST_BLOCKS || k >= LONG {
        let expected = format!("at most {MOST_BLOCKS} rows of less than {LONG}");
        return Err(Error::invalid(format!("{op}: a"), expected, a.shape()));
    }
    let params = product(op, &mut c, (a, b), epilogue)?;
    // SAFETY: shapes, strides and dtypes were checked; c is borrowed exclusively.
    unsafe {
        match stored {
            Stored::Int8 => {
                let params = GemmInt8Params::quantised(params, scales.ptr());
                stream.launch(&GEMM_INT8, a.dtype(), &params)
            }
            Stored::Int4 => {
                let params = GemmInt4Params::quantised(params, scales.ptr());
                stream.launch(&GEMM_INT4, a.dtype(), &params)
            }
        }
    }
}

/// B's format, by its dtype.
fn stored(op: &str, b: &View<'_>, k: usize) -> Result<Stored> {
    match b.dtype() {
        DType::I8 => Ok(Stored::Int8),
        DType::U8 if k.is_multiple_of(GROUP) => Ok(Stored::Int4),
        DType::U8 => {
            Err(Error::invalid(format!("{op}: a"), format!("columns in groups of {GROUP}"), k))
        }
        other => Err(Error::invalid(format!("{op}: b"), "i8, or u8 of two weights", other)),
    }
}

/// Checks what is as in `gemm`.
fn product(
    op: &str,
    c: &mut ViewMut<'_>,
    (a, b): (View<'_>, View<'_>),
    epilogue: Epilogue<'_>,
) -> Result<GemmParams> {
    let (m, n) = (a.rows(), b.rows());
    check::matrix(op, "c", &c.as_view(), m, n)?;
    let accumulates = epilogue.out == Out::Accumulate;
    if accumulates || c.dtype() != DType::F32 {
        check::dtype(op, "c", &c.as_view(), a.dtype())?;
    }
    let vector = |name: &str, view: Option<View<'_>>, cols: usize| -> Result<_> {
        let Some(view) = view else { return Ok(null()) };
        check::vector(op, name, &view, cols)?;
        check::dtype(op, name, &view, a.dtype())?;
        Ok(view.ptr())
    };
    Ok(GemmParams {
        c: c.ptr(),
        a: a.ptr(),
        b: b.ptr(),
        bias: vector("bias", epilogue.bias, n)?,
        residual: if accumulates { c.as_view().ptr() } else { null() },
        gate: vector("gate", epilogue.gate, 1)?,
        workspace: null_mut(),
        m: m as i64,
        n: n as i64,
        k: a.cols() as i64,
        lda: a.stride() as i64,
        ldb: b.stride() as i64,
        ldc: c.stride() as i64,
        activation: epilogue.activation as i32,
        c_is_f32: i32::from(c.dtype() == DType::F32),
    })
}

/// `_rows8` and `_rows16` read B once per so many rows of A; what 16-byte loads cannot reach, and
/// f32, is a warp per cell.
fn geometry(p: &GemmParams, stored: Stored, dtype: DType) -> Geometry {
    let (m, n) = (p.m as u64, p.n as u64);
    let run = if stored == Stored::Int8 { 16 } else { GROUP as i64 };
    let is_packed = is_packable(&[p.a], &[p.lda], dtype)
        && is_packable(&[p.b], &[p.ldb], DType::U8)
        && p.k % run == 0;
    let (variant, rows, cols) = match dtype {
        DType::F32 => ("", 1, 8),
        _ if !is_packed => ("_plain", 1, 8),
        _ if p.m <= if stored == Stored::Int8 { 8 } else { 4 } => ("_rows8", 8, 16),
        _ => ("_rows16", 16, 32),
    };
    let shared = if rows > 1 { THREADS / 32 * (rows * cols) as u32 * 4 } else { 0 };
    let grid = [n.div_ceil(cols) as u32, m.div_ceil(rows) as u32, 1];
    Geometry { variant, grid, shared, ..Geometry::linear(0, THREADS) }
}

/// Every operand moved once, B as it is stored.
fn cost(p: &GemmParams, stored: Stored, dtype: DType) -> Cost {
    let (m, n, k) = (p.m as f64, p.n as f64, p.k as f64);
    let size = dtype.size() as f64;
    let b = match stored {
        Stored::Int8 => n * (k + 4.0),
        Stored::Int4 => n * (k / 2.0 + 4.0 * k / GROUP as f64),
    };
    let bias = if p.bias.is_null() { 0.0 } else { n };
    let residual = if p.residual.is_null() { 0.0 } else { m * n };
    let gate = if p.gate.is_null() { 0.0 } else { 1.0 };
    let c = m * n * if p.c_is_f32 != 0 { 4.0 } else { size };
    Cost { bytes: c + b + size * (m * k + bias + residual + gate), flops: 2.0 * m * n * k }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn int8_twin<T: Real>(p: &GemmInt8Params, host: &Host) {
    let weights = Weights { stored: Stored::Int8, scales: p.scales };
    // SAFETY: the caller's.
    unsafe { quantised_twin::<T>(&plain(p), &weights, host) }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn int4_twin<T: Real>(p: &GemmInt4Params, host: &Host) {
    let weights = Weights { stored: Stored::Int4, scales: p.scales };
    // SAFETY: the caller's.
    unsafe { quantised_twin::<T>(&plain(p), &weights, host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_read_weights_once_for_few_rows_and_cell_by_cell_where_they_must() {
        let p = |m: i64, k: i64| {
            // SAFETY: integers and pointers, for which zero is a value.
            let zero: GemmParams = unsafe { std::mem::zeroed() };
            GemmParams { m, n: 4096, k, lda: k, ldb: k, ldc: 4096, ..zero }
        };
        let of = |m, k, stored| geometry(&p(m, k), stored, DType::BF16);
        assert_eq!(
            (of(1, 4096, Stored::Int8).variant, of(1, 4096, Stored::Int8).grid[0]),
            ("_rows8", 256)
        );
        assert_eq!(of(8, 4096, Stored::Int8).shared, 4096);
        assert_eq!(of(8, 4096, Stored::Int4).variant, "_rows16");
        assert_eq!(of(33, 4096, Stored::Int8).grid, [128, 3, 1]);
        assert_eq!(of(33, 4096, Stored::Int8).shared, 16384);
        assert_eq!(of(3, 4097, Stored::Int8).grid, [512, 3, 1]);
        assert_eq!(geometry(&p(3, 4096), Stored::Int8, DType::F32).variant, "");
    }

    #[test]
    fn cost_counts_weights_as_they_are_stored() {
        // SAFETY: integers and pointers, for which zero is a value.
        let zero: GemmParams = unsafe { std::mem::zeroed() };
        let p = GemmParams { n: 4096, k: 4096, ..zero };
        let bits = |stored| 8.0 * cost(&p, stored, DType::BF16).bytes / (4096.0 * 4096.0);
        assert_eq!((bits(Stored::Int8), bits(Stored::Int4)), (8.0 + 32.0 / 4096.0, 4.25));
    }
}
