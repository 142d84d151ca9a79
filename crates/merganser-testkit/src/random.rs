//! Reproducible test data.

/// A small generator (SplitMix64, Steele et al. 2014): the same numbers on every machine and in every version.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator; different seeds give unrelated numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Standard normal (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// `n` normal numbers of standard deviation `scale`.
    pub fn normals(&mut self, n: usize, scale: f64) -> Vec<f32> {
        (0..n).map(|_| (self.normal() * scale) as f32).collect()
    }

    /// `n` multiples of 1/256 in [−8, 8): sums and differences of a few of them are exact, and equal magnitudes abound.
    pub fn dyadics(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| (self.below(4096) as f32 - 2048.0) / 256.0)
            .collect()
    }

    /// `x` plus normal noise: a fine-tuned model.
    pub fn near(&mut self, x: &[f32], scale: f64) -> Vec<f32> {
        x.iter()
            .map(|&x| x + (self.normal() * scale) as f32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        let mut random = Random::new(1_234_567);
        let first = [random.bits(), random.bits(), random.bits()];
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn moments() {
        let x = Random::new(1).normals(20_000, 2.0);
        let mean = x.iter().sum::<f32>() / 20_000.0;
        let variance = x.iter().map(|x| x * x).sum::<f32>() / 20_000.0;
        assert!(
            mean.abs() < 0.05 && (variance - 4.0).abs() < 0.15,
            "{mean} {variance}"
        );
        assert!(
            Random::new(2)
                .dyadics(1000)
                .iter()
                .all(|x| (-8.0..8.0).contains(x) && (x * 256.0).fract() == 0.0)
        );
    }
}
