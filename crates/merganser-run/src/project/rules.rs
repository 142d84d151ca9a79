//! A recipe's parameters as rules for single tensors.

use merganser_methods::{MethodInfo, Settings};
use merganser_plan::Calibrated;
use merganser_projection::network::{Mask, Rule};
use merganser_projection::{Basis, Constraint, DataFree, Programme, Ridge, Spectral, WudiAdam};
use merganser_spectral::Sketch;

/// A method that merges whole matrices without data, with its parameters.
pub(crate) fn data_free(info: &MethodInfo, settings: &Settings) -> DataFree {
    let method = match info.name {
        "tsv_m" => Spectral::TsvM {
            sketch: settings.flag("randomized").then(|| Sketch {
                passes: settings.int("passes") as usize,
                ..Sketch::default()
            }),
        },
        "iso_c" => Spectral::IsoC,
        "iso_cts" => Spectral::IsoCts {
            common_fraction: settings.float("common_fraction"),
        },
        "knots" => Spectral::Knots {
            density: settings.float("density"),
        },
        "cart" => Spectral::Cart {
            rank_fraction: settings.float("rank_fraction"),
            scale: settings.float("task_scale"),
        },
        _ if settings.text("solver") == Some("adam") => {
            return DataFree::Wudi(WudiAdam {
                steps: settings.int("steps") as u32,
                rate: settings.float("learning_rate"),
                ..WudiAdam::default()
            });
        }
        _ => return DataFree::WudiClosedForm,
    };
    DataFree::Spectral {
        method,
        scale: settings.float("alpha"),
    }
}

/// What the parameters of a calibrated method say about one tensor.
///
/// `rank` is the largest of the adapters', if adapters are merged.
pub(crate) fn rule(
    calibrated: &Calibrated,
    settings: &Settings,
    seed: u64,
    rank: Option<usize>,
) -> Rule {
    match calibrated.info.name {
        "regmean" | "regmean++" => Rule::RegMean {
            off_diagonal: settings.float("off_diagonal"),
        },
        "lot" => Rule::Lot,
        // All that the adapters span; what their whole updates hold beyond is rounding.
        "core_space" => Rule::Programme(Programme {
            basis: Basis::Core { rank },
            constraint: Constraint::Free,
            ridge: ridge(settings),
        }),
        "projection" => match projection(settings, seed) {
            Rule::Prior if calibrated.matrix_prior.is_some() => Rule::MatrixPrior,
            rule => rule,
        },
        _ => Rule::Prior,
    }
}

fn ridge(settings: &Settings) -> Ridge {
    match settings.text("ridge") {
        Some(_) => Ridge::Auto,
        None => Ridge::Relative(settings.float("ridge")),
    }
}

fn projection(settings: &Settings, seed: u64) -> Rule {
    let rank = settings
        .shared
        .contains_key("rank")
        .then(|| settings.int("rank") as usize);
    let basis = match settings.text("basis").unwrap_or("full") {
        "none" => return Rule::Prior,
        "task" | "sparse" => Basis::Task,
        "diagonal" => Basis::Diagonal,
        "rotated" => Basis::Rotated,
        "atoms" => Basis::Atoms {
            rank: rank.unwrap_or(DEFAULT_RANK),
        },
        "core" => Basis::Core { rank },
        "best-rank" => Basis::BestRank {
            rank: rank.unwrap_or(DEFAULT_RANK),
        },
        "auto" => Basis::Auto {
            tolerance: settings.float("tolerance"),
        },
        _ => Basis::Full,
    };
    let programme = Programme {
        basis,
        constraint: match settings.text("constraint").unwrap_or("free") {
            "nonneg" => Constraint::NonNegative,
            "box" => Constraint::Box,
            "simplex" => Constraint::Simplex,
            "affine" => Constraint::Affine,
            _ => Constraint::Free,
        },
        ridge: ridge(settings),
    };
    if settings.text("basis") != Some("sparse") {
        return Rule::Programme(programme);
    }
    let density = settings.float("mask_density");
    Rule::Sparse {
        mask: match settings.text("mask").unwrap_or("magnitude") {
            "random" => Mask::Random(density, seed),
            "sign" => Mask::Sign(density),
            "magmax" => Mask::Magmax,
            _ => Mask::Magnitude(density),
        },
        programme,
    }
}

/// Rank of `atoms` and `best-rank` where the recipe gives none.
const DEFAULT_RANK: usize = 16;
