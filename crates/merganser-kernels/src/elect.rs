//! Sign election and disjoint merge: the heart of TIES, DARE-TIES, breadcrumbs and DELLA, on one block of task vectors.
//!
//! With d_i the task vectors (already sparsified, or trimmed here by magnitude cuts), f_i their rescaling factors and w_i
//! their weights, for each element
//!
//! ```text
//! D_i   = (w_i f_i) d_i
//! s     = +1 if Σ D_i > 0, −1 if < 0, the chosen sign of a zero sum if = 0      (or Σ sign(D_i))
//! mixed = Σ D_i over the i with s D_i > 0
//! mean:   mixed / Σ w_i over the same i (a divisor of exactly 0 counts as 1)
//! sum:    mixed
//! max:    s max |D_i| over the same i
//! out   = base + λ mixed
//! ```
//!
//! A D_i of exactly zero takes no part. The weights in the divisor keep their signs, so a negative weight both flips the
//! vote of its model and lowers the divisor, as in mergekit; with weights of 1 the mean is that of the paper. A NaN in any
//! kept d_i makes the element NaN: it is never voted away.
//!
//! Source: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models" (2023), §3.

#![allow(clippy::inline_always)] // see simd.rs: inlining carries the target features

use crate::keys::magnitude_key;
use std::array::from_fn;

/// What is summed to elect the sign of an element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Election {
    /// The weighted task vectors.
    #[default]
    Sum,
    /// Their signs: every model has one vote.
    Count,
}

/// How the task vectors of the elected sign are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregate {
    /// Their sum, divided by the sum of their weights.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// The largest magnitude among them.
    Max,
}

/// The sign elected where the votes add up to exactly zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ZeroSum {
    /// Plus, as in mergekit.
    #[default]
    Positive,
    /// The sign of this number, as in the paper's code: the sum of the elected signs of all elements (see
    /// [`sign_balance`]). Zero counts as minus.
    Majority(f32),
}

/// How [`disjoint_merge`] votes, aggregates and scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeOptions {
    /// What is summed to elect a sign.
    pub election: Election,
    /// How the elected are put together.
    pub aggregate: Aggregate,
    /// The sign of a zero sum.
    pub zero_sum: ZeroSum,
    /// λ, the factor of the merged task vector.
    pub lambda: f32,
}

impl Default for MergeOptions {
    /// mergekit's `ties`: election by sum, mean, plus for a zero sum, λ = 1.
    fn default() -> Self {
        Self {
            election: Election::default(),
            aggregate: Aggregate::default(),
            zero_sum: ZeroSum::default(),
            lambda: 1.0,
        }
    }
}

impl MergeOptions {
    /// The least sum of votes that elects plus: zero, or the smallest number above it.
    fn least_plus(&self) -> f32 {
        let zero_is_plus = match self.zero_sum {
            ZeroSum::Positive => true,
            ZeroSum::Majority(sum) => sum > 0.0,
        };
        if zero_is_plus { 0.0 } else { 0f32.next_up() }
    }
}

/// The task vectors of one block and what multiplies them.
#[derive(Clone, Copy)]
struct Tasks<'a> {
    deltas: &'a [&'a [f32]],
    /// One cut a task, or none at all.
    cuts: &'a [u32],
    factors: &'a [f32],
    weights: &'a [f32],
}

impl<'a> Tasks<'a> {
    fn new(
        len: usize,
        deltas: &'a [&'a [f32]],
        cuts: Option<&'a [u32]>,
        factors: &'a [f32],
        weights: &'a [f32],
    ) -> Self {
        let count = deltas.len();
        assert!(
            factors.len() == count && weights.len() == count,
            "one factor and one weight a task vector"
        );
        assert!(
            cuts.is_none_or(|cuts| cuts.len() == count),
            "one cut a task vector"
        );
        for delta in deltas {
            assert_eq!(delta.len(), len, "lengths differ");
        }
        Self {
            deltas,
            cuts: cuts.unwrap_or_default(),
            factors,
            weights,
        }
    }
}

/// `N` tasks with their parameters in registers, from element `at` on.
struct Group<'a, const N: usize, const CUT: bool> {
    deltas: [&'a [f32]; N],
    cuts: [u32; N],
    scales: [f32; N],
    weights: [f32; N],
}

impl<'a, const N: usize, const CUT: bool> Group<'a, N, CUT> {
    #[inline(always)]
    fn new(tasks: &Tasks<'a>, first: usize, at: usize, len: usize) -> Self {
        Self {
            deltas: from_fn(|i| &tasks.deltas[first + i][at..at + len]),
            cuts: from_fn(|i| if CUT { tasks.cuts[first + i] } else { 0 }),
            scales: from_fn(|i| tasks.weights[first + i] * tasks.factors[first + i]),
            weights: from_fn(|i| tasks.weights[first + i]),
        }
    }

