//! `adamw`: one step of AdamW with both moments in f32, and what it shares with `adamw8`.

use super::check;
use super::layout;
use super::rows::{Rows, for_row_ranges};
use crate::contracts::AdamwParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/adamw.h`.
pub static ADAMW: Kernel<AdamwParams> =
    Kernel { name: "adamw", twins: twins!(adamw_twin), geometry, cost, accounting: 0 };

/// Elements of one thread of the kernels.
const OWN: i64 = 8;

/// The scalars of one optimiser step, the same for every tensor of a parameter group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Number of this step, from 1.
    pub step: u64,
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay rates of the first and the second moment.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Share of the parameter that lr takes away; 0 for groups without decay.
    pub weight_decay: f32,
    /// Rounds bf16 parameters without master stochastically if not 0; another one at every step.
    pub seed: u64,
}

/// As the kernels take them; f32 throughout, as bitsandbytes computes them.
pub(super) struct Scalars {
    pub(super) step_size: f32,
    pub(super) eps: f32,
    pub(super) keep: f32,
}

impl AdamwStep {
    pub(super) fn scalars(&self) -> Scalars {
        let power = |beta: f32| f64::from(beta).powf(self.step as f64) as f32;
        let (c1, c2) = (1.0 - power(self.betas[0]), (1.0 - power(self.betas[1])).sqrt());
        Scalars {
            step_size: -self.lr * c2 / c1,
            eps: c2 * self.eps,
            keep: 1.0 - self.lr * self.weight_decay,
        }
    }
}

/// What both optimisers demand of a parameter and its gradient, and of the step.
pub(super) fn check_step(
    op: &str,
    param: &View<'_>,
    master: Option<&View<'_>>,
    grad: &View<'_>,
    grad_scale: Option<&View<'_>>,
    step: &AdamwStep,
) -> Result<()> {
    let n = param.rows() * param.cols();
    check::dense(op, "param", param)?;
    for (name, view) in [("param", Some(param)), ("master", master), ("grad", Some(grad))] {
        view.map_or(Ok(()), |view| check::aligned(op, name, view, 16))?;
    }
    for (name, view, size) in
        [("master", master, n), ("grad", Some(grad), n), ("grad_scale", grad_scale, 1)]
    {
        let Some(view) = view else { continue };
        check::flat(op, name, view, size, DType::F32)?;
    }
    if step.step == 0 {
        return Err(Error::invalid(format!("{op}: step"), "1 or more", 0));
    }
    if step.seed != 0 && (master.is_some() || param.dtype() != DType::BF16) {
        let found = if master.is_some() { "a master copy" } else { param.dtype().name() };
        let expected = "bf16 parameters without a master copy";
        return Err(Error::invalid(format!("{op}: stochastic rounding"), expected, found));
    }
    Ok(())
}

/// One step for `param` (n) T with `m`, `v` and `grad` (n) f32. With `master` (n) f32, that is the
/// parameter and `param` becomes its rounding. `grad_scale` (1) f32 multiplies the gradient.
///
/// # Errors
/// If a shape, dtype or stride differs, the step is 0, or stochastic rounding does not apply.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn adamw(
    stream: &Stream,
    mut param: ViewMut<'_>,
    mut master: Option<ViewMut<'_>>,
    mut m: ViewMut<'_>,
    mut v: ViewMut<'_>,
    grad: View<'_>,
    grad_scale: Option<View<'_>>,
    step: &AdamwStep,
) -> Result<()> {
    let op = "adamw";
    let stored = param.as_view();
    let kept = master.as_ref().map(ViewMut::as_view);
    check_step(op, &stored, kept.as_ref(), &grad, grad_scale.as_ref(), step)?;
    let (dtype, n) = (stored.dtype(), stored.rows() * stored.cols());
    for (name, view) in [("m", m.as_view()), ("v", v.as_view())] {
        check::flat(op, name, &view, n, DType::F32)?;
        check::aligned(op, name, &view, 16)?;
    }
    let scalars = step.scalars();
    let params = AdamwParams {
        param: param.ptr(),
        master: master.as_mut().map_or(std::ptr::null_mut(), ViewMut::ptr),
        m: m.ptr(),
        v: v.ptr(),
        grad: grad.ptr(),
        grad_scale: grad_scale.map_or(std::ptr::null(), |s| s.ptr()),
        n: n as i64,
        seed: step.seed,
        beta1: step.betas[0],
        beta2: step.betas[1],
        step_size: scalars.step_size,
        eps: scalars.eps,
        keep: scalars.keep,
        reserved: 0,
    };
    // SAFETY: sizes, strides and dtypes were checked; what is written is borrowed exclusively.
    unsafe { stream.launch(&ADAMW, dtype, &params) }
}

fn geometry(p: &AdamwParams, _: DType, _: &Chip) -> Geometry {
    layout::cells(p.n, OWN as usize)
}

fn cost(p: &AdamwParams, dtype: DType) -> Cost {
    let master = if p.master.is_null() { dtype.size() } else { 8 };
    let bytes = 4 + 16 + master + dtype.size();
    Cost { bytes: p.n as f64 * bytes as f64, flops: 14.0 * p.n as f64 }
}

/// One element's step: what the kernels' `adamw` of `lib/adamw.cuh` computes, to the bit.
#[derive(Clone, Copy)]
pub(super) struct Element {
    pub(super) betas: [f32; 2],
    pub(super) step_size: f32,
    pub(super) eps: f32,
    pub(super) keep: f32,
    pub(super) seed: u64,
    pub(super) has_master: bool,
    /// m / d is m (1 / d).
    pub(super) by_reciprocal: bool,
}

impl Element {
    /// The parameter x after the step; m and v become the new moments.
    #[inline(always)]
    pub(super) fn step<T: Real>(&self, x: f32, g: f32, m: &mut f32, v: &mut f32, i: usize) -> f32 {
        if !g.is_finite() {
            (*m, *v) = (0.0, 0.0);
            return x;
        }
        *v = *v * self.betas[1] + (1.0 - self.betas[1]) * g * g;
        *m = *m * self.betas[0] + (1.0 - self.betas[0]) * g;
        let below = v.sqrt() + self.eps;
        let direction = if self.by_reciprocal { *m * (1.0 / below) } else { *m / below };
        let x = x + self.step_size * direction;
        if self.has_master {
            return x * self.keep;
        }
        if self.seed == 0 {
            return T::from_f32(x).to_f32() * self.keep;
        }
        let x = x * self.keep;
        let bits = x.to_bits().wrapping_add(noise(self.seed, i));
        if x.is_finite() { f32::from_bits(bits & 0xffff_0000) } else { x }
    }
}

/// 16 bits that are as good as random, of element i at a step's seed (the finaliser of splitmix64,
/// doi:10.1145/2714064.2660195).
#[inline(always)]
fn noise(seed: u64, i: usize) -> u32 {
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 48) as u32
}

/// The step's factor of gradients; `None` if nothing is to change.
///
/// # Safety
/// `scale` is null or points at a float.
pub(super) unsafe fn grad_scale(scale: *const f32) -> Option<f32> {
    // SAFETY: the caller's.
    let scale = unsafe { scale.as_ref() }.copied().unwrap_or(1.0);
    scale.is_finite().then_some(scale)
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn adamw_twin<T: Real>(p: &AdamwParams, host: &Host) {
    // SAFETY: the caller's.
    let Some(scale) = (unsafe { grad_scale(p.grad_scale) }) else { return };
    let n = p.n as usize;
    let (param, master) = (Rows::<T>::dense(p.param, n), Rows::<f32>::dense(p.master.cast(), n));
    let [m, v] = [p.m, p.v].map(|x| Rows::<f32>::dense(x.cast(), n));
    let grad = Rows::<f32>::dense(p.grad.cast(), n);
    let element = Element {
        betas: [p.beta1, p.beta2],
        step_size: p.step_size,
        eps: p.eps,
        keep: p.keep,
        seed: p.seed,
        has_master: !p.master.is_null(),
        by_reciprocal: false,
    };
    for_row_ranges(host, n, 1, |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: this range of every array is this task's only.
        let (param, m, v, grad) = unsafe {
            (
                param.part_mut(0, start, len),
                m.part_mut(0, start, len),
                v.part_mut(0, start, len),
                grad.part(0, start, len),
            )
        };
        for i in 0..len {
            // SAFETY: as above; there is a master if it is read.
            let kept = || unsafe { master.part_mut(0, start + i, 1) };
            let x = if element.has_master { kept()[0] } else { param[i].to_f32() };
            let x = element.step::<T>(x, grad[i] * scale, &mut m[i], &mut v[i], start + i);
            if element.has_master {
                kept()[0] = x;
            }
            param[i] = T::from_f32(x);
        }
    });
}
