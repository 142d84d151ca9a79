//! Sparsifiers and methods that select elements of a whole tensor by rank. Equal keys rank in index order.

use super::{Vector, dot, plus};

/// Indices in ascending order of `key`, lower index first among equals.
fn ascending(key: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..key.len()).collect();
    order.sort_by(|&a, &b| key[a].total_cmp(&key[b]));
    order
}

fn magnitudes(x: &[f64]) -> Vector {
    x.iter().map(|x| x.abs()).collect()
}

/// Whether each element is among the kept ones.
fn mask(kept: &[usize], len: usize) -> Vec<bool> {
    let mut mask = vec![false; len];
    for &j in kept {
        mask[j] = true;
    }
    mask
}

/// Which elements the largest max(1, int(density · n)) magnitudes are; among equals the lowest indices are kept.
pub fn magnitude(delta: &[f64], density: f64) -> Vec<bool> {
    let n = delta.len();
    if density >= 1.0 {
        return vec![true; n];
    }
    if density <= 0.0 {
        return vec![false; n];
    }
    let keep = ((density * n as f64) as usize).max(1).min(n);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| delta[b].abs().total_cmp(&delta[a].abs()));
    mask(&order[..keep], n)
}

/// Which elements breadcrumbs keeps: ranks bottom … bottom + target − 1 in ascending order of magnitude, with
/// target = int(density · n), top = int(gamma · n), bottom = max(0, n − target − top).
pub fn outliers(delta: &[f64], density: f64, gamma: f64) -> Vec<bool> {
    let n = delta.len();
    if density >= 1.0 {
        return vec![true; n];
    }
    let (target, top) = ((density * n as f64) as usize, (gamma * n as f64) as usize);
    let bottom = n.saturating_sub(target + top);
    mask(&ascending(&magnitudes(delta))[bottom..bottom + target], n)
}

/// DELLA's keep probability of every element: density − ε + 2ε · rank/(L − 1) in each row of `row` elements; the density
/// itself in rows of one.
pub fn della_keep_probabilities(delta: &[f64], row: usize, density: f64, epsilon: f64) -> Vector {
    let mut probabilities = vec![density; delta.len()];
    if row < 2 {
        return probabilities;
    }
    for (delta, probabilities) in delta.chunks(row).zip(probabilities.chunks_mut(row)) {
        for (rank, j) in ascending(&magnitudes(delta)).into_iter().enumerate() {
            probabilities[j] = density - epsilon + 2.0 * epsilon * rank as f64 / (row - 1) as f64;
        }
    }
    probabilities
}

/// The factor that restores the L1 norm of `delta` to what `kept` leaves of it; 1 if either is below 1e-7.
pub fn l1_factor(delta: &[f64], kept: &[bool]) -> f64 {
    let all: f64 = magnitudes(delta).iter().sum();
    let left: f64 = delta
        .iter()
        .zip(kept)
        .map(|(d, kept)| if *kept { d.abs() } else { 0.0 })
        .sum();
    if all < 1e-7 || left < 1e-7 {
        1.0
    } else {
        all / left
    }
}

/// Arcee Fusion: takes x where |x − base| · KL reaches median + 1.5 · (q3 − q1), quartiles at floor(q (n − 1)) of all
/// elements; KL between the softmaxes of x and base along rows of `row` elements.
pub fn arcee_fusion(base: &[f64], x: &[f64], row: usize) -> Vector {
    let softmax = |x: &[f64]| {
        let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vector = x.iter().map(|x| (x - largest).exp()).collect();
        let total: f64 = powers.iter().sum();
        powers.iter().map(|p| p / total + 1e-8).collect::<Vector>()
    };
    let mut importance = Vec::new();
    for (base, x) in base.chunks(row).zip(x.chunks(row)) {
        let (p, q) = (softmax(x), softmax(base));
        let logs: Vector = p.iter().zip(&q).map(|(p, q)| (p / q).ln()).collect();
        let divergence = dot(&p, &logs);
        importance.extend(x.iter().zip(base).map(|(x, b)| (x - b).abs() * divergence));
    }
    let order = ascending(&importance);
    let quantile = |q: f64| importance[order[(q * (importance.len() - 1) as f64) as usize]];
    let threshold = quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25));
    (0..base.len())
        .map(|j| {
            if importance[j] >= threshold {
                x[j]
            } else {
                base[j]
            }
        })
        .collect()
}

/// PCB-Merging of task vectors that are whole models: Σ β_t τ^_t / max(Σ β_t, 1e-12). A task of zeros takes no part.
pub fn pcb(deltas: &[Vector], ratio: f64) -> Vector {
    let n = deltas.first().map_or(0, Vec::len);
    let d = n as f64;
    let sum = deltas
        .iter()
        .fold(vec![0.0; n], |sum, delta| plus(&sum, delta));
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let min_max = |x: &[f64]| {
        let (low, high) = x.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| {
            (low.min(x), high.max(x))
        });
        x.iter()
            .map(|x| {
                if high > low {
                    (x - low) / (high - low)
                } else {
                    0.0
                }
            })
            .collect::<Vector>()
    };
    let (mut weighted, mut total) = (vec![0.0; n], vec![0.0; n]);
    for delta in deltas
        .iter()
        .filter(|delta| delta.iter().any(|x| *x != 0.0))
    {
        let size = magnitudes(delta);
        let order = ascending(&size);
        let at = |index: f64| size[order[(index.max(0.0) as usize).min(n - 1)]];
        let clamped: Vector = size
            .iter()
            .map(|x| {
                x.max(at((1e-4 * d).floor()))
                    .min(at(((1.0 - 1e-4) * d - 1.0).floor()))
            })
            .collect();
        let intra: Vector = min_max(&clamped)
            .iter()
            .map(|x| (deltas.len() as f64 * x * x).exp())
            .collect();
        let beta: Vector = (0..n)
            .map(|j| intra[j] * (delta[j] * sum[j]).tanh())
            .collect();
        let cut = beta[ascending(&beta)[(((1.0 - ratio) * d) as usize).min(n - 1)]];
        let beta = min_max(&beta.iter().map(|b| b.max(cut)).collect::<Vector>());
        for j in 0..n {
            weighted[j] += beta[j] * clamped[j] * sign(delta[j]);
            total[j] += beta[j];
        }
    }
    weighted
        .iter()
        .zip(&total)
        .map(|(w, t): (&f64, &f64)| w / t.max(1e-12))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let delta = [3.0, -1.0, 1.0, 2.0];
        assert_eq!(magnitude(&delta, 0.75), [true, true, false, true]);
        assert_eq!(magnitude(&delta, 0.1), [true, false, false, false]);
        assert_eq!(outliers(&delta, 0.5, 0.25), [false, false, true, true]);
        assert_eq!(outliers(&delta, 0.5, 0.9), [false, true, true, false]);
        let p = della_keep_probabilities(&delta, 4, 0.5, 0.3);
        assert!((p[0] - 0.8).abs() < 1e-15 && (p[1] - 0.2).abs() < 1e-15);
        assert_eq!(l1_factor(&delta, &[true, false, false, true]), 1.4);
    }

    #[test]
    fn one_task_of_pcb_keeps_its_largest_change() {
        let merged = pcb(&[vec![0.0, 1.0, 2.0, 4.0]], 0.5);
        assert_eq!(merged, [0.0, 0.0, 0.0, 2.0]);
    }
}
