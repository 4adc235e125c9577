//! `rope`: rotary positions for the query and key heads of [q | k | v] rows, in place.

use super::batch::Ragged;
use super::check;
use super::rows::{Rows, for_row_ranges, with_scratch};
use crate::contracts::RopeParams;
use crate::device::{Cost, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::ViewMut;
use crate::{DType, Error, Result, twins};

/// See `kernels/rope.h`.
pub static ROPE: Kernel<RopeParams> = Kernel { name: "rope", twins: twins!(rope_twin), cost };

/// Rotates the first `rotary` features of every query and key head of qkv (rows, 3*heads*head_dim)
/// by position * base^(-2i/rotary), in place. Rows may be strided.
///
/// # Errors
/// If the shape differs, `rotary` is odd or does not fit a head, or `base` is not positive.
pub fn rope(
    stream: &Stream,
    mut qkv: ViewMut<'_>,
    batch: &Ragged,
    heads: usize,
    head_dim: usize,
    rotary: usize,
    base: f32,
) -> Result<()> {
    check::matrix("rope", "qkv", &qkv.as_view(), batch.rows(), 3 * heads * head_dim)?;
    if rotary == 0 || !rotary.is_multiple_of(2) || rotary > head_dim {
        return Err(Error::invalid("rope: rotary", format!("even, 2 to {head_dim}"), rotary));
    }
    if !(base > 0.0 && base.is_finite()) {
        return Err(Error::invalid("rope: base", "a positive number", base));
    }
    let params = RopeParams {
        qkv: qkv.ptr(),
        positions: batch.positions(),
        rows: batch.rows() as i64,
        row_stride: qkv.stride() as i64,
        heads: check::small("rope", "heads", heads)?,
        head_dim: check::small("rope", "head_dim", head_dim)?,
        rotary: check::small("rope", "rotary", rotary)?,
        base,
    };
    // SAFETY: the shape was checked; the batch holds one position per row; qkv is exclusive.
    unsafe { stream.launch(&ROPE, qkv.dtype(), &params) }
}

fn cost(p: &RopeParams, dtype: DType) -> Cost {
    let cells = p.rows as f64 * 2.0 * p.heads as f64 * p.rotary as f64;
    Cost { bytes: 2.0 * cells * dtype.size() as f64, flops: 3.0 * cells }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn rope_twin<T: Real>(p: &RopeParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (rotary, half) = (p.rotary as usize, p.rotary as usize / 2);
    let (rows, base) = (p.rows as usize, p.base);
    let qkv = Rows::<T>::new(p.qkv, p.row_stride, 2 * heads * head_dim);
    let positions = Rows::<i32>::dense(p.positions.cast(), rows);
    for_row_ranges(host, rows, 2 * heads * head_dim, |range| {
        with_scratch(3 * half, |scratch| {
            let (frequencies, turns) = scratch.split_at_mut(half);
            for (i, f) in frequencies.iter_mut().enumerate() {
                *f = 1.0 / base.powf((2 * i) as f32 / rotary as f32);
            }
            let (cosines, sines) = turns.split_at_mut(half);
            for r in range {
                // SAFETY: each row of qkv is of one task only.
                let (row, position) = unsafe { (qkv.get_mut(r), positions.get(0)[r]) };
                for i in 0..half {
                    (sines[i], cosines[i]) = (position as f32 * frequencies[i]).sin_cos();
                }
                for head in row.chunks_exact_mut(head_dim) {
                    let (first, second) = head[..rotary].split_at_mut(half);
                    for i in 0..half {
                        let (a, b) = (first[i].to_f32(), second[i].to_f32());
                        first[i] = T::from_f32(a * cosines[i] - b * sines[i]);
                        second[i] = T::from_f32(b * cosines[i] + a * sines[i]);
                    }
                }
            }
        });
    });
}
