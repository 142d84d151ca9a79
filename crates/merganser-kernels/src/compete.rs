//! Which of several task vectors an element listens to: the kernels of MagMax, RAM, TALL masks and EMR.
//!
//! All work on one block of deltas d_i = x_i − base. They visit the tasks one after the other and keep what they
//! compare on the stack, so any number of tasks costs one read of each.
//!
//! Sources: Marczak et al., "MagMax" (2024); Wang et al., "Localizing Task Information" (2024); Huang et al.,
//! "EMR-Merging" (2024); mergekit's `ram` and `ramplus_tl`.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

/// Elements worked on at a time, so that what is accumulated stays in L1.
const BLOCK: usize = 1024;

fn check(len: usize, deltas: &[&[f32]]) {
    for delta in deltas {
        assert_eq!(delta.len(), len, "lengths differ");
    }
}

#[inline(always)]
fn one_if(condition: bool) -> f32 {
    if condition { 1.0 } else { 0.0 }
}

/// out = Σ d_i from element `at` on.
#[inline(always)]
fn sum_from(out: &mut [f32], at: usize, deltas: &[&[f32]]) {
    out.fill(0.0);
    for delta in deltas {
        for (out, &d) in out.iter_mut().zip(&delta[at..]) {
            *out += d;
        }
    }
}

kernel! {
    /// MagMax: out = base + λ · (the d_i of largest magnitude), the last one of equals.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn largest(out: &mut [f32], base: &[f32], deltas: &[&[f32]], lambda: f32) {
        assert_eq!(base.len(), out.len(), "lengths differ");
        check(out.len(), deltas);
        for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
            out.fill(0.0);
            for delta in deltas {
                for (out, &d) in out.iter_mut().zip(&delta[block * BLOCK..]) {
                    *out = if d.abs() >= out.abs() { d } else { *out };
                }
            }
            for (out, &base) in out.iter_mut().zip(base) {
                *out = base + lambda * *out;
            }
        }
    }
}

kernel! {
    /// MagMax with λ = 1, exactly: out = the x_i of largest |x_i − base|, the last one of equals.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn farthest(out: &mut [f32], base: &[f32], values: &[&[f32]]) {
        assert_eq!(base.len(), out.len(), "lengths differ");
        check(out.len(), values);
        let mut distances = [0.0_f32; BLOCK];
        for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
            let distances = &mut distances[..out.len()];
            distances.fill(0.0);
            out.copy_from_slice(base);
            for values in values {
                let values = &values[block * BLOCK..][..out.len()];
                for j in 0..out.len() {
                    let distance = (values[j] - base[j]).abs();
                    let is_farther = distance >= distances[j];
                    out[j] = if is_farther { values[j] } else { out[j] };
                    distances[j] = if is_farther { distance } else { distances[j] };
                }
            }
        }
    }
}

kernel! {
    /// RAM: out = base + the mean of the active d_i, those with |d_i| > `epsilon`; one that is active alone is multiplied
    /// by its `alone` factor.
    ///
    /// # Panics
    /// If the lengths differ or there is not one factor a task vector.
    pub fn mean_of_active(out: &mut [f32], base: &[f32], deltas: &[&[f32]], epsilon: f32, alone: &[f32]) {
        assert_eq!(base.len(), out.len(), "lengths differ");
        assert_eq!(alone.len(), deltas.len(), "one factor a task vector");
        check(out.len(), deltas);
        let (mut active, mut single) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
        for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
            let len = out.len();
            let (active, single) = (&mut active[..len], &mut single[..len]);
            out.fill(0.0);
            active.fill(0.0);
            single.fill(0.0);
            for (delta, &factor) in deltas.iter().zip(alone) {
                let delta = &delta[block * BLOCK..][..len];
                for j in 0..len {
                    let is_active = delta[j].abs() > epsilon;
                    let d = if is_active { delta[j] } else { 0.0 };
                    active[j] += one_if(is_active);
                    out[j] += d;
                    single[j] += factor * d;
                }
            }
            for j in 0..len {
                let mean = out[j] / active[j].max(1.0);
                let mixed = if active[j] == 1.0 { single[j] } else { mean };
                out[j] = base[j] + mixed;
            }
        }
    }
}

