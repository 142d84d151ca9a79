//! Task arithmetic, sign election and what is built on them.

use super::{Vector, at, plus, times};

/// The steps of mergekit's task-arithmetic family after sparsifying.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// Elect a sign for every element.
    pub elect: bool,
    /// Divide by the weights that take part.
    pub normalize: bool,
    /// Factor of the result.
    pub lambda: f64,
}

/// base + λ · the merged task vectors; `deltas` are sparsified and rescaled already.
pub fn merge_task_vectors(
    base: &[f64],
    deltas: &[Vector],
    weights: &[f64],
    family: Family,
) -> Vector {
    let merged = (0..base.len()).map(|j| {
        let terms: Vector = at(deltas, j)
            .iter()
            .zip(weights)
            .map(|(d, w)| d * w)
            .collect();
        let elected = if terms.iter().sum::<f64>() >= 0.0 {
            1.0
        } else {
            -1.0
        };
        let takes_part = |term: &f64| !family.elect || term * elected > 0.0;
        let mixed: f64 = terms.iter().filter(|term| takes_part(term)).sum();
        let divisor: f64 = terms
            .iter()
            .zip(weights)
            .filter(|(term, _)| takes_part(term))
            .map(|(_, w)| w)
            .sum();
        let too_small = if family.elect {
            divisor == 0.0
        } else {
            divisor.abs() < 1e-8
        };
        if family.normalize && !too_small {
            mixed / divisor
        } else {
            mixed
        }
    });
    plus(base, &times(family.lambda, &merged.collect::<Vector>()))
}

/// How TIES joins the entries that agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
    /// The largest of them.
    Max,
}

/// The merged task vector of the TIES paper's code; `deltas` are whole models. Keeps |x| ≥ the (d − floor(d·K))-th
/// smallest; a sum of zero takes the sign of the majority of the others' signs.
pub fn ties_paper(deltas: &[Vector], keep: f64, aggregate: Aggregate) -> Vector {
    let trimmed: Vec<Vector> = deltas
        .iter()
        .map(|delta| {
            let mut sizes: Vector = delta.iter().map(|x| x.abs()).collect();
            sizes.sort_by(f64::total_cmp);
            let rank = delta.len() - (delta.len() as f64 * keep) as usize;
            let cut = if rank == 0 { 0.0 } else { sizes[rank - 1] };
            delta
                .iter()
                .map(|x| if x.abs() >= cut { *x } else { 0.0 })
                .collect()
        })
        .collect();
    let len = trimmed.first().map_or(0, Vec::len);
    let sign = |x: f64| {
        if x > 0.0 {
            1.0
        } else if x < 0.0 {
            -1.0
        } else {
            0.0
        }
    };
    let signs: Vector = (0..len)
        .map(|j| sign(at(&trimmed, j).iter().sum()))
        .collect();
    let majority = sign(signs.iter().sum());
    (0..len)
        .map(|j| {
            let elected = if signs[j] == 0.0 { majority } else { signs[j] };
            let agrees = |x: &f64| if elected > 0.0 { *x > 0.0 } else { *x < 0.0 };
            let kept: Vector = at(&trimmed, j).into_iter().filter(agrees).collect();
            let sum: f64 = kept.iter().sum();
            match aggregate {
                Aggregate::Sum => sum,
                Aggregate::Mean => sum / kept.len().max(1) as f64,
                Aggregate::Max => elected * kept.iter().map(|x| x.abs()).fold(0.0, f64::max),
            }
        })
        .collect()
}

/// SCE: the elements of largest variance over the models, their majority signs, weights from the energies.
pub fn sce(base: &[f64], deltas: &[Vector], select_topk: f64) -> Vector {
    let n = base.len();
    let variance: Vector = (0..n)
        .map(|j| {
            let x = at(deltas, j);
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64
        })
        .collect();
    let mut kept = vec![select_topk >= 1.0; n];
    if select_topk < 1.0 {
        let nonzero = variance.iter().filter(|v| **v != 0.0).count();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| variance[b].total_cmp(&variance[a]));
        for &j in &order[..(nonzero as f64 * select_topk.max(0.0)) as usize] {
            kept[j] = true;
        }
    }
    let masked: Vec<Vector> = deltas
        .iter()
        .map(|d| {
            d.iter()
                .zip(&kept)
                .map(|(d, k)| if *k { *d } else { 0.0 })
                .collect()
        })
        .collect();
    let energy: Vector = masked
        .iter()
        .map(|d| d.iter().map(|x| x * x).sum::<f64>() / n as f64)
        .collect();
    let total: f64 = energy.iter().sum();
    let share = |e: f64| {
        if total.abs() < 1e-6 {
            1.0 / deltas.len() as f64
        } else {
            e / total
        }
    };
    let weights: Vector = energy.into_iter().map(share).collect();
    (0..n)
        .map(|j| {
            let x = at(&masked, j);
            let elected = if x.iter().sum::<f64>() >= 0.0 {
                1.0
            } else {
                -1.0
            };
            let agreeing = || (0..x.len()).filter(|&i| x[i] * elected > 0.0);
            let sum: f64 = agreeing().map(|i| weights[i] * x[i]).sum();
            base[j] + sum / agreeing().map(|i| weights[i]).sum::<f64>().max(1e-6)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::weighted_sum;
    use super::*;

    #[test]
    fn without_election_it_is_a_weighted_sum() {
        let deltas = [vec![1.0, -2.0], vec![3.0, 1.0]];
        let family = Family {
            elect: false,
            normalize: false,
            lambda: 0.5,
        };
        let sum = weighted_sum(&deltas, &[1.0, 2.0]);
        assert_eq!(
            merge_task_vectors(&[1.0, 1.0], &deltas, &[1.0, 2.0], family),
            plus(&[1.0; 2], &times(0.5, &sum))
        );
    }

    #[test]
    fn the_minority_is_left_out() {
        let deltas = [vec![1.0], vec![3.0], vec![-2.0]];
        let family = Family {
            elect: true,
            normalize: true,
            lambda: 1.0,
        };
        assert_eq!(
            merge_task_vectors(&[0.0], &deltas, &[1.0, 1.0, 1.0], family),
            [2.0]
        );
        assert_eq!(ties_paper(&deltas, 1.0, Aggregate::Sum), [4.0]);
        assert_eq!(ties_paper(&deltas, 1.0, Aggregate::Max), [3.0]);
        assert_eq!(sce(&[0.0], &[vec![1.0], vec![1.0]], 1.0), [1.0]);
    }
}
