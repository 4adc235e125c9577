//! Inner loops for AVX2 with FMA and F16C: everything is widened to f32 on the way in.

use super::epilogue::Epilogue;
use super::inner::{AHEAD, Dots, Inner, Panel, SHORT, Tile, padded};
use super::portable;
use crate::DType;
use crate::dtype::Real;
use std::arch::x86_64::*;

/// Rows of a full tile: with two registers per row, 12 of 16 hold sums.
const ROWS: usize = 6;
const LANES: usize = 8;
const COLS: usize = 2 * LANES;
/// Elements per step of a dot product.
const STEP: usize = 16;

/// How elements of a storage type become registers of f32.
trait Element {
    const SIZE: usize;
    /// 8 elements in order.
    unsafe fn eight(p: *const u8) -> __m256;
    /// 16 elements in the order of [`Element::prepare`].
    unsafe fn sixteen(p: *const u8) -> [__m256; 2];
    /// The f32 row that is multiplied by `sixteen`s.
    unsafe fn prepare(src: *const u8, k: usize, dst: *mut f32);
}

struct F32;
struct Bf16;
struct F16;

// The functions of the impls hold no safety argument of their own: each does what its instructions
// do to the elements at `p`, for callers that are compiled for AVX2.

impl Element for F32 {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn eight(p: *const u8) -> __m256 {
        // SAFETY: the trait's.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }

    #[inline(always)]
    unsafe fn sixteen(p: *const u8) -> [__m256; 2] {
        // SAFETY: the trait's.
        unsafe { [Self::eight(p), Self::eight(p.add(32))] }
    }

    unsafe fn prepare(src: *const u8, k: usize, dst: *mut f32) {
        // SAFETY: the trait's.
        unsafe { portable::prepare::<f32>(src, k, dst) }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn eight(p: *const u8) -> __m256 {
        // SAFETY: the trait's.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }

    /// The even elements, then the odd ones: one instruction each.
    #[inline(always)]
    unsafe fn sixteen(p: *const u8) -> [__m256; 2] {
        // SAFETY: the trait's.
        unsafe {
            let pairs = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd)]
        }
    }

