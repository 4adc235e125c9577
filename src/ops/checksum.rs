//! `checksum`: y[i] = xor of the words of part i. The read-only pass that others are compared with.

use super::check;
use super::rows::Rows;
use crate::contracts::ChecksumParams;
use crate::device::{Chip, Cost, Geometry, Host, Isa, Kernel, Stream};
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result};

/// See `kernels/checksum.h`.
pub static CHECKSUM: Kernel<ChecksumParams> = Kernel {
    name: "checksum",
    twins: &[(DType::F32, twin), (DType::BF16, twin), (DType::F16, twin)],
    geometry,
    cost,
    accounting: 0,
};

/// Bytes that are read in one instruction.
const PACK: usize = 16;

/// y[i] = xor of the 32-bit words of part i of x; y (parts) i32, x dense, a multiple of 16 bytes.
///
/// # Errors
/// If y is empty or of another type, or x is not dense, whole and aligned.
pub fn checksum(stream: &Stream, mut y: ViewMut<'_>, x: View<'_>) -> Result<()> {
    check::dtype("checksum", "y", &y.as_view(), DType::I32)?;
    check::vector("checksum", "y", &y.as_view(), y.cols().max(1))?;
    check::dense("checksum", "x", &x)?;
    let (bytes, address) = (x.bytes(), x.ptr::<u8>().addr());
    if !bytes.is_multiple_of(PACK) || !address.is_multiple_of(PACK) {
        let found = format!("{bytes} bytes at {address:#x}");
        return Err(Error::invalid("checksum: x", "whole, aligned packs of 16 bytes", found));
    }
    let (packs, parts) = ((bytes / PACK) as i64, y.cols() as i64);
    let params = ChecksumParams { y: y.ptr(), x: x.ptr(), packs, parts };
    // SAFETY: sizes, alignment and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&CHECKSUM, x.dtype(), &params) }
}

fn geometry(p: &ChecksumParams, _: DType, _: &Chip) -> Geometry {
    Geometry::linear(p.parts as u32, 256)
}

fn cost(p: &ChecksumParams, _: DType) -> Cost {
    Cost { bytes: (p.packs * PACK as i64 + p.parts * 4) as f64, flops: 0.0 }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn twin(p: &ChecksumParams, host: &Host) {
    let (packs, parts) = (p.packs as usize, p.parts as usize);
    let each = packs.div_ceil(parts);
    let (x, y) = (Rows::<u8>::dense(p.x, PACK * packs), Rows::<u32>::dense(p.y, 1));
    host.pool.run(parts, |i| {
        let begin = (i * each).min(packs);
        let count = each.min(packs - begin);
        // SAFETY: inside the contract's extent; a cell of y belongs to one part.
        unsafe {
            let word = xor::<true>(host.isa, x.part(0, PACK * begin, PACK * count));
            y.get_mut(i)[0] = word as u32 ^ (word >> 32) as u32;
        }
    });
}

/// The xor of the 64-bit words of `bytes`, fetched ahead in software if `AHEAD`; what does not fill
/// a word is left out.
pub fn xor<const AHEAD: bool>(isa: Isa, bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        let (blocks, rest) = bytes.split_at(bytes.len() / 256 * 256);
        // SAFETY: the host was made for this machine.
        return unsafe { wide::<AHEAD>(blocks) } ^ words(rest);
    }
    let _ = isa;
    words(bytes)
}

fn words(bytes: &[u8]) -> u64 {
    let word = |b: &[u8]| b.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    bytes.chunks_exact(8).fold(0, |sum, b| sum ^ word(b))
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn wide<const AHEAD: bool>(blocks: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); 8];
    for block in blocks.chunks_exact(256) {
        for (i, s) in sums.iter_mut().enumerate() {
            // SAFETY: inside the block; a prefetch does not fault.
            unsafe {
                let at = block.as_ptr().add(32 * i);
                if AHEAD && i % 2 == 0 {
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(16 << 10).cast());
                }
                *s = _mm256_xor_si256(*s, _mm256_loadu_si256(at.cast()));
            }
        }
    }
    let all = sums.iter().fold(_mm256_setzero_si256(), |x, y| _mm256_xor_si256(x, *y));
    let halves = _mm_xor_si128(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
    (_mm_extract_epi64::<0>(halves) ^ _mm_extract_epi64::<1>(halves)) as u64
}
