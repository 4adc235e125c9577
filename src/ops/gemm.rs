//! The twin of [`GemmParams`]: matrix products against stored weights, with a fused epilogue.
//!
//! One kernel, two regimes. With few rows ([`stream`]) the time is that of reading the weights;
//! with many ([`blocked`]) that of the multiply-adds. Weights are used where they lie, in their
//! storage type, and no other copy of them is kept. Whatever the number of threads, a given shape
//! is summed in the same order and gives the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocked;
mod codes;
mod epilogue;
mod few_rows;
mod geometry;
mod inner;
pub(crate) mod math;
mod portable;
mod scratch;
mod stream;
mod table;
mod tile;

use super::check;
use super::layout::is_packable;
use super::normed::Norm;
use crate::contracts::{GemmParams, GemmQuantizedParams};
use crate::device::{Chip, Cost, Geometry, Host, Isa, Kernel, Products, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result};
use codes::Codes;
pub(super) use codes::GROUP;
pub(super) use few_rows::{Rows, Stored, hopper_bytes};
pub(super) use geometry::few_bits;
use inner::Inner;
pub(super) use table::read_tiles;
pub use table::{TileRow, TileTable, tile_heading, tile_line, tiles_in_use};
use tile::{PARTS, TILES, Tile};

/// C = residual + tanh(gate) * f(A B^T + bias); see `kernels/gemm.h`.
pub static GEMM: Kernel<GemmParams> = laid_by(geometry::geometry);

const fn laid_by(geometry: fn(&GemmParams, DType, &Chip) -> Geometry) -> Kernel<GemmParams> {
    Kernel { name: "gemm", twins: crate::twins!(gemm_twin), geometry, cost, accounting: 0 }
}

/// [`GEMM`] by cuBLASLt, on a stream that has it, where [`cublaslt_computes`].
pub static GEMM_CUBLASLT: Kernel<GemmParams> =
    laid_by(|_, _, _| Geometry { variant: Geometry::CUBLASLT, ..Geometry::linear(1, 1) });

/// True for products with no more around them than a residual and, in C's own type, a bias.
pub fn cublaslt_computes(p: &GemmParams, dtype: DType) -> bool {
    let has_own_type = p.c_is_f32 == 0 || dtype == DType::F32;
    p.m > 0
        && p.n > 0
        && p.k > 0
        && p.activation == 0
        && p.gate.is_null()
        && (has_own_type || p.bias.is_null())
}

/// One way to lay a product over a card.
pub struct Tiling {
    /// As in [`Geometry::variant`].
    pub variant: &'static str,
    /// Blocks that share the sums of a tile.
    pub parts: i64,
    /// What it should take, us: an estimate from what the card can do at best, not a measurement.
    pub predicted_us: f64,
    /// [`GEMM`], laid this way.
    pub kernel: &'static Kernel<GemmParams>,
    tile: &'static Tile,
}

/// A plain product (m,k) by (n,k)^T whose operands are nowhere yet, but aligned: what
/// [`gemm_tilings`] is asked about.
pub fn gemm_shape([m, n, k]: [i64; 3]) -> GemmParams {
    let aligned = std::ptr::without_provenance_mut(64);
    GemmParams {
        c: aligned,
        a: aligned,
        b: aligned,
        bias: std::ptr::null(),
        residual: std::ptr::null(),
        gate: std::ptr::null(),
        workspace: aligned,
        m,
        n,
        k,
        lda: k,
        ldb: k,
        ldc: n,
        activation: 0,
        c_is_f32: 0,
        norm_weight: std::ptr::null(),
        norm_bias: std::ptr::null(),
        norm_eps: 0.0,
        norm: 0,
    }
}

/// Every way to lay `p` over `chip`, for those who compare them; none for f32, which has one.
pub fn gemm_tilings(p: &GemmParams, dtype: DType, chip: &Chip) -> Vec<Tiling> {
    let each = |(tile, kernels): (&'static Tile, &'static [Kernel<GemmParams>; PARTS.len()])| {
        PARTS.into_iter().zip(kernels).map(move |(parts, kernel)| (tile, parts, kernel))
    };
    TILES
        .iter()
        .zip(&TILED)
        .flat_map(each)
        .filter(|(tile, parts, _)| tile.takes(p, dtype, chip) && tile.splits(p, *parts))
        .map(|(tile, parts, kernel)| Tiling {
            variant: tile.variant,
            parts,
            predicted_us: tile.predicted_us(p, chip, parts),
            kernel,
            tile,
        })
        .collect()
}

