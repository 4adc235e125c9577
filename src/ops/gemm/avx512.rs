//! Inner loops for AVX-512 with BF16 dot products.
//!
//! bf16 stays bf16: `vdpbf16ps` adds two products per lane in f32 (subnormals count as zero).
//! f16 is widened on the way in; f32 is used as it is.

use super::epilogue::Epilogue;
use super::inner::{AHEAD, Dots, Inner, Panel, SHORT, Tile};
use super::portable::prepare;
use crate::DType;
use crate::dtype::Real;
use std::arch::x86_64::*;

/// Rows of a full tile: with two registers per row, 28 of 32 hold sums.
const ROWS: usize = 14;
const LANES: usize = 16;
const COLS: usize = 2 * LANES;

/// How 16 units of a storage type become a register.
trait Element {
    /// Elements in a register.
    const STEP: usize;
    /// Bytes of a stored element.
    const SIZE: usize;
    /// Bytes of an element of the other operand of a dot product.
    const LEFT: usize;

    unsafe fn load(p: *const u8) -> __m512;
    /// The first `n < STEP` elements, then zeros.
    unsafe fn load_first(p: *const u8, n: usize) -> __m512;
    /// As `load`, of the other operand; stored alike unless a type says otherwise.
    #[inline(always)]
    unsafe fn left(p: *const u8) -> __m512 {
        // SAFETY: the trait's.
        unsafe { Self::load(p) }
    }

    /// As `load_first`, of the other operand.
    #[inline(always)]
    unsafe fn left_first(p: *const u8, n: usize) -> __m512 {
        // SAFETY: the trait's.
        unsafe { Self::load_first(p, n) }
    }

    unsafe fn multiply_add(x: __m512, y: __m512, sum: __m512) -> __m512;
}

struct F32;
struct Bf16;
struct F16;

// The functions of the impls hold no safety argument of their own: each does what its instruction
// does to `STEP` or `n` elements at `p`, for callers that are compiled for AVX-512 BF16.

impl Element for F32 {
    const STEP: usize = 16;
    const SIZE: usize = 4;
    const LEFT: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the trait's.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const u8, n: usize) -> __m512 {
        // SAFETY: the trait's; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps((1 << n) - 1, p.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(x: __m512, y: __m512, sum: __m512) -> __m512 {
        // SAFETY: the trait's.
        unsafe { _mm512_fmadd_ps(x, y, sum) }
    }
}

impl Element for Bf16 {
    const STEP: usize = 32;
    const SIZE: usize = 2;
    const LEFT: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the trait's.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const u8, n: usize) -> __m512 {
        // SAFETY: the trait's; masked lanes are not read.
        unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1 << n) - 1, p.cast())) }
    }

    #[inline(always)]
    unsafe fn multiply_add(x: __m512, y: __m512, sum: __m512) -> __m512 {
        // SAFETY: the trait's; a register of 32 bf16 has the size of one of 16 f32.
        unsafe {
            let pairs = |v| std::mem::transmute::<__m512, __m512bh>(v);
            _mm512_dpbf16_ps(sum, pairs(x), pairs(y))
        }
    }
}

impl Element for F16 {
    const STEP: usize = 16;
    const SIZE: usize = 2;
    const LEFT: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the trait's.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const u8, n: usize) -> __m512 {
        // SAFETY: the trait's; masked lanes are not read.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1 << n) - 1, p.cast())) }
    }

    #[inline(always)]
    unsafe fn left(p: *const u8) -> __m512 {
        // SAFETY: the trait's.
        unsafe { F32::load(p) }
    }

    #[inline(always)]
    unsafe fn left_first(p: *const u8, n: usize) -> __m512 {
        // SAFETY: the trait's.
        unsafe { F32::load_first(p, n) }
    }

    #[inline(always)]
    unsafe fn multiply_add(x: __m512, y: __m512, sum: __m512) -> __m512 {
        // SAFETY: the trait's.
        unsafe { F32::multiply_add(x, y, sum) }
    }
}

