//! Comparison of tensors with a message that helps.

/// Asserts |actual − expected| ≤ atol + rtol·|expected| for every element, and says where it fails most.
///
/// # Panics
/// If the lengths differ, an element is out of tolerance, or one side is NaN where the other is not.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f64], atol: f64, rtol: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of elements");
    let excess = |a: f32, e: f64| {
        let (a, difference) = (f64::from(a), (f64::from(a) - e).abs());
        match (a.is_nan() && e.is_nan(), difference.is_nan()) {
            (true, _) => f64::NEG_INFINITY,
            (false, true) => f64::INFINITY,
            _ => difference - (atol + rtol * e.abs()),
        }
    };
    let worst = actual
        .iter()
        .zip(expected)
        .enumerate()
        .map(|(i, (&a, &e))| (i, excess(a, e)));
    let bad = worst.clone().filter(|(_, excess)| *excess > 0.0).count();
    if let Some((i, _)) = worst.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|_| bad > 0) {
        panic!(
            "{what}: {bad} of {} elements are off; worst at {i}: {} instead of {} (difference {:e})",
            actual.len(),
            actual[i],
            expected[i],
            (f64::from(actual[i]) - expected[i]).abs()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_and_nearly_equal_pass() {
        assert_close(&[1.0, f32::NAN], &[1.0 + 1e-7, f64::NAN], 1e-6, 0.0, "x");
        assert_close(&[], &[], 0.0, 0.0, "x");
    }

    #[test]
    #[should_panic(expected = "x: 1 of 2 elements are off; worst at 1")]
    fn a_difference_fails() {
        assert_close(&[1.0, 2.0], &[1.0, 2.1], 1e-6, 1e-6, "x");
    }

    #[test]
    #[should_panic(expected = "1 of 1")]
    fn a_nan_fails() {
        assert_close(&[f32::NAN], &[0.0], 1.0, 1.0, "x");
    }
}