kernel! {
    /// Adds, for every task, the number of elements that are active (|d_i| > `epsilon`) in it alone to `unique` and the
    /// number of those active in another task as well to `shared`.
    ///
    /// # Panics
    /// If the lengths differ or there is not one counter a task vector.
    pub fn count_active(deltas: &[&[f32]], epsilon: f32, unique: &mut [u64], shared: &mut [u64]) {
        assert!(unique.len() == deltas.len() && shared.len() == deltas.len(), "one counter a task vector");
        let len = deltas.first().map_or(0, |delta| delta.len());
        check(len, deltas);
        let mut active = [0_u32; BLOCK];
        for at in (0..len).step_by(BLOCK) {
            let active = &mut active[..BLOCK.min(len - at)];
            active.fill(0);
            for delta in deltas {
                for (active, &d) in active.iter_mut().zip(&delta[at..]) {
                    *active += u32::from(d.abs() > epsilon);
                }
            }
            for (i, delta) in deltas.iter().enumerate() {
                let (mut alone, mut all) = (0_u32, 0_u32);
                for (&active, &d) in active.iter().zip(&delta[at..]) {
                    let is_active = d.abs() > epsilon;
                    alone += u32::from(is_active & (active == 1));
                    all += u32::from(is_active);
                }
                unique[i] += u64::from(alone);
                shared[i] += u64::from(all - alone);
            }
        }
    }
}

kernel! {
    /// Consensus: out = base + λ Σ d_i where at least `threshold` tasks i have |d_i| > `cuts[i]` · |Σ d_s − d_i|, else base.
    ///
    /// # Panics
    /// If the lengths differ or there is not one cut a task vector.
    pub fn consensus(out: &mut [f32], base: &[f32], deltas: &[&[f32]], cuts: &[f32], threshold: u32, lambda: f32) {
        assert_eq!(base.len(), out.len(), "lengths differ");
        assert_eq!(cuts.len(), deltas.len(), "one cut a task vector");
        check(out.len(), deltas);
        let mut votes = [0_u32; BLOCK];
        for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
            let votes = &mut votes[..out.len()];
            votes.fill(0);
            sum_from(out, block * BLOCK, deltas);
            for (delta, &cut) in deltas.iter().zip(cuts) {
                for ((votes, &sum), &d) in votes.iter_mut().zip(&*out).zip(&delta[block * BLOCK..]) {
                    *votes += u32::from(d.abs() > cut * (sum - d).abs());
                }
            }
            for ((out, &base), &votes) in out.iter_mut().zip(base).zip(&*votes) {
                let mixed = if votes >= threshold { lambda * *out } else { 0.0 };
                *out = base + mixed;
            }
        }
    }
}

kernel! {
    /// TALL mask: out = base + λ Σ d_i where task `task` has |d_task| > `cut` · |Σ d_i − d_task|, else base.
    ///
    /// # Panics
    /// If the lengths differ or `task` is not one of the task vectors.
    pub fn localize(out: &mut [f32], base: &[f32], deltas: &[&[f32]], task: usize, cut: f32, lambda: f32) {
        assert_eq!(base.len(), out.len(), "lengths differ");
        check(out.len(), deltas);
        for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
            sum_from(out, block * BLOCK, deltas);
            for ((out, &base), &d) in out.iter_mut().zip(base).zip(&deltas[task][block * BLOCK..]) {
                let mixed = if d.abs() > cut * (*out - d).abs() { lambda * *out } else { 0.0 };
                *out = base + mixed;
            }
        }
    }
}

kernel! {
    /// EMR's unified task vector: out = γ · max(0, max_i γ d_i), where γ = +1 if Σ d_i > 0 and −1 otherwise.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn unify(out: &mut [f32], deltas: &[&[f32]]) {
        check(out.len(), deltas);
        let mut largest = [0.0_f32; BLOCK];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let largest = &mut largest[..out.len()];
            largest.fill(0.0);
            sum_from(out, block * BLOCK, deltas);
            for delta in deltas {
                for ((largest, &sum), &d) in largest.iter_mut().zip(&*out).zip(&delta[block * BLOCK..]) {
                    let along = if sum > 0.0 { d } else { -d };
                    *largest = if along > *largest { along } else { *largest };
                }
            }
            for (out, &largest) in out.iter_mut().zip(&*largest) {
                *out = if *out > 0.0 { largest } else { 0.0 - largest };
            }
        }
    }
}

