//! Methods that look at one element at a time.

use super::{Vector, at, minus, times, weighted_sum};

/// Σ w_i x_i, divided by Σ w_i if `normalize`.
pub fn linear(xs: &[Vector], weights: &[f64], normalize: bool) -> Vector {
    let divisor = if normalize { weights.iter().sum() } else { 1.0 };
    times(1.0 / divisor, &weighted_sum(xs, weights))
}

/// ω x + (1 − ω) base, ω = clamp(t / max(|base − x|, 1e-6), 0, 1).
pub fn nearswap(base: &[f64], x: &[f64], t: f64) -> Vector {
    base.iter()
        .zip(x)
        .map(|(b, x)| {
            let omega = (t / (b - x).abs().max(1e-6)).clamp(0.0, 1.0);
            omega * x + (1.0 - omega) * b
        })
        .collect()
}

/// base + the mean of the deltas larger than `epsilon`.
pub fn ram(base: &[f64], deltas: &[Vector], epsilon: f64) -> Vector {
    ram_with(base, deltas, epsilon, &vec![1.0; deltas.len()])
}

/// [`ram`] with what one model changes alone multiplied by 1 + r · clamp(shared/unique, 0, α).
pub fn ramplus_tl(base: &[f64], deltas: &[Vector], epsilon: f64, r: f64, alpha: f64) -> Vector {
    let (mut unique, mut shared) = (vec![0.0; deltas.len()], vec![0.0; deltas.len()]);
    for j in 0..base.len() {
        let active: Vec<bool> = at(deltas, j).iter().map(|d| d.abs() > epsilon).collect();
        let count = active.iter().filter(|a| **a).count();
        for i in (0..deltas.len()).filter(|&i| active[i]) {
            *(if count == 1 {
                &mut unique[i]
            } else {
                &mut shared[i]
            }) += 1.0;
        }
    }
    let factors: Vector = unique
        .iter()
        .zip(&shared)
        .map(|(unique, shared): (&f64, &f64)| {
            1.0 + r * (shared / unique.max(epsilon)).clamp(0.0, alpha)
        })
        .collect();
    ram_with(base, deltas, epsilon, &factors)
}

fn ram_with(base: &[f64], deltas: &[Vector], epsilon: f64, alone: &[f64]) -> Vector {
    (0..base.len())
        .map(|j| {
            let active: Vec<usize> = (0..deltas.len())
                .filter(|&i| deltas[i][j].abs() > epsilon)
                .collect();
            let sum: f64 = active.iter().map(|&i| deltas[i][j]).sum();
            base[j]
                + match active[..] {
                    [] => 0.0,
                    [i] => alone[i] * deltas[i][j],
                    _ => sum / active.len() as f64,
                }
        })
        .collect()
}

/// base + λ · the delta of largest magnitude, the last of equals.
pub fn magmax(base: &[f64], deltas: &[Vector], lambda: f64) -> Vector {
    let largest = |j| {
        at(deltas, j)
            .into_iter()
            .max_by(|a, b| a.abs().total_cmp(&b.abs()))
            .unwrap_or(0.0)
    };
    (0..base.len())
        .map(|j| base[j] + lambda * largest(j))
        .collect()
}

/// Where |d_task| > `tall_lambda` · |Σ d − d_task|.
pub fn tall_mask(deltas: &[Vector], task: usize, tall_lambda: f64) -> Vec<bool> {
    let sum = weighted_sum(deltas, &vec![1.0; deltas.len()]);
    let others = minus(&sum, &deltas[task]);
    deltas[task]
        .iter()
        .zip(&others)
        .map(|(d, o)| d.abs() > tall_lambda * o.abs())
        .collect()
}

/// base + λ · Σ d where the mask of `task` is set.
pub fn tall_localized(
    base: &[f64],
    deltas: &[Vector],
    task: usize,
    tall_lambda: f64,
    lambda: f64,
) -> Vector {
    let sum = weighted_sum(deltas, &vec![lambda; deltas.len()]);
    let mask = tall_mask(deltas, task, tall_lambda);
    (0..base.len())
        .map(|j| base[j] + if mask[j] { sum[j] } else { 0.0 })
        .collect()
}

/// base + λ · Σ d where at least `threshold` masks are set.
pub fn consensus(
    base: &[f64],
    deltas: &[Vector],
    tall_lambdas: &[f64],
    threshold: usize,
    lambda: f64,
) -> Vector {
    let sum = weighted_sum(deltas, &vec![lambda; deltas.len()]);
    let masks: Vec<Vec<bool>> = (0..deltas.len())
        .map(|t| tall_mask(deltas, t, tall_lambdas[t]))
        .collect();
    (0..base.len())
        .map(|j| {
            let votes = masks.iter().filter(|mask| mask[j]).count();
            base[j] + if votes >= threshold { sum[j] } else { 0.0 }
        })
        .collect()
}

