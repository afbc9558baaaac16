//! Random choices that can be repeated: `FAULT_SEED=N` is the seed of a printed run, `FAULT_ROUNDS=N` makes a run longer.

/// A small generator (xorshift64*): repeatable, and good enough to choose moments.
pub struct Dice(u64);

impl Dice {
    /// Prints its seed, so that a run can be repeated.
    pub fn new(test: &str) -> Dice {
        let seed = std::env::var("FAULT_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap();
                now.as_nanos() as u64 | 1
            });
        println!("{test}: FAULT_SEED={seed}");
        Dice(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

/// How many rounds a test plays: `default`, or `FAULT_ROUNDS`.
pub fn rounds(default: u64) -> u64 {
    std::env::var("FAULT_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
