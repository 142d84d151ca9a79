//! A primal active-set method for bounds and one sum (Nocedal and Wright, *Numerical Optimization*, algorithm 16.3).
//!
//! From a feasible point: minimise over the unknowns that are not held at a bound. If the minimiser leaves the set, go as
//! far towards it as the set allows and hold the unknown that stopped the way. If it does not, free the held unknown
//! whose multiplier says most clearly that J would fall; if there is none, the point is optimal. J never rises.

use super::{Constraint, equality};
use crate::{Matrix, Result, dot};

/// Steps a programme of n unknowns may take, as a multiple of n.
const PATIENCE: usize = 20;

/// Where an unknown stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Free,
    Lower,
    Upper,
}

/// A point of the set near `x`: clipped to the bounds and, for a simplex, scaled to sum to one.
pub(super) fn feasible(x: &[f64], constraint: Constraint) -> Vec<f64> {
    let mut x: Vec<f64> = x.iter().map(|x| x.clamp(0.0, constraint.upper())).collect();
    if constraint == Constraint::Simplex {
        let sum: f64 = x.iter().sum();
        if sum > 0.0 && sum.is_finite() {
            if (sum - 1.0).abs() > 1e-14 {
                for x in &mut x {
                    *x /= sum;
                }
            }
        } else {
            let equal = 1.0 / x.len() as f64;
            x.fill(equal);
        }
    }
    x
}

/// The minimiser, from a feasible point; `None` if it was not reached in a sensible number of steps.
pub(super) fn minimise(
    h: &Matrix,
    b: &[f64],
    constraint: Constraint,
    start: Vec<f64>,
    epsilon: f64,
) -> Result<Option<Vec<f64>>> {
    let n = b.len();
    let upper = constraint.upper();
    let mut x = start;
    // Unknowns of an interior-point answer are near their bounds, never at them.
    let near = 1e-7 * x.iter().fold(1e-3_f64, |max, x| max.max(x.abs()));
    let mut states: Vec<State> = x
        .iter()
        .map(|&x| match x {
            x if x <= near => State::Lower,
            x if x >= upper - near => State::Upper,
            _ => State::Free,
        })
        .collect();
    for (x, state) in x.iter_mut().zip(&states) {
        match state {
            State::Lower => *x = 0.0,
            State::Upper => *x = upper,
            State::Free => {}
        }
    }
    let x_sum: f64 = x.iter().sum();
    if constraint.sums_to_one() && x_sum > 0.0 {
        for x in &mut x {
            *x /= x_sum;
        }
    }
    let scale = (0..n)
        .map(|i| h.get(i, i).abs().max(b[i].abs()))
        .fold(0.0, f64::max);
    let tolerance = 1e-11 * scale;

    for _ in 0..PATIENCE * (n + 1) {
        let free: Vec<usize> = (0..n).filter(|&i| states[i] == State::Free).collect();
        let target = face_minimum(h, b, constraint, &free, &states, epsilon)?;
        // The longest step that keeps every free unknown in its bounds.
        let (mut step, mut stopper) = (1.0, None);
        for &i in &free {
            let move_by = target[i] - x[i];
            let (room, state) = if move_by < 0.0 {
                (-x[i] / move_by, State::Lower)
            } else if move_by > 0.0 && upper.is_finite() {
                ((upper - x[i]) / move_by, State::Upper)
            } else {
                continue;
            };
            if room < step {
                (step, stopper) = (room.max(0.0), Some((i, state)));
            }
        }
        if let Some((stopped, state)) = stopper {
            for &i in &free {
                x[i] += step * (target[i] - x[i]);
            }
            states[stopped] = state;
            x[stopped] = if state == State::Lower { 0.0 } else { upper };
            continue;
        }
        x = target;
        // Half the gradient; on the simplex, less its value on the free unknowns.
        let gradient: Vec<f64> = (0..n).map(|i| dot(h.row(i), &x) - b[i]).collect();
        let level = if constraint.sums_to_one() && !free.is_empty() {
            free.iter().map(|&i| gradient[i]).sum::<f64>() / free.len() as f64
        } else {
            0.0
        };
        let mut worst = tolerance;
        let mut released = None;
        for i in 0..n {
            let pull = match states[i] {
                State::Free => continue,
                State::Lower => level - gradient[i],
                State::Upper => gradient[i] - level,
            };
            if pull > worst {
                (worst, released) = (pull, Some(i));
            }
        }
        match released {
            None => return Ok(Some(x)),
            Some(i) => states[i] = State::Free,
        }
    }
    Ok(None)
}

/// The minimiser over the free unknowns, the others at their bounds.
fn face_minimum(
    h: &Matrix,
    b: &[f64],
    constraint: Constraint,
    free: &[usize],
    states: &[State],
    epsilon: f64,
) -> Result<Vec<f64>> {
    let upper = constraint.upper();
    let held: Vec<f64> = states
        .iter()
        .map(|&state| if state == State::Upper { upper } else { 0.0 })
        .collect();
    if free.is_empty() {
        return Ok(held);
    }
    let shifted: Vec<f64> = (0..b.len()).map(|i| b[i] - dot(h.row(i), &held)).collect();
    let sum = constraint.sums_to_one().then_some(1.0);
    let (mut x, _) = equality(h, &shifted, free, sum, epsilon)?;
    for (x, held) in x.iter_mut().zip(held) {
        *x += held;
    }
    Ok(x)
}
