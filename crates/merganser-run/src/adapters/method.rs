//! The recipe's method on the factors of one matrix.

use merganser_linalg::Matrix;
use merganser_methods::{MethodInfo, Settings};
use merganser_spectral::peft::{Combination, Majority, Part, Sparse, combine, combine_vectors};
use merganser_spectral::{InSpan, Inner, Lora, Result, core_space, random_keep};

/// How the adapters of one matrix are merged.
pub(crate) enum Method {
    /// In the space they share.
    CoreSpace {
        inner: InSpan,
        /// Probability that a coordinate is dropped, where some are.
        drop: f64,
        alpha: f64,
        rank: Option<usize>,
    },
    /// As PEFT does.
    Peft { combination: Combination, drop: f64 },
}

impl Method {
    /// What the parameters of an adapter method say about one matrix.
    pub(crate) fn new(info: &MethodInfo, settings: &Settings) -> Self {
        let whole = |name: &str| {
            let given = settings.shared.contains_key(name);
            given.then(|| settings.int(name) as usize)
        };
        if info.name == "peft" {
            return peft(settings, whole("svd_rank"));
        }
        let (density, drop) = (settings.float("density"), settings.float("drop"));
        let inner = match settings.text("inner").unwrap_or("tsv") {
            "ta" => Inner::TaskArithmetic,
            "ties" => Inner::Ties { density },
            "dare" => Inner::Dare { drop },
            "dare_ties" => Inner::DareTies { drop, density },
            "iso_c" => Inner::IsoC,
            // Where samples say nothing: modules outside of layers.
            "mean" | "projection" => Inner::Mean,
            "cart" => Inner::Cart {
                rank_fraction: settings.float("rank_fraction"),
                scale: settings.float("task_scale"),
            },
            _ => Inner::Tsv,
        };
        Self::CoreSpace {
            inner: InSpan {
                inner,
                isotropic: settings.flag("isotropic"),
            },
            drop,
            alpha: settings.float("alpha"),
            rank: whole("rank"),
        }
    }

    /// The merged adapter; random choices follow from `seed` alone.
    pub(crate) fn merge(&self, adapters: &[Lora], weights: &[f64], seed: u64) -> Result<Lora> {
        match self {
            Self::CoreSpace { inner, drop, .. } => {
                let weighted = adapters
                    .iter()
                    .zip(weights)
                    .map(|(adapter, weight)| adapter.scaled(*weight))
                    .collect::<Result<Vec<_>>>()?;
                self.finish(core_space(&weighted, inner, &random_keep(seed, *drop))?)
            }
            Self::Peft { combination, drop } => {
                let keep = |part: Part, task: usize, index: usize| {
                    random_keep(seed ^ (part as u64) << 60, *drop)(task, index)
                };
                combine(adapters, weights, combination, &keep)
            }
        }
    }

    /// The merged change of a bias, of those of all adapters as matrices of one row; random choices follow from `seed`
    /// alone.
    pub(crate) fn merge_biases(
        &self,
        changes: &[Matrix],
        weights: &[f64],
        seed: u64,
    ) -> Result<Matrix> {
        match self {
            Self::CoreSpace {
                inner, drop, alpha, ..
            } => {
                let mut weighted = changes.to_vec();
                for (change, &weight) in weighted.iter_mut().zip(weights) {
                    change.scale(weight);
                }
                let mut merged = inner.merge_vectors(&weighted, &random_keep(seed, *drop))?;
                merged.scale(*alpha);
                Ok(merged)
            }
            Self::Peft { combination, drop } => {
                let keep = |_, task: usize, index: usize| random_keep(seed, *drop)(task, index);
                combine_vectors(changes, weights, combination, &keep)
            }
        }
    }

    /// Whether biases are averaged because the method is one of matrices.
    pub(crate) fn averages_biases(&self) -> bool {
        matches!(self, Self::CoreSpace { inner, .. } if inner.averages_vectors())
    }

    /// What is done to a merged core adapter: times α, and no more than the wanted rank.
    pub(crate) fn finish(&self, merged: Lora) -> Result<Lora> {
        match self {
            Self::CoreSpace { alpha, rank, .. } => {
                let merged = merged.scaled(*alpha)?;
                match rank {
                    Some(rank) if *rank < merged.rank() => merged.truncated(*rank),
                    _ => Ok(merged),
                }
            }
            Self::Peft { .. } => Ok(merged),
        }
    }
}

fn peft(settings: &Settings, rank: Option<usize>) -> Method {
    let name = settings.text("combination_type").unwrap_or("svd");
    let density = settings.float("density");
    let majority = match settings.text("majority_sign_method") {
        Some("frequency") => Majority::Frequency,
        _ => Majority::Total,
    };
    let sparse = |random, ties: bool| Sparse {
        density,
        random,
        elect: ties.then_some(majority),
    };
    let of = |sparse| {
        if name.ends_with("_svd") {
            Combination::SparseSvd { sparse, rank }
        } else {
            Combination::Sparse(sparse)
        }
    };
    let combination = match name.trim_end_matches("_svd") {
        "linear" => Combination::Linear,
        "cat" => Combination::Cat,
        "ties" => of(sparse(false, true)),
        "dare_linear" => of(sparse(true, false)),
        "dare_ties" => of(sparse(true, true)),
        "magnitude_prune" => of(sparse(false, false)),
        _ => Combination::Svd { rank },
    };
    Method::Peft {
        combination,
        drop: 1.0 - density,
    }
}