    /// D_i at element `j`.
    #[inline(always)]
    fn term(&self, i: usize, j: usize) -> f32 {
        let d = self.deltas[i][j];
        let term = self.scales[i] * d;
        if !CUT || magnitude_key(d) >= self.cuts[i] {
            term
        } else {
            0.0
        }
    }

    /// Adds these tasks to the tally of `len` elements; the first group of tasks starts it.
    #[inline(always)]
    fn add_to<const COUNT: bool, const AGGREGATE: u8, const FIRST: bool>(
        &self,
        tally: &mut Tally,
        len: usize,
    ) {
        let Tally {
            votes,
            plus,
            minus,
            plus_weight,
            minus_weight,
        } = tally;
        let (votes, plus, minus) = (&mut votes[..len], &mut plus[..len], &mut minus[..len]);
        let (plus_weight, minus_weight) = (&mut plus_weight[..len], &mut minus_weight[..len]);
        for j in 0..len {
            let start = |of: &[f32]| if FIRST { 0.0 } else { of[j] };
            let (mut vote, mut up, mut down) = (start(votes), start(plus), start(minus));
            let (mut up_weight, mut down_weight) = (start(plus_weight), start(minus_weight));
            for i in 0..N {
                let term = self.term(i, j);
                vote += if COUNT { sign(term) } else { term };
                if AGGREGATE == MAX {
                    up = if term > up { term } else { up };
                    // Written so that a NaN replaces the minimum and is then never replaced.
                    down = if (term < down) | term.is_nan() {
                        term
                    } else {
                        down
                    };
                } else {
                    let positive = term > 0.0;
                    up += if positive { term } else { 0.0 };
                    // A NaN goes here too: its vote is NaN, and that elects minus.
                    down += if positive { 0.0 } else { term };
                    if AGGREGATE == MEAN {
                        up_weight += if positive { self.weights[i] } else { 0.0 };
                        down_weight += if term < 0.0 { self.weights[i] } else { 0.0 };
                    }
                }
            }
            votes[j] = vote;
            if AGGREGATE != VOTE {
                (plus[j], minus[j]) = (up, down);
            }
            if AGGREGATE == MEAN {
                (plus_weight[j], minus_weight[j]) = (up_weight, down_weight);
            }
        }
    }
}

const MEAN: u8 = 0;
const SUM: u8 = 1;
const MAX: u8 = 2;
/// Votes only.
const VOTE: u8 = 3;

/// Elements worked on at a time: the tally of 5 × 2 KiB and eight task vectors stay in L1.
const BLOCK: usize = 512;

/// What is known of each element of a block after some tasks: both outcomes of the election, so that one pass over the
/// task vectors is enough.
struct Tally {
    votes: [f32; BLOCK],
    /// The sum (or the maximum) of the positive terms.
    plus: [f32; BLOCK],
    /// The sum (or the minimum) of the negative terms.
    minus: [f32; BLOCK],
    plus_weight: [f32; BLOCK],
    minus_weight: [f32; BLOCK],
}

impl Tally {
    #[inline(always)]
    fn new() -> Self {
        let zero = [0.0; BLOCK];
        Self {
            votes: zero,
            plus: zero,
            minus: zero,
            plus_weight: zero,
            minus_weight: zero,
        }
    }

    /// The tally of elements `at..at + len` of all tasks, in their order.
    #[inline(always)]
    fn take<const CUT: bool, const COUNT: bool, const AGGREGATE: u8>(
        &mut self,
        tasks: &Tasks,
        at: usize,
        len: usize,
    ) {
        let count = tasks.deltas.len();
        match count {
            0 => {}
            1 => {
                Group::<1, CUT>::new(tasks, 0, at, len).add_to::<COUNT, AGGREGATE, true>(self, len);
            }
            2 => {
                Group::<2, CUT>::new(tasks, 0, at, len).add_to::<COUNT, AGGREGATE, true>(self, len);
            }
            3 => {
                Group::<3, CUT>::new(tasks, 0, at, len).add_to::<COUNT, AGGREGATE, true>(self, len);
            }
            _ => {
                Group::<4, CUT>::new(tasks, 0, at, len).add_to::<COUNT, AGGREGATE, true>(self, len);
            }
        }
        let mut i = 4;
        while i + 4 <= count {
            Group::<4, CUT>::new(tasks, i, at, len).add_to::<COUNT, AGGREGATE, false>(self, len);
            i += 4;
        }
        while i < count {
            Group::<1, CUT>::new(tasks, i, at, len).add_to::<COUNT, AGGREGATE, false>(self, len);
            i += 1;
        }
    }
}

