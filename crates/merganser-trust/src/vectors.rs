//! Backdoor vectors: what a poisoned fine-tune has that a clean one of the same task has not, BV = θ_backdoored − θ_clean.
//!
//! A merge with a poisoned model is the clean merge plus λ BV. A defender who injects triggers of his own, and so has
//! backdoor vectors BV_i of his own, can compare contributors with their mean m = (1/n) Σ BV_i, and subtract it:
//! θ − λ m (injection-BV subtraction). Or only as much of it as is there, λ = max(⟨θ − θ_base, m⟩ / ‖m‖², 0), which never
//! adds a direction that was not there; that rule is ours. A mitigation, no removal: what it costs and brings is to be
//! measured.
//!
//! "Backdoor Vectors" (arXiv 2510.08016). [`sparse`] is a fixture to test defences against, from the same work.

use crate::error::{Error, Result, check_finite, check_len};

/// What the products of one vector with some others say of their mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AgainstMean {
    /// ⟨v, m⟩ / (‖v‖ ‖m‖); 0 if v is 0.
    pub cosine: f64,
    /// ⟨v, m⟩ / ‖m‖²: how much of m is in v.
    pub coefficient: f64,
    /// ‖m‖.
    pub norm: f64,
}

/// Compares vector `v` with the mean of the vectors `others`, from all products ⟨a, b⟩ (n×n, row after row).
///
/// # Errors
/// If a product is missing or not finite, there are no others, or their mean is 0.
pub fn against_mean(gram: &[f64], n: usize, v: usize, others: &[usize]) -> Result<AgainstMean> {
    check_len("the products of the vectors", gram.len(), n * n)?;
    check_finite("the products of the vectors", gram)?;
    if others.iter().chain([&v]).any(|&i| i >= n) {
        return Err(Error::Refused(format!("there are only {n} vectors")));
    }
    let count = others.len() as f64;
    let product = others.iter().map(|&o| gram[v * n + o]).sum::<f64>() / count;
    let mut square = 0.0;
    for &a in others {
        square += others.iter().map(|&b| gram[a * n + b]).sum::<f64>();
    }
    let square = square / (count * count);
    if square <= 0.0 || !square.is_finite() {
        return Err(Error::Refused(
            "the injected backdoor vectors are 0 or cancel: the backdoored models equal the clean ones".into(),
        ));
    }
    let own = gram[v * n + v].max(0.0).sqrt();
    Ok(AgainstMean {
        cosine: if own > 0.0 {
            (product / own / square.sqrt()).clamp(-1.0, 1.0)
        } else {
            0.0
        },
        coefficient: product / square,
        norm: square.sqrt(),
    })
}

/// Which elements of a mean backdoor vector are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mask {
    /// Where all vectors have one sign, none of them 0.
    SignConsistent,
    /// Where at least this share of the vectors have one sign.
    Majority(f64),
    /// This share of the elements, those of largest mean; of equals all.
    Top(f64),
}

/// The sparse backdoor vector M ⊙ mean_i BV_i: an attack, for stress tests of a merge or a defence.
///
/// # Errors
/// If there is no vector, their lengths differ, or a share is not in 0 to 1.
pub fn sparse(vectors: &[&[f64]], mask: Mask) -> Result<Vec<f64>> {
    let Some(first) = vectors.first() else {
        return Err(Error::Refused("there is no backdoor vector".into()));
    };
    for vector in vectors {
        check_len("a backdoor vector", vector.len(), first.len())?;
        check_finite("a backdoor vector", vector)?;
    }
    if let Mask::Majority(share) | Mask::Top(share) = mask
        && !(0.0..=1.0).contains(&share)
    {
        return Err(Error::Range {
            what: "the share".into(),
            found: share,
            expected: "from 0 to 1",
        });
    }
    let count = vectors.len() as f64;
    let mean: Vec<f64> = (0..first.len())
        .map(|p| vectors.iter().map(|v| v[p]).sum::<f64>() / count)
        .collect();
    let smallest = match mask {
        Mask::Top(share) => {
            let kept = (share * mean.len() as f64).ceil() as usize;
            let mut sizes: Vec<f64> = mean.iter().map(|x| x.abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            match kept {
                0 => f64::INFINITY,
                kept => sizes[kept.min(sizes.len()) - 1],
            }
        }
        _ => 0.0,
    };
    let keeps = |p: usize| {
        let of = |sign: fn(f64) -> bool| vectors.iter().filter(|v| sign(v[p])).count() as f64;
        let share = of(|x| x > 0.0).max(of(|x| x < 0.0)) / count;
        match mask {
            Mask::SignConsistent => share == 1.0,
            Mask::Majority(least) => share >= least && share > 0.0,
            Mask::Top(_) => mean[p].abs() >= smallest,
        }
    };
    Ok((0..mean.len())
        .map(|p| if keeps(p) { mean[p] } else { 0.0 })
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_all_of_itself() {
        // v = 2 m, with m the mean of (1, 0) and (0, 1).
        let vectors = [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]];
        let gram: Vec<f64> = vectors
            .iter()
            .flat_map(|a| vectors.iter().map(|b| a[0] * b[0] + a[1] * b[1]))
            .collect();
        let found = against_mean(&gram, 3, 0, &[1, 2]).unwrap();
        assert!((found.cosine - 1.0).abs() < 1e-12 && (found.coefficient - 2.0).abs() < 1e-12);
        assert!(against_mean(&[1.0, 0.0, 0.0, 0.0], 2, 0, &[1]).is_err());
    }
}
