//! Adversarial drift compensation: where a class has no data any more, data of other classes are changed until the old model
//! takes them for it, and what the two models say about these probes is the drift of the class.
//!
//! For a prototype P_k of the old space, the m samples whose old features lie closest to it are moved i times by
//!
//! x ← clip(x − α g / |g|, low, high), g = ∇_x |f_old(x) − P_k|², low and high the extremes of all samples,
//!
//! and a probe is kept if its old feature is nearer to P_k than to any other prototype. Then
//! Δ_k = mean over the kept ones of f_new(x) − f_old(x) (Goswami et al., CVPR 2024, arXiv 2405.19074, algorithm 1; m = 100,
//! i = 3, α = 25 for images). Distances are Euclidean.

use merganser_linalg::{Matrix, dot};
use merganser_model::Mlp;
use rayon::prelude::*;

use super::semantic::distance;
use crate::error::{Error, Result, check_range, check_size};

/// Samples that go through a network together.
const BATCH: usize = 256;
/// Halvings of the largest step when its length is looked for.
const HALVINGS: i32 = 16;

/// Samples that were made to look like a class to the old model, as both models see them.
#[derive(Debug, Clone, PartialEq)]
pub struct Probes {
    /// f_old of each, one a row.
    pub old: Matrix,
    /// f_new of each.
    pub new: Matrix,
    /// The class each is meant to look like.
    pub targets: Vec<usize>,
    /// How far each was from the prototype of its target before it was changed, where that is known.
    pub before: Option<Vec<f64>>,
}

/// By what a gradient is divided before the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepNorm {
    /// Its own length, as the paper has it: every sample moves by α.
    Sample,
    /// The length of the gradients of all samples of a prototype taken together, as the authors' code has it: with m samples
    /// each moves by about α / √m.
    Batch,
}

/// How samples are changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attack {
    /// m, samples a prototype; all of them where there are fewer.
    pub samples: usize,
    /// i, steps.
    pub steps: usize,
    /// α, the length of a step, in units of the samples.
    pub alpha: f64,
    /// What α is relative to.
    pub norm: StepNorm,
}

impl Default for Attack {
    fn default() -> Self {
        Self {
            samples: 100,
            steps: 3,
            alpha: 25.0,
            norm: StepNorm::Sample,
        }
    }
}

/// The outputs of a network for samples, one a row.
///
/// # Errors
/// If the samples are of another length than the network reads, or an output is not finite.
pub fn features(encoder: &Mlp, samples: &Matrix) -> Result<Matrix> {
    check_width(encoder, samples)?;
    let batches = samples
        .as_slice()
        .par_chunks(BATCH * samples.cols())
        .map(|batch| {
            let mut trace = encoder.forward(batch)?;
            Ok(trace.activations.pop().unwrap_or_default())
        })
        .collect::<Result<Vec<Vec<f64>>>>()?;
    Ok(Matrix::new(
        samples.rows(),
        encoder.outputs(),
        batches.concat(),
    )?)
}

fn check_width(encoder: &Mlp, samples: &Matrix) -> Result<()> {
    check_size(
        || "numbers a sample has, which must be what the encoder reads".into(),
        samples.cols(),
        encoder.inputs(),
    )
}

impl Attack {
    fn check(&self, samples: &Matrix) -> Result<()> {
        check_range("alpha", self.alpha, (0.0, 1e12), "from 0 to 10^12")?;
        check_size(|| "samples".into(), usize::from(samples.rows() > 0), 1)?;
        if self.samples == 0 || self.steps == 0 {
            return Err(Error::Unfit(
                "at least one sample and one step are needed to make probes".into(),
            ));
        }
        Ok(samples.check_finite()?)
    }

