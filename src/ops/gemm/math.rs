//! Scalar f32 functions and conversions without branches or calls, so that loops over rows
//! vectorise on every instruction set and give the same bits on all of them.

use crate::DType;
use crate::dtype::Real;

/// `x` as f32, exactly. Unlike [`Real::to_f32`] it vectorises for f16 on any machine.
#[inline(always)]
pub(crate) fn widen<T: Real>(x: T) -> f32 {
    if T::DTYPE != DType::F16 {
        return x.to_f32();
    }
    let h = u32::from(bytemuck::cast::<T, u16>(x));
    // The fraction and exponent in f32's places, then the difference of the biases; exact for
    // subnormals too.
    let scaled = (f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | (h & 0x8000) << 16)
}

/// `x` rounded to nearest even. Unlike [`Real::from_f32`] it vectorises for f16 on any machine.
#[inline(always)]
pub(crate) fn narrow<T: Real>(x: f32) -> T {
    if T::DTYPE != DType::F16 {
        return T::from_f32(x);
    }
    let sign = x.to_bits() >> 16 & 0x8000;
    let bits = x.to_bits() & 0x7fff_ffff;
    // Half an ulp less one, plus the last kept bit, then the difference of the biases.
    let normal = bits.wrapping_add(0xc800_0fff + (bits >> 13 & 1)) >> 13;
    // Adding 0.5 leaves a subnormal's ten bits, rounded, at the bottom of the sum.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let small = if bits < 0x3880_0000 { subnormal } else { normal };
    let finite = if bits < 0x4780_0000 { small } else { 0x7c00 };
    let h = if bits > 0x7f80_0000 { 0x7e00 } else { finite };
    bytemuck::cast::<u16, T>((h | sign) as u16)
}

/// e^x to 1.5 ulp; overflows to infinity, underflows through the subnormals to 0.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons, not min and max: a NaN must stay one.
    let x = if x > 130.0 { 130.0 } else { x };
    let x = if x < -130.0 { -130.0 } else { x };
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    // ln 2 in two parts, the first short enough for n * part to be exact.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let high = (1.0 / 5040.0 * r + 1.0 / 720.0) * r + 1.0 / 120.0;
    let p = ((high * r + 1.0 / 24.0) * r + 1.0 / 6.0) * r + 0.5;
    let e = (p * r) * r + r + 1.0;
    // 2^n in two steps, because n reaches beyond the exponents of f32 on both sides.
    let n = (shifted.to_bits() as i32).wrapping_sub(0x4b40_0000);
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    e * power(n >> 1) * power(n.wrapping_sub(n >> 1))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// erfc(z) e^(z^2) / t as a polynomial in t = 1 / (1 + 0.3275911 z), z >= 0: relative error 1.1e-8
/// for z <= 10 (interpolated at Chebyshev nodes; the substitution is Abramowitz & Stegun 7.1.26's).
const ERFCX: [f32; 10] = [
    0.184_766_3,
    0.186_035_2,
    0.163_679_83,
    0.214_912_44,
    -0.075_919_25,
    0.548_381_8,
    -0.616_037,
    0.669_017_5,
    -0.334_741_06,
    0.059_904_285,
];

/// Phi(x) and e^(-x^2 / 2). The lower tail comes from erfc, so it keeps its digits where 1 + erf
/// would cancel.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let mut p = ERFCX[9];
    for i in (0..9).rev() {
        p = p * t + ERFCX[i];
    }
    let bell = exp(-0.5 * x * x);
    let tail = 0.5 * t * p * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

/// GELU, x/2 (1 + erf(x / sqrt 2)): absolute error below 1.5e-7 max(1, |x|).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    // -inf * 0 is not the limit; any finite number below -15 gives it.
    (if x < -40.0 { -40.0 } else { x }) * normal(x).0
}

/// The derivative of [`gelu`], Phi(x) + x phi(x).
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    let (cdf, bell) = normal(x);
    cdf + within(x, 40.0) * (0.398_942_3 * bell)
}

/// x, or the nearer end of -most .. most, so that 0 times it is 0.
#[inline(always)]
fn within(x: f32, most: f32) -> f32 {
    let x = if x < -most { -most } else { x };
    if x > most { most } else { x }
}

/// x * sigmoid(1.702 x), CLIP's QuickGELU.
#[inline(always)]
pub(crate) fn quick_gelu(x: f32) -> f32 {
    let s = sigmoid(1.702 * x);
    (if x < -100.0 { -100.0 } else { x }) * s
}

