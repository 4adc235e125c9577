//! `cross_entropy`: the loss of each row of logits, and its gradient.

use super::batch::Labels;
use super::check;
use super::gemm::math;
use super::lanes::{self, Grid, Lanes, PAD, exp};
use super::layout;
use super::rows::{Rows, row_range, row_tasks};
use crate::contracts::CrossEntropyParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/cross_entropy.h`.
pub static CROSS_ENTROPY: Kernel<CrossEntropyParams> = Kernel {
    name: "cross_entropy",
    twins: twins!(cross_entropy_twin),
    geometry,
    cost,
    accounting: 0,
};

/// loss[r] = log(sum of exp(x[r])) - x[r, label] and dx = scale * (softmax(x[r]) - [label]), both 0
/// in a row whose label is none; loss (rows) f32, dx (rows, cols or more), of which what is more
/// becomes 0, x (rows, cols) f32. Rows of dx and x may be strided.
///
/// # Errors
/// If a shape or dtype differs, or the labels were checked against more columns.
pub fn cross_entropy(
    stream: &Stream,
    loss: ViewMut<'_>,
    dx: ViewMut<'_>,
    x: View<'_>,
    labels: &Labels,
    scale: f32,
) -> Result<()> {
    cross_entropy_from(stream, loss, dx, x, labels, 0, scale)
}

/// As [`cross_entropy`], the first row's label being `labels[first]`.
pub(super) fn cross_entropy_from(
    stream: &Stream,
    mut loss: ViewMut<'_>,
    mut dx: ViewMut<'_>,
    x: View<'_>,
    labels: &Labels,
    first: usize,
    scale: f32,
) -> Result<()> {
    let op = "cross_entropy";
    let (rows, cols) = (x.rows(), x.cols());
    check::dtype(op, "x", &x, DType::F32)?;
    check::flat(op, "loss", &loss.as_view(), rows, DType::F32)?;
    if dx.rows() != rows || dx.cols() < cols {
        return Err(Error::invalid(
            "cross_entropy: dx",
            format!("({rows}, {cols} or more)"),
            dx.shape(),
        ));
    }
    if labels.rows() < first + rows || labels.vocabulary() > cols {
        let found = format!("{} below {}", labels.rows(), labels.vocabulary());
        return Err(Error::invalid(
            "cross_entropy: labels",
            format!("{rows} or more below {cols}"),
            found,
        ));
    }
    let params = CrossEntropyParams {
        loss: loss.ptr(),
        dx: dx.ptr(),
        x: x.ptr(),
        labels: labels.labels().wrapping_add(first),
        rows: rows as i64,
        cols: cols as i64,
        dx_cols: dx.cols() as i64,
        dx_stride: dx.stride() as i64,
        x_stride: x.stride() as i64,
        scale,
        reserved: 0,
    };
    // SAFETY: shapes and dtypes were checked, the labels when they were made; what is written is
    // borrowed exclusively.
    unsafe { stream.launch(&CROSS_ENTROPY, dx.dtype(), &params) }
}

fn geometry(p: &CrossEntropyParams, dtype: DType, _: &Chip) -> Geometry {
    const THREADS: u32 = 512;
    let packable = layout::is_packable(&[p.dx.cast_const()], &[p.dx_cols, p.dx_stride], dtype)
        && layout::is_packable(&[p.x.cast()], &[p.x_stride], DType::F32);
    let variant = if packable { "" } else { "_plain" };
    // `sizeof(CrossEntropyShared)`: two floats a warp.
    let shared = 2 * THREADS / 32 * 4;
    Geometry { variant, shared, ..Geometry::linear(p.rows as u32, THREADS) }
}

fn cost(p: &CrossEntropyParams, dtype: DType) -> Cost {
    let (rows, cols) = (p.rows as f64, p.cols as f64);
    let bytes = rows * (8.0 + 4.0 * cols + dtype.size() as f64 * p.dx_cols as f64);
    Cost { bytes, flops: 6.0 * rows * cols }
}

struct Task<T> {
    loss: Rows<f32>,
    dx: Rows<T>,
    x: Rows<f32>,
    labels: Rows<i32>,
    rows: usize,
    cols: usize,
    scale: f32,
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        self.cols.next_multiple_of(PAD)
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        for r in row_range(task, self.rows, self.cols) {
            // SAFETY: rows inside the contract's extent, each of one task only.
            unsafe {
                let label = self.labels.get(r)[0];
                let (loss, dx) = (&mut self.loss.get_mut(r)[0], self.dx.get_mut(r));
                if label < 0 {
                    *loss = 0.0;
                    dx.fill(T::from_f32(0.0));
                    continue;
                }
                let x = self.x.get(r);
                let chosen = x[label as usize];
                let (max, sum) = weigh::<L>(x, scratch);
                *loss = sum.ln() + (max - chosen);
                let norm = self.scale / sum;
                let (own, more) = dx.split_at_mut(self.cols);
                for (dx, weight) in own.iter_mut().zip(scratch.iter()) {
                    *dx = math::narrow(weight * norm);
                }
                let weight = scratch[label as usize] * norm;
                own[label as usize] = T::from_f32(weight - self.scale);
                more.fill(T::from_f32(0.0));
            }
        }
    }
}

/// weights = exp(x - max); the largest x and the sum of the weights.
///
/// # Safety
/// As [`Lanes`]; `weights` are as many as x, padded to [`PAD`].
#[inline(always)]
unsafe fn weigh<L: Lanes>(x: &[f32], weights: &mut [f32]) -> (f32, f32) {
    weights[..x.len()].copy_from_slice(x);
    weights[x.len()..].fill(f32::NEG_INFINITY);
    // SAFETY: chunks of whole vectors; PAD is a multiple of every one's length.
    unsafe {
        let mut top = [L::splat(f32::NEG_INFINITY); 4];
        for (i, chunk) in weights.chunks_exact(L::N).enumerate() {
            top[i % 4] = L::max(top[i % 4], L::load(chunk.as_ptr()));
        }
        let max = lanes::max::<L>(L::max(L::max(top[0], top[1]), L::max(top[2], top[3])));
        let by = L::splat(max);
        let mut sums = [L::splat(0.0); 4];
        for (i, chunk) in weights.chunks_exact_mut(L::N).enumerate() {
            let weight = exp::<L>(L::sub(L::load(chunk.as_ptr()), by));
            L::store(chunk.as_mut_ptr(), weight);
            sums[i % 4] = L::add(sums[i % 4], weight);
        }
        (max, lanes::sum::<L>(L::add(L::add(sums[0], sums[1]), L::add(sums[2], sums[3]))))
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn cross_entropy_twin<T: Real>(p: &CrossEntropyParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let grid = Task {
        loss: Rows::dense(p.loss.cast(), 1),
        dx: Rows::<T>::new(p.dx, p.dx_stride, p.dx_cols as usize),
        x: Rows::new(p.x.cast(), p.x_stride, cols),
        labels: Rows::dense(p.labels.cast(), 1),
        rows,
        cols,
        scale: p.scale,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(rows, cols), &grid) }
}
