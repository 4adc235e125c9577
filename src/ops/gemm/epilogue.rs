//! From sums to C: bias, activation, gate, residual and the one rounding.

use super::math::{gelu, narrow, quick_gelu, widen};
use crate::contracts::GemmParams;
use crate::dtype::Real;

/// The parts of a launch that are applied to the sums.
pub(super) struct Epilogue {
    c: *mut u8,
    bias: *const u8,
    residual: *const u8,
    factor: f32,
    ldc: usize,
    activation: i32,
    c_is_f32: bool,
}

// SAFETY: threads write disjoint parts of C and only read the rest.
unsafe impl Sync for Epilogue {}

impl Epilogue {
    /// # Safety
    /// The params are valid for element type `T`.
    pub(super) unsafe fn new<T: Real>(p: &GemmParams) -> Self {
        let gate = p.gate.cast::<T>();
        // SAFETY: a gate that is not null is one element.
        let factor = if gate.is_null() { 1.0 } else { unsafe { *gate }.to_f32().tanh() };
        Epilogue {
            c: p.c.cast(),
            bias: p.bias.cast(),
            residual: p.residual.cast(),
            factor,
            ldc: p.ldc as usize,
            activation: p.activation,
            c_is_f32: p.c_is_f32 != 0,
        }
    }

    /// Writes `sums` to C's row `row` from column `col` on; `sums` is used up.
    ///
    /// Each part is a loop of its own over a piece that stays in the first cache: C may be the
    /// residual, and a loop that reads and writes the same row would not vectorise.
    ///
    /// # Safety
    /// The params this was made from have element type `T` and contain these elements.
    #[inline(always)]
    pub(super) unsafe fn finish<T: Real>(&self, row: usize, col: usize, sums: &mut [f32]) {
        if !self.bias.is_null() {
            // SAFETY: bias has n elements.
            let bias = unsafe { self.bias.cast::<T>().add(col) };
            for (i, s) in sums.iter_mut().enumerate() {
                // SAFETY: as above; i < sums.len() <= n - col.
                *s += widen(unsafe { *bias.add(i) });
            }
        }
        match self.activation {
            1 => sums.iter_mut().for_each(|s| *s = gelu(*s)),
            2 => sums.iter_mut().for_each(|s| *s = quick_gelu(*s)),
            _ => {}
        }
        if self.factor != 1.0 {
            sums.iter_mut().for_each(|s| *s *= self.factor);
        }
        let at = row * self.ldc + col;
        // SAFETY: C and the residual contain these elements, and this thread alone writes them.
        unsafe {
            if self.c_is_f32 {
                add::<f32>(self.residual.cast(), at, sums);
                store(self.c.cast::<f32>().add(at), sums);
            } else {
                add::<T>(self.residual.cast(), at, sums);
                store(self.c.cast::<T>().add(at), sums);
            }
        }
    }
}

/// Adds the elements from `at` on, if there is a residual.
///
/// # Safety
/// `residual` is null or has `sums.len()` elements there.
#[inline(always)]
unsafe fn add<C: Real>(residual: *const C, at: usize, sums: &mut [f32]) {
    if residual.is_null() {
        return;
    }
    for (i, s) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *s += widen(unsafe { *residual.add(at + i) });
    }
}

/// # Safety
/// `c` is valid for `sums.len()` writes.
#[inline(always)]
unsafe fn store<C: Real>(c: *mut C, sums: &[f32]) {
    for (i, &s) in sums.iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { *c.add(i) = narrow(s) };
    }
}