    unsafe fn prepare(src: *const u8, k: usize, dst: *mut f32) {
        let src = src.cast::<half::bf16>();
        for i in 0..padded(k) {
            let (step, j) = (i / STEP * STEP, i % STEP);
            let from = step + j % LANES * 2 + j / LANES;
            // SAFETY: `from` is checked; i < padded(k).
            unsafe { *dst.add(i) = if from < k { (*src.add(from)).to_f32() } else { 0.0 } };
        }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn eight(p: *const u8) -> __m256 {
        // SAFETY: the trait's.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn sixteen(p: *const u8) -> [__m256; 2] {
        // SAFETY: the trait's.
        unsafe { [Self::eight(p), Self::eight(p.add(16))] }
    }

    unsafe fn prepare(src: *const u8, k: usize, dst: *mut f32) {
        // SAFETY: the trait's.
        unsafe { portable::prepare::<half::f16>(src, k, dst) }
    }
}

/// The functions of [`Inner`] for one element, compiled for the instruction set.
macro_rules! functions {
    ($module:ident, $element:ident) => {
        mod $module {
            use super::*;

            #[target_feature(enable = "avx2,fma,f16c")]
            pub(super) unsafe fn pack(p: &Panel, dst: *mut u32) {
                // SAFETY: the caller's.
                unsafe { pack_as::<$element>(p, dst) }
            }

            #[target_feature(enable = "avx2,fma,f16c")]
            pub(super) unsafe fn dots(d: &Dots) {
                // SAFETY: the caller's.
                unsafe { dots_as::<$element>(d) }
            }
        }
    };
}

functions!(f32_loops, F32);
functions!(bf16_loops, Bf16);
functions!(f16_loops, F16);

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish<T: Real>(e: &Epilogue, row: usize, col: usize, sums: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { e.finish::<T>(row, col, sums) }
}

type Loops = (unsafe fn(&Panel, *mut u32), unsafe fn(*const u8, usize, *mut f32), unsafe fn(&Dots));

pub(super) fn inner<T: Real>() -> Inner {
    let (pack, prepare, dots): Loops = match T::DTYPE {
        DType::BF16 => (bf16_loops::pack, Bf16::prepare, bf16_loops::dots),
        DType::F16 => (f16_loops::pack, F16::prepare, f16_loops::dots),
        _ => (f32_loops::pack, F32::prepare, f32_loops::dots),
    };
    let prepare = Some(prepare);
    Inner { pair: 1, rows: ROWS, cols: COLS, pack, tile, prepare, dots, finish: finish::<T> }
}

unsafe fn tile(rows: usize, t: &Tile) {
    const TILES: [unsafe fn(&Tile); ROWS] =
        [tile_of::<1>, tile_of::<2>, tile_of::<3>, tile_of::<4>, tile_of::<5>, tile_of::<6>];
    // SAFETY: the caller's.
    unsafe { TILES[rows - 1](t) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_of<const M: usize>(t: &Tile) {
    // SAFETY: the panels hold `units` units of M and COLS words, and C M rows of COLS.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        let (mut a, mut b) = (t.a.cast::<f32>(), t.b.cast::<f32>());
        let mut fetch = t.fetch;
        for _ in 0..t.units {
            if let Some(line) = fetch.line() {
                _mm_prefetch::<_MM_HINT_T1>(line.cast());
            }
            let right = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(LANES))];
            for (i, sum) in sums.iter_mut().enumerate() {
                let left = _mm256_broadcast_ss(&*a.add(i));
                sum[0] = _mm256_fmadd_ps(left, right[0], sum[0]);
                sum[1] = _mm256_fmadd_ps(left, right[1], sum[1]);
            }
            a = a.add(M);
            b = b.add(COLS);
        }
        for (i, sum) in sums.iter().enumerate() {
            for (j, &s) in sum.iter().enumerate() {
                let c = t.c.add(i * t.ldc + j * LANES);
                let scaled = |by: *const f32| _mm256_mul_ps(s, _mm256_loadu_ps(by.add(j * LANES)));
                let s = t.scales.map_or(s, scaled);
                let s = if t.accumulate { _mm256_add_ps(_mm256_loadu_ps(c), s) } else { s };
                _mm256_storeu_ps(c, s);
            }
        }
    }
}

/// `n` of `most` elements at `p`, then zeros: AVX2 has no masks for 16-bit elements.
#[inline(always)]
unsafe fn padded_copy<E: Element>(p: *const u8, n: usize) -> [u8; 4 * STEP] {
    let mut copy = [0u8; 4 * STEP];
    // SAFETY: n <= STEP elements of at most four bytes.
    unsafe { std::ptr::copy_nonoverlapping(p, copy.as_mut_ptr(), n * E::SIZE) };
    copy
}

#[inline(always)]
unsafe fn pack_as<E: Element>(p: &Panel, dst: *mut u32) {
    for lane in (0..p.lanes).step_by(LANES) {
        let rows = p.rows.saturating_sub(lane).min(LANES);
        let lanes = (p.lanes - lane).min(LANES);
        for unit in (0..p.k).step_by(LANES) {
            // SAFETY: rows lane .. lane + rows and elements unit .. k are in the operand, and
            // units unit .. k and lanes lane .. lane + lanes in the panel.
            unsafe {
                let src = p.src.add(lane * p.stride + unit * E::SIZE);
                let left = (p.k - unit).min(LANES);
                let mut block = [_mm256_setzero_ps(); LANES];
                for (i, row) in block.iter_mut().enumerate().take(rows) {
                    let src = src.add(i * p.stride);
                    *row = if left < LANES {
                        E::eight(padded_copy::<E>(src, left).as_ptr())
                    } else {
                        E::eight(src)
                    };
                }
                transpose(&mut block);
                let dst = dst.add(unit * p.lanes + lane).cast::<f32>();
                let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), numbers);
                for (i, row) in block.iter().enumerate().take(left) {
                    _mm256_maskstore_ps(dst.add(i * p.lanes), mask, *row);
                }
            }
        }
    }
}

