//! What a device gives at most, measured beside the work that is held against it.

use super::median;
use crate::device::{Cost, Stream};
use crate::ops::{self, Epilogue};
use crate::tensor::Tensor;
use crate::{DType, Result};
use half::{bf16, f16};
use serde::Serialize;

/// Rates that a launch is held against.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Bytes read and written a second by a copy.
    pub copy: f64,
    /// Bytes read a second by `checksum`.
    pub read: f64,
    /// Operations a second of a large matrix product.
    pub product: f64,
}

/// Parts of the checksum: blocks enough for every card.
const PARTS: usize = 4096;
/// The largest product that is tried, and how long one must take to be large enough, us.
const LARGEST: usize = 8192;
const LONG_US: f64 = 2000.0;

impl Ceilings {
    /// Medians of `passes` passes over `bytes` and of products in `dtype`.
    ///
    /// # Errors
    /// If the device has no room for twice the bytes, or has failed.
    pub fn measure(stream: &Stream, dtype: DType, bytes: usize, passes: usize) -> Result<Self> {
        let from = filled(stream, DType::F32, &[bytes / 4])?;
        let mut to = Tensor::zeros(stream, DType::F32, &[bytes / 4])?;
        let mut sums = Tensor::zeros(stream, DType::I32, &[PARTS])?;
        let rate = |work: f64, body: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
            stream.time(body)?;
            let times: Result<Vec<f64>> = (0..passes).map(|_| stream.time(body)).collect();
            Ok(work / median(times?) * 1e6)
        };
        let bytes = from.bytes() as f64;
        let copy = rate(2.0 * bytes, &mut || to.view_mut().copy_from(from.view()))?;
        let read = rate(bytes, &mut || ops::checksum(stream, sums.view_mut(), from.view()))?;
        let mut size = 512;
        let product = loop {
            let (a, b) =
                (filled(stream, dtype, &[size, size])?, filled(stream, dtype, &[size; 2])?);
            let mut c = Tensor::zeros(stream, dtype, &[size, size])?;
            let flops = 2.0 * (size as f64).powi(3);
            let rate = rate(flops, &mut || {
                ops::gemm(stream, c.view_mut(), a.view(), b.view(), Epilogue::default())
            })?;
            if size == LARGEST || flops / rate * 1e6 >= LONG_US {
                break rate;
            }
            size *= 2;
        };
        Ok(Ceilings { copy, read, product })
    }

    /// Least time of a launch, us.
    pub fn us(&self, cost: Cost) -> f64 {
        (cost.bytes / self.copy.max(self.read)).max(cost.flops / self.product) * 1e6
    }

    /// Of the rate that bounds a launch of `us`, the share reached; 0 if it took no time.
    pub fn share(&self, cost: Cost, us: f64) -> f64 {
        if us > 0.0 { self.us(cost) / us } else { 0.0 }
    }
}

/// A tensor of numbers between -1 and 1 (or of all bytes), in no order: power, and so speed,
/// depends on the bits.
pub fn filled(stream: &Stream, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    /// A prime, so that rows differ.
    const PERIOD: usize = 65_521;
    let mut state = 1u32;
    let block: Vec<f32> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(PERIOD)
    .collect();
    fn repeat<T: Copy>(block: &[f32], count: usize, narrow: fn(f32) -> T) -> Vec<T> {
        let block: Vec<T> = block.iter().map(|x| narrow(*x)).collect();
        block.iter().copied().cycle().take(count).collect()
    }
    let count = shape.iter().product();
    match dtype {
        DType::BF16 => Tensor::upload(stream, &repeat(&block, count, bf16::from_f32), shape),
        DType::F16 => Tensor::upload(stream, &repeat(&block, count, f16::from_f32), shape),
        DType::U8 => {
            Tensor::upload(stream, &repeat(&block, count, |x| (x * 128.0) as i8 as u8), shape)
        }
        DType::I8 => Tensor::upload(stream, &repeat(&block, count, |x| (x * 127.0) as i8), shape),
        _ => Tensor::upload(stream, &repeat(&block, count, |x| x), shape),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_is_held_against_the_slower_side() {
        let ceilings = Ceilings { copy: 1e9, read: 2e9, product: 1e12 };
        let memory = Cost { bytes: 2e6, flops: 1e6 };
        assert!((ceilings.us(memory) - 1000.0).abs() < 1e-6);
        let product = Cost { bytes: 2e3, flops: 3e9 };
        assert!((ceilings.share(product, 6000.0) - 0.5).abs() < 1e-9);
        assert_eq!(ceilings.share(product, 0.0), 0.0);
    }

    #[test]
    fn ceilings_of_this_machine_are_rates() {
        let found = Ceilings::measure(&Stream::host(1), DType::F32, 4 << 20, 3).unwrap();
        for rate in [found.copy, found.read, found.product] {
            assert!((1e7..1e14).contains(&rate), "{found:?}");
        }
    }
}