    /// The samples closest to `prototype` by their `features`, moved towards it, in the order of their distance.
    ///
    /// # Errors
    /// If sizes do not fit, a setting is out of range, or a gradient is not finite.
    pub fn perturb(
        &self,
        encoder: &Mlp,
        samples: &Matrix,
        features: &Matrix,
        prototype: &[f64],
    ) -> Result<Matrix> {
        self.check(samples)?;
        check_width(encoder, samples)?;
        check_size(
            || "number of features, one a sample".into(),
            features.rows(),
            samples.rows(),
        )?;
        check_size(
            || "length of the encoder's features, which must be that of the prototypes".into(),
            features.cols(),
            prototype.len(),
        )?;
        let (low, high) = extremes(samples);
        let mut x = samples.gather_rows(&closest(features, prototype, self.samples));
        for _ in 0..self.steps {
            let trace = encoder.forward(x.as_slice())?;
            let mut error = trace.activations[trace.activations.len() - 1].clone();
            for row in error.chunks_exact_mut(prototype.len()) {
                for (y, p) in row.iter_mut().zip(prototype) {
                    *y -= p;
                }
            }
            // The factor 2 of the square goes with the length.
            let gradient = encoder.gradients(&trace, &error)?.input;
            let whole = dot(&gradient, &gradient).sqrt();
            for (i, g) in gradient.chunks_exact(x.cols()).enumerate() {
                let length = match self.norm {
                    StepNorm::Sample => dot(g, g).sqrt(),
                    StepNorm::Batch => whole,
                };
                if !length.is_finite() {
                    return Err(Error::Unfit(
                        "the gradient of a probe is beyond the range of numbers; scale the samples or the weights down"
                            .into(),
                    ));
                }
                // A sample without a gradient has nowhere to go.
                if length > 0.0 {
                    for (x, g) in x.row_mut(i).iter_mut().zip(g) {
                        *x = (*x - self.alpha * g / length).clamp(low, high);
                    }
                }
            }
        }
        Ok(x)
    }

    /// The α that brings the probes closest to their prototypes in the old space, where everything is known: the smallest sum
    /// over the prototypes of the mean distance after the steps over the mean distance before. Tried are (high − low) √d 2⁻ʲ
    /// for samples of d numbers and j from 0 to 16.
    ///
    /// # Errors
    /// As [`perturb`](Self::perturb).
    pub fn closest_alpha(
        &self,
        encoder: &Mlp,
        samples: &Matrix,
        features: &Matrix,
        prototypes: &Matrix,
    ) -> Result<f64> {
        self.check(samples)?;
        let (low, high) = extremes(samples);
        let longest = (high - low) * (samples.cols() as f64).sqrt();
        let mut best = (self.alpha, f64::INFINITY);
        for halving in 0..=HALVINGS {
            let attack = Self {
                alpha: longest * 0.5_f64.powi(halving),
                ..*self
            };
            let ratios = (0..prototypes.rows())
                .into_par_iter()
                .map(|k| {
                    let prototype = prototypes.row(k);
                    let x = attack.perturb(encoder, samples, features, prototype)?;
                    let after: f64 = distances(&self::features(encoder, &x)?, prototype)
                        .into_iter()
                        .sum();
                    let before: f64 = attack.before(features, prototype).into_iter().sum();
                    Ok(if before > 0.0 { after / before } else { 0.0 })
                })
                .collect::<Result<Vec<f64>>>()?;
            let sum: f64 = ratios.into_iter().sum();
            if sum < best.1 {
                best = (attack.alpha, sum);
            }
        }
        Ok(best.0)
    }

    /// Distances of the samples closest to a prototype from it, before they are changed.
    fn before(&self, features: &Matrix, prototype: &[f64]) -> Vec<f64> {
        let chosen = closest(features, prototype, self.samples);
        distances(&features.gather_rows(&chosen), prototype)
    }

    /// Probes for every prototype, a row of `prototypes` each; their targets are the rows' numbers. `features` are those of
    /// the samples by the old encoder.
    ///
    /// # Errors
    /// As [`perturb`](Self::perturb); and if the encoders read samples of different length.
    pub fn probes(
        &self,
        (old, new): (&Mlp, &Mlp),
        samples: &Matrix,
        features: &Matrix,
        prototypes: &Matrix,
    ) -> Result<Probes> {
        let parts = (0..prototypes.rows())
            .into_par_iter()
            .map(|k| {
                let prototype = prototypes.row(k);
                let x = self.perturb(old, samples, features, prototype)?;
                let before = self.before(features, prototype);
                Ok((self::features(old, &x)?, self::features(new, &x)?, before))
            })
            .collect::<Result<Vec<_>>>()?;
        let targets = parts
            .iter()
            .enumerate()
            .flat_map(|(k, (old, ..))| std::iter::repeat_n(k, old.rows()))
            .collect();
        Ok(Probes {
            old: Matrix::stack_rows(parts.iter().map(|(old, ..)| old)),
            new: Matrix::stack_rows(parts.iter().map(|(_, new, _)| new)),
            targets,
            before: Some(
                parts
                    .iter()
                    .flat_map(|(.., before)| before.clone())
                    .collect(),
            ),
        })
    }
}

/// The smallest and the largest number.
fn extremes(samples: &Matrix) -> (f64, f64) {
    samples
        .as_slice()
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| {
            (low.min(x), high.max(x))
        })
}

/// The distance of each row from a point.
fn distances(rows: &Matrix, point: &[f64]) -> Vec<f64> {
    (0..rows.rows())
        .map(|i| distance(rows.row(i), point).sqrt())
        .collect()
}