/// The derivative of [`quick_gelu`], s (1 + 1.702 x (1 - s)).
#[inline(always)]
pub(crate) fn quick_gelu_slope(x: f32) -> f32 {
    let near = within(x, 40.0);
    let e = exp(-1.702 * near);
    let s = if x < -40.0 { 0.0 } else { 1.0 / (1.0 + e) };
    // e s is 1 - s without its cancellation.
    s * (1.0 + 1.702 * near * (e * s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Floats over the whole range, with the neighbourhoods of what matters.
    fn sweep() -> impl Iterator<Item = f32> {
        let dense = (-200_000..=200_000).map(|i| i as f32 * 1e-3);
        dense.chain((0..=u32::MAX).step_by(9973).map(f32::from_bits))
    }

    #[test]
    fn f16_conversions_equal_half() {
        for bits in 0..=u16::MAX {
            let h = f16::from_bits(bits);
            assert!(widen(h).to_bits() == h.to_f32().to_bits() || h.is_nan(), "{bits:#x}");
            assert_eq!(widen(h).is_nan(), h.is_nan());
            // The value, its neighbours and the ties between two values.
            for near in [-1i32, 0, 1, 0xfff, 0x1000, 0x1001] {
                let x = f32::from_bits(h.to_f32().to_bits().wrapping_add_signed(near));
                let (ours, theirs) = (narrow::<f16>(x), f16::from_f32(x));
                let same = ours.to_bits() == theirs.to_bits() || (x.is_nan() && ours.is_nan());
                assert!(same, "{x:e}: {ours:?} {theirs:?}");
            }
        }
        for x in sweep() {
            let (ours, theirs) = (narrow::<f16>(x), f16::from_f32(x));
            assert!(ours.to_bits() == theirs.to_bits() || x.is_nan(), "{x:e}");
        }
        assert_eq!(widen(narrow::<bf16>(1.5)), 1.5);
    }

    #[test]
    fn exp_is_within_two_ulp_and_keeps_the_ends() {
        for x in sweep().filter(|x| !x.is_nan()) {
            let exact = f64::from(x).exp();
            let ulp = (exact * f64::from(f32::EPSILON)).max(1.5e-45);
            let error = (f64::from(exp(x)) - exact).abs();
            let overflow = exact > f64::from(f32::MAX) && exp(x) == f32::INFINITY;
            assert!(overflow || error <= 2.0 * ulp, "{x}: {} {exact}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    /// erfc by its continued fraction (z > 2) or erf's series; f64, independent of the above.
    fn cdf(x: f64) -> f64 {
        let z = x.abs() / std::f64::consts::SQRT_2;
        let upper = if z > 2.0 {
            let fraction = (1..=200).rev().fold(z, |f, i| z + f64::from(i) / 2.0 / f);
            (-z * z).exp() / fraction / std::f64::consts::PI.sqrt() / 2.0
        } else {
            let mut term = z;
            let mut sum = z;
            for i in 1..60 {
                term *= -z * z / f64::from(i);
                sum += term / f64::from(2 * i + 1);
            }
            0.5 - sum / std::f64::consts::PI.sqrt()
        };
        if x < 0.0 { upper } else { 1.0 - upper }
    }

    #[test]
    fn activations_match_f64() {
        for x in sweep().filter(|x| x.abs() < 1e6) {
            let exact = f64::from(x) * cdf(f64::from(x));
            let error = (f64::from(gelu(x)) - exact).abs();
            assert!(error <= 1.5e-7 * f64::from(x.abs()).max(1.0), "{x}: {} {exact}", gelu(x));
            let exact = f64::from(x) / (1.0 + (-1.702 * f64::from(x)).exp());
            let error = (f64::from(quick_gelu(x)) - exact).abs();
            assert!(error <= 2e-7 * f64::from(x.abs()).max(1.0), "{x}");
        }
        for f in [gelu, quick_gelu] {
            assert!(f(f32::NAN).is_nan());
            assert_eq!(f(f32::INFINITY), f32::INFINITY);
            assert_eq!(f(f32::NEG_INFINITY), 0.0);
        }
    }

    #[test]
    fn slopes_match_f64() {
        for x in sweep().filter(|x| x.abs() < 1e6) {
            let wide = f64::from(x);
            let bell = (-0.5 * wide * wide).exp() / std::f64::consts::TAU.sqrt();
            let error = (f64::from(gelu_slope(x)) - (cdf(wide) + wide * bell)).abs();
            assert!(error <= 3e-7, "{x}: {error:e}");
            let s = 1.0 / (1.0 + (-1.702 * wide).exp());
            let exact = s * (1.0 + 1.702 * wide * (1.0 - s));
            assert!((f64::from(quick_gelu_slope(x)) - exact).abs() <= 4e-7, "{x}");
        }
        for f in [gelu_slope, quick_gelu_slope] {
            assert!(f(f32::NAN).is_nan());
            assert_eq!([f(f32::INFINITY), f(f32::NEG_INFINITY)], [1.0, 0.0]);
        }
    }
}
