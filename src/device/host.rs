//! The host as a device: a pool of threads and the instruction set the twins may use.

use super::Pool;
use std::fmt;

/// The widest instruction set that both the processor and the twins know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler assumes of every machine.
    Portable,
    /// AVX2 with FMA (and F16C).
    Avx2,
    /// AVX-512 F, BW, VL, DQ with BF16 dot products.
    Avx512Bf16,
}

impl Isa {
    /// The best of this machine, or less if `MEDFLAMINGO_ISA` is `portable` or `avx2`.
    pub fn detect() -> Self {
        let best = Self::best();
        match std::env::var("MEDFLAMINGO_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => best.min(Isa::Avx2),
            _ => best,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c");
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
        match (avx2, avx512 && has!("avx512bf16")) {
            (true, true) => Isa::Avx512Bf16,
            (true, false) => Isa::Avx2,
            _ => Isa::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Self {
        Isa::Portable
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512Bf16 => "avx512-bf16",
        })
    }
}

/// What a twin may use to run a whole grid.
pub struct Host {
    pub pool: Pool,
    pub isa: Isa,
}

impl Host {
    /// `threads` 0 means one per core.
    pub fn new(threads: usize) -> Self {
        Host { pool: Pool::new(threads), isa: Isa::detect() }
    }
}
