//! Random numbers that depend on a seed alone: the same on every machine, for any number of threads.

use merganser_kernels::special::ln;

/// A step of the SplitMix64 generator.
pub(super) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Standard normal numbers of a stream of a seed, by Marsaglia's polar method (1964), which needs no function that machines
/// compute differently.
pub fn normals(seed: u64, stream: u64) -> impl FnMut() -> f64 {
    // The streams of one seed begin at places that have nothing to do with each other.
    let mut at = seed;
    let mut state = next(&mut at) ^ stream;
    state = next(&mut state);
    let mut spare = None;
    // From −1 to 1.
    let uniform = |state: &mut u64| (next(state) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
    move || {
        if let Some(spare) = spare.take() {
            return spare;
        }
        loop {
            let (u, v) = (uniform(&mut state), uniform(&mut state));
            let square = u * u + v * v;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * ln(square) / square).sqrt();
                spare = Some(v * scale);
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
        let mut draw = normals(7, 3);
        let n = 200_000;
        let mut moments = [0.0; 4];
        for _ in 0..n {
            let x = draw();
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
            let mut draw = normals(seed, stream);
            [draw(), draw(), draw()]
        };
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(1, 3));
        assert_ne!(first(1, 2), first(2, 2));
        assert_ne!(first(0, 1), first(1, 0));
    }
}
