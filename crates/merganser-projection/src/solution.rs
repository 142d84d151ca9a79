//! What solving a programme gives.

use std::fmt;

use merganser_linalg::{Matrix, Real};

use crate::{Basis, Captured};

/// The best update of a basis.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution<T: Real = f64> {
    /// Δ, m×d, to be added to the base.
    pub update: Matrix<T>,
    /// The basis; for `auto` the one that was taken.
    pub basis: Basis,
    /// Its coefficients.
    pub coefficients: Coefficients,
    /// Δ − prior as a product of two thin matrices, where the basis gives one.
    pub factors: Option<Factors<T>>,
    /// Which share of the residual energy it captures.
    pub captured: Captured,
    /// λ, as used.
    pub ridge: f64,
    /// What a reader of the answer should know.
    pub notes: Vec<Note>,
}

/// Coefficients of a basis.
#[derive(Debug, Clone, PartialEq)]
pub enum Coefficients {
    /// The basis is not a list.
    None,
    /// One a member, as `task`, a span of matrices, and `atoms` (all of task 0, then of task 1, …) have.
    List(Vec<f64>),
    /// T×m: one for each task and output coordinate (of the rotated basis for `rotated`, whose last column stands for
    /// all coordinates without energy where there are more outputs than inputs).
    PerOutput(Matrix),
}

/// B A with B m×r and A r×d: a LoRA of rank r.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors<T: Real = f64> {
    /// B, m×r.
    pub b: Matrix<T>,
    /// A, r×d.
    pub a: Matrix<T>,
}

/// What a reader of a solution should know.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Note {
    /// Fewer samples than inputs: the Gram matrix is singular, whatever the data.
    FewSamples {
        /// Samples of all tasks.
        samples: u64,
        /// Numbers of an input.
        inputs: usize,
    },
    /// The data do not determine the answer; of all that are equally good, the one nearest to the prior was taken.
    MinimumNorm {
        /// Directions that the data determine.
        rank: usize,
        /// Directions there are.
        of: usize,
    },
    /// The matrix was not positive definite with the ridge asked for.
    RidgeRaised {
        /// λ asked for.
        from: f64,
        /// λ used.
        to: f64,
    },
    /// λ was chosen on held-out samples.
    RidgeChosen {
        /// λ.
        ridge: f64,
        /// The fraction of the held-out energy it captures.
        held_out: f64,
    },
    /// There is no residual energy: the teachers agree with the base on all samples.
    NoEnergy,
    /// An `f32` solve was refined.
    Refined {
        /// Steps.
        steps: usize,
        /// Relative residual of the answer.
        residual: f64,
    },
    /// A constraint was given for a basis that has no coefficients to constrain.
    ConstraintIgnored,
    /// The rank asked for is larger than there can be.
    RankReduced {
        /// The rank asked for.
        from: usize,
        /// The rank taken.
        to: usize,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewSamples { samples, inputs } => {
                write!(
                    f,
                    "{samples} samples for {inputs} inputs: the Gram matrix is singular"
                )
            }
            Self::MinimumNorm { rank, of } => write!(
                f,
                "the data determine {rank} of {of} directions; the solution nearest to the prior was taken"
            ),
            Self::RidgeRaised { from, to } => {
                write!(
                    f,
                    "the ridge was raised from {from:e} to {to:e} to make the system solvable"
                )
            }
            Self::RidgeChosen { ridge, held_out } => write!(
                f,
                "ridge {ridge:e} captures most of the held-out energy ({:.1} %)",
                100.0 * held_out
            ),
            Self::NoEnergy => f.write_str("no residual energy: the models agree on all samples"),
            Self::Refined { steps, residual } => {
                write!(
                    f,
                    "solved in f32 with {steps} steps of refinement, residual {residual:.1e}"
                )
            }
            Self::ConstraintIgnored => f.write_str("this basis has no coefficients to constrain"),
            Self::RankReduced { from, to } => {
                write!(f, "rank {from} was reduced to {to}, the largest there is")
            }
        }
    }
}