/// The functions of [`Inner`] for one element, compiled for the instruction set.
macro_rules! functions {
    ($module:ident, $element:ident) => {
        mod $module {
            use super::*;

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
            pub(super) unsafe fn pack(p: &Panel, dst: *mut u32) {
                // SAFETY: the caller's.
                unsafe { pack_as::<$element>(p, dst) }
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
            pub(super) unsafe fn dots(d: &Dots) {
                // SAFETY: the caller's.
                unsafe { dots_as::<$element>(d) }
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
            unsafe fn tile_of<const M: usize>(t: &Tile) {
                // SAFETY: the caller's.
                unsafe { tile_as::<$element, M>(t) }
            }

            pub(super) unsafe fn tile(rows: usize, t: &Tile) {
                const TILES: [unsafe fn(&Tile); ROWS] = [
                    tile_of::<1>,
                    tile_of::<2>,
                    tile_of::<3>,
                    tile_of::<4>,
                    tile_of::<5>,
                    tile_of::<6>,
                    tile_of::<7>,
                    tile_of::<8>,
                    tile_of::<9>,
                    tile_of::<10>,
                    tile_of::<11>,
                    tile_of::<12>,
                    tile_of::<13>,
                    tile_of::<14>,
                ];
                // SAFETY: the caller's.
                unsafe { TILES[rows - 1](t) }
            }
        }
    };
}

functions!(f32_loops, F32);
functions!(bf16_loops, Bf16);
functions!(f16_loops, F16);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn finish<T: Real>(e: &Epilogue, row: usize, col: usize, sums: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { e.finish::<T>(row, col, sums) }
}

pub(super) fn inner<T: Real>() -> Inner {
    let (pair, pack, tile, prepare, dots) = match T::DTYPE {
        DType::BF16 => {
            use bf16_loops::*;
            (
                2,
                pack as unsafe fn(&Panel, *mut u32),
                tile as unsafe fn(usize, &Tile),
                None,
                dots as unsafe fn(&Dots),
            )
        }
        DType::F16 => {
            use f16_loops::*;
            (1, pack as _, tile as _, Some(prepare::<T> as _), dots as _)
        }
        _ => {
            use f32_loops::*;
            (1, pack as _, tile as _, None, dots as _)
        }
    };
    Inner { pair, rows: ROWS, cols: COLS, pack, tile, prepare, dots, finish: finish::<T> }
}

#[inline(always)]
unsafe fn tile_as<E: Element, const M: usize>(t: &Tile) {
    // SAFETY: the panels hold `units` units of M and COLS words, and C M rows of COLS.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        let (mut a, mut b) = (t.a, t.b.cast::<f32>());
        let mut fetch = t.fetch;
        for _ in 0..t.units {
            if let Some(line) = fetch.line() {
                _mm_prefetch::<_MM_HINT_T1>(line.cast());
            }
            let right = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(LANES))];
            for (i, sum) in sums.iter_mut().enumerate() {
                let left = _mm512_castsi512_ps(_mm512_set1_epi32(*a.add(i) as i32));
                sum[0] = E::multiply_add(left, right[0], sum[0]);
                sum[1] = E::multiply_add(left, right[1], sum[1]);
            }
            a = a.add(M);
            b = b.add(COLS);
        }
        for (i, sum) in sums.iter().enumerate() {
            for (j, &s) in sum.iter().enumerate() {
                let c = t.c.add(i * t.ldc + j * LANES);
                let scaled = |by: *const f32| _mm512_mul_ps(s, _mm512_loadu_ps(by.add(j * LANES)));
                let s = t.scales.map_or(s, scaled);
                let s = if t.accumulate { _mm512_add_ps(_mm512_loadu_ps(c), s) } else { s };
                _mm512_storeu_ps(c, s);
            }
        }
    }
}

#[inline(always)]
unsafe fn pack_as<E: Element>(p: &Panel, dst: *mut u32) {
    let pair = E::STEP / LANES;
    let units = p.k.div_ceil(pair);
    for lane in (0..p.lanes).step_by(LANES) {
        let rows = p.rows.saturating_sub(lane).min(LANES);
        let mask = ((1u32 << (p.lanes - lane).min(LANES)) - 1) as __mmask16;
        for unit in (0..units).step_by(LANES) {
            // SAFETY: rows lane .. lane + rows and elements unit * pair .. k are in the operand,
            // units unit .. units and the masked lanes in the panel.
            unsafe {
                let src = p.src.add(lane * p.stride + unit * pair * E::SIZE);
                let mut block = [_mm512_setzero_ps(); LANES];
                let left = p.k - unit * pair;
                for (i, row) in block.iter_mut().enumerate().take(rows) {
                    let src = src.add(i * p.stride);
                    *row = if left < E::STEP { E::load_first(src, left) } else { E::load(src) };
                }
                transpose(&mut block);
                let dst = dst.add(unit * p.lanes + lane).cast::<f32>();
                for (i, row) in block.iter().enumerate().take(units - unit) {
                    _mm512_mask_storeu_ps(dst.add(i * p.lanes), mask, *row);
                }
            }
        }
    }
}

