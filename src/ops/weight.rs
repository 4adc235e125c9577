//! The matrix of a linear layer as it is stored, and what is done with it however that is.

use super::activation::swiglu;
use super::gemm::{Epilogue, gemm_normed, gemm_swiglu, makes_norm, makes_swiglu};
use super::gemm_quantized::{Quantized, gemm_quantized_normed, gemm_quantized_swiglu};
use super::normed::{Input, Norm};
use super::quantize::dequantize;
use super::transpose::transpose;
use crate::device::Stream;
use crate::tensor::{View, ViewMut};
use crate::{Error, Result};

/// W (n,k).
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    Dense(View<'a>),
    Quantized(Quantized<'a>),
}

/// Rows of a part are a multiple of it: tiles of a transpose are whole.
const TILE: usize = 64;

impl Weight<'_> {
    /// Codes that become numbers at a time in [`turn`]: few enough to be in the last cache still
    /// when they are transposed, enough for a launch to be worth it.
    pub const PART: usize = 1 << 21;

    /// n.
    pub fn rows(&self) -> usize {
        match self {
            Weight::Dense(w) => w.rows(),
            Weight::Quantized(q) => q.codes.rows(),
        }
    }

    /// k.
    pub fn cols(&self) -> usize {
        match self {
            Weight::Dense(w) => w.cols(),
            Weight::Quantized(q) => q.cols(),
        }
    }

    /// Shape of the `part` that [`turn`] needs, (rows, k); no rows if W is dense.
    pub fn part(&self) -> [usize; 2] {
        let cols = self.cols();
        match self {
            Weight::Dense(_) => [0, cols],
            Weight::Quantized(_) => {
                let rows = (Self::PART / cols.max(1) / TILE).max(1) * TILE;
                [rows.min(self.rows()), cols]
            }
        }
    }
}

impl<'a> Weight<'a> {
    /// What is stored of the matrix itself: elements, or codes.
    fn stored(&self) -> View<'a> {
        match self {
            Weight::Dense(w) => *w,
            Weight::Quantized(q) => q.codes,
        }
    }

    /// Rows of x for a product with it, and the norm that the product is to make of them.
    fn ready<'b>(
        &self,
        stream: &Stream,
        x: &'b mut Input<'_>,
    ) -> Result<(View<'b>, Option<Norm<'b>>)> {
        x.ready(stream, |x, norm| makes_norm(stream, x, norm, self.stored()))
    }
}

impl<'a> From<View<'a>> for Weight<'a> {
    fn from(w: View<'a>) -> Self {
        Weight::Dense(w)
    }
}

/// y = [y +] tanh(gate) * f(x W^T + bias); y (rows, n), x (rows, k) or a norm of that. On a card a
/// product of few rows makes the norm itself.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn linear<'a>(
    stream: &Stream,
    y: ViewMut<'_>,
    x: impl Into<Input<'a>>,
    w: Weight<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let mut x = x.into();
    let (x, norm) = w.ready(stream, &mut x)?;
    match w {
        Weight::Dense(w) => gemm_normed(stream, y, (x, norm), w, epilogue),
        Weight::Quantized(w) => gemm_quantized_normed(stream, y, (x, norm), w, epilogue),
    }
}

/// y = silu(x Wgates^T) * (x Wvalues^T), W = [Wgates; Wvalues]; y (rows, n/2), x (rows, k) or
/// a norm of that. Where SwiGLU is a launch of its own (on the host, in f32, by cuBLASLt), x W^T is
/// in `room` (rows, n) between.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn linear_swiglu<'a>(
    stream: &Stream,
    y: ViewMut<'_>,
    mut room: ViewMut<'_>,
    x: impl Into<Input<'a>>,
    w: Weight<'_>,
) -> Result<()> {
    let mut x = x.into();
    let (x, norm) = w.ready(stream, &mut x)?;
    if makes_swiglu(stream, x, w.stored()) {
        return match w {
            Weight::Dense(w) => gemm_swiglu(stream, y, (x, norm), w),
            Weight::Quantized(w) => gemm_quantized_swiglu(stream, y, (x, norm), w),
        };
    }
    // What makes a norm makes SwiGLU.
    linear(stream, room.reborrow(), x, w, Epilogue::default())?;
    swiglu(stream, y, room.as_view())
}

