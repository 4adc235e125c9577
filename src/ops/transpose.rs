//! `transpose`: y[c, r] = x[r, c], with zeros behind the rows of y.

use super::check;
use super::layout;
use super::rows::Rows;
use crate::contracts::TransposeParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/transpose.h`.
pub static TRANSPOSE: Kernel<TransposeParams> =
    Kernel { name: "transpose", twins: twins!(transpose_twin), geometry, cost, accounting: 0 };

/// y[c, r] = x[r, c]; x (rows, cols), y (cols, rows or more): what is more becomes 0. Rows of both
/// may be strided. A product over y's rows is fastest where they are whole 16-byte packs.
///
/// # Errors
/// If a shape or dtype differs.
pub fn transpose(stream: &Stream, mut y: ViewMut<'_>, x: View<'_>) -> Result<()> {
    let op = "transpose";
    if y.rows() != x.cols() || y.cols() < x.rows() {
        let expected = format!("({}, {} or more)", x.cols(), x.rows());
        return Err(Error::invalid("transpose: y", expected, y.shape()));
    }
    check::dtype(op, "y", &y.as_view(), x.dtype())?;
    let params = TransposeParams {
        y: y.ptr(),
        x: x.ptr(),
        rows: x.rows() as i64,
        cols: x.cols() as i64,
        y_cols: y.cols() as i64,
        y_stride: y.stride() as i64,
        x_stride: x.stride() as i64,
    };
    // SAFETY: shapes and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&TRANSPOSE, x.dtype(), &params) }
}

/// Elements of a side of a block's tile: eight packs.
fn side(dtype: DType) -> i64 {
    8 * 16 / dtype.size() as i64
}

fn geometry(p: &TransposeParams, dtype: DType, _: &Chip) -> Geometry {
    let distances = [p.cols, p.y_cols, p.y_stride, p.x_stride];
    let packable = layout::is_packable(&[p.y.cast_const(), p.x], &distances, dtype);
    let side = side(dtype);
    let tiles = layout::groups(p.cols, side) * layout::groups(p.y_cols, side);
    let (variant, gap) = if packable { ("", 0) } else { ("_plain", 4) };
    // `sizeof(TransposeShared)`.
    let shared = (side * (side * dtype.size() as i64 + gap)) as u32;
    Geometry { variant, shared, ..Geometry::linear(tiles as u32, 256) }
}

fn cost(p: &TransposeParams, dtype: DType) -> Cost {
    let cells = p.cols as f64 * (p.rows + p.y_cols) as f64;
    Cost { bytes: cells * dtype.size() as f64, flops: 0.0 }
}

/// Rows and columns of x of a tile. A column of it is two lines of y or more, which are written
/// whole; a tile stays in the first cache.
const HEIGHT: usize = 64;
const WIDTH: usize = 32;

/// A tile turned over.
type Tile<T> = [[T; HEIGHT]; WIDTH];

/// # Safety
/// As [`Stream::launch`].
unsafe fn transpose_twin<T: Real>(p: &TransposeParams, host: &Host) {
    let (rows, cols, y_cols) = (p.rows as usize, p.cols as usize, p.y_cols as usize);
    let y = Rows::<T>::new(p.y, p.y_stride, y_cols);
    let x = Rows::<T>::new(p.x, p.x_stride, cols);
    host.pool.run(cols.div_ceil(WIDTH), |task| {
        let start = task * WIDTH;
        let width = WIDTH.min(cols - start);
        let mut tile = [[T::from_f32(0.0); HEIGHT]; WIDTH];
        for top in (0..y_cols).step_by(HEIGHT) {
            let height = HEIGHT.min(y_cols - top);
            let filled = height.min(rows.saturating_sub(top));
            if filled == HEIGHT && width == WIDTH {
                // SAFETY: all of the tile is in x.
                unsafe { turn(&mut tile, x, top, start) };
            } else {
                // SAFETY: so is this part of it.
                unsafe { gather(&mut tile[..width], x, top, start, filled) };
            }
            for (j, column) in tile[..width].iter().enumerate() {
                // SAFETY: the row exists and is this task's only.
                unsafe { y.part_mut(start + j, top, height) }.copy_from_slice(&column[..height]);
            }
        }
    });
}

/// The first `height` elements of columns of x, from (top, start) on; zeros behind them.
///
/// # Safety
/// The elements are in x.
unsafe fn gather<T: Real>(
    columns: &mut [[T; HEIGHT]],
    x: Rows<T>,
    top: usize,
    start: usize,
    height: usize,
) {
    for i in 0..height {
        // SAFETY: the caller's.
        let row = unsafe { x.part(top + i, start, columns.len()) };
        for (column, &element) in columns.iter_mut().zip(row) {
            column[i] = element;
        }
    }
    columns.iter_mut().for_each(|column| column[height..].fill(T::from_f32(0.0)));
}

/// As [`gather`], of a whole tile.
///
/// # Safety
/// The tile is in x.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn turn<T: Real>(tile: &mut Tile<T>, x: Rows<T>, top: usize, start: usize) {
    // SAFETY: the caller's.
    unsafe { gather(tile, x, top, start, HEIGHT) }
}

/// As [`gather`], of a whole tile: blocks of four or eight rows of 16 bytes at a time, while the
/// tile below is asked for. The instructions are those that every x86-64 has.
///
/// # Safety
/// The tile is in x.
#[cfg(target_arch = "x86_64")]
unsafe fn turn<T: Real>(tile: &mut Tile<T>, x: Rows<T>, top: usize, start: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let side = 16 / size_of::<T>();
    for i in (0..HEIGHT).step_by(side) {
        // SAFETY: the caller's.
        let rows = unsafe { x.part(top + i, start, WIDTH) }.as_ptr();
        for k in 0..side {
            let below = rows.wrapping_add((HEIGHT + k) * x.stride()).cast::<i8>();
            for line in (0..WIDTH * size_of::<T>()).step_by(64) {
                // SAFETY: only a hint; any address will do.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(below.wrapping_add(line)) };
            }
        }
        for (j, columns) in tile.chunks_exact_mut(side).enumerate() {
            // SAFETY: a block of the tile, and as many elements of as many columns.
            unsafe {
                let (y, from) = (columns.as_mut_ptr().cast::<T>().add(i), rows.add(j * side));
                match size_of::<T>() {
                    4 => turn_4(y.cast(), from.cast(), x.stride()),
                    _ => turn_8(y.cast(), from.cast(), x.stride()),
                }
            }
        }
    }
}

/// y[c, r] = x[r, c] of 4 x 4 elements; rows of y are [`HEIGHT`] apart, those of x `stride`.
///
/// # Safety
/// The elements exist.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn turn_4(y: *mut u32, x: *const u32, stride: usize) {
    use std::arch::x86_64::{
        _mm_loadu_si128, _mm_storeu_si128, _mm_unpackhi_epi32 as high32,
        _mm_unpackhi_epi64 as high64, _mm_unpacklo_epi32 as low32, _mm_unpacklo_epi64 as low64,
    };
    // SAFETY: the caller's; every x86-64 has the instructions.
    unsafe {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| _mm_loadu_si128(x.add(i * stride).cast()));
        let pairs = [(low32(a, b), low32(c, d)), (high32(a, b), high32(c, d))];
        for (k, (ab, cd)) in pairs.into_iter().enumerate() {
            _mm_storeu_si128(y.add(2 * k * HEIGHT).cast(), low64(ab, cd));
            _mm_storeu_si128(y.add((2 * k + 1) * HEIGHT).cast(), high64(ab, cd));
        }
    }
}

/// As [`turn_4`], of 8 x 8 elements.
///
/// # Safety
/// The elements exist.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn turn_8(y: *mut u16, x: *const u16, stride: usize) {
    use std::arch::x86_64::{
        _mm_loadu_si128, _mm_storeu_si128, _mm_unpackhi_epi16 as high16,
        _mm_unpackhi_epi32 as high32, _mm_unpackhi_epi64 as high64, _mm_unpacklo_epi16 as low16,
        _mm_unpacklo_epi32 as low32, _mm_unpacklo_epi64 as low64,
    };
    // SAFETY: the caller's; every x86-64 has the instructions.
    unsafe {
        let row = |i: usize| _mm_loadu_si128(x.add(i * stride).cast());
        // Columns 0 to 3 and 4 to 7 of rows 2i and 2i + 1.
        let twos = [0, 2, 4, 6].map(|i| {
            let (a, b) = (row(i), row(i + 1));
            [low16(a, b), high16(a, b)]
        });
        for half in 0..2 {
            let [a, b, c, d] = twos.map(|two| two[half]);
            let fours = [(low32(a, b), low32(c, d)), (high32(a, b), high32(c, d))];
            for (k, (above, below)) in fours.into_iter().enumerate() {
                let y = y.add((4 * half + 2 * k) * HEIGHT);
                _mm_storeu_si128(y.cast(), low64(above, below));
                _mm_storeu_si128(y.add(HEIGHT).cast(), high64(above, below));
            }
        }
    }
}
