//! Inner loops in plain Rust, shaped so that the compiler vectorises them for any processor.

use super::epilogue::Epilogue;
use super::inner::{Dots, Inner, Panel, Tile, padded};
use super::math::widen;
use crate::dtype::Real;

const ROWS: usize = 4;
const COLS: usize = 8;
/// Partial sums of a dot product.
const LANES: usize = 16;

pub(super) fn inner<T: Real>() -> Inner {
    Inner {
        pair: 1,
        rows: ROWS,
        cols: COLS,
        pack: pack::<T>,
        tile,
        prepare: Some(prepare::<T>),
        dots: dots::<T>,
        finish: finish::<T>,
    }
}

unsafe fn finish<T: Real>(e: &Epilogue, row: usize, col: usize, sums: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { e.finish::<T>(row, col, sums) }
}

/// Widens a row, zeros behind it.
///
/// # Safety
/// `src` has `k` elements; `dst` has room for [`padded`] ones.
pub(super) unsafe fn prepare<T: Real>(src: *const u8, k: usize, dst: *mut f32) {
    for i in 0..k {
        // SAFETY: i < k.
        unsafe { *dst.add(i) = widen(*src.cast::<T>().add(i)) };
    }
    for i in k..padded(k) {
        // SAFETY: i < padded(k).
        unsafe { *dst.add(i) = 0.0 };
    }
}

unsafe fn pack<T: Real>(p: &Panel, dst: *mut u32) {
    for lane in 0..p.lanes {
        for i in 0..p.k {
            let x = if lane < p.rows {
                // SAFETY: (lane, i) is inside the operand.
                widen(unsafe { *p.src.add(lane * p.stride).cast::<T>().add(i) })
            } else {
                0.0
            };
            // SAFETY: the panel has k units of `lanes` words.
            unsafe { *dst.add(i * p.lanes + lane) = x.to_bits() };
        }
    }
}

unsafe fn tile(rows: usize, t: &Tile) {
    // SAFETY: the caller's.
    unsafe {
        match rows {
            1 => tile_of::<1>(t),
            2 => tile_of::<2>(t),
            3 => tile_of::<3>(t),
            _ => tile_of::<ROWS>(t),
        }
    }
}

unsafe fn tile_of<const M: usize>(t: &Tile) {
    let mut sums = [[0f32; COLS]; M];
    for u in 0..t.units {
        // SAFETY: the panels hold `units` units of M and COLS words.
        let (a, b) = unsafe {
            let b = t.b.add(u * COLS).cast::<[f32; COLS]>().read_unaligned();
            (t.a.add(u * M).cast::<[f32; M]>().read_unaligned(), b)
        };
        for (row, x) in sums.iter_mut().zip(a) {
            for (s, y) in row.iter_mut().zip(b) {
                *s += x * y;
            }
        }
    }
    for (i, row) in sums.iter().enumerate() {
        for (j, s) in row.iter().enumerate() {
            // SAFETY: C has M rows of COLS.
            let c = unsafe { &mut *t.c.add(i * t.ldc + j) };
            // SAFETY: scales has COLS elements.
            let s = s * t.scales.map_or(1.0, |by| unsafe { *by.add(j) });
            *c = if t.accumulate { *c + s } else { s };
        }
    }
}

unsafe fn dots<T: Real>(d: &Dots) {
    for row in 0..d.rows {
        // SAFETY: row < rows.
        let b = unsafe { d.b.add(row * d.b_stride).cast::<T>() };
        for i in 0..d.m {
            // SAFETY: i < m; the prepared row is padded to a multiple of LANES.
            unsafe {
                let a = d.a.add(i * d.a_stride).cast::<f32>();
                *d.out.add(i * d.out_stride + row) = dot(a, b, d.k);
            }
        }
    }
}

#[inline(always)]
unsafe fn dot<T: Real>(a: *const f32, b: *const T, k: usize) -> f32 {
    let mut sums = [0f32; LANES];
    let whole = k / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for (lane, s) in sums.iter_mut().enumerate() {
            // SAFETY: i + lane < k.
            *s += unsafe { *a.add(i + lane) * widen(*b.add(i + lane)) };
        }
    }
    for i in whole..k {
        // SAFETY: i < k.
        sums[i - whole] += unsafe { *a.add(i) * widen(*b.add(i)) };
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}
