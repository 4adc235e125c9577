//! Which codes a matrix can have, and making them of its bytes: by [`ops::quantize`], on the host
//! or on a card.

use crate::device::Stream;
use crate::dtype::Real;
use crate::ops::{self, INT4_GROUP};
use crate::tensor::Tensor;
use crate::{DType, Error, Result};
use half::{bf16, f16};

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Int8,
    Int4,
}

impl Precision {
    /// `int8` or `int4`.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        }
    }

    /// Rows of a multiple of so many weights can be stored: whole loads of 16 bytes, whole groups.
    pub const fn multiple(self) -> usize {
        match self {
            Precision::Int8 => 16,
            Precision::Int4 => INT4_GROUP,
        }
    }

    /// Bytes of a row's codes, and its scales.
    pub const fn row(self, cols: usize) -> (usize, usize) {
        match self {
            Precision::Int8 => (cols, 1),
            Precision::Int4 => (cols / 2, cols / INT4_GROUP),
        }
    }
}

/// What was lost: the sum of the squares of the differences, and of the weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    pub difference: f64,
    pub weights: f64,
}

impl Loss {
    pub(super) fn add(&mut self, difference: f64, weights: f64) {
        self.difference += difference;
        self.weights += weights;
    }

    /// Root of the mean square difference, relative to that of the weights.
    pub(super) fn relative(&self) -> f64 {
        if self.weights > 0.0 { (self.difference / self.weights).sqrt() } else { 0.0 }
    }
}

/// Rows of weights to codes, a piece at a time, on whatever device.
pub(super) struct Coder {
    stream: Stream,
}

/// What becomes of a piece.
pub(super) struct Coded {
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
    pub loss: Loss,
}

impl Coder {
    pub(super) fn new(stream: Stream) -> Self {
        Coder { stream }
    }

    /// The codes of whole rows of `cols` weights of `dtype`.
    ///
    /// # Errors
    /// If the weights are not floats or the device has no room for them.
    pub(super) fn code(
        &self,
        precision: Precision,
        dtype: DType,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Coded> {
        let rows = bytes.len() / dtype.size() / cols.max(1);
        let (width, groups) = precision.row(cols);
        let stream = &self.stream;
        let w = self.upload(dtype, bytes, &[rows, cols])?;
        let as_bytes = match precision {
            Precision::Int8 => DType::I8,
            Precision::Int4 => DType::U8,
        };
        let mut codes = Tensor::zeros(stream, as_bytes, &[rows, width])?;
        let mut scales = Tensor::zeros(stream, DType::BF16, &[rows, groups])?;
        let mut losses = Tensor::zeros(stream, DType::F32, &[rows * groups, 2])?;
        let lost = Some(losses.view_mut());
        ops::quantize(stream, codes.view_mut(), scales.view_mut(), lost, w.view())?;
        let mut loss = Loss::default();
        for [difference, weights] in losses.view().read::<f32>()?.as_chunks().0 {
            loss.add(f64::from(*difference), f64::from(*weights));
        }
        let codes = match precision {
            Precision::Int8 => codes.view().read::<i8>()?.into_iter().map(|q| q as u8).collect(),
            Precision::Int4 => codes.view().read::<u8>()?,
        };
        let scales = scales.view().read::<bf16>()?;
        let scales = scales.into_iter().flat_map(bf16::to_le_bytes).collect();
        Ok(Coded { codes, scales, loss })
    }

    /// As a tensor of their own: where they are may be aligned to nothing.
    fn upload(&self, dtype: DType, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
        fn of<T: Real>(stream: &Stream, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
            let weights = bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned);
            Tensor::upload::<T>(stream, &weights.collect::<Vec<_>>(), shape)
        }
        match dtype {
            DType::F32 => of::<f32>(&self.stream, bytes, shape),
            DType::BF16 => of::<bf16>(&self.stream, bytes, shape),
            DType::F16 => of::<f16>(&self.stream, bytes, shape),
            other => Err(Error::invalid("weights to be quantised", "f32, bf16 or f16", other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_tiny_numbers_stay_finite() {
        let coder = Coder::new(Stream::host(1));
        for x in [0.0f32, 1e-40, -1e-44, 1e-37] {
            for precision in [Precision::Int8, Precision::Int4] {
                let bytes: Vec<u8> = [x; 256].into_iter().flat_map(f32::to_le_bytes).collect();
                let coded = coder.code(precision, DType::F32, 128, &bytes).unwrap();
                let (codes, scales) = precision.row(128);
                assert_eq!((coded.codes.len(), coded.scales.len()), (2 * codes, 4 * scales));
                assert!(coded.loss.relative().is_finite());
            }
        }
    }

    #[test]
    fn the_loss_is_that_of_all_weights() {
        let coder = Coder::new(Stream::host(1));
        let bytes: Vec<u8> = (0..512)
            .map(|i| (i * 37 % 101) as f32 / 80.0 - 0.6)
            .flat_map(f32::to_le_bytes)
            .collect();
        for (precision, least, most) in
            [(Precision::Int8, 1e-3, 0.02), (Precision::Int4, 0.02, 0.3)]
        {
            let mut loss = Loss::default();
            for piece in bytes.chunks(1024) {
                let one = coder.code(precision, DType::F32, 256, piece).unwrap().loss;
                loss.add(one.difference, one.weights);
            }
            assert!((least..most).contains(&loss.relative()), "{loss:?}");
        }
    }
}
