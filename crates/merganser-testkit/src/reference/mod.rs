//! Every merge method, written from its formula in plain `f64`, as slow and as obvious as possible.
//!
//! Models are whole tensors (`&[f64]`, row-major); `deltas` are task vectors x_i − base. Nothing is chunked, nothing is
//! fused. The functions follow the formulas, not the library: thresholds and defaults are arguments or constants here.
//! Random masks are arguments.

mod elements;
mod sparse;
mod spherical;
mod task_vectors;

pub use elements::{
    Emr, Information, consensus, emr, emr_rescalers, fisher, linear, magmax, nearswap, ram,
    ramplus_tl, tall_localized, tall_mask,
};
pub use sparse::{arcee_fusion, della_keep_probabilities, l1_factor, magnitude, outliers, pcb};
pub use spherical::{karcher, model_stock, model_stock_degrees, multislerp, nuslerp, slerp};
pub use task_vectors::{Aggregate, Family, merge_task_vectors, sce, ties_paper};

/// A tensor as the references see it.
pub type Vector = Vec<f64>;

/// The elements as `f64`, exactly.
pub fn widen(x: &[f32]) -> Vector {
    x.iter().copied().map(f64::from).collect()
}

/// a − b.
pub fn minus(a: &[f64], b: &[f64]) -> Vector {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// a + b.
pub fn plus(a: &[f64], b: &[f64]) -> Vector {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// s · a.
pub fn times(s: f64, a: &[f64]) -> Vector {
    a.iter().map(|a| s * a).collect()
}

/// ⟨a, b⟩.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// ‖a‖.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// Σ w_i x_i.
fn weighted_sum(xs: &[Vector], weights: &[f64]) -> Vector {
    let zero = vec![0.0; xs.first().map_or(0, Vec::len)];
    xs.iter()
        .zip(weights)
        .fold(zero, |sum, (x, &w)| plus(&sum, &times(w, x)))
}

/// The values of all models at element `j`.
fn at(xs: &[Vector], j: usize) -> Vector {
    xs.iter().map(|x| x[j]).collect()
}
