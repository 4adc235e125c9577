//! Products with weights of 8 or 4 bits: `gemm` in everything but how B is stored.

use super::check;
use super::gemm::{
    Epilogue, GROUP, Rows, Stored, cost_with, few_bits, hopper_bytes, product, quantized_twin,
    swiglu_product,
};
use super::layout::is_packable;
use super::normed::Norm;
use crate::contracts::{GemmParams, GemmQuantizedParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};
use std::ops::Range;

/// C = residual + tanh(gate) * f(A B^T + bias), B of few bits; see `kernels/gemm_quantized.h`.
pub static GEMM_QUANTIZED: Kernel<GemmQuantizedParams> =
    Kernel { name: "gemm_quantized", twins: twins!(twin), geometry, cost, accounting: 0 };

/// Weights with a scale in common where they have 4 bits: k is a multiple of it.
pub const INT4_GROUP: usize = GROUP;

/// A matrix of few bits.
#[derive(Clone, Copy)]
pub struct Quantized<'a> {
    /// (n,k) i8, or (n,k/2) u8, each of two weights.
    pub codes: View<'a>,
    /// bf16: a scale per row, (n); or per row and group, (n,k/[`INT4_GROUP`]).
    pub scales: View<'a>,
}

impl Quantized<'_> {
    /// k.
    pub fn cols(&self) -> usize {
        let of_a_byte = if self.codes.dtype() == DType::U8 { 2 } else { 1 };
        self.codes.cols() * of_a_byte
    }

    /// 8 or 4.
    fn bits(&self) -> Result<usize> {
        match self.codes.dtype() {
            DType::I8 => Ok(8),
            DType::U8 => Ok(4),
            other => {
                let expected = "i8, or u8 of two weights";
                Err(Error::invalid(format!("{OP}: b"), expected, other))
            }
        }
    }

    /// Some of its rows.
    ///
    /// # Errors
    /// If there are no such rows.
    pub fn some(self, rows: Range<usize>) -> Result<Self> {
        let (all, width) = (self.codes.rows(), self.codes.cols());
        let groups = self.scales.shape().elements() / all.max(1);
        let scales = self.scales.shaped(&[all, groups])?.block(rows.clone(), 0..groups)?;
        Ok(Quantized { codes: self.codes.block(rows, 0..width)?, scales })
    }
}

/// C = [C +] tanh(gate) * f(A B^T + bias); C (m,n), A (m,k), B (n,k). C has A's dtype, or f32.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn gemm_quantized(
    stream: &Stream,
    c: ViewMut<'_>,
    a: View<'_>,
    b: Quantized<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    gemm_quantized_normed(stream, c, (a, None), b, epilogue)
}

/// [`gemm_quantized`], of a norm of A where `makes_norm` says so.
pub(super) fn gemm_quantized_normed(
    stream: &Stream,
    mut c: ViewMut<'_>,
    a: (View<'_>, Option<Norm<'_>>),
    b: Quantized<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    check_quantized(a.0, b)?;
    launch(stream, a.0, b, product(OP, stream, &mut c, a, b.codes, epilogue)?)
}

/// As `gemm_swiglu`, B of few bits.
pub(super) fn gemm_quantized_swiglu(
    stream: &Stream,
    mut c: ViewMut<'_>,
    a: (View<'_>, Option<Norm<'_>>),
    b: Quantized<'_>,
) -> Result<()> {
    check_quantized(a.0, b)?;
    launch(stream, a.0, b, swiglu_product(OP, stream, &mut c, a, b.codes)?)
}

const OP: &str = "gemm_quantized";

/// What holds of A and B whatever becomes of their product.
fn check_quantized(a: View<'_>, b: Quantized<'_>) -> Result<()> {
    let (op, bits) = (OP, b.bits()?);
    let (m, n, k) = (a.rows(), b.codes.rows(), a.cols());
    let groups = if bits == 8 { 1 } else { k / GROUP };
    if bits == 4 && !k.is_multiple_of(GROUP) {
        let expected = format!("columns in groups of {GROUP}");
        return Err(Error::invalid(format!("{op}: a"), expected, k));
    }
    check::matrix(op, "b", &b.codes, n, k * bits / 8)?;
    check::dtype(op, "scales", &b.scales, DType::BF16)?;
    check::dense(op, "scales", &b.scales)?;
    if b.scales.shape().elements() != n * groups {
        let expected = format!("{} values", n * groups);
        return Err(Error::invalid(format!("{op}: scales"), expected, b.scales.shape()));
    }
    if m > MOST_BLOCKS || n >= WIDE || k >= LONG {
        let (expected, found) = (format!("m <= {MOST_BLOCKS}, n < 2^27, k < 2^30"), [m, n, k]);
        return Err(Error::invalid(op, expected, format!("{found:?}")));
    }
    Ok(())
}

/// The launch of a product whose shapes, strides and dtypes were checked, and whose C is the
/// caller's alone.
fn launch(stream: &Stream, a: View<'_>, b: Quantized<'_>, product: GemmParams) -> Result<()> {
    let params = GemmQuantizedParams { product, scales: b.scales.ptr(), bits: b.bits()? as i64 };
    // SAFETY: as above.
    unsafe { stream.launch(&GEMM_QUANTIZED, a.dtype(), &params) }
}

/// `FEW_THREADS`.
const THREADS: u32 = 256;
/// In y.
const MOST_BLOCKS: usize = 65535;
/// Beyond the most columns: of so many rows, the tiles of any fewer are a grid.
const WIDE: usize = 1 << 27;
/// Beyond the longest row.
const LONG: usize = 1 << 30;

