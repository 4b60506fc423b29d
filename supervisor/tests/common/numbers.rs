//! Numbers for tests that ask at random.

/// Numbers that look random, and are the same for the same seed (Marsaglia, "Xorshift RNGs", 2003).
pub struct Numbers(u64);

impl Numbers {
    /// One row of them for each seed but 0.
    pub fn new(seed: u64) -> Self {
        assert_ne!(seed, 0, "0 stays 0");
        Self(seed)
    }

    /// One that is less than `most`.
    pub fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % most
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Seeds to try: the one that `KITBAG_TEST_SEED` names, or some.
    pub fn seeds() -> Vec<u64> {
        match std::env::var("KITBAG_TEST_SEED") {
            Ok(seed) => vec![seed.parse().expect("KITBAG_TEST_SEED is a number")],
            Err(_) => (1..4).collect(),
        }
    }
}
