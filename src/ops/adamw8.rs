//! `adamw8`: one step of AdamW with both moments in 8 bits.

mod codebook;

pub use codebook::{Codebooks, SecondMomentMap};

use super::adamw::{AdamwStep, Element, check_step};
use super::check;
use super::lanes::{self, Grid, Lanes};
use super::rows::Rows;
use crate::contracts::{Adamw8Codebook, Adamw8Params};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/adamw8.h`.
pub static ADAMW8: Kernel<Adamw8Params> =
    Kernel { name: "adamw8", twins: twins!(adamw8_twin), geometry, cost, accounting: 0 };

/// Elements that a thread block takes at a time.
const GROUP: usize = 2048;

/// What `adamw8` keeps of a parameter of n elements: codes (n) u8 and absmax (ceil(n/block)) f32 of
/// the first moment and of the second. All zero before the first step.
pub struct Moments8<'a> {
    /// Codes of m and of v.
    pub codes: [ViewMut<'a>; 2],
    /// Scales of m and of v.
    pub absmax: [ViewMut<'a>; 2],
}

/// One step for `param` (n) T with `grad` (n) f32; blocks of 256 elements, or 2048 as before
/// bitsandbytes 0.44. With `master` (n) f32, that is the parameter and `param` its rounding.
/// `grad_scale` (1) f32 multiplies the gradient.
///
/// # Errors
/// If a shape, dtype or stride differs, the block is neither, the step is 0, or stochastic rounding
/// does not apply.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn adamw8(
    stream: &Stream,
    mut param: ViewMut<'_>,
    mut master: Option<ViewMut<'_>>,
    moments: Moments8<'_>,
    grad: View<'_>,
    grad_scale: Option<View<'_>>,
    books: &Codebooks,
    block: usize,
    step: &AdamwStep,
) -> Result<()> {
    let op = "adamw8";
    if block != 256 && block != 2048 {
        return Err(Error::invalid("adamw8: block", "256 or 2048", block));
    }
    let stored = param.as_view();
    let kept = master.as_ref().map(ViewMut::as_view);
    check_step(op, &stored, kept.as_ref(), &grad, grad_scale.as_ref(), step)?;
    let (dtype, n) = (stored.dtype(), stored.rows() * stored.cols());
    if n > i32::MAX as usize {
        return Err(Error::invalid("adamw8: param", "less than 2^31 elements", n));
    }
    let Moments8 { codes: [mut code1, mut code2], absmax: [mut absmax1, mut absmax2] } = moments;
    let scales = n.div_ceil(block);
    for (name, view, size, dtype) in [
        ("code1", code1.as_view(), n, DType::U8),
        ("code2", code2.as_view(), n, DType::U8),
        ("absmax1", absmax1.as_view(), scales, DType::F32),
        ("absmax2", absmax2.as_view(), scales, DType::F32),
    ] {
        check::flat(op, name, &view, size, dtype)?;
        check::aligned(op, name, &view, if dtype == DType::U8 { 8 } else { 4 })?;
    }
    let scalars = step.scalars();
    let params = Adamw8Params {
        param: param.ptr(),
        master: master.as_mut().map_or(std::ptr::null_mut(), ViewMut::ptr),
        code1: code1.ptr(),
        code2: code2.ptr(),
        absmax1: absmax1.ptr(),
        absmax2: absmax2.ptr(),
        grad: grad.ptr(),
        grad_scale: grad_scale.map_or(std::ptr::null(), |s| s.ptr()),
        book1: books.first.view().ptr(),
        book2: books.second.view().ptr(),
        n: n as i64,
        seed: step.seed,
        block: block as i32,
        beta1: step.betas[0],
        beta2: step.betas[1],
        step_size: scalars.step_size,
        eps: scalars.eps,
        keep: scalars.keep,
    };
    // SAFETY: sizes, strides and dtypes were checked; what is written is borrowed exclusively.
    unsafe { stream.launch(&ADAMW8, dtype, &params) }
}

fn geometry(p: &Adamw8Params, _: DType, chip: &Chip) -> Geometry {
    // Both codebooks, and the warps' largest moments of two groups.
    let shared = 2 * size_of::<Adamw8Codebook>() as u32 + 2 * 2 * 8 * 4;
    // As many blocks as registers let run at once: codebooks are loaded once.
    let groups = (p.n.max(0) as u64).div_ceil(GROUP as u64);
    let blocks = groups.min(u64::from(chip.multiprocessors) * 3) as u32;
    let variant = if p.block == 256 { "_256" } else { "_2048" };
    Geometry { variant, shared, ..Geometry::linear(blocks, 256) }
}

fn cost(p: &Adamw8Params, dtype: DType) -> Cost {
    let master = if p.master.is_null() { dtype.size() } else { 8 };
    let bytes = (4 + 4 + master + dtype.size()) as f64 + 16.0 / f64::from(p.block);
    Cost { bytes: p.n as f64 * bytes, flops: 20.0 * p.n as f64 }
}

struct Task<'a, T> {
    param: Rows<T>,
    master: Rows<f32>,
    codes: [Rows<u8>; 2],
    absmax: [Rows<f32>; 2],
    grad: Rows<f32>,
    books: [&'a Adamw8Codebook; 2],
    element: Element,
    scale: f32,
    n: usize,
    block: usize,
}

impl<T: Real> Grid for Task<'_, T> {
    fn scratch(&self, _: usize) -> usize {
        2 * self.block
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let start = task * GROUP;
        for at in (start..self.n.min(start + GROUP)).step_by(self.block) {
            let len = self.block.min(self.n - at);
            let (m, v) = scratch.split_at_mut(self.block);
            // SAFETY: the caller's: this block of every array is this task's only.
            unsafe { self.block(at, &mut m[..len], &mut v[..len]) };
        }
    }
}

impl<T: Real> Task<'_, T> {
    /// # Safety
    /// The elements from `at`, as many as m and v are long, are a block that nobody else uses.
    #[inline(always)]
    unsafe fn block(&self, at: usize, m: &mut [f32], v: &mut [f32]) {
        let len = m.len();
        // SAFETY: the caller's.
        let (param, [code1, code2], [absmax1, absmax2], grad) = unsafe {
            (
                self.param.part_mut(0, at, len),
                self.codes.map(|c| c.part_mut(0, at, len)),
                self.absmax.map(|a| &mut a.part_mut(0, at / self.block, 1)[0]),
                self.grad.part(0, at, len),
            )
        };
        let [book1, book2] = self.books;
        // bitsandbytes fills a last block with code 128, which is not quite 0.
        let filler = (book1.value[128] * *absmax1 * self.element.betas[0]).abs();
        let mut largest = [if len < self.block { filler } else { 0.0 }, 0.0];
        for i in 0..len {
            // SAFETY: as above; there is a master if it is read.
            let kept = || unsafe { self.master.part_mut(0, at + i, 1) };
            let x = if self.element.has_master { kept()[0] } else { param[i].to_f32() };
            m[i] = book1.value[usize::from(code1[i])] * *absmax1;
            v[i] = book2.value[usize::from(code2[i])] * *absmax2;
            let g = grad[i] * self.scale;
            let x = self.element.step::<T>(x, g, &mut m[i], &mut v[i], at + i);
            if self.element.has_master {
                kept()[0] = x;
            }
            param[i] = T::from_f32(x);
            largest = [largest[0].max(m[i].abs()), largest[1].max(v[i].abs())];
        }
        [*absmax1, *absmax2] = largest;
        let share = Share::of(largest);
        for i in 0..len {
            code1[i] = book1.code_of_first(share.take(m[i], 0), m[i]);
            code2[i] = book2.code(share.take(v[i], 1));
        }
    }
}

/// What moments are divided by: by the reciprocal and one residual if both divisors allow it.
struct Share {
    largest: [f32; 2],
    reciprocal: Option<[f32; 2]>,
}

impl Share {
    fn of(largest: [f32; 2]) -> Self {
        const LEAST: f32 = f32::from_bits((127 - 72) << 23);
        const MOST: f32 = f32::from_bits((127 + 60) << 23);
        let is_usual = largest.iter().all(|b| (LEAST..MOST).contains(b));
        Share { largest, reciprocal: is_usual.then(|| largest.map(|b| 1.0 / b)) }
    }

    #[inline(always)]
    fn take(&self, a: f32, which: usize) -> f32 {
        let b = self.largest[which];
        let Some(y) = self.reciprocal else { return a / b };
        let q = a * y[which];
        (-b).mul_add(q, a).mul_add(y[which], q)
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn adamw8_twin<T: Real>(p: &Adamw8Params, host: &Host) {
    // SAFETY: the caller's.
    let Some(scale) = (unsafe { super::adamw::grad_scale(p.grad_scale) }) else { return };
    let (n, block) = (p.n as usize, p.block as usize);
    let scales = n.div_ceil(block);
    let grid = Task {
        param: Rows::<T>::dense(p.param, n),
        master: Rows::dense(p.master.cast(), n),
        codes: [p.code1, p.code2].map(|c| Rows::dense(c.cast(), n)),
        absmax: [p.absmax1, p.absmax2].map(|a| Rows::dense(a.cast(), scales)),
        grad: Rows::dense(p.grad.cast(), n),
        // SAFETY: the caller's.
        books: unsafe { [&*p.book1, &*p.book2] },
        element: Element {
            betas: [p.beta1, p.beta2],
            step_size: p.step_size,
            eps: p.eps,
            keep: p.keep,
            seed: p.seed,
            has_master: !p.master.is_null(),
            by_reciprocal: true,
        },
        scale,
        n,
        block,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, n.div_ceil(GROUP), &grid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few may round otherwise; of these none does, and by the reciprocal alone many would.
    #[test]
    fn shares_round_as_quotients_do() {
        let mut state = 1u32;
        let mut mantissa = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(127 << 23 | state >> 9)
        };
        let mut differ = 0;
        for i in 0..1_000_000u32 {
            let (a, b) = (mantissa(), 2.0 * mantissa());
            // Around the smallest codes, and around 1.
            let (a, b) = match i % 3 {
                0 => (a * 1e-7, b),
                1 => (-a, b),
                _ => (f32::from_bits(b.to_bits() - i % 64), b),
            };
            assert_eq!(Share::of([b, 1.0]).take(a, 0), a / b, "{a:e} / {b:e}");
            differ += u32::from(a * (1.0 / b) != a / b);
        }
        assert!(differ > 100_000, "{differ}");
    }

    #[test]
    fn shares_of_extreme_scales_are_quotients() {
        for b in [0.0, 1e-40, 1e-22, 1e19, f32::INFINITY, f32::NAN] {
            let share = Share::of([1.0, b]);
            assert!(share.reciprocal.is_none(), "{b:e}");
            assert_eq!(share.take(b, 1).to_bits(), (b / b).to_bits());
        }
    }
}