/// `_rows8`, `_rows16` and `_sm90_rows8` read B once; `_tiles` once per 64 rows of A; what 16-byte
/// loads cannot reach, and f32, is a warp per cell.
fn geometry(p: &GemmQuantizedParams, dtype: DType, chip: &Chip) -> Geometry {
    let (g, is_int8) = (&p.product, p.bits == 8);
    let (m, n) = (g.m.max(0) as u64, g.n.max(0) as u64);
    let run = if is_int8 { 16 } else { GROUP as i64 };
    let is_packed = dtype.size() == 2
        && is_packable(&[g.a], &[g.lda], dtype)
        && is_packable(&[g.b], &[g.ldb], DType::U8)
        && g.k % run == 0;
    if !is_packed {
        // A warp for a cell, 8 columns a block.
        let variant = if is_int8 { "_int8_plain" } else { "_int4_plain" };
        let grid = [n.div_ceil(8) as u32, m as u32, 1];
        return Geometry { variant, grid, ..Geometry::linear(0, THREADS) };
    }
    let (stored, variants) = match is_int8 {
        true => (Stored::Int8, ["_int8_rows8", "_int8_rows8_kept", "_int8_rows16"]),
        false => (Stored::Int4, ["_int4_rows8", "_int4_rows8_kept", "_int4_rows16"]),
    };
    match Rows::of(g, stored, chip) {
        Some(Rows::Kept) => hopper_bytes(g, stored, chip)
            // Which reads the scales of two groups at once.
            .filter(|_| p.scales.addr().is_multiple_of(4))
            .unwrap_or_else(|| Rows::Kept.geometry(g, stored, variants, chip)),
        Some(rows) => rows.geometry(g, stored, variants, chip),
        None => few_bits(g, is_int8, chip),
    }
}

/// Every operand moved once, B and its scales as they are stored.
fn cost(p: &GemmQuantizedParams, dtype: DType) -> Cost {
    let (n, k) = (p.product.n as f64, p.product.k as f64);
    let groups = if p.bits == 8 { 1.0 } else { k / GROUP as f64 };
    cost_with(&p.product, dtype, n * (k * p.bits as f64 / 8.0 + 2.0 * groups))
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn twin<T: Real>(p: &GemmQuantizedParams, host: &Host) {
    // SAFETY: the caller's.
    unsafe { quantized_twin::<T>(p, host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(m: i64, k: i64, bits: i64) -> GemmQuantizedParams {
        // SAFETY: integers and pointers, for which zero is a value.
        let zero: GemmParams = unsafe { std::mem::zeroed() };
        let (n, workspace) = (4096, std::ptr::without_provenance_mut(16));
        let (lda, ldb) = (k, k * bits / 8);
        let product = GemmParams { m, n, k, lda, ldb, ldc: n, workspace, ..zero };
        GemmQuantizedParams { product, scales: std::ptr::null(), bits }
    }

    #[test]
    fn cards_read_weights_once_for_few_rows_and_cell_by_cell_where_they_must() {
        let of = |m, k, bits| geometry(&params(m, k, bits), DType::BF16, &Chip::H200);
        let one = of(1, 4096, 8);
        assert_eq!((one.variant, one.grid, one.shared), ("_int8_sm90_rows8", [256, 1, 1], 113376));
        // Eight warps' pieces of 128 bytes, in rows of bytes.
        assert_eq!(one.maps[0].map(|m| (m.sizes, m.tile)), Some(([2048, 4096], [64, 16])));
        // Less ring beside a longer row; none beside two such, or of half pieces, or elsewhere.
        assert_eq!(of(1, 16384, 4).shared, 100_944);
        assert_eq!(of(2, 16384, 4).variant, "_int4_rows8");
        assert_eq!(of(1, 4096 + 128, 4).variant, "_int4_rows8_kept");
        let odd =
            GemmQuantizedParams { scales: std::ptr::without_provenance(2), ..params(1, 4096, 4) };
        let odd = geometry(&odd, DType::BF16, &Chip::H200);
        assert_eq!(odd.variant, "_int4_rows8_kept");
        let old = geometry(&params(1, 4096, 8), DType::BF16, &Chip::A100);
        assert_eq!((old.variant, old.grid, old.shared), ("_int8_rows8_kept", [216, 1, 1], 63840));
        let ten = of(10, 4096, 4);
        assert_eq!((ten.variant, ten.grid, ten.shared), ("_int4_rows16", [128, 1, 1], 115840));
        let many = of(250, 4096, 4);
        assert_eq!((many.variant, many.grid, many.threads), ("_int4_tiles", [128, 1, 2], 128));
        let long = of(20, 16384, 8);
        assert_eq!((long.variant, long.grid), ("_int8_tiles", [32, 1, 8]));
        assert_eq!(of(3, 4097, 8).grid, [512, 3, 1]);
        let exact = geometry(&params(3, 4096, 4), DType::F32, &Chip::A100);
        assert_eq!(exact.variant, "_int4_plain");
        assert!(of(0, 4096, 8).is_empty());
    }

    #[test]
    fn cost_counts_weights_as_they_are_stored() {
        let bits = |p| 8.0 * cost(&p, DType::BF16).bytes / (4096.0 * 4096.0);
        assert_eq!(bits(params(0, 4096, 8)), 8.0 + 16.0 / 4096.0);
        assert_eq!(bits(params(0, 4096, 4)), 4.125);
    }
}
