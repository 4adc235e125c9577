//! Random numbers that belong to a place, not to a sequence: nothing to save, nothing to replay.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a number is drawn for; equal places of different uses are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Shards = 1,
    Buffer = 2,
    Sample = 3,
    Placement = 4,
}

/// The stream of numbers of `place` under `seed`.
pub(super) fn numbers(seed: u64, of: Use, place: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&place.to_le_bytes());
    key[16] = of as u8;
    ChaCha8Rng::from_seed(key)
}

/// A number in 0..1 with 53 bits.
pub(super) fn uniform(random: &mut impl Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// 0..n in an order that depends on the seed and the place only (Fisher-Yates).
pub(super) fn permutation(seed: u64, place: u64, n: usize) -> Vec<u32> {
    let mut random = numbers(seed, Use::Shards, place);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, below(&mut random, i + 1));
    }
    order
}

/// A number in 0..n. The bias of the remainder is below n / 2^64.
pub(super) fn below(random: &mut impl Rng, n: usize) -> usize {
    (random.next_u64() % n as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_has_every_number_once_and_differs_by_epoch() {
        let (a, b) = (permutation(7, 0, 100), permutation(7, 1, 100));
        assert_eq!(a, permutation(7, 0, 100));
        assert_ne!(a, b);
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(i, &n)| i == n as usize));
        assert!(permutation(7, 0, 0).is_empty());
    }
}
