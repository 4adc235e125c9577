//! Vectors of f32 on each instruction set, and the one place that chooses among them.
//!
//! A twin describes its work as a [`Grid`]; [`run`] compiles it for every instruction set and runs
//! the host's. Everything on the way is `inline(always)`: a function compiled on its own would
//! not have the instruction set.

use super::gemm::math;
use super::rows::with_scratch;
use crate::DType;
use crate::device::{Host, Isa};
use crate::dtype::Real;

/// Floats in the widest vector: what buffers are padded to.
pub(super) const PAD: usize = 16;

/// Arithmetic on `N` floats at a time.
///
/// # Safety
/// Of every method: the processor has the instruction set, and `N` elements exist at a pointer.
pub(super) trait Lanes: Copy {
    const N: usize;
    type V: Copy;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    unsafe fn load_f16(p: *const u16) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, rounded once where there is such an instruction.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; if one is NaN, either.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// 2^n for t = n + 1.5 * 2^23, -126 <= n <= 127.
    unsafe fn power_of_two(t: Self::V) -> Self::V;
    /// 0 where x < limit, else v.
    unsafe fn zero_below(x: Self::V, limit: Self::V, v: Self::V) -> Self::V;
    /// Signed bytes, widened.
    unsafe fn load_i8(p: *const u8) -> Self::V;
    /// What [`Lanes::nibble`] multiplies by.
    type Scale: Copy;
    unsafe fn scale(x: f32) -> Self::Scale;
    type Words: Copy;
    /// Little-endian words of 32 bits.
    unsafe fn words(p: *const u8) -> Self::Words;
    /// (four bits of each word from `shift` on, less 8) * scale.
    unsafe fn nibble(words: Self::Words, shift: u32, scale: Self::Scale) -> Self::V;
    /// Asks for the line of memory at `p` before it is needed; any address will do.
    unsafe fn fetch(p: *const u8);
}

/// `N` elements at `p`, widened.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn load<L: Lanes, T: Real>(p: *const T) -> L::V {
    // SAFETY: the caller's; the pointer is cast to the type that it has.
    unsafe {
        match T::DTYPE {
            DType::F32 => L::load(p.cast()),
            DType::BF16 => L::load_bf16(p.cast()),
            _ => L::load_f16(p.cast()),
        }
    }
}

/// e^x for x <= 0 to 2 ulp; 0 below -87, where e^x leaves the normal numbers; NaN for NaN.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    // SAFETY: the caller's.
    unsafe {
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        let magic = L::splat(12_582_912.0);
        let t = L::fma(x, L::splat(std::f32::consts::LOG2_E), magic);
        let n = L::sub(t, magic);
        // ln 2 in two parts, the first short enough for n * part to be exact.
        let r = L::fma(n, L::splat(-0.693_359_4), x);
        let r = L::fma(n, L::splat(2.121_944_4e-4), r);
        // Taylor to r^7: the remainder is below 2^-27 for |r| <= ln 2 / 2.
        let mut p = L::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
            p = L::fma(p, r, L::splat(c));
        }
        let e = L::add(L::fma(L::mul(p, r), r, r), L::splat(1.0));
        L::zero_below(x, L::splat(-87.0), L::mul(e, L::power_of_two(t)))
    }
}

/// The sum of the lanes, in pairs.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn sum<L: Lanes>(v: L::V) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: N is at most 16.
    unsafe { L::store(lanes.as_mut_ptr(), v) };
    let mut n = 8;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// The largest lane; if one is NaN, any.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn max<L: Lanes>(v: L::V) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    // SAFETY: N is at most 16.
    unsafe { L::store(lanes.as_mut_ptr(), v) };
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// `out[i] = x[i]`, widened.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn widen_row<L: Lanes, T: Real>(x: &[T], out: &mut [f32]) {
    let whole = out.len() / L::N * L::N;
    let x = &x[..out.len()];
    // SAFETY: whole vectors of both slices.
    unsafe {
        for i in (0..whole).step_by(L::N) {
            L::store(out.as_mut_ptr().add(i), load::<L, T>(x.as_ptr().add(i)));
        }
    }
    for i in whole..out.len() {
        out[i] = x[i].to_f32();
    }
}

/// The sum of x - shift, and that of its squares.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn sums<L: Lanes>(x: &[f32], shift: f32) -> (f32, f32) {
    // SAFETY: chunks of whole vectors.
    unsafe {
        let by = L::splat(shift);
        let (mut first, mut second) = ([L::splat(0.0); 4], [L::splat(0.0); 4]);
        let chunks = x.chunks_exact(4 * L::N);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..4 {
                let v = L::sub(L::load(chunk.as_ptr().add(i * L::N)), by);
                first[i] = L::add(first[i], v);
                second[i] = L::fma(v, v, second[i]);
            }
        }
        let pairs = |s: [L::V; 4]| L::add(L::add(s[0], s[1]), L::add(s[2], s[3]));
        let (mut one, mut two) = (sum::<L>(pairs(first)), sum::<L>(pairs(second)));
        for x in rest {
            one += x - shift;
            two += (x - shift) * (x - shift);
        }
        (one, two)
    }
}