/// [`TILES`] by [`PARTS`].
static TILED: [[Kernel<GemmParams>; PARTS.len()]; TILES.len()] = {
    macro_rules! parts {
        ($tile:literal) => {
            [
                laid_by(geometry::forced::<$tile, 0>),
                laid_by(geometry::forced::<$tile, 1>),
                laid_by(geometry::forced::<$tile, 2>),
                laid_by(geometry::forced::<$tile, 3>),
                laid_by(geometry::forced::<$tile, 4>),
                laid_by(geometry::forced::<$tile, 5>),
            ]
        };
    }
    [
        parts!(0),
        parts!(1),
        parts!(2),
        parts!(3),
        parts!(4),
        parts!(5),
        parts!(6),
        parts!(7),
        parts!(8),
        parts!(9),
    ]
};

/// f of the epilogue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    #[default]
    Identity = 0,
    /// x * Phi(x), with the error function.
    Gelu = 1,
    /// x * sigmoid(1.702 x).
    QuickGelu = 2,
}

/// Whether a result replaces its target or is added to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Out {
    #[default]
    Overwrite,
    Accumulate,
}

/// What happens to A B^T before it is stored: C = [C +] tanh(gate) * f(A B^T + bias).
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// (n)
    pub bias: Option<View<'a>>,
    pub activation: Activation,
    /// (1); absent means a factor of 1.
    pub gate: Option<View<'a>>,
    pub out: Out,
}

/// C = [C +] tanh(gate) * f(A B^T + bias); C (m,n), A (m,k), B (n,k), rows may have a stride. C has
/// A's dtype, or f32, to which products of 16-bit operands may be added as well.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn gemm(
    stream: &Stream,
    c: ViewMut<'_>,
    a: View<'_>,
    b: View<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    gemm_normed(stream, c, (a, None), b, epilogue)
}

/// [`gemm`], of a norm of A where [`makes_norm`] says so.
pub(super) fn gemm_normed(
    stream: &Stream,
    mut c: ViewMut<'_>,
    a: (View<'_>, Option<Norm<'_>>),
    b: View<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let dtype = a.0.dtype();
    check::matrix("gemm", "b", &b, b.rows(), a.0.cols())?;
    check::dtype("gemm", "b", &b, dtype)?;
    let params = product("gemm", stream, &mut c, a, b, epilogue)?;
    let is_peers = stream.products() == Products::CublasLt && cublaslt_computes(&params, dtype);
    let kernel = if is_peers { &GEMM_CUBLASLT } else { &GEMM };
    // SAFETY: shapes, strides and dtypes were checked; c is borrowed exclusively.
    unsafe { stream.launch(kernel, dtype, &params) }
}

/// C = A B^T, laid as `tiling` says; C (m,n), A (m,k), B (n,k).
///
/// # Errors
/// If a shape, stride or dtype differs, on the host, or if the tile cannot compute this product.
pub fn gemm_tiled(
    stream: &Stream,
    mut c: ViewMut<'_>,
    a: View<'_>,
    b: View<'_>,
    tiling: &Tiling,
) -> Result<()> {
    check::matrix("gemm", "b", &b, b.rows(), a.cols())?;
    check::dtype("gemm", "b", &b, a.dtype())?;
    let p = product("gemm", stream, &mut c, (a, None), b, Epilogue::default())?;
    let Tiling { tile, parts, .. } = tiling;
    let takes = |chip: &Chip| tile.takes(&p, a.dtype(), chip) && tile.splits(&p, *parts);
    if a.dtype().size() != 2 || !stream.chip().is_some_and(takes) {
        let expected = format!("a product that {} computes in {parts} parts", tile.variant);
        return Err(Error::invalid("gemm", expected, format!("({}, {}, {})", p.m, p.n, p.k)));
    }
    // SAFETY: shapes, strides and dtypes were checked, and whether the entry can be; c is borrowed
    // exclusively.
    unsafe { stream.launch(tiling.kernel, a.dtype(), &p) }
}