/// Transposes 16 x 16 words.
#[inline(always)]
unsafe fn transpose(r: &mut [__m512; 16]) {
    // SAFETY: register arithmetic only; callers are compiled for AVX-512.
    unsafe {
        let mut s = [_mm512_setzero_pd(); 16];
        for i in 0..8 {
            s[2 * i] = _mm512_castps_pd(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]));
            s[2 * i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
        }
        // Afterwards t[4 g + j] has, in each 128-bit part q, column 4 q + j of rows 4 g .. 4 g + 3.
        let mut t = [_mm512_setzero_ps(); 16];
        for g in 0..4 {
            for j in 0..2 {
                let (lo, hi) = (s[4 * g + j], s[4 * g + 2 + j]);
                t[4 * g + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
                t[4 * g + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
            }
        }
        for j in 0..4 {
            // Parts (0, 2) and (1, 3) of the first two and the last two groups.
            let even_low = _mm512_shuffle_f32x4::<0x88>(t[j], t[4 + j]);
            let odd_low = _mm512_shuffle_f32x4::<0xdd>(t[j], t[4 + j]);
            let even_high = _mm512_shuffle_f32x4::<0x88>(t[8 + j], t[12 + j]);
            let odd_high = _mm512_shuffle_f32x4::<0xdd>(t[8 + j], t[12 + j]);
            r[j] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
            r[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
            r[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
            r[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
        }
    }
}

#[inline(always)]
unsafe fn dots_as<E: Element>(d: &Dots) {
    // SAFETY: the caller's.
    unsafe {
        match d.m {
            // A stays in the first cache beside one stream: the processor does the rest.
            1 if d.k * E::LEFT < SHORT => groups::<E, 1, 1>(d),
            2 if d.k * E::LEFT < SHORT / 2 => groups::<E, 2, 1>(d),
            1 => groups::<E, 1, 8>(d),
            2 => groups::<E, 2, 4>(d),
            3 => groups::<E, 3, 4>(d),
            4 => groups::<E, 4, 4>(d),
            5 => groups::<E, 5, 4>(d),
            6 => groups::<E, 6, 4>(d),
            7 => groups::<E, 7, 3>(d),
            _ => groups::<E, 8, 3>(d),
        }
    }
}

/// All rows of B for M rows of A, R at a time.
#[inline(always)]
unsafe fn groups<E: Element, const M: usize, const R: usize>(d: &Dots) {
    let whole = d.rows / R * R;
    // SAFETY: rows below d.rows.
    unsafe {
        for row in (0..whole).step_by(R) {
            group::<E, M, R>(d, row);
        }
        for row in whole..d.rows {
            group::<E, M, 1>(d, row);
        }
    }
}

/// The dot products of all M rows of A and `row` to `row + R` of B.
///
/// Several rows of B share the loads of A, but the processor's prefetchers follow one stream better
/// than several: so the next rows are fetched into the second cache in the order of their
/// addresses, while these are read from there.
#[inline(always)]
unsafe fn group<E: Element, const M: usize, const R: usize>(d: &Dots, row: usize) {
    // SAFETY: the rows are in the operands and elements below k in the rows; a prefetch does not
    // fault, wherever it points.
    unsafe {
        let b = d.b.add(row * d.b_stride);
        let mut next = b.wrapping_add((R * d.b_stride).max(AHEAD));
        let mut sums = [[_mm512_setzero_ps(); R]; M];
        let mut at = 0;
        while at + E::STEP <= d.k {
            let mut right = [_mm512_setzero_ps(); R];
            for (r, right) in right.iter_mut().enumerate() {
                if R > 1 {
                    _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(r * E::STEP * E::SIZE).cast());
                }
                *right = E::load(b.add(r * d.b_stride + at * E::SIZE));
            }
            next = next.wrapping_add(R * E::STEP * E::SIZE);
            for (j, sums) in sums.iter_mut().enumerate() {
                let left = E::left(d.a.add(j * d.a_stride + at * E::LEFT));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = E::multiply_add(left, right, *sum);
                }
            }
            at += E::STEP;
        }
        if at < d.k {
            let mut right = [_mm512_setzero_ps(); R];
            for (r, right) in right.iter_mut().enumerate() {
                *right = E::load_first(b.add(r * d.b_stride + at * E::SIZE), d.k - at);
            }
            for (j, sums) in sums.iter_mut().enumerate() {
                let left = E::left_first(d.a.add(j * d.a_stride + at * E::LEFT), d.k - at);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = E::multiply_add(left, right, *sum);
                }
            }
        }
        for (j, sums) in sums.iter().enumerate() {
            for (q, four) in sums.chunks(4).enumerate() {
                let mut all = [_mm512_setzero_ps(); 4];
                all[..four.len()].copy_from_slice(four);
                let out = d.out.add(j * d.out_stride + row + 4 * q);
                _mm_mask_storeu_ps(out, (1 << four.len()) - 1, add_lanes(all));
            }
        }
    }
}

/// The sums of the lanes of four registers, each in the same order.
#[inline(always)]
unsafe fn add_lanes([a, b, c, d]: [__m512; 4]) -> __m128 {
    // SAFETY: register arithmetic only; callers are compiled for AVX-512.
    unsafe {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        // Now every 128-bit part has one partial sum of each.
        let s = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        let s = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps::<1>(s));
        _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s))
    }
}