/// The `count` rows nearest to a point, nearest first, the first of equals first.
fn closest(rows: &Matrix, point: &[f64], count: usize) -> Vec<usize> {
    let distances = distances(rows, point);
    let mut order: Vec<usize> = (0..rows.rows()).collect();
    order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
    order.truncate(count);
    order
}

/// The prototype nearest to each row, the first of equals.
///
/// # Panics
/// If rows and prototypes differ in length.
pub fn nearest_prototypes(prototypes: &Matrix, rows: &Matrix) -> Vec<usize> {
    (0..rows.rows())
        .map(|i| {
            let mut best = (0, f64::INFINITY);
            for k in 0..prototypes.rows() {
                let d = distance(prototypes.row(k), rows.row(i));
                if d < best.1 {
                    best = (k, d);
                }
            }
            best.0
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use merganser_model::Pointwise;
    use merganser_model::mlp::Dense;

    use super::*;

    /// x ↦ x, in two dimensions.
    fn identity() -> Mlp {
        let layer = Dense {
            name: "fc".into(),
            inputs: 2,
            outputs: 2,
            weight: vec![1.0, 0.0, 0.0, 1.0],
            bias: None,
        };
        Mlp::new(vec![layer], vec![Pointwise::Identity]).unwrap()
    }

    fn attack(alpha: f64, steps: usize) -> Attack {
        Attack {
            samples: 2,
            steps,
            alpha,
            norm: StepNorm::Sample,
        }
    }

    #[test]
    fn a_step_has_the_length_alpha_and_stays_among_the_data() {
        let samples = Matrix::new(3, 2, vec![0.0, 0.0, 9.0, 9.0, 4.0, 3.0]).unwrap();
        let run = |alpha, steps, prototype: &[f64]| {
            attack(alpha, steps)
                .perturb(&identity(), &samples, &samples, prototype)
                .unwrap()
        };
        // The closest two are the third and the second.
        let moved = run(1.0, 1, &[4.0, 7.0]);
        assert_eq!(moved.row(0), [4.0, 4.0]);
        assert!((distance(moved.row(1), &[9.0, 9.0]) - 1.0).abs() < 1e-12);
        let moved = run(1.0, 3, &[4.0, 7.0]);
        assert_eq!(moved.row(0), [4.0, 6.0]);
        // Beyond the largest number of the samples nothing goes.
        assert_eq!(run(100.0, 1, &[4.0, 7.0]).row(0), [4.0, 9.0]);
        // What is there already has no gradient and stays.
        assert_eq!(run(1.0, 3, &[4.0, 3.0]).row(0), [4.0, 3.0]);
    }

    #[test]
    fn probes_show_the_drift_of_their_class() {
        let samples = Matrix::from_fn(40, 2, |i, j| ((i * 2 + j) as f64 * 0.9).sin());
        let prototypes = Matrix::new(2, 2, vec![-0.5, 0.5, 0.5, -0.5]).unwrap();
        let mut layer = identity().layers()[0].clone();
        layer.bias = Some(vec![0.25, -1.0]);
        let new = Mlp::new(vec![layer], vec![Pointwise::Identity]).unwrap();
        let old = identity();
        let all = features(&old, &samples).unwrap();
        let found = attack(0.2, 3)
            .probes((&old, &new), &samples, &all, &prototypes)
            .unwrap();
        assert_eq!(found.targets, [0, 0, 1, 1]);
        assert_eq!(nearest_prototypes(&prototypes, &found.old), found.targets);
        let mut drift = found.new;
        drift.add_scaled(-1.0, &found.old);
        for i in 0..4 {
            assert!(distance(drift.row(i), &[0.25, -1.0]) < 1e-24);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let samples = Matrix::zeros(3, 2);
        let refused = |attack: Attack, samples: &Matrix, prototype: &[f64]| {
            let features = Matrix::zeros(samples.rows(), 2);
            attack
                .perturb(&identity(), samples, &features, prototype)
                .is_err()
        };
        assert!(refused(attack(f64::NAN, 1), &samples, &[0.0; 2]));
        assert!(refused(attack(-1.0, 1), &samples, &[0.0; 2]));
        assert!(refused(attack(1.0, 0), &samples, &[0.0; 2]));
        assert!(refused(attack(1.0, 1), &samples, &[0.0; 3]));
        assert!(refused(attack(1.0, 1), &Matrix::zeros(0, 2), &[0.0; 2]));
        assert!(refused(attack(1.0, 1), &Matrix::zeros(3, 3), &[0.0; 2]));
        assert!(features(&identity(), &Matrix::zeros(2, 5)).is_err());
        assert_eq!(
            features(&identity(), &Matrix::zeros(0, 2)).unwrap().rows(),
            0
        );
    }
}
