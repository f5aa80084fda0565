//! The counter-based generator: a random number as a pure function of (seed, stream, counter).
//!
//! Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3"
//! (2011). There is no state to carry, so any step can be computed again anywhere.

/// One stream of random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    stream: u64,
}

impl Stream {
    /// The stream called `name` under `seed`; streams of different names are independent.
    pub fn new(seed: u64, name: &str) -> Self {
        Self { key: halves(seed), stream: fnv1a(name.as_bytes()) }
    }

    /// Four random words for `counter`.
    pub fn words(&self, counter: u64) -> [u32; 4] {
        let ([a, b], [c, d]) = (halves(counter), halves(self.stream));
        philox([a, b, c, d], self.key)
    }

    /// A value in 0..1 with 24 bits.
    pub fn uniform(&self, counter: u64) -> f32 {
        unit(self.words(counter)[0])
    }

    /// A value of the standard normal distribution (Box and Muller).
    pub fn normal(&self, counter: u64) -> f32 {
        let [a, b, ..] = self.words(counter);
        // 1 - u lies in (0, 1], whose logarithm is finite.
        let radius = (-2.0 * f64::from(1.0 - unit(a)).ln()).sqrt();
        (radius * (std::f64::consts::TAU * f64::from(unit(b))).cos()) as f32
    }
}

fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / (1_u32 << 24) as f32
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// FNV-1a with 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let [low0, high0] = halves(u64::from(MULTIPLIERS[0]) * u64::from(counter[0]));
        let [low1, high1] = halves(u64::from(MULTIPLIERS[1]) * u64::from(counter[2]));
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with their Random123 library.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_values_have_mean_zero_and_variance_one() {
        let stream = Stream::new(7, "test");
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(stream.normal(i))).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn streams_of_other_names_and_seeds_differ() {
        let words = |seed, name| Stream::new(seed, name).words(3);
        assert_ne!(words(1, "a"), words(1, "b"));
        assert_ne!(words(1, "a"), words(2, "a"));
    }
}