/// The sum of a[i] * b[i].
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let whole = a.len() / L::N * L::N;
    let b = &b[..a.len()];
    // SAFETY: whole vectors of both slices.
    let mut total = unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(L::N) {
            sum = L::fma(L::load(a.as_ptr().add(i)), L::load(b.as_ptr().add(i)), sum);
        }
        self::sum::<L>(sum)
    };
    for i in whole..a.len() {
        total += a[i] * b[i];
    }
    total
}

/// Four at a time, whatever the compiler assumes of every machine.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Lanes for Portable {
    const N: usize = 4;
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; 4] {
        // SAFETY: the caller's.
        let h = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        each(|i| math::widen(half::bf16::from_bits(h[i])))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> [f32; 4] {
        // SAFETY: the caller's.
        let h = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        each(|i| math::widen(half::f16::from_bits(h[i])))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn power_of_two(t: [f32; 4]) -> [f32; 4] {
        each(|i| f32::from_bits(t[i].to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    unsafe fn zero_below(x: [f32; 4], limit: [f32; 4], v: [f32; 4]) -> [f32; 4] {
        each(|i| if x[i] < limit[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [f32; 4] {
        // SAFETY: the caller's.
        let q = unsafe { p.cast::<[i8; 4]>().read_unaligned() };
        each(|i| f32::from(q[i]))
    }
    type Scale = f32;
    #[inline(always)]
    unsafe fn scale(x: f32) -> f32 {
        x
    }
    type Words = [u32; 4];
    #[inline(always)]
    unsafe fn words(p: *const u8) -> [u32; 4] {
        // SAFETY: the caller's.
        unsafe { p.cast::<[u32; 4]>().read_unaligned() }.map(u32::from_le)
    }
    #[inline(always)]
    unsafe fn nibble(words: [u32; 4], shift: u32, scale: f32) -> [f32; 4] {
        each(|i| ((words[i] >> shift & 15) as i32 - 8) as f32 * scale)
    }
    #[inline(always)]
    unsafe fn fetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_lanes {
    ($name:ident, $n:literal, $v:ident, $splat:ident, $load:ident, $store:ident, $add:ident,
     $sub:ident, $mul:ident, $fma:ident, $max:ident, $bits:ident, $number:ident, $add_int:ident,
     $splat_int:ident, $shift:ident, $widen:ident, $half:ident, $half_load:ident,
     |$x:ident, $limit:ident, $value:ident| $select:expr,
     |$bytes:ident| $load_i8:expr, $int:ident, $load_int:ident, |$by:ident| $scale:expr,
     |$words:ident, $down:ident, $times:ident| $nibble:expr) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Lanes for $name {
            const N: usize = $n;
            type V = $v;

            #[inline(always)]
            unsafe fn splat(x: f32) -> $v {
                // SAFETY: the trait's.
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> $v {
                // SAFETY: the trait's.
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn load_bf16(p: *const u16) -> $v {
                // SAFETY: the trait's.
                unsafe { $number($shift::<16>($widen($half_load(p.cast())))) }
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u16) -> $v {
                // SAFETY: the trait's.
                unsafe { $half($half_load(p.cast())) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: $v) {
                // SAFETY: the trait's.
                unsafe { $store(p, v) }
            }
            #[inline(always)]
            unsafe fn add(a: $v, b: $v) -> $v {
                // SAFETY: the trait's.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: $v, b: $v) -> $v {
                // SAFETY: the trait's.
                unsafe { $sub(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: $v, b: $v) -> $v {
                // SAFETY: the trait's.
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn fma(a: $v, b: $v, c: $v) -> $v {
                // SAFETY: the trait's.
                unsafe { $fma(a, b, c) }
            }
            #[inline(always)]
            unsafe fn max(a: $v, b: $v) -> $v {
                // SAFETY: the trait's.
                unsafe { $max(a, b) }
            }
            #[inline(always)]
            unsafe fn power_of_two(t: $v) -> $v {
                // SAFETY: the trait's.
                unsafe { $number($shift::<23>($add_int($bits(t), $splat_int(127)))) }
            }
            #[inline(always)]
            unsafe fn zero_below($x: $v, $limit: $v, $value: $v) -> $v {
                // SAFETY: the trait's.
                unsafe { $select }
            }
            #[inline(always)]
            unsafe fn load_i8($bytes: *const u8) -> $v {
                // SAFETY: the trait's.
                unsafe { $load_i8 }
            }
            type Scale = $v;
            #[inline(always)]
            unsafe fn scale(x: f32) -> $v {
                // SAFETY: the trait's.
                unsafe {
                    let $by = $splat(x);
                    $scale
                }
            }
            type Words = $int;
            #[inline(always)]
            unsafe fn words(p: *const u8) -> $int {
                // SAFETY: the trait's.
                unsafe { $load_int(p.cast()) }
            }
            #[inline(always)]
            unsafe fn nibble($words: $int, shift: u32, $times: $v) -> $v {
                // SAFETY: the trait's.
                unsafe {
                    let $down = $splat_int(shift as i32);
                    $nibble
                }
            }
            #[inline(always)]
            unsafe fn fetch(p: *const u8) {
                // SAFETY: a prefetch does not fault, wherever it points.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    x86_lanes!(
        Avx2,
        8,
        __m256,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        _mm256_castps_si256,
        _mm256_castsi256_ps,
        _mm256_add_epi32,
        _mm256_set1_epi32,
        _mm256_slli_epi32,
        _mm256_cvtepu16_epi32,
        _mm256_cvtph_ps,
        _mm_loadu_si128,
        |x, limit, v| _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, limit), v),
        |p| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
        __m256i,
        _mm256_loadu_si256,
        |x| x,
        |words, shift, scale| {
            let nibble = _mm256_and_si256(_mm256_srlv_epi32(words, shift), _mm256_set1_epi32(15));
            let less = _mm256_sub_epi32(nibble, _mm256_set1_epi32(8));
            _mm256_mul_ps(_mm256_cvtepi32_ps(less), scale)
        }
    );

    x86_lanes!(
        Avx512,
        16,
        __m512,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        _mm512_castps_si512,
        _mm512_castsi512_ps,
        _mm512_add_epi32,
        _mm512_set1_epi32,
        _mm512_slli_epi32,
        _mm512_cvtepu16_epi32,
        _mm512_cvtph_ps,
        _mm256_loadu_si256,
        |x, limit, v| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit), v),
        |p| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))),
        __m512i,
        _mm512_loadu_si512,
        // A table of all sixteen products, of which the lowest four bits of a word choose one.
        |x| {
            const NUMBERS: [f32; 16] = [
                -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0,
                7.0,
            ];
            _mm512_mul_ps(_mm512_loadu_ps(NUMBERS.as_ptr()), x)
        },
        |words, shift, scale| _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shift), scale)
    );
}

/// The work of a launch, task by task.
pub(super) trait Grid: Sync {
    /// Floats that a task borrows, for tiles of `m` rows.
    fn scratch(&self, m: usize) -> usize;

    /// Does one task, with vectors `L` and register tiles of `M` rows. Must be `inline(always)`,
    /// like everything hot that it calls.
    ///
    /// # Safety
    /// The launch's params are valid, the processor has `L`, and each task runs once.
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn on_avx512<G: Grid>(grid: &G, task: usize, scratch: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { grid.task::<x86::Avx512, 12>(task, scratch) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn on_avx2<G: Grid>(grid: &G, task: usize, scratch: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { grid.task::<x86::Avx2, 6>(task, scratch) }
}

/// Runs all tasks with the host's threads and instruction set.
///
/// # Safety
/// The launch's params are valid, as [`Stream::launch`](crate::device::Stream::launch) demands.
pub(super) unsafe fn run(host: &Host, tasks: usize, grid: &impl Grid) {
    match host.isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => host.pool.run(tasks, |task| {
            // SAFETY: the caller's; the host has the instruction set.
            with_scratch(grid.scratch(12), |s| unsafe { on_avx512(grid, task, s) });
        }),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => host.pool.run(tasks, |task| {
            // SAFETY: as above.
            with_scratch(grid.scratch(6), |s| unsafe { on_avx2(grid, task, s) });
        }),
        _ => host.pool.run(tasks, |task| {
            // SAFETY: as above; needs nothing of the processor.
            with_scratch(grid.scratch(6), |s| unsafe { grid.task::<Portable, 6>(task, s) });
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp {
        x: Vec<f32>,
    }

    impl Grid for Exp {
        fn scratch(&self, _: usize) -> usize {
            self.x.len()
        }

        #[inline(always)]
        unsafe fn task<L: Lanes, const M: usize>(&self, _: usize, out: &mut [f32]) {
            for i in (0..out.len()).step_by(L::N) {
                // SAFETY: the length is a multiple of 16.
                unsafe { L::store(out[i..].as_mut_ptr(), exp::<L>(L::load(self.x[i..].as_ptr()))) };
            }
            for (x, y) in self.x.iter().zip(out) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(*y) - exact).abs();
                let expected =
                    if *x < -87.0 { *y == 0.0 } else { error <= 2.0 * exact * 2f64.powi(-24) };
                assert!(expected || (x.is_nan() && y.is_nan()), "{x}: {y} {exact}");
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp_below_zero() {
        let mut x: Vec<f32> = (0..=1 << 18).map(|i| -(i as f32) * 3.5e-4).collect();
        x.extend([f32::NEG_INFINITY, f32::NAN, -0.0, -1e-30, -87.0, -1e30]);
        x.resize(x.len().next_multiple_of(16), 0.0);
        let best = Isa::detect();
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512Bf16].into_iter().filter(|i| *i <= best) {
            let host = Host { pool: crate::device::Pool::new(1), isa };
            // SAFETY: the grid has no pointers.
            unsafe { run(&host, 1, &Exp { x: x.clone() }) };
        }
    }
}