/// `activation` of the launches that end in SwiGLU.
pub(super) const SWIGLU: i32 = 3;

/// C = silu(A Bgates^T) * (A Bvalues^T), B = [Bgates; Bvalues] (n,k), C (m,n/2), in one launch,
/// where [`makes_swiglu`] says so; of a norm of A where [`makes_norm`] does.
pub(super) fn gemm_swiglu(
    stream: &Stream,
    mut c: ViewMut<'_>,
    a: (View<'_>, Option<Norm<'_>>),
    b: View<'_>,
) -> Result<()> {
    check::matrix("gemm", "b", &b, b.rows(), a.0.cols())?;
    check::dtype("gemm", "b", &b, a.0.dtype())?;
    let params = swiglu_product("gemm", stream, &mut c, a, b)?;
    // SAFETY: shapes, strides and dtypes were checked; c is borrowed exclusively.
    unsafe { stream.launch(&GEMM, a.0.dtype(), &params) }
}

/// The params of a product, of which everything but B has been checked.
pub(super) fn product(
    op: &str,
    stream: &Stream,
    c: &mut ViewMut<'_>,
    a: (View<'_>, Option<Norm<'_>>),
    b: View<'_>,
    epilogue: Epilogue<'_>,
) -> Result<GemmParams> {
    let n = b.rows();
    let plain = plain_product(op, stream, c, a, b, n)?;
    let accumulates = epilogue.out == Out::Accumulate;
    let vector = |name: &str, view: Option<View<'_>>, cols: usize| -> Result<_> {
        let Some(view) = view else { return Ok(std::ptr::null()) };
        check::vector(op, name, &view, cols)?;
        check::dtype(op, name, &view, a.0.dtype())?;
        Ok(view.ptr())
    };
    Ok(GemmParams {
        bias: vector("bias", epilogue.bias, n)?,
        residual: if accumulates { c.as_view().ptr() } else { std::ptr::null() },
        gate: vector("gate", epilogue.gate, 1)?,
        activation: epilogue.activation as i32,
        ..plain
    })
}

/// As [`product`], ending in SwiGLU.
pub(super) fn swiglu_product(
    op: &str,
    stream: &Stream,
    c: &mut ViewMut<'_>,
    a: (View<'_>, Option<Norm<'_>>),
    b: View<'_>,
) -> Result<GemmParams> {
    let n = b.rows();
    if !n.is_multiple_of(2) {
        return Err(Error::invalid(format!("{op}: b"), "two halves", format!("{n} rows")));
    }
    Ok(GemmParams { activation: SWIGLU, ..plain_product(op, stream, c, a, b, n / 2)? })
}

/// norm(A) B^T and nothing else, in `cols` columns.
fn plain_product(
    op: &str,
    stream: &Stream,
    c: &mut ViewMut<'_>,
    (a, norm): (View<'_>, Option<Norm<'_>>),
    b: View<'_>,
    cols: usize,
) -> Result<GemmParams> {
    let (m, n, k) = (a.rows(), b.rows(), a.cols());
    check::matrix(op, "c", &c.as_view(), m, cols)?;
    let c_is_f32 = c.dtype() == DType::F32;
    if !c_is_f32 {
        check::dtype(op, "c", &c.as_view(), a.dtype())?;
    }
    let plain = GemmParams {
        c: c.ptr(),
        a: a.ptr(),
        b: b.ptr(),
        workspace: stream.workspace()?,
        lda: a.stride() as i64,
        ldb: b.stride() as i64,
        ldc: c.stride() as i64,
        c_is_f32: i32::from(c_is_f32),
        ..gemm_shape([m as i64, n as i64, k as i64])
    };
    match norm {
        Some(norm) => norm.before(op, a, plain),
        None => Ok(plain),
    }
}

