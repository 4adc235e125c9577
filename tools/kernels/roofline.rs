//! What a card allows: time at its ceilings, and blocks that fit on a multiprocessor.

use super::sass::Compiled;
use medflamingo::device::{Chip, Cost};

/// A card as the report knows it.
pub struct Card {
    pub name: &'static str,
    pub arch: &'static str,
    pub chip: Chip,
    /// What a read-only pass reaches, bytes/s.
    pub bandwidth: f64,
    /// Dense bf16 products, operations/s.
    pub peak: f64,
    /// Shared memory of a multiprocessor, bytes.
    pub shared: u32,
}

/// Bandwidths are measured ones (of 2.0 and 4.8 TB/s on paper), products the data sheet's for the
/// A100 (312) and what large products reach on an H200 (of 989).
pub static CARDS: [Card; 2] = [
    Card {
        name: "A100",
        arch: "sm_80",
        chip: Chip::A100,
        bandwidth: 1.7e12,
        peak: 312e12,
        shared: 164 << 10,
    },
    Card {
        name: "H200",
        arch: "sm_90a",
        chip: Chip::H200,
        bandwidth: 4.3e12,
        peak: 790e12,
        shared: 228 << 10,
    },
];

impl Card {
    pub fn of(arch: &str) -> Option<&'static Card> {
        CARDS.iter().find(|card| card.arch == arch)
    }

    /// Least time of a launch, us.
    pub fn us(&self, cost: Cost) -> f64 {
        (cost.bytes / self.bandwidth).max(cost.flops / self.peak) * 1e6
    }

    /// Share of a multiprocessor's 64 warps that can be resident, blocks of `threads` with `shared`
    /// dynamic bytes. Registers come in steps of 256 for a warp, a quarter of the file for each
    /// scheduler; a block takes 1 KiB of shared memory for itself (CUDA C++ Programming Guide,
    /// compute capabilities 8.0 and 9.0).
    pub fn occupancy(&self, compiled: &Compiled, threads: u32, shared: u32) -> f64 {
        let warps = threads.div_ceil(32).max(1);
        let per_warp = (compiled.registers.max(1) * 32).next_multiple_of(256);
        let by_registers = 4 * (16384 / per_warp) / warps;
        let bytes = (compiled.shared + shared).next_multiple_of(128) + 1024;
        let blocks = (64 / warps).min(32).min(by_registers).min(self.shared / bytes);
        f64::from(blocks * warps) / 64.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sass::Mix;

    #[test]
    fn occupancy_is_that_of_the_calculator() {
        let entry = |registers, shared| Compiled {
            entry: String::new(),
            arch: String::new(),
            registers,
            stack: 0,
            shared,
            threads: 0,
            mix: Mix::default(),
        };
        let [a100, h200] = &CARDS;
        assert_eq!(a100.occupancy(&entry(32, 0), 256, 0), 1.0);
        assert_eq!(a100.occupancy(&entry(33, 0), 256, 0), 0.75);
        assert_eq!(a100.occupancy(&entry(128, 0), 128, 0), 0.25);
        assert_eq!(a100.occupancy(&entry(255, 0), 256, 0), 0.125);
        assert_eq!(a100.occupancy(&entry(64, 0), 128, 96 << 10), 4.0 / 64.0);
        assert_eq!(h200.occupancy(&entry(64, 0), 128, 96 << 10), 8.0 / 64.0);
        assert_eq!(h200.occupancy(&entry(168, 0), 384, 200 << 10), 12.0 / 64.0);
        assert_eq!(a100.occupancy(&entry(255, 0), 1024, 0), 0.0, "such a block does not start");
    }

    #[test]
    fn time_is_that_of_the_slower_side() {
        let cost = Cost { bytes: 4.3e6, flops: 0.0 };
        assert!((CARDS[1].us(cost) - 1.0).abs() < 1e-9);
        let cost = Cost { bytes: 4.3e6, flops: 790e9 };
        assert!((CARDS[1].us(cost) - 1000.0).abs() < 1e-6);
    }
}
