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
mod epilogue;
mod inner;
pub(crate) mod math;
mod portable;
mod scratch;
mod stream;

use crate::DType;
use crate::contracts::GemmParams;
use crate::device::{Cost, Host, Isa, Kernel};
use crate::dtype::Real;
use inner::Inner;

/// C = residual + tanh(gate) * f(A B^T + bias); see `kernels/gemm.h`.
pub static GEMM: Kernel<GemmParams> =
    Kernel { name: "gemm", twins: crate::twins!(gemm_twin), cost };

/// Every operand moved once; two operations per multiply-add, the epilogue not counted.
fn cost(p: &GemmParams, dtype: DType) -> Cost {
    let (m, n, k) = (p.m as f64, p.n as f64, p.k as f64);
    let size = dtype.size() as f64;
    let c_size = if p.c_is_f32 != 0 { 4.0 } else { size };
    let bias = if p.bias.is_null() { 0.0 } else { n };
    let residual = if p.residual.is_null() { 0.0 } else { m * n };
    let gate = if p.gate.is_null() { 0.0 } else { 1.0 };
    let bytes = c_size * m * n + size * (m * k + n * k + bias + residual + gate);
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
            blocked::run::<T>(p, host, &inner)
        }
    }
}