/// −1, 0 or +1; NaN of NaN.
#[inline(always)]
fn sign(x: f32) -> f32 {
    let negative_or_zero = if x < 0.0 { -1.0 } else { x };
    if x > 0.0 { 1.0 } else { negative_or_zero }
}

/// `a` if `first`, else `b`: on bits, or the compiler would load only one of the two, from an address that depends on
/// `first`, and the loop would not vectorise.
#[inline(always)]
fn select(first: bool, a: f32, b: f32) -> f32 {
    let mask = 0u32.wrapping_sub(u32::from(first));
    f32::from_bits((a.to_bits() & mask) | (b.to_bits() & !mask))
}

kernel! {
    fn merge<const CUT: bool, const COUNT: bool, const AGGREGATE: u8>(
        out: &mut [f32], base: &[f32], tasks: &Tasks, least_plus: f32, lambda: f32,
    ) {
        let mut tally = Tally::new();
        for (block, (out, base)) in out.chunks_mut(BLOCK).zip(base.chunks(BLOCK)).enumerate() {
            let len = out.len();
            tally.take::<CUT, COUNT, AGGREGATE>(tasks, block * BLOCK, len);
            let (votes, plus, minus) = (&tally.votes[..len], &tally.plus[..len], &tally.minus[..len]);
            let (plus_weight, minus_weight) = (&tally.plus_weight[..len], &tally.minus_weight[..len]);
            for (j, (out, &base)) in out.iter_mut().zip(base).enumerate() {
                let elects_plus = votes[j] >= least_plus;
                let mut merged = select(elects_plus, plus[j], minus[j]);
                if AGGREGATE == MEAN {
                    let divisor = select(elects_plus, plus_weight[j], minus_weight[j]);
                    merged /= if divisor == 0.0 { 1.0 } else { divisor };
                }
                *out = base + lambda * merged;
            }
        }
    }
}

/// The disjoint merge of one block: see the module for the formula.
///
/// If `cuts` is given, an element of task vector i counts only if its [`magnitude_key`] is at least `cuts[i]`, so that
/// trimming costs no pass of its own; an element that does not counts as zero. `factors[i]` multiplies what is kept.
/// There may be any number of tasks; with none, `out` is `base` (to which λ · 0 is added).
///
/// # Panics
/// If the lengths of the slices differ, or there is not one cut, factor and weight a task vector.
pub fn disjoint_merge(
    out: &mut [f32],
    base: &[f32],
    deltas: &[&[f32]],
    cuts: Option<&[u32]>,
    factors: &[f32],
    weights: &[f32],
    options: &MergeOptions,
) {
    use Aggregate::{Max, Mean, Sum};
    use Election::{Count, Sum as Total};
    assert_eq!(base.len(), out.len(), "disjoint_merge: lengths differ");
    let tasks = &Tasks::new(out.len(), deltas, cuts, factors, weights);
    let (least, lambda) = (options.least_plus(), options.lambda);
    match (cuts.is_some(), options.election, options.aggregate) {
        (false, Total, Mean) => merge::<false, false, MEAN>(out, base, tasks, least, lambda),
        (false, Total, Sum) => merge::<false, false, SUM>(out, base, tasks, least, lambda),
        (false, Total, Max) => merge::<false, false, MAX>(out, base, tasks, least, lambda),
        (true, Total, Mean) => merge::<true, false, MEAN>(out, base, tasks, least, lambda),
        (true, Total, Sum) => merge::<true, false, SUM>(out, base, tasks, least, lambda),
        (true, Total, Max) => merge::<true, false, MAX>(out, base, tasks, least, lambda),
        (false, Count, Mean) => merge::<false, true, MEAN>(out, base, tasks, least, lambda),
        (false, Count, Sum) => merge::<false, true, SUM>(out, base, tasks, least, lambda),
        (false, Count, Max) => merge::<false, true, MAX>(out, base, tasks, least, lambda),
        (true, Count, Mean) => merge::<true, true, MEAN>(out, base, tasks, least, lambda),
        (true, Count, Sum) => merge::<true, true, SUM>(out, base, tasks, least, lambda),
        (true, Count, Max) => merge::<true, true, MAX>(out, base, tasks, least, lambda),
    }
}

