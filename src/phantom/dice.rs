//! Random numbers with an address: what is drawn for one page never depends on another.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The stream of item `index` of `what`: ChaCha8 from the SHA-256 of all three.
    pub fn new(seed: u64, what: &str, index: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(index.to_le_bytes());
        hash.update(what.as_bytes());
        Dice(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// A seed for what belongs to this item but is made later.
    pub fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in 0..n; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias is below n / 2^32.
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// Uniform in least..=most.
    pub fn between(&mut self, least: i32, most: i32) -> i32 {
        least + self.below((most - least + 1).max(1) as usize) as i32
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `all`, which is not empty.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Puts `all` in a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i + 1));
        }
    }

    /// A number by weights, which are not all 0.
    pub fn weighted(&mut self, weights: impl Iterator<Item = u32> + Clone) -> usize {
        let total: u32 = weights.clone().sum();
        let mut left = self.below(total as usize) as u32;
        for (i, weight) in weights.enumerate() {
            if left < weight {
                return i;
            }
            left -= weight;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gives_the_same_numbers_and_another_gives_others() {
        let four = |seed, what, index| {
            let mut dice = Dice::new(seed, what, index);
            [0; 4].map(|_| dice.below(1000))
        };
        assert_eq!(four(1, "page", 2), four(1, "page", 2));
        let others = [four(2, "page", 2), four(1, "word", 2), four(1, "page", 3)];
        assert!(others.iter().all(|o| *o != four(1, "page", 2)));
        // On every machine.
        assert_eq!(four(1, "page", 2), [643, 333, 398, 677]);
    }

    #[test]
    fn draws_stay_within_their_bounds() {
        let mut dice = Dice::new(0, "bounds", 0);
        for _ in 0..1000 {
            assert!(dice.below(3) < 3 && (-2..=2).contains(&dice.between(-2, 2)));
            assert_eq!(dice.weighted([0, 5, 0].into_iter()), 1);
        }
        let mut order: Vec<_> = (0..20).collect();
        dice.shuffle(&mut order);
        assert!(order.iter().enumerate().any(|(i, x)| i != *x));
        order.sort_unstable();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    }
}
