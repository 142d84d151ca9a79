//! Averages weighted by a precision of every element: the kernel of Fisher merging.
//!
//! Source: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging" (2022).

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

/// Elements worked on at a time, so that what is accumulated stays in L1.
const BLOCK: usize = 1024;

/// How the precision of one model is made from its stored tensor F: coefficient · max(F, floor) + coefficient · offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Precision {
    /// Weight of the model.
    pub coefficient: f32,
    /// Smallest F; −∞ for none.
    pub floor: f32,
    /// Added to F.
    pub offset: f32,
}

kernel! {
    /// out = Σ p_i x_i / Σ p_i with p_i = `precisions[i]` applied to `stored[i]`; where all of them are 0, the average
    /// weighted by the `fallback` alone, which must not sum to 0.
    ///
    /// Computed as x_0 + Σ p_i (x_i − x_0) / Σ p_i, so that what all models agree on stays as it is.
    ///
    /// # Panics
    /// If the lengths differ or there is no input.
    pub fn weighted_mean(
        out: &mut [f32],
        xs: &[&[f32]],
        stored: &[&[f32]],
        precisions: &[Precision],
        fallback: &[f32],
    ) {
        assert!(stored.len() == xs.len() && precisions.len() == xs.len() && fallback.len() == xs.len(), "one an input");
        let first = xs[0];
        for (x, stored) in xs.iter().zip(stored) {
            assert!(x.len() == out.len() && stored.len() == out.len(), "lengths differ");
        }
        let total_fallback: f32 = fallback.iter().sum();
        let mut totals = [0.0_f32; BLOCK];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let (at, len) = (block * BLOCK, out.len());
            let totals = &mut totals[..len];
            totals.fill(0.0);
            out.fill(0.0);
            let first = &first[at..][..len];
            for ((x, stored), precision) in xs.iter().zip(stored).zip(precisions) {
                let (x, stored) = (&x[at..][..len], &stored[at..][..len]);
                for j in 0..len {
                    let kept = if stored[j] > precision.floor { stored[j] } else { precision.floor };
                    let p = precision.coefficient * (kept + precision.offset);
                    totals[j] += p;
                    out[j] += p * (x[j] - first[j]);
                }
            }
            let mut undecided = false;
            for j in 0..len {
                undecided |= totals[j] == 0.0;
                out[j] = first[j] + out[j] / totals[j];
            }
            if undecided {
                for j in (0..len).filter(|&j| totals[j] == 0.0) {
                    let moved: f32 = xs.iter().zip(fallback).map(|(x, w)| w * (x[at + j] - first[j])).sum();
                    out[j] = first[j] + moved / total_fallback;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    const PLAIN: Precision = Precision {
        coefficient: 1.0,
        floor: f32::NEG_INFINITY,
        offset: 0.0,
    };

    #[test]
    fn levels_agree_on_any_bits() {
        let mut bits = Bits::new(14);
        for len in LENGTHS {
            for count in [1, 2, 3] {
                let xs: Vec<Vec<f32>> = (0..count).map(|_| bits.patterns(len)).collect();
                let mut fisher: Vec<Vec<f32>> = (0..count).map(|_| bits.patterns(len)).collect();
                for f in fisher.iter_mut().flat_map(|f| f.iter_mut().step_by(3)) {
                    *f = 0.0;
                }
                let xs: Vec<&[f32]> = xs.iter().map(Vec::as_slice).collect();
                let fisher: Vec<&[f32]> = fisher.iter().map(Vec::as_slice).collect();
                at_all_levels(|| {
                    let mut out = vec![0.0; len];
                    weighted_mean(
                        &mut out,
                        &xs,
                        &fisher,
                        &vec![PLAIN; count],
                        &vec![1.0; count],
                    );
                    canonical(&out)
                });
            }
        }
    }

    #[test]
    fn the_precise_model_wins_and_no_precision_means_the_mean() {
        let mut out = [0.0; 4];
        let xs: [&[f32]; 2] = [&[1.0, 1.0, 1.0, 1.0], &[3.0, 3.0, 3.0, 3.0]];
        let fisher: [&[f32]; 2] = [&[1.0, 0.0, 3.0, 0.0], &[1.0, 2.0, 1.0, 0.0]];
        weighted_mean(&mut out, &xs, &fisher, &[PLAIN; 2], &[1.0, 3.0]);
        assert_eq!(out, [2.0, 3.0, 1.5, 2.5]);
    }

    #[test]
    fn floor_offset_and_coefficient() {
        let mut out = [0.0];
        let floored = Precision {
            coefficient: 2.0,
            floor: 1.0,
            offset: 0.5,
        };
        weighted_mean(
            &mut out,
            &[&[0.0], &[4.0]],
            &[&[0.25], &[1.0]],
            &[floored, PLAIN],
            &[1.0; 2],
        );
        assert_eq!(out, [1.0]);
    }
}