/// What EMR makes of the task vectors of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Emr {
    /// γ · max{ |d_t| : γ d_t > 0 }.
    pub unified: Vector,
    /// γ d_t > 0, for every task.
    pub masks: Vec<Vec<bool>>,
}

/// Elects and masks.
pub fn emr(deltas: &[Vector]) -> Emr {
    let len = deltas.first().map_or(0, Vec::len);
    let sign: Vector = (0..len)
        .map(|j| {
            if at(deltas, j).iter().sum::<f64>() > 0.0 {
                1.0
            } else {
                -1.0
            }
        })
        .collect();
    let masks: Vec<Vec<bool>> = deltas
        .iter()
        .map(|d| {
            d.iter()
                .zip(&sign)
                .map(|(d, sign)| d * sign > 0.0)
                .collect()
        })
        .collect();
    let largest = |j: usize| {
        let agreeing = deltas
            .iter()
            .zip(&masks)
            .filter(|(_, mask)| mask[j])
            .map(|(d, _)| d[j].abs());
        sign[j] * agreeing.fold(0.0, f64::max)
    };
    Emr {
        unified: (0..len).map(largest).collect(),
        masks,
    }
}

/// EMR's factor of every task, from the deltas of all tensors: Σ mean|d_t| / Σ mean|m_t τ_u|.
pub fn emr_rescalers(tensors: &[Vec<Vector>]) -> Vector {
    let tasks = tensors.first().map_or(0, Vec::len);
    let mean = |x: Vector| x.iter().map(|x| x.abs()).sum::<f64>() / x.len() as f64;
    (0..tasks)
        .map(|t| {
            let own: f64 = tensors.iter().map(|deltas| mean(deltas[t].clone())).sum();
            let kept = tensors.iter().map(|deltas| {
                let Emr { unified, masks } = emr(deltas);
                mean(
                    unified
                        .iter()
                        .zip(&masks[t])
                        .map(|(u, m)| if *m { *u } else { 0.0 })
                        .collect(),
                )
            });
            own / kept.sum::<f64>()
        })
        .collect()
}

/// What [`fisher`] makes of a Fisher information.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Information {
    /// MergeLM: F + floor, weighted by w / (‖F‖ + 1e-6).
    MergeLm,
    /// Matena and Raffel: max(F, floor), weighted by w / ‖F‖; the floor for the first model only if the flag is set.
    Matena {
        /// `favor_target_model`.
        favor_target: bool,
    },
}

/// Σ c F x / Σ c F; `norms` are those of whole models, or `None` to leave them out.
pub fn fisher(
    xs: &[Vector],
    information: &[Vector],
    weights: &[f64],
    norms: Option<&[f64]>,
    floor: f64,
    form: Information,
) -> Vector {
    let precision = |i: usize, j: usize| {
        let stored = information[i][j];
        match form {
            Information::MergeLm => {
                (stored + floor) * weights[i] / norms.map_or(1.0, |n| n[i] + 1e-6)
            }
            Information::Matena { favor_target } => {
                let floored = if i == 0 || !favor_target {
                    stored.max(floor)
                } else {
                    stored
                };
                floored * weights[i] / norms.map_or(1.0, |n| n[i])
            }
        }
    };
    (0..xs[0].len())
        .map(|j| {
            let total: f64 = (0..xs.len()).map(|i| precision(i, j)).sum();
            (0..xs.len())
                .map(|i| precision(i, j) * xs[i][j])
                .sum::<f64>()
                / total
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_elements() {
        assert_eq!(linear(&[vec![1.0], vec![3.0]], &[1.0, 3.0], true), [2.5]);
        assert_eq!(nearswap(&[1.0, 1.0], &[3.0, 1.1], 0.5), [1.5, 1.1]);
        assert_eq!(
            ram(&[1.0, 1.0], &[vec![1.0, 0.0], vec![3.0, 2.0]], 0.5),
            [3.0, 3.0]
        );
        assert_eq!(
            magmax(&[0.0], &[vec![-2.0], vec![2.0], vec![1.0]], 1.0),
            [2.0]
        );
        assert_eq!(
            consensus(
                &[0.0, 0.0],
                &[vec![1.0, 1.0], vec![1.0, 0.0]],
                &[0.5, 0.5],
                2,
                1.0
            ),
            [2.0, 0.0]
        );
        assert_eq!(emr(&[vec![1.0, -1.0], vec![3.0, 0.5]]).unified, [3.0, -1.0]);
        assert_eq!(emr_rescalers(&[vec![vec![2.0], vec![4.0]]]), [0.5, 1.0]);
    }
}
