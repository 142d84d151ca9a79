//! Methods that treat a tensor as one vector or as several.

use super::{Vector, dot, minus, norm, plus, times, weighted_sum};

/// sin((1 − t)θ)/sin θ · a + sin(tθ)/sin θ · c with θ the angle between a and c; linear if |cos θ| > 0.9995.
pub fn slerp(a: &[f64], c: &[f64], t: f64) -> Vector {
    let length = |x: &[f64]| if norm(x) <= 1e-8 { 1.0 } else { norm(x) };
    let cosine = (dot(a, c) / length(a) / length(c)).clamp(-1.0, 1.0);
    if cosine.abs() > 0.9995 {
        return plus(&times(1.0 - t, a), &times(t, c));
    }
    let theta = cosine.acos();
    plus(
        &times(((1.0 - t) * theta).sin() / theta.sin(), a),
        &times((t * theta).sin() / theta.sin(), c),
    )
}

/// mergekit's `nuslerp` of two vectors: t from the weights, linear only if exactly parallel.
pub fn nuslerp(x1: &[f64], x2: &[f64], w1: f64, w2: f64) -> Vector {
    let t = if (w1 + w2).abs() < 1e-6 {
        0.5
    } else {
        w2 / (w1 + w2)
    };
    let cosine = dot(x1, x2) / norm(x1).max(1e-7) / norm(x2).max(1e-7);
    if 1.0 - cosine.powi(2) <= 1e-16 {
        return plus(&times(1.0 - t, x1), &times(t, x2));
    }
    let theta = cosine.acos();
    plus(
        &times(((1.0 - t) * theta).sin() / theta.sin(), x1),
        &times((t * theta).sin() / theta.sin(), x2),
    )
}

/// mergekit's `multislerp` of the vectors v_i, with the tangent step written out; `None` if they have no mean direction.
pub fn multislerp(vs: &[Vector], weights: &[f64], normalize: bool, eps: f64) -> Option<Vector> {
    if let [only] = vs {
        return Some(only.clone());
    }
    let total: f64 = weights.iter().sum();
    let weights: Vector = weights
        .iter()
        .map(|w| if normalize { w / total } else { *w })
        .collect();
    let units: Vec<Vector> = vs.iter().map(|v| times(1.0 / (norm(v) + eps), v)).collect();
    let sum = weighted_sum(&units, &weights);
    if norm(&sum) < eps {
        return (vs.len() == 2).then(|| weighted_sum(vs, &weights));
    }
    let m = times(1.0 / norm(&sum), &sum);
    let tangents: Vec<Vector> = units
        .iter()
        .map(|u| minus(u, &times(dot(u, &m), &m)))
        .collect();
    let tangent = weighted_sum(&tangents, &weights);
    let tau = norm(&tangent) + eps;
    let direction = plus(&times(tau.cos(), &m), &times(tau.sin() / tau, &tangent));
    let radius: f64 = vs.iter().zip(&weights).map(|(v, w)| w * norm(v)).sum();
    Some(times(radius, &direction))
}

/// The Karcher mean of the directions at the mean norm.
pub fn karcher(xs: &[Vector], max_iter: usize, tol: f64) -> Vector {
    let mean_norm = xs.iter().map(|x| norm(x)).sum::<f64>() / xs.len() as f64;
    let units: Vec<Vector> = xs
        .iter()
        .filter(|x| norm(x) > tol)
        .map(|x| times(1.0 / norm(x), x))
        .collect();
    if units.is_empty() {
        return vec![0.0; xs[0].len()];
    }
    let alphas = vec![1.0 / units.len() as f64; units.len()];
    let mut m = weighted_sum(&units, &alphas);
    if norm(&m) < tol {
        m.clone_from(&units[0]);
    }
    m = times(1.0 / norm(&m), &m);
    for _ in 0..max_iter {
        let logs: Vec<Vector> = units
            .iter()
            .map(|u| {
                let theta = dot(u, &m).clamp(-1.0, 1.0).acos();
                let factor = if theta < tol {
                    0.0
                } else {
                    theta / theta.sin()
                };
                times(factor, &minus(u, &times(dot(u, &m), &m)))
            })
            .collect();
        let step = weighted_sum(&logs, &alphas);
        if norm(&step) < tol {
            break;
        }
        m = plus(
            &times(norm(&step).cos(), &m),
            &times(norm(&step).sin() / norm(&step), &step),
        );
        m = times(1.0 / norm(&m), &m);
    }
    times(mean_norm, &m)
}

/// Model Stock with the mean of the pairwise cosines (mergekit).
pub fn model_stock(base: &[f64], xs: &[Vector]) -> Vector {
    let n = xs.len() as f64;
    let cosine = mean_over_pairs(base, xs, |d, e| {
        (dot(d, e) / (norm(d) * norm(e)).max(1e-6)).clamp(-1.0, 1.0)
    });
    let denominator = 1.0 + (n - 1.0) * cosine;
    towards_mean(
        base,
        xs,
        if denominator.abs() < 1e-6 {
            0.0
        } else {
            n * cosine / denominator
        },
    )
}

/// Model Stock with the mean of the pairwise angles (FusionBench).
pub fn model_stock_degrees(base: &[f64], xs: &[Vector]) -> Vector {
    let n = xs.len() as f64;
    let degrees = mean_over_pairs(base, xs, |d, e| {
        (dot(d, e) / (norm(d) * norm(e) + 1e-8))
            .clamp(-1.0, 1.0)
            .acos()
            .to_degrees()
    });
    let cosine = degrees.to_radians().cos();
    towards_mean(base, xs, n * cosine / ((n - 1.0) * cosine + 1.0 + 1e-8))
}

fn mean_over_pairs(base: &[f64], xs: &[Vector], of: impl Fn(&[f64], &[f64]) -> f64) -> f64 {
    let deltas: Vec<Vector> = xs.iter().map(|x| minus(x, base)).collect();
    let mut values = Vec::new();
    for (i, d) in deltas.iter().enumerate() {
        values.extend(deltas[i + 1..].iter().map(|e| of(d, e)));
    }
    values.iter().sum::<f64>() / values.len() as f64
}

fn towards_mean(base: &[f64], xs: &[Vector], t: f64) -> Vector {
    let mean = weighted_sum(xs, &vec![1.0 / xs.len() as f64; xs.len()]);
    plus(&times(t, &mean), &times(1.0 - t, base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn() {
        let half = slerp(&[1.0, 0.0], &[0.0, 1.0], 0.5);
        assert!((norm(&half) - 1.0).abs() < 1e-15 && (half[0] - half[1]).abs() < 1e-15);
        assert!(norm(&minus(&half, &nuslerp(&[1.0, 0.0], &[0.0, 1.0], 2.0, 2.0))) < 1e-15);
        let vectors = [vec![1.0, 0.0], vec![0.0, 1.0]];
        assert!(norm(&minus(&half, &karcher(&vectors, 10, 1e-5))) < 1e-12);
        assert!(
            norm(&minus(
                &half,
                &multislerp(&vectors, &[1.0, 1.0], true, 1e-8).expect("a mean")
            )) < 1e-7
        );
    }

    #[test]
    fn stock_of_equal_models_is_the_model() {
        let xs = [vec![2.0, 3.0], vec![2.0, 3.0], vec![2.0, 3.0]];
        assert!(norm(&minus(&model_stock(&[1.0, 1.0], &xs), &xs[0])) < 1e-12);
        assert!(norm(&minus(&model_stock_degrees(&[1.0, 1.0], &xs), &xs[0])) < 1e-3);
    }
}