/// True if the product of `a` and B, of elements or codes, can begin with a norm of `a`: where it
/// is of few rows, and could end in SwiGLU.
pub(super) fn makes_norm(stream: &Stream, a: View<'_>, norm: Norm<'_>, b: View<'_>) -> bool {
    let (w, bias) = norm.vectors();
    let vectors = [Some(w), bias];
    let aligned = |x: View<'_>| is_packable(&[x.ptr()], &[a.cols() as i64], x.dtype());
    let Some(chip) = stream.chip() else { return false };
    let stored = match b.dtype() {
        DType::I8 => Stored::Int8,
        DType::U8 => Stored::Int4,
        _ => Stored::Elements,
    };
    let p = norm.put(gemm_shape([a.rows(), b.rows(), a.cols()].map(|n| n as i64)));
    makes_swiglu(stream, a, b)
        && vectors.into_iter().flatten().all(aligned)
        && matches!(Rows::of(&p, stored, chip), Some(Rows::Kept))
}

/// True if the product of `a` and B, of elements or codes, can end in SwiGLU: where its launch is
/// ours, on tensor cores.
pub(super) fn makes_swiglu(stream: &Stream, a: View<'_>, b: View<'_>) -> bool {
    let aligned = |x: &View<'_>| is_packable(&[x.ptr()], &[x.stride() as i64], x.dtype());
    !stream.is_host()
        && stream.products() == Products::Own
        && a.dtype().size() == 2
        && aligned(&a)
        && aligned(&b)
        && (b.cols() * b.dtype().size()).is_multiple_of(16)
}

/// Every operand moved once; two operations per multiply-add, norm and epilogue not counted.
fn cost(p: &GemmParams, dtype: DType) -> Cost {
    cost_with(p, dtype, dtype.size() as f64 * p.n as f64 * p.k as f64)
}

/// As [`cost`], where B takes `b` bytes.
pub(super) fn cost_with(p: &GemmParams, dtype: DType, b: f64) -> Cost {
    let (m, n, k) = (p.m as f64, p.n as f64, p.k as f64);
    let size = dtype.size() as f64;
    let c_size = if p.c_is_f32 != 0 { 4.0 } else { size };
    let bias = if p.bias.is_null() { 0.0 } else { n };
    let moved = if p.residual.is_null() { 1.0 } else { 2.0 };
    let cols = if p.activation == SWIGLU { n / 2.0 } else { n };
    let gate = if p.gate.is_null() { 0.0 } else { 1.0 };
    let norm = [p.norm_weight, p.norm_bias].iter().filter(|v| !v.is_null()).count() as f64 * k;
    let bytes = moved * c_size * m * cols + b + size * (m * k + norm + bias + gate);
    Cost { bytes, flops: 2.0 * m * n * k }
}

fn inner<T: Real>(isa: Isa) -> Inner {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => avx512::inner::<T>(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::inner::<T>(),
        _ => portable::inner::<T>(),
    }
}

/// The twin: see `kernels/gemm.h`.
///
/// # Safety
/// Pointers are valid for the extents the contract states, C overlaps nothing but the residual,
/// which it may equal, and the processor has `host.isa`.
unsafe fn gemm_twin<T: Real>(p: &GemmParams, host: &Host) {
    if p.m <= 0 || p.n <= 0 {
        return;
    }
    let inner = inner::<T>(host.isa);
    // SAFETY: the caller's.
    unsafe {
        if p.m as usize <= stream::MAX_ROWS {
            stream::run::<T>(p, host, &inner)
        } else {
            blocked::run::<T>(p, None, host, &inner)
        }
    }
}

/// The twin of `gemm_quantized`: see `kernels/gemm_quantized.h`.
///
/// # Safety
/// As [`gemm_twin`].
pub(super) unsafe fn quantized_twin<T: Real>(p: &GemmQuantizedParams, host: &Host) {
    let (product, codes) = (&p.product, Codes::new(p));
    if product.m <= 0 || product.n <= 0 {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        if product.m as usize <= stream::MAX_ROWS {
            codes::run::<T, { stream::MAX_ROWS }>(product, &codes, host)
        } else {
            blocked::run::<T>(product, Some(&codes), host, &inner::<T>(host.isa))
        }
    }
}
