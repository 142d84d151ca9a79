//! Where a method gets the updates of a matrix from: from memory, or one after the other from wherever they lie.

use std::borrow::Cow;

use merganser_linalg::{Matrix, Real};

use crate::error::check_shape;
use crate::{Error, Result};

/// The updates of one matrix by all tasks. Methods look at one at a time, some of them twice, and hold no more of each than
/// they must, so that what they need does not grow with the number of tasks.
pub trait Updates<T: Real> {
    /// The number of tasks.
    fn tasks(&self) -> usize;

    /// Rows and columns of all updates.
    ///
    /// # Errors
    /// If there is no update.
    fn shape(&self) -> Result<(usize, usize)>;

    /// The update of a task, the same every time.
    ///
    /// # Errors
    /// [`Error::Unreadable`], for example.
    fn update(&self, task: usize) -> Result<Cow<'_, Matrix<T>>>;

    /// The update of a task, checked: of the right shape and finite.
    ///
    /// # Errors
    /// Those of [`update`](Self::update), and if it is neither.
    fn checked(&self, task: usize) -> Result<Cow<'_, Matrix<T>>> {
        let update = self.update(task)?;
        let what = || format!("the update of task {task}");
        check_shape(what, update.shape(), self.shape()?)?;
        update.check_finite().map_err(|problem| Error::NotFinite {
            what: what(),
            problem,
        })?;
        Ok(update)
    }
}

impl<T: Real> Updates<T> for [&Matrix<T>] {
    fn tasks(&self) -> usize {
        self.len()
    }

    fn shape(&self) -> Result<(usize, usize)> {
        Ok(self.first().ok_or(Error::NoTasks)?.shape())
    }

    fn update(&self, task: usize) -> Result<Cow<'_, Matrix<T>>> {
        Ok(Cow::Borrowed(self[task]))
    }
}

impl<T: Real> Updates<T> for Vec<&Matrix<T>> {
    fn tasks(&self) -> usize {
        self.as_slice().tasks()
    }

    fn shape(&self) -> Result<(usize, usize)> {
        self.as_slice().shape()
    }

    fn update(&self, task: usize) -> Result<Cow<'_, Matrix<T>>> {
        self.as_slice().update(task)
    }
}

impl<T: Real, const N: usize> Updates<T> for [&Matrix<T>; N] {
    fn tasks(&self) -> usize {
        N
    }

    fn shape(&self) -> Result<(usize, usize)> {
        self.as_slice().shape()
    }

    fn update(&self, task: usize) -> Result<Cow<'_, Matrix<T>>> {
        self.as_slice().update(task)
    }
}

/// The shape of all updates, of which each was looked at.
pub(crate) fn checked_shape<T: Real>(
    updates: &(impl Updates<T> + ?Sized),
) -> Result<(usize, usize)> {
    for task in 0..updates.tasks() {
        updates.checked(task)?;
    }
    updates.shape()
}

/// Σ_t D_t.
pub(crate) fn sum<T: Real>(updates: &(impl Updates<T> + ?Sized)) -> Result<Matrix> {
    let (m, n) = updates.shape()?;
    let mut sum = Matrix::zeros(m, n);
    for task in 0..updates.tasks() {
        let update = updates.checked(task)?;
        for (sum, x) in sum.as_mut_slice().iter_mut().zip(update.as_slice()) {
            *sum += x.to_f64();
        }
    }
    Ok(sum)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::testing::update;
    use crate::{Aligned, cart, iso_c, iso_cts, tsv_m};

    /// Updates made when they are asked for; the last of them cannot be had after so many times.
    struct Made {
        tasks: u32,
        left: Cell<usize>,
    }

    impl Made {
        fn new(left: usize) -> Self {
            Self {
                tasks: 3,
                left: Cell::new(left),
            }
        }
    }

    impl Updates<f64> for Made {
        fn tasks(&self) -> usize {
            self.tasks as usize
        }

        fn shape(&self) -> Result<(usize, usize)> {
            Ok((8, 11))
        }

        fn update(&self, task: usize) -> Result<Cow<'_, Matrix>> {
            if task + 1 == self.tasks() {
                let left = self.left.get().checked_sub(1);
                let gone = || Error::Unreadable("the disk is gone".into());
                self.left.set(left.ok_or_else(gone)?);
            }
            Ok(Cow::Owned(update(task as u32, 8, 11)))
        }
    }

    fn all(updates: &impl Updates<f64>) -> [Result<Matrix>; 4] {
        [
            tsv_m(updates, None).map(|x| x.update),
            iso_c(updates).map(|x| x.update),
            iso_cts(updates, 0.5).map(|x| x.update),
            cart(updates, 0.3, 0.5),
        ]
    }

    #[test]
    fn updates_are_merged_wherever_they_lie() {
        let here: Vec<Matrix> = (0..3).map(|task| update(task, 8, 11)).collect();
        let here: Vec<&Matrix> = here.iter().collect();
        assert_eq!(all(&Made::new(usize::MAX)), all(&here));
        assert_eq!(
            Aligned::of_updates(&Made::new(1)).unwrap(),
            Aligned::of_updates(&here).unwrap()
        );
        // Each of these reads every update once or twice.
        for merge in [
            |made: &Made| tsv_m(made, None).err(),
            |made: &Made| iso_c(made).err(),
            |made: &Made| iso_cts(made, 0.5).err(),
            |made: &Made| cart(made, 0.3, 0.5).err(),
            |made: &Made| Aligned::of_updates(made).err(),
        ] {
            assert_eq!(merge(&Made::new(2)), None);
            assert!(matches!(merge(&Made::new(0)), Some(Error::Unreadable(_))));
        }
    }

    #[test]
    fn every_update_is_checked() {
        let (good, other) = (update(1, 4, 3), update(1, 3, 4));
        let nan = Matrix::from_fn(4, 3, |_, _| f64::NAN);
        assert!(checked_shape(&[&good, &other]).is_err());
        assert!(checked_shape(&[&good, &nan]).is_err());
        assert!(checked_shape::<f64>(&Vec::new()).is_err());
        assert_eq!(checked_shape(&[&good, &good]).unwrap(), (4, 3));
    }
}
