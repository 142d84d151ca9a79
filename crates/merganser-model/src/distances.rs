//! Relative positions of T5 (Raffel et al. 2019): distances fall into buckets, exact when near, logarithmic when far, and
//! a table gives one bias for each bucket and head. All attention of a stack shares it.

use candle_core::Tensor;

use crate::error::Result;
use crate::op::Distances;

/// Buckets of the distances −(S−1) … S−1 (key − query) for a register of sequence length S.
pub(crate) fn table(distances: &Distances, x: &Tensor) -> Result<Tensor> {
    let len = x.dim(1)? as i64;
    let buckets: Vec<u32> = (1 - len..len)
        .map(|distance| bucket(distances, distance))
        .collect();
    Ok(Tensor::new(buckets, x.device())?)
}

fn bucket(distances: &Distances, distance: i64) -> u32 {
    let mut buckets = distances.buckets;
    let mut base = 0;
    let far = if distances.bidirectional {
        buckets /= 2;
        if distance > 0 {
            base = buckets;
        }
        distance.unsigned_abs() as usize
    } else {
        // Keys after the query are hidden by the mask.
        (-distance).max(0) as usize
    };
    let exact = buckets / 2;
    if far < exact {
        return (base + far) as u32;
    }
    // In f32, as the original: a boundary may fall exactly on a distance.
    let ratio =
        (far as f32 / exact as f32).ln() / (distances.max_distance as f32 / exact as f32).ln();
    let log = exact + (ratio * (buckets - exact) as f32) as usize;
    (base + log.min(buckets - 1)) as u32
}