/// Transposes 8 x 8 words.
#[inline(always)]
unsafe fn transpose(r: &mut [__m256; 8]) {
    // SAFETY: register arithmetic only; callers are compiled for AVX2.
    unsafe {
        let mut s = [_mm256_setzero_pd(); 8];
        for i in 0..4 {
            s[2 * i] = _mm256_castps_pd(_mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]));
            s[2 * i + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
        }
        for j in 0..2 {
            let (lo, hi) = (s[j], s[2 + j]);
            let (lo2, hi2) = (s[4 + j], s[6 + j]);
            let top = [_mm256_unpacklo_pd(lo, hi), _mm256_unpackhi_pd(lo, hi)];
            let bottom = [_mm256_unpacklo_pd(lo2, hi2), _mm256_unpackhi_pd(lo2, hi2)];
            for i in 0..2 {
                let (x, y) = (_mm256_castpd_ps(top[i]), _mm256_castpd_ps(bottom[i]));
                r[2 * j + i] = _mm256_permute2f128_ps::<0x20>(x, y);
                r[4 + 2 * j + i] = _mm256_permute2f128_ps::<0x31>(x, y);
            }
        }
    }
}

/// Rows of B that all rows of A use before the next ones, while they are in the first cache.
const GROUP: usize = 4;

#[inline(always)]
unsafe fn dots_as<E: Element>(d: &Dots) {
    // SAFETY: rows of A below m and of B below rows.
    unsafe {
        if d.m == 1 && d.k * size_of::<f32>() < SHORT {
            for row in 0..d.rows {
                group::<E, 1, 1>(d, 0, row);
            }
            return;
        }
        for row in (0..d.rows / GROUP * GROUP).step_by(GROUP) {
            if d.m == 1 {
                group::<E, 1, GROUP>(d, 0, row);
                continue;
            }
            for i in (0..d.m / 2 * 2).step_by(2) {
                group::<E, 2, 2>(d, i, row);
                group::<E, 2, 2>(d, i, row + 2);
            }
            if !d.m.is_multiple_of(2) {
                group::<E, 1, GROUP>(d, d.m - 1, row);
            }
        }
        for row in d.rows / GROUP * GROUP..d.rows {
            for i in 0..d.m {
                group::<E, 1, 1>(d, i, row);
            }
        }
    }
}

/// The dot products of rows `i` to `i + M` of A and `row` to `row + R` of B. The next rows of B are
/// fetched in the order of their addresses; `avx512` says why.
#[inline(always)]
unsafe fn group<E: Element, const M: usize, const R: usize>(d: &Dots, i: usize, row: usize) {
    // SAFETY: the rows are in the operands and elements below k in B's, below `padded(k)` in the
    // prepared ones; a prefetch does not fault, wherever it points.
    unsafe {
        let b = d.b.add(row * d.b_stride);
        let mut next = b.wrapping_add((R * d.b_stride).max(AHEAD));
        let a = d.a.add(i * d.a_stride).cast::<f32>();
        let a_stride = d.a_stride / 4;
        let mut sums = [[[_mm256_setzero_ps(); 2]; R]; M];
        for at in (0..d.k).step_by(STEP) {
            let mut left = [[_mm256_setzero_ps(); 2]; M];
            for (j, left) in left.iter_mut().enumerate() {
                let a = a.add(j * a_stride + at);
                *left = [_mm256_loadu_ps(a), _mm256_loadu_ps(a.add(LANES))];
            }
            for r in 0..R {
                if R > 1 && i == 0 {
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                    next = next.wrapping_add(STEP * E::SIZE);
                }
                let b = b.add(r * d.b_stride + at * E::SIZE);
                let right = if d.k - at < STEP {
                    E::sixteen(padded_copy::<E>(b, d.k - at).as_ptr())
                } else {
                    E::sixteen(b)
                };
                for (sums, left) in sums.iter_mut().zip(left) {
                    sums[r][0] = _mm256_fmadd_ps(left[0], right[0], sums[r][0]);
                    sums[r][1] = _mm256_fmadd_ps(left[1], right[1], sums[r][1]);
                }
            }
        }
        for (j, sums) in sums.iter().enumerate() {
            for (r, s) in sums.iter().enumerate() {
                let s = _mm256_add_ps(s[0], s[1]);
                let s = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
                let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
                let s = _mm_add_ss(s, _mm_movehdup_ps(s));
                *d.out.add((i + j) * d.out_stride + row + r) = _mm_cvtss_f32(s);
            }
        }
    }
}