/// y[c, r] = W[r, c]; y (k, n or more): what is more becomes 0. Codes become numbers of y's type,
/// rounded once, in `part` ([`Weight::part`]), some rows after others: all of W is nowhere but in
/// y.
///
/// # Errors
/// If a shape or dtype differs; codes that [`dequantize`] does not take.
pub fn turn(
    stream: &Stream,
    mut y: ViewMut<'_>,
    mut part: ViewMut<'_>,
    w: Weight<'_>,
) -> Result<()> {
    let quantized = match w {
        Weight::Dense(w) => return transpose(stream, y, w),
        Weight::Quantized(quantized) => quantized,
    };
    let ([most, cols], rows) = (w.part(), w.rows());
    if y.rows() != cols || y.cols() < rows {
        let expected = format!("({cols}, {rows} or more)");
        return Err(Error::invalid("turn: y", expected, y.shape()));
    }
    for start in (0..rows).step_by(most.max(1)) {
        let own = start..rows.min(start + most);
        let (count, end) = (own.len(), if own.end == rows { y.cols() } else { own.end });
        let numbers = part.reborrow().block(0..count, 0..cols)?;
        dequantize(stream, numbers, quantized.some(own)?)?;
        let numbers = part.as_view().block(0..count, 0..cols)?;
        transpose(stream, y.reborrow().block(0..cols, start..end)?, numbers)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{INT4_GROUP, quantize};
    use crate::tensor::Tensor;
    use crate::{DType, ops};

    /// In parts, with rows that fill none, as the whole matrix.
    #[test]
    fn codes_are_turned_part_by_part_as_a_whole() {
        let stream = Stream::host(2);
        let cols = 2 * INT4_GROUP;
        let rows = 2 * Weight::PART / cols + 37;
        let values: Vec<f32> = (0..rows * cols).map(|i| (i * 37 % 1013) as f32 / 500.0).collect();
        let w = Tensor::upload(&stream, &values, &[rows, cols]).unwrap();
        for (dtype, width, groups) in
            [(DType::I8, cols, vec![rows]), (DType::U8, cols / 2, vec![rows, 2])]
        {
            let mut codes = Tensor::zeros(&stream, dtype, &[rows, width]).unwrap();
            let mut scales = Tensor::zeros(&stream, DType::BF16, &groups).unwrap();
            quantize(&stream, codes.view_mut(), scales.view_mut(), None, w.view()).unwrap();
            let of = Quantized { codes: codes.view(), scales: scales.view() };
            let mut whole = Tensor::zeros(&stream, DType::F32, &[rows, cols]).unwrap();
            dequantize(&stream, whole.view_mut(), of).unwrap();
            let weight = Weight::Quantized(of);
            assert_eq!((weight.rows(), weight.cols()), (rows, cols));
            assert!(rows > 2 * weight.part()[0]);
            let padded = rows.next_multiple_of(8);
            let turned = |w: Weight<'_>| {
                let mut part = Tensor::zeros(&stream, DType::F32, &weight.part()).unwrap();
                let nan = vec![f32::NAN; cols * padded];
                let mut y = Tensor::upload(&stream, &nan, &[cols, padded]).unwrap();
                turn(&stream, y.view_mut(), part.view_mut(), w).unwrap();
                y.view().read::<f32>().unwrap()
            };
            assert!(turned(weight) == turned(whole.view().into()), "{dtype}");
            let mut small = Tensor::zeros(&stream, DType::F32, &[cols, rows - 1]).unwrap();
            let mut part = Tensor::zeros(&stream, DType::F32, &weight.part()).unwrap();
            let e = ops::turn(&stream, small.view_mut(), part.view_mut(), weight).unwrap_err();
            assert!(e.to_string().contains("or more"), "{e}");
        }
    }
}
