//! What a merge by singular vectors gives for one matrix.

use merganser_linalg::{Matrix, Real};

/// A merged update, and in how many directions it was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged<T> {
    /// The update, m×n.
    pub update: Matrix<T>,
    /// Directions that were merged. Those beyond the numerical range of the updates are rounding, and left out.
    pub rank: usize,
    /// Directions that the method takes from updates of full rank.
    pub full: usize,
    /// The largest ‖D − Q Qᵀ D‖_F / ‖D‖_F of the updates D whose directions were found by random projection; 0 where all
    /// decompositions are exact. It holds what the method cuts off by design, too.
    pub residual: f64,
}

impl<T: Real> Merged<T> {
    /// In all the directions there are.
    pub fn whole(update: Matrix<T>) -> Self {
        let full = update.rows().min(update.cols());
        Self {
            update,
            rank: full,
            full,
            residual: 0.0,
        }
    }

    /// The same with the update in another precision.
    pub(crate) fn cast<U: Real>(self) -> Merged<U> {
        Merged {
            update: self.update.cast(),
            rank: self.rank,
            full: self.full,
            residual: self.residual,
        }
    }
}
