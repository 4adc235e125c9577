//! What this machine can do: reading, and multiply-adds in registers. Both are measured beside the
//! work they are compared with, repetition by repetition, because the machine may be shared.
#![allow(dead_code)] // each bench uses some of it

use medflamingo::DType;
use medflamingo::device::{Host, Isa};
use medflamingo::ops::xor;
use std::hint::black_box;
use std::time::Instant;

/// Bytes of one timed read, when the faster way to read is looked for.
const PASS: usize = 16 << 20;

/// A read-only pass over all of `pieces`; seconds by the clock.
pub fn read_all(host: &Host, pieces: &[&[u8]]) -> f64 {
    const CHUNK: usize = 256 << 10;
    let chunks: Vec<&[u8]> = pieces.iter().flat_map(|p| p.chunks(CHUNK)).collect();
    let time = time(|| {
        host.pool.run(chunks.len(), |i| {
            black_box(xor::<true>(host.isa, chunks[i]));
        })
    });
    time.wall
}

/// Seconds by the clock, and of all this process's threads.
#[derive(Clone, Copy)]
pub struct Time {
    pub wall: f64,
    pub busy: f64,
}

pub fn time(f: impl FnOnce()) -> Time {
    let (start, busy) = (Instant::now(), busy());
    f();
    Time { wall: start.elapsed().as_secs_f64(), busy: self::busy() - busy }
}

/// Processor seconds of this process so far.
fn busy() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A read-only pass.
fn read<const AHEAD: bool>(host: &Host, bytes: &[u8]) -> Time {
    let piece = 256 << 10;
    time(|| {
        host.pool.run(bytes.len().div_ceil(piece), |i| {
            let end = bytes.len().min((i + 1) * piece);
            black_box(xor::<AHEAD>(host.isa, &bytes[i * piece..end]));
        })
    })
}

/// The faster way to read, with and without software prefetches.
pub fn reader(host: &Host, arena: &[u8]) -> fn(&Host, &[u8]) -> Time {
    let cost = |read: fn(&Host, &[u8]) -> Time| {
        let times = arena.chunks(PASS).map(|part| read(host, part).busy);
        median(times.collect())
    };
    // The first pass maps the pages.
    cost(read::<false>);
    if cost(read::<true>) < cost(read::<false>) { read::<true> } else { read::<false> }
}

/// The time of `flops` independent multiply-adds in registers, on all threads.
pub fn peak(host: &Host, dtype: DType, flops: f64) -> Time {
    let pieces = host.pool.threads() * 16;
    let round = multiply_adds(host.isa, dtype, 1);
    let steps = (flops / pieces as f64 / round as f64).max(1.0);
    // Whole rounds only: the time is scaled by what they leave out.
    let scale = steps / steps.floor();
    let time = time(|| {
        host.pool.run(pieces, |_| {
            black_box(multiply_adds(host.isa, dtype, steps as u64));
        })
    });
    Time { wall: time.wall * scale, busy: time.busy * scale }
}

/// `steps` rounds of 24 independent multiply-adds; returns the operations.
fn multiply_adds(isa: Isa, dtype: DType, steps: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        const CHAINS: usize = 24;

        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn pairs(steps: u64) -> u64 {
            let mut sums = [_mm512_set1_ps(0.0); CHAINS];
            // SAFETY: a register of 32 bf16 has the size of one of 16 words.
            let x = unsafe {
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(black_box(0)))
            };
            for _ in 0..steps {
                for s in &mut sums {
                    *s = _mm512_dpbf16_ps(*s, x, x);
                }
            }
            black_box(sums);
            steps * CHAINS as u64 * 64
        }

        #[target_feature(enable = "avx512f")]
        fn wide(steps: u64) -> u64 {
            let mut sums = [_mm512_set1_ps(0.0); CHAINS];
            let x = _mm512_set1_ps(black_box(0.5));
            for _ in 0..steps {
                for s in &mut sums {
                    *s = _mm512_fmadd_ps(*s, x, x);
                }
            }
            black_box(sums);
            steps * CHAINS as u64 * 32
        }

        #[target_feature(enable = "avx2,fma")]
        fn half(steps: u64) -> u64 {
            let mut sums = [_mm256_set1_ps(0.0); 12];
            let x = _mm256_set1_ps(black_box(0.5));
            for _ in 0..2 * steps {
                for s in &mut sums {
                    *s = _mm256_fmadd_ps(*s, x, x);
                }
            }
            black_box(sums);
            2 * steps * 12 * 16
        }

        // SAFETY: the host was made for this machine.
        unsafe {
            match (isa, dtype) {
                (Isa::Avx512Bf16, DType::BF16) => return pairs(steps),
                (Isa::Avx512Bf16, _) => return wide(steps),
                (Isa::Avx2, _) => return half(steps),
                _ => {}
            }
        }
    }
    let _ = (isa, dtype);
    let mut sums = [0.0f32; 32];
    let x = black_box(0.5f32);
    for _ in 0..steps {
        sums.iter_mut().for_each(|s| *s = *s * x + x);
    }
    black_box(sums);
    steps * 64
}