kernel! {
    /// out = `unified` where `delta` has its sign, else 0: what EMR's mask of a task leaves of the unified task vector.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn where_signs_agree(out: &mut [f32], unified: &[f32], delta: &[f32]) {
        assert!(unified.len() == out.len() && delta.len() == out.len(), "lengths differ");
        for ((out, &u), &d) in out.iter_mut().zip(unified).zip(delta) {
            let agree = ((u > 0.0) & (d > 0.0)) | ((u < 0.0) & (d < 0.0));
            *out = if agree { u } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};

    fn slices(xs: &[Vec<f32>]) -> Vec<&[f32]> {
        xs.iter().map(Vec::as_slice).collect()
    }

    /// Runs `work` on a stale output at all levels.
    fn run(len: usize, mut work: impl FnMut(&mut [f32])) -> Vec<u32> {
        at_all_levels(|| {
            let mut out = vec![7.0; len];
            work(&mut out);
            canonical(&out)
        })
    }

    #[test]
    fn levels_agree_on_any_bits() {
        let mut bits = Bits::new(11);
        for len in LENGTHS {
            for count in [0, 1, 2, 3, 5] {
                let base = bits.patterns(len);
                let deltas: Vec<Vec<f32>> = (0..count).map(|_| bits.patterns(len)).collect();
                let (d, w) = (slices(&deltas), bits.weights(count));
                run(len, |out| largest(out, &base, &d, 0.5));
                run(len, |out| farthest(out, &base, &d));
                run(len, |out| mean_of_active(out, &base, &d, 1e-5, &w));
                run(len, |out| consensus(out, &base, &d, &w, 2, 0.5));
                run(len, |out| unify(out, &d));
                at_all_levels(|| {
                    let (mut unique, mut shared) = (vec![0; count], vec![0; count]);
                    count_active(&d, 1e-5, &mut unique, &mut shared);
                    (unique, shared)
                });
                if count > 0 {
                    run(len, |out| localize(out, &base, &d, count - 1, 0.4, 0.5));
                    run(len, |out| where_signs_agree(out, &base, d[0]));
                }
            }
        }
    }

    /// Every kernel against its formula, element by element.
    #[test]
    fn formulas() {
        let mut bits = Bits::new(12);
        for len in LENGTHS {
            let base = bits.weights(len);
            let deltas: Vec<Vec<f32>> = (0..3).map(|_| bits.weights(len)).collect();
            let d = slices(&deltas);
            let each = |one: &dyn Fn(usize, [f32; 3]) -> f32| {
                canonical(
                    &(0..len)
                        .map(|j| one(j, [d[0][j], d[1][j], d[2][j]]))
                        .collect::<Vec<_>>(),
                )
            };
            let votes = |x: [f32; 3]| {
                let sum = x[0] + x[1] + x[2];
                x.iter()
                    .filter(|d| d.abs() > 0.4 * (sum - **d).abs())
                    .count()
            };
            let sum = |x: [f32; 3]| (0.0 + x[0]) + x[1] + x[2];

            let want = each(&|j, x| {
                let best = x.into_iter().fold(
                    0.0,
                    |best: f32, d| if d.abs() >= best.abs() { d } else { best },
                );
                base[j] + 0.5 * best
            });
            assert_eq!(run(len, |out| largest(out, &base, &d, 0.5)), want);

            let want = each(&|j, x| {
                let farther = |best: f32, x: f32| {
                    let closer = (x - base[j]).abs() < (best - base[j]).abs();
                    if closer { best } else { x }
                };
                x.into_iter().fold(base[j], farther)
            });
            assert_eq!(run(len, |out| farthest(out, &base, &d)), want);

            let factors = [2.0, 3.0, 4.0];
            let want = each(&|j, x| {
                let active: Vec<usize> = (0..3).filter(|&i| x[i].abs() > 0.02).collect();
                let total: f32 = active.iter().map(|&i| x[i]).sum();
                base[j]
                    + match active[..] {
                        [] => 0.0,
                        [i] => factors[i] * x[i],
                        _ => total / active.len() as f32,
                    }
            });
            assert_eq!(
                run(len, |out| mean_of_active(out, &base, &d, 0.02, &factors)),
                want
            );

            let want = each(&|j, x| base[j] + if votes(x) >= 2 { 0.7 * sum(x) } else { 0.0 });
            assert_eq!(
                run(len, |out| consensus(out, &base, &d, &[0.4; 3], 2, 0.7)),
                want
            );

            let want = each(&|j, x| {
                base[j]
                    + if x[1].abs() > 0.4 * (sum(x) - x[1]).abs() {
                        0.7 * sum(x)
                    } else {
                        0.0
                    }
            });
            assert_eq!(run(len, |out| localize(out, &base, &d, 1, 0.4, 0.7)), want);

            let unified = |x: [f32; 3]| {
                let sign = if sum(x) > 0.0 { 1.0 } else { -1.0 };
                sign * x.iter().map(|d| d * sign).fold(0.0, f32::max) + 0.0
            };
            assert_eq!(run(len, |out| unify(out, &d)), each(&|_, x| unified(x)));
            let u: Vec<f32> = (0..len)
                .map(|j| unified([d[0][j], d[1][j], d[2][j]]))
                .collect();
            let want = each(&|j, x| if u[j] * x[0] > 0.0 { u[j] } else { 0.0 });
            assert_eq!(run(len, |out| where_signs_agree(out, &u, d[0])), want);
        }
    }

    #[test]
    fn active_elements_are_counted_once() {
        let (mut unique, mut shared) = (vec![1, 0], vec![0, 0]);
        count_active(
            &[&[1.0, 0.0, 2.0, 1e-9], &[1.0, 1.0, 0.0, 0.0]],
            1e-5,
            &mut unique,
            &mut shared,
        );
        assert_eq!((unique, shared), (vec![2, 1], vec![1, 1]));
    }
}