kernel! {
    fn balance<const CUT: bool, const COUNT: bool>(len: usize, tasks: &Tasks) -> i64 {
        let mut tally = Tally::new();
        let mut total = 0;
        for at in (0..len).step_by(BLOCK) {
            let block = BLOCK.min(len - at);
            tally.take::<CUT, COUNT, VOTE>(tasks, at, block);
            let signs = tally.votes[..block].iter().map(|&vote| i32::from(vote > 0.0) - i32::from(vote < 0.0));
            total += i64::from(signs.sum::<i32>());
        }
        total
    }
}

/// The number of elements whose votes add up to more than zero, less that of the elements with less than zero.
///
/// Added up over all blocks, it is the majority that [`ZeroSum::Majority`] asks for. Arguments and panics as for
/// [`disjoint_merge`].
pub fn sign_balance(
    deltas: &[&[f32]],
    cuts: Option<&[u32]>,
    factors: &[f32],
    weights: &[f32],
    election: Election,
) -> i64 {
    let len = deltas.first().map_or(0, |delta| delta.len());
    let tasks = &Tasks::new(len, deltas, cuts, factors, weights);
    match (cuts.is_some(), election) {
        (false, Election::Sum) => balance::<false, false>(len, tasks),
        (false, Election::Count) => balance::<false, true>(len, tasks),
        (true, Election::Sum) => balance::<true, false>(len, tasks),
        (true, Election::Count) => balance::<true, true>(len, tasks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bits, LENGTHS, at_all_levels, canonical};
    use proptest::prelude::*;

    /// One element by the formula, with branches.
    fn naive(base: f32, tasks: &[(f32, u32, f32, f32)], options: &MergeOptions) -> f32 {
        let terms: Vec<(f32, f32)> = tasks
            .iter()
            .filter(|(d, cut, ..)| magnitude_key(*d) >= *cut)
            .map(|(d, _, f, w)| ((w * f) * d, *w))
            .collect();
        if terms.iter().any(|(term, _)| term.is_nan()) {
            return f32::NAN;
        }
        let votes = terms
            .iter()
            .fold(0.0, |sum, (term, _)| match options.election {
                Election::Sum => sum + term,
                Election::Count if *term == 0.0 => sum,
                Election::Count => sum + term.signum(),
            });
        let plus = match options.zero_sum {
            _ if votes != 0.0 => votes > 0.0,
            ZeroSum::Positive => true,
            ZeroSum::Majority(sum) => sum > 0.0,
        };
        let matching = || {
            terms
                .iter()
                .filter(|(term, _)| *term != 0.0 && (*term > 0.0) == plus)
        };
        let sum = matching().fold(0.0, |sum, (term, _)| sum + term);
        let mixed = match options.aggregate {
            Aggregate::Sum => sum,
            Aggregate::Mean => {
                let divisor = matching().fold(0.0, |sum, (_, weight)| sum + weight);
                sum / if divisor == 0.0 { 1.0 } else { divisor }
            }
            Aggregate::Max => {
                matching().fold(0.0, |max: f32, (term, _)| max.max(term.abs()))
                    * if plus { 1.0 } else { -1.0 }
            }
        };
        base + options.lambda * mixed
    }

    fn all_options(lambda: f32) -> Vec<MergeOptions> {
        let mut all = vec![];
        for election in [Election::Sum, Election::Count] {
            for aggregate in [Aggregate::Mean, Aggregate::Sum, Aggregate::Max] {
                for zero_sum in [
                    ZeroSum::Positive,
                    ZeroSum::Majority(2.0),
                    ZeroSum::Majority(0.0),
                ] {
                    all.push(MergeOptions {
                        election,
                        aggregate,
                        zero_sum,
                        lambda,
                    });
                }
            }
        }
        all
    }

    #[test]
    fn levels_agree_with_the_formula_on_any_bits() {
        let mut bits = Bits::new(7);
        for len in LENGTHS.into_iter().filter(|&len| len < 2000) {
            for count in [0, 1, 2, 3, 4, 7, 9] {
                let patterns = len % 2 == 0;
                let mut draw = |n| {
                    if patterns {
                        bits.patterns(n)
                    } else {
                        bits.weights(n)
                    }
                };
                let base = draw(len);
                let deltas: Vec<Vec<f32>> = (0..count).map(|_| draw(len)).collect();
                let deltas: Vec<&[f32]> = deltas.iter().map(Vec::as_slice).collect();
                let (weights, factors) = (bits.weights(count), bits.weights(count));
                let cuts: Vec<u32> = (0..count)
                    .map(|_| magnitude_key(bits.weights(1)[0]))
                    .collect();
                for options in all_options(-0.8) {
                    for cuts in [None, Some(&cuts[..])] {
                        let got = at_all_levels(|| {
                            let mut out = vec![9.0; len];
                            disjoint_merge(
                                &mut out, &base, &deltas, cuts, &factors, &weights, &options,
                            );
                            canonical(&out)
                        });
                        let want: Vec<f32> = (0..len)
                            .map(|j| {
                                let task = |i: usize| {
                                    (
                                        deltas[i][j],
                                        cuts.map_or(0, |c| c[i]),
                                        factors[i],
                                        weights[i],
                                    )
                                };
                                naive(base[j], &(0..count).map(task).collect::<Vec<_>>(), &options)
                            })
                            .collect();
                        assert_eq!(got, canonical(&want), "{options:?} {len} {count} {cuts:?}");
                    }
                }
            }
        }
    }

    fn merged(deltas: &[f32], weights: &[f32], options: &MergeOptions) -> f32 {
        let slices: Vec<[f32; 1]> = deltas.iter().map(|&d| [d]).collect();
        let slices: Vec<&[f32]> = slices.iter().map(<[f32; 1]>::as_slice).collect();
        let mut out = [0.0];
        disjoint_merge(
            &mut out,
            &[10.0],
            &slices,
            None,
            &vec![1.0; deltas.len()],
            weights,
            options,
        );
        out[0]
    }

    #[test]
    fn examples_by_hand() {
        let mergekit = MergeOptions::default();
        assert_eq!(merged(&[1.0, 3.0, -2.0], &[1.0; 3], &mergekit), 12.0);
        assert_eq!(merged(&[1.0, -3.0, 0.0], &[1.0; 3], &mergekit), 7.0);
        assert_eq!(
            merged(&[2.0, -2.0], &[1.0; 2], &mergekit),
            12.0,
            "a zero sum elects plus"
        );
        assert_eq!(
            merged(&[2.0, -9.0], &[1.0, -1.0], &mergekit),
            21.0,
            "w = 1 − 1 counts as 1"
        );
        assert_eq!(
            merged(&[5.0], &[0.3], &mergekit),
            15.0,
            "alone, a weight cancels"
        );
        let count = MergeOptions {
            election: Election::Count,
            ..mergekit
        };
        assert_eq!(merged(&[1.0, 3.0, -9.0], &[1.0; 3], &count), 12.0);
        let majority = MergeOptions {
            zero_sum: ZeroSum::Majority(-5.0),
            ..mergekit
        };
        assert_eq!(merged(&[2.0, -2.0], &[1.0; 2], &majority), 8.0);
        let max = MergeOptions {
            aggregate: Aggregate::Max,
            ..mergekit
        };
        assert_eq!(merged(&[-1.0, -3.0, 2.0], &[1.0; 3], &max), 7.0);
        for options in all_options(1.0) {
            assert!(
                merged(&[1.0, f32::NAN, 7.0], &[1.0; 3], &options).is_nan(),
                "{options:?}"
            );
        }
    }

    #[test]
    fn balance_counts_signs() {
        let (a, b) = ([1.0, -1.0, 2.0, 0.0, 1.0], [1.0, -1.0, -2.0, 0.0, -3.0]);
        let deltas: [&[f32]; 2] = [&a, &b];
        let balance = |cuts, election| {
            at_all_levels(|| sign_balance(&deltas, cuts, &[1.0; 2], &[1.0; 2], election))
        };
        assert_eq!(balance(None, Election::Sum), -1);
        assert_eq!(balance(None, Election::Count), 0);
        let cuts = [magnitude_key(1.5), magnitude_key(2.5)];
        assert_eq!(balance(Some(&cuts), Election::Sum), 0);
        assert_eq!(sign_balance(&[], None, &[], &[], Election::Sum), 0);
    }

    proptest! {
        /// Flipping every task vector flips the result, once no sum is zero.
        #[test]
        fn the_merge_is_odd(deltas in prop::collection::vec(-8i32..8, 1..9), aggregate in 0usize..3) {
            prop_assume!(deltas.iter().sum::<i32>() != 0);
            let aggregate = [Aggregate::Mean, Aggregate::Sum, Aggregate::Max][aggregate];
            let options = MergeOptions { aggregate, ..MergeOptions::default() };
            let d: Vec<f32> = deltas.iter().map(|&d| d as f32).collect();
            let flipped: Vec<f32> = d.iter().map(|d| -d).collect();
            let ones = vec![1.0; d.len()];
            let (plus, minus) = (merged(&d, &ones, &options), merged(&flipped, &ones, &options));
            prop_assert!((plus + minus - 20.0).abs() < 1e-4, "{plus} {minus}");
        }
    }
}
