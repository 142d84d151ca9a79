//! Sequences of random numbers that follow from a seed and the number of a stream alone: the same on every machine, for any
//! number of threads. For what is drawn in order; masks over tensors are addressed by element instead ([`mask`](crate::mask)).
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014).

use crate::special::ln;

/// A stream of a seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    state: u64,
    /// The second number of the last normal pair.
    spare: Option<f64>,
}

impl Sequence {
    /// Stream number `stream` of `seed`. The streams of one seed begin at places that have nothing to do with each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut start = Self {
            state: seed,
            spare: None,
        };
        start.state = start.bits() ^ stream;
        start.state = start.bits();
        start
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A multiple of 2⁻⁵² from −1 to 1, without 1.
    pub fn symmetric(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// A standard normal number, by Marsaglia's polar method (1964), which needs no function that machines compute differently.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (u, v) = (self.symmetric(), self.symmetric());
            let square = u * u + v * v;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * ln(square) / square).sqrt();
                self.spare = Some(v * scale);
                return u * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let mut sequence = Sequence::new(7, 3);
        let n = 200_000;
        let mut moments = [0.0; 4];
        for _ in 0..n {
            let x = sequence.normal();
            for (k, moment) in moments.iter_mut().enumerate() {
                *moment += x.powi(k as i32 + 1) / f64::from(n);
            }
        }
        // Four standard errors: √(1, 2, 15, 96 / n).
        for ((moment, expected), variance) in moments
            .iter()
            .zip([0.0, 1.0, 0.0, 3.0])
            .zip([1.0, 2.0, 15.0, 96.0])
        {
            let error: f64 = moment - expected;
            assert!(
                error.abs() < 4.0 * f64::sqrt(variance / f64::from(n)),
                "{moments:?}"
            );
        }
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = |seed, stream| {
            let mut sequence = Sequence::new(seed, stream);
            [sequence.normal(), sequence.normal(), sequence.normal()]
        };
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(1, 3));
        assert_ne!(first(1, 2), first(2, 2));
        assert_ne!(first(0, 1), first(1, 0));
    }

    #[test]
    fn symmetric_numbers_fill_their_range() {
        let mut sequence = Sequence::new(0, 0);
        let drawn: Vec<f64> = (0..10_000).map(|_| sequence.symmetric()).collect();
        assert!(drawn.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(drawn.iter().any(|x| *x < -0.99) && drawn.iter().any(|x| *x > 0.99));
        assert!((drawn.iter().sum::<f64>() / 1e4).abs() < 0.03);
    }
}
