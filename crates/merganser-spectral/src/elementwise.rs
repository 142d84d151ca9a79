//! TIES and DARE on numbers in memory.
//!
//! TIES: of every task the largest entries stay, every entry elects a sign, and the mean is taken of what agrees with it
//! (Yadav et al., NeurIPS 2023, arXiv 2306.01708), with the conventions of the published code: the threshold is the
//! magnitude of the last entry that is *not* among the share, so that one more entry stays, and entries whose sum is zero
//! follow the majority of all. DARE: entries are dropped at random, and the others scaled up (Yu et al., ICML 2024, arXiv
//! 2311.03099).

/// The merge of one list of entries a task, all of one length.
pub(crate) fn ties(tasks: &[Vec<f64>], density: f64) -> Vec<f64> {
    let trimmed: Vec<Vec<f64>> = tasks.iter().map(|task| trim(task, density)).collect();
    let entries = trimmed.first().map_or(0, Vec::len);
    let sums: Vec<f64> = (0..entries)
        .map(|j| trimmed.iter().map(|task| task[j]).sum())
        .collect();
    let majority = sign(sums.iter().map(|&x| sign(x)).sum());
    (0..entries)
        .map(|j| {
            let elected = if sums[j] == 0.0 { majority } else { sums[j] };
            let agreeing = |x: &f64| if elected > 0.0 { *x > 0.0 } else { *x < 0.0 };
            let (mut sum, mut count) = (0.0, 0.0);
            for x in trimmed.iter().map(|task| task[j]).filter(agreeing) {
                sum += x;
                count += 1.0;
            }
            if count > 0.0 { sum / count } else { 0.0 }
        })
        .collect()
}

/// Only the entries that are at least as large as the (n − ⌊density n⌋)-th smallest; all with a density of 1.
fn trim(task: &[f64], density: f64) -> Vec<f64> {
    let dropped = task.len() - (task.len() as f64 * density) as usize;
    if dropped == 0 {
        return task.to_vec();
    }
    let mut magnitudes: Vec<f64> = task.iter().map(|x| x.abs()).collect();
    let (_, &mut threshold, _) = magnitudes.select_nth_unstable_by(dropped - 1, f64::total_cmp);
    task.iter()
        .map(|&x| if x.abs() >= threshold { x } else { 0.0 })
        .collect()
}

fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// Drops the entries whose number `keep` refuses and divides the others by `1 − drop`.
pub(crate) fn dare(task: &mut [f64], drop: f64, keep: impl Fn(usize) -> bool) {
    for (i, x) in task.iter_mut().enumerate() {
        *x = if keep(i) { *x / (1.0 - drop) } else { 0.0 };
    }
}

/// Which entries of which task stay, at random: element `index` of task `task` with probability `1 − drop`. A function of
/// its arguments only, so that no result depends on the order in which entries are asked for.
pub fn random_keep(seed: u64, drop: f64) -> impl Fn(usize, usize) -> bool {
    move |task, index| {
        // SplitMix64 (Steele, Lea and Flood, 2014) of the three numbers.
        let mixed = [task as u64, index as u64]
            .into_iter()
            .fold(mix(seed), |state, x| mix(state ^ mix(x)));
        (mixed >> 11) as f64 / (1_u64 << 53) as f64 >= drop
    }
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_keeps_one_more_and_all_its_equals() {
        let task = [1.0, -2.0, 3.0, -4.0, 5.0];
        assert_eq!(trim(&task, 0.4), [0.0, 0.0, 3.0, -4.0, 5.0]);
        assert_eq!(trim(&task, 1.0), task);
        assert_eq!(trim(&[1.0, -1.0, 0.5], 0.3), [1.0, -1.0, 0.0]);
        assert!(trim(&[], 0.5).is_empty());
    }

    #[test]
    fn what_disagrees_is_left_out_of_the_mean() {
        let merged = ties(&[vec![1.0, 2.0, -3.0], vec![3.0, -5.0, 3.0]], 1.0);
        // The last sum is zero; the others elect + and −, so that there is no majority, which counts as −.
        assert_eq!(merged, [2.0, -5.0, -3.0]);
        assert!(ties(&[], 0.5).is_empty());
    }

    #[test]
    fn masks_keep_the_share_and_depend_on_everything() {
        let keep = random_keep(1, 0.3);
        let kept = (0..10_000).filter(|&i| keep(0, i)).count();
        assert!((6_800..7_200).contains(&kept), "{kept}");
        let same = (0..10_000).filter(|&i| keep(0, i) == keep(1, i)).count();
        assert!((5_600..6_000).contains(&same), "{same}");
        let mut task = [1.0, 2.0];
        dare(&mut task, 0.5, |i| i == 1);
        assert_eq!(task, [0.0, 4.0]);
    }
}
