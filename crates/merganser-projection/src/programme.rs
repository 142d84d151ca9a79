//! What is solved for: a basis, a constraint on its coefficients, and a ridge.

use std::fmt;
use std::str::FromStr;

use merganser_linalg::qp::Constraint;

use crate::{Error, Result};

/// Which updates Δ = Σ α_k B_k are considered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Basis {
    /// The updates Δ_t themselves: one coefficient a task.
    Task,
    /// e_i e_iᵀ Δ_t: one coefficient for each task and output coordinate.
    Diagonal,
    /// q_i q_iᵀ Δ_t: the same in the output basis of the eigenvectors q_i of K = Δ* G Δ*ᵀ, the residual energy matrix.
    Rotated,
    /// u_k v_kᵀ: this many leading singular pairs of every Δ_t.
    Atoms {
        /// Pairs of one task.
        rank: usize,
    },
    /// All Q_Uᵀ M Q_V: everything between the row and column spaces of the updates taken together.
    Core {
        /// Leading singular pairs of every Δ_t that span the spaces; all that are above rounding if not given.
        rank: Option<usize>,
    },
    /// Every update of this rank (beside the prior): reduced-rank regression.
    BestRank {
        /// The rank.
        rank: usize,
    },
    /// Every update.
    Full,
    /// The first of task, diagonal, rotated, core and full that captures as much as full, up to a tolerance.
    Auto {
        /// How much less of the residual energy it may capture.
        tolerance: f64,
    },
}

/// How strongly Δ is drawn to the prior: J + λ · tr(G)/d · ‖Δ − prior‖².
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ridge {
    /// This λ.
    Relative(f64),
    /// The λ of a grid (0, and 10⁻⁸ to 10 in half decades) with the least J on held-out samples when the others are
    /// fitted; the answer is fitted on all.
    Auto,
}

/// A basis, a constraint and a ridge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Programme {
    /// Which updates are considered.
    pub basis: Basis,
    /// The set coefficients are kept in. Bases without a list of coefficients (core, best-rank, full) have none.
    pub constraint: Constraint,
    /// How strongly the answer is drawn to the prior.
    pub ridge: Ridge,
}

impl Programme {
    /// A basis with free coefficients and no ridge.
    pub fn new(basis: Basis) -> Self {
        Self {
            basis,
            constraint: Constraint::Free,
            ridge: Ridge::Relative(0.0),
        }
    }

    /// The same with another constraint.
    #[must_use]
    pub fn constraint(self, constraint: Constraint) -> Self {
        Self { constraint, ..self }
    }

    /// The same with another ridge.
    #[must_use]
    pub fn ridge(self, ridge: Ridge) -> Self {
        Self { ridge, ..self }
    }
}

impl Basis {
    /// Whether the basis is a list whose coefficients can be constrained.
    pub fn has_coefficients(self) -> bool {
        matches!(
            self,
            Self::Task | Self::Diagonal | Self::Rotated | Self::Atoms { .. } | Self::Auto { .. }
        )
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task => f.write_str("task"),
            Self::Diagonal => f.write_str("diagonal"),
            Self::Rotated => f.write_str("rotated"),
            Self::Atoms { rank } => write!(f, "atoms({rank})"),
            Self::Core { rank: None } => f.write_str("core"),
            Self::Core { rank: Some(rank) } => write!(f, "core({rank})"),
            Self::BestRank { rank } => write!(f, "best-rank({rank})"),
            Self::Full => f.write_str("full"),
            Self::Auto { tolerance } => write!(f, "auto({tolerance})"),
        }
    }
}

/// How much less than full `auto` lets a basis capture if nothing is said.
pub const AUTO_TOLERANCE: f64 = 0.01;

impl FromStr for Basis {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::UnknownBasis { found: text.into() };
        let (name, argument) = match text.split_once('(') {
            Some((name, rest)) => (name, Some(rest.strip_suffix(')').ok_or_else(unknown)?)),
            None => (text, None),
        };
        let rank = || -> Result<usize> {
            argument
                .and_then(|text| text.trim().parse().ok())
                .filter(|&rank| rank > 0)
                .ok_or_else(unknown)
        };
        match (name.trim(), argument) {
            ("task", None) => Ok(Self::Task),
            ("diagonal", None) => Ok(Self::Diagonal),
            ("rotated", None) => Ok(Self::Rotated),
            ("core", None) => Ok(Self::Core { rank: None }),
            ("core", Some(_)) => Ok(Self::Core {
                rank: Some(rank()?),
            }),
            ("full", None) => Ok(Self::Full),
            ("atoms", Some(_)) => Ok(Self::Atoms { rank: rank()? }),
            ("best-rank", Some(_)) => Ok(Self::BestRank { rank: rank()? }),
            ("auto", None) => Ok(Self::Auto {
                tolerance: AUTO_TOLERANCE,
            }),
            ("auto", Some(text)) => text
                .trim()
                .parse()
                .ok()
                .filter(|tolerance| (0.0..=1.0).contains(tolerance))
                .map(|tolerance| Self::Auto { tolerance })
                .ok_or_else(unknown),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_read_as_they_are_written() {
        for text in [
            "task",
            "diagonal",
            "rotated",
            "atoms(4)",
            "core",
            "core(8)",
            "best-rank(16)",
            "full",
            "auto(0.01)",
        ] {
            assert_eq!(text.parse::<Basis>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "atoms",
            "atoms(0)",
            "best-rank(x)",
            "core(",
            "auto(2)",
            "full(1)",
            "auto(NaN)",
        ] {
            assert!(text.parse::<Basis>().is_err(), "{text}");
        }
    }
}
