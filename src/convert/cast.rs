//! Elements of a checkpoint to the model folder's storage type, a bounded piece at a time.

use crate::dtype::Real;
use crate::{DType, Error, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Converts little-endian elements; keeps its scratch between pieces.
#[derive(Default)]
pub(super) struct Caster {
    halves: Vec<f16>,
    floats: Vec<f32>,
}

impl Caster {
    /// Appends `bytes`, elements of type `from`, to `out` as elements of type `to`, rounded once to
    /// nearest even.
    ///
    /// # Errors
    /// A type that is not floating-point; a NaN or an infinity; a number beyond the range of `to`.
    pub(super) fn cast(
        &mut self,
        from: DType,
        bytes: &[u8],
        to: DType,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let start = out.len();
        if from == to && to.is_float() {
            out.extend_from_slice(bytes);
        } else if from == DType::F64 {
            self.widen(from, bytes)?;
            if to != DType::F32 {
                let doubles = bytes.chunks_exact(8).filter_map(|b| b.first_chunk());
                let odd = doubles.map(|b| odd(f64::from_le_bytes(*b)));
                self.floats.iter_mut().zip(odd).for_each(|(x, odd)| *x = odd);
            }
            self.store(to, out)?;
        } else {
            self.widen(from, bytes)?;
            self.store(to, out)?;
        }
        if is_finite(to, &out[start..]) {
            return Ok(());
        }
        let source = if from == to { &out[start..] } else { bytes };
        let found = if is_finite(from, source) {
            self.widen(from, source)?;
            let largest = self.floats.iter().fold(0f32, |m, x| m.max(x.abs()));
            format!("numbers up to {largest:e}")
        } else {
            "NaN or infinity".into()
        };
        let error = Error::invalid("values", format!("finite numbers in the range of {to}"), found);
        Err(if to == DType::F16 { error.advise("use --dtype bf16 or f32") } else { error })
    }

    fn widen(&mut self, from: DType, bytes: &[u8]) -> Result<()> {
        let count = bytes.len() / from.size();
        self.floats.resize(count, 0.0);
        match from {
            DType::F32 => bytemuck::cast_slice_mut(&mut self.floats).copy_from_slice(bytes),
            DType::F16 => {
                self.halves.resize(count, f16::ZERO);
                bytemuck::cast_slice_mut(&mut self.halves).copy_from_slice(bytes);
                self.halves.convert_to_f32_slice(&mut self.floats);
            }
            DType::BF16 => {
                for (x, b) in self.floats.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                }
            }
            DType::F64 => {
                for (x, b) in self.floats.iter_mut().zip(bytes.chunks_exact(8)) {
                    *x = b.first_chunk().map_or(0.0, |b| f64::from_le_bytes(*b) as f32);
                }
            }
            _ => return Err(Error::invalid("type", "floating-point numbers", from)),
        }
        Ok(())
    }

    fn store(&mut self, to: DType, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        match to {
            DType::F32 => out.extend_from_slice(bytemuck::cast_slice(&self.floats)),
            DType::BF16 => {
                out.resize(start + self.floats.len() * 2, 0);
                for (b, x) in out[start..].chunks_exact_mut(2).zip(&self.floats) {
                    b.copy_from_slice(&<bf16 as Real>::from_f32(*x).to_bits().to_le_bytes());
                }
            }
            DType::F16 => {
                self.halves.resize(self.floats.len(), f16::ZERO);
                self.halves.convert_from_f32_slice(&self.floats);
                out.extend_from_slice(bytemuck::cast_slice(&self.halves));
            }
            _ => return Err(Error::invalid("dtype", "f32, bf16 or f16", to)),
        }
        Ok(())
    }
}

/// Rounds to odd: the last bit says that something was cut off, so that the next rounding, to a
/// type at least two bits shorter, is as if from `x` itself (Boldo and Melquiond, 2008).
fn odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !x.is_finite() {
        return near;
    }
    let is_beyond = f64::from(near).abs() > x.abs();
    f32::from_bits((near.to_bits() - u32::from(is_beyond)) | 1)
}

/// True if no element has all exponent bits set.
fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    let halves = |mask: u16| {
        bytes
            .chunks_exact(2)
            .fold(true, |ok, b| ok & (u16::from_le_bytes([b[0], b[1]]) & mask != mask))
    };
    match dtype {
        DType::F16 => halves(0x7c00),
        DType::BF16 => halves(0x7f80),
        DType::F32 => bytes.chunks_exact(4).fold(true, |ok, b| {
            ok & (u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 != 0x7f80_0000)
        }),
        _ => bytes
            .chunks_exact(8)
            .all(|b| b.first_chunk().is_some_and(|b| f64::from_le_bytes(*b).is_finite())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(from: DType, bytes: &[u8], to: DType) -> Result<Vec<u8>> {
        let mut out = vec![];
        Caster::default().cast(from, bytes, to, &mut out)?;
        Ok(out)
    }

    #[test]
    fn every_half_survives_the_wider_types() {
        for (dtype, mask) in [(DType::F16, 0x7c00u16), (DType::BF16, 0x7f80)] {
            let finite = (0..=u16::MAX).filter(|b| b & mask != mask);
            let bytes: Vec<u8> = finite.flat_map(u16::to_le_bytes).collect();
            let wide = cast(dtype, &bytes, DType::F32).unwrap();
            assert_eq!(cast(DType::F32, &wide, dtype).unwrap(), bytes);
            assert_eq!(cast(dtype, &bytes, dtype).unwrap(), bytes);
        }
    }

    #[test]
    fn doubles_are_rounded_once() {
        // Just above a tie of bf16, and exactly that tie once rounded to f32.
        let x: f64 = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let out = cast(DType::F64, &x.to_le_bytes(), DType::BF16).unwrap();
        assert_eq!(bf16::from_le_bytes([out[0], out[1]]).to_f32(), 1.0078125);
        // The same for f16, negative and subnormal.
        let x = -(2f64.powi(-24) + 2f64.powi(-25) - 2f64.powi(-70));
        let out = cast(DType::F64, &x.to_le_bytes(), DType::F16).unwrap();
        assert_eq!(f16::from_le_bytes([out[0], out[1]]).to_f64(), -(2f64.powi(-24)));
        let even = (1.0 + 2f32.powi(-8)).to_le_bytes();
        let out = cast(DType::F32, &even, DType::BF16).unwrap();
        assert_eq!(bf16::from_le_bytes([out[0], out[1]]).to_f32(), 1.0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let e = cast(DType::F32, &70000f32.to_le_bytes(), DType::F16).unwrap_err().to_string();
        assert!(e.contains("7e4") && e.contains("--dtype bf16"), "{e}");
        for to in [DType::F32, DType::BF16, DType::F16] {
            for x in [f32::NAN, f32::INFINITY] {
                assert!(cast(DType::F32, &x.to_le_bytes(), to).is_err());
            }
            assert!(cast(DType::I64, &[0; 8], to).is_err());
        }
        assert!(cast(DType::F64, &1e300f64.to_le_bytes(), DType::F32).is_err());
    }
}
