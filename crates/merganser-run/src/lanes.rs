//! Work on whole matrices: as many at a time as the budget has room for.
//!
//! A decomposition runs on one thread for the most part, so matrices are worked on side by side, one a lane; what their
//! products leave of the threads is shared.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::RunError;
use crate::execute::readable;

/// The budget where none is given, in bytes; or what one matrix takes, where that is more.
pub const USUAL_MEMORY: u64 = 2 << 30;

/// How many matrices have room in `memory`, if `tensor` is the one that needs most: `needed` bytes. Without a budget one always
/// has.
///
/// # Errors
/// If not even one has.
pub(crate) fn affordable(
    memory: Option<u64>,
    needed: u64,
    tensor: &str,
) -> Result<usize, RunError> {
    let memory = memory.unwrap_or_else(|| USUAL_MEMORY.max(needed));
    if needed > memory {
        return Err(RunError::Memory {
            budget: readable(memory),
            needed: readable(needed),
            tensor: tensor.to_owned(),
        });
    }
    Ok((memory / needed.max(1)).min(1 << 16) as usize)
}

/// Does `work` on every item, on at most `lanes` of them at a time, and gives what came of it in the order of the items.
///
/// # Errors
/// The first in that order of those that occurred before the lanes stopped.
pub(crate) fn in_lanes<T: Sync, R: Send>(
    items: &[T],
    lanes: usize,
    work: impl Fn(&T) -> Result<R, RunError> + Sync,
) -> Result<Vec<R>, RunError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let lane = || {
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return };
            let result = work(item);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((i, result));
        }
    };
    rayon::scope(|scope| {
        for _ in 0..lanes.clamp(1, rayon::current_num_threads()) {
            scope.spawn(|_| lane());
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_and_errors_come_through() {
        let items: Vec<usize> = (0..100).collect();
        for lanes in [0, 1, 3, 1000] {
            let doubled = in_lanes(&items, lanes, |i| Ok(2 * i)).unwrap();
            assert_eq!(doubled, items.iter().map(|i| 2 * i).collect::<Vec<_>>());
        }
        let odd = |i: &usize| {
            if *i == 7 {
                Err(RunError::Extract("seven".into()))
            } else {
                Ok(())
            }
        };
        assert_eq!(in_lanes(&items, 2, odd).unwrap_err().to_string(), "seven");
    }

    #[test]
    fn the_budget_decides_how_many() {
        assert_eq!(affordable(Some(100), 30, "w").unwrap(), 3);
        assert_eq!(affordable(None, USUAL_MEMORY / 2, "w").unwrap(), 2);
        assert_eq!(affordable(None, 3 * USUAL_MEMORY, "w").unwrap(), 1);
        let error = affordable(Some(2 << 20), 3 << 20, "w")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--memory 2.0 MiB is too small") && error.contains("3.0 MiB"),
            "{error}"
        );
    }
}
