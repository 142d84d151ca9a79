//! Accuracies with confidence intervals.
//!
//! A proportion gets Wilson's score interval (Wilson, 1927), which behaves at 0, at 1 and for few
//! samples. The mean over independent tasks gets its interval by recovering variances from the
//! separate limits (Zou and Donner, "Construction of confidence limits about effect measures",
//! Statistics in Medicine 27, 2008): `L = m − √Σ(v_t − l_t)² / T`, `U` alike.

use serde::{Deserialize, Serialize};

use crate::statistics::finite;

/// A measured value and the limits of its confidence interval, as a fraction (0.87, not 87).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Score {
    /// The value.
    pub value: Option<f64>,
    /// The lower limit.
    pub low: Option<f64>,
    /// The upper limit.
    pub high: Option<f64>,
}

impl Score {
    /// A value without an interval.
    pub fn exact(value: f64) -> Self {
        Self {
            value: Some(value),
            ..Self::default()
        }
    }

    /// `correct` out of `total`, with Wilson's 95% interval. Not measured if `total` is 0.
    pub fn proportion(correct: u64, total: u64) -> Self {
        const Z: f64 = 1.959_963_984_540_054;
        if total == 0 {
            return Self::default();
        }
        let n = total as f64;
        let p = correct.min(total) as f64 / n;
        let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        Self {
            value: Some(p),
            low: Some((centre - half).clamp(0.0, p)),
            high: Some((centre + half).clamp(p, 1.0)),
        }
    }

    /// This score relative to `reference`, limits alike: the reference counts as exact. Not
    /// measured if the reference is not, or is not positive.
    #[must_use]
    pub fn relative_to(self, reference: Self) -> Self {
        let Some(scale) = finite(reference.value).filter(|&scale| scale > 0.0) else {
            return Self::default();
        };
        let divide = |value| finite(finite(value).map(|value| value / scale));
        Self {
            value: divide(self.value),
            low: divide(self.low),
            high: divide(self.high),
        }
    }

    /// The mean over independent scores, with its interval if each has one. Not measured unless
    /// every score is: a mean over fewer tasks is another quantity.
    pub fn mean(scores: &[Self]) -> Self {
        let values: Option<Vec<f64>> = scores.iter().map(|score| finite(score.value)).collect();
        let Some(values) = values.filter(|values| !values.is_empty()) else {
            return Self::default();
        };
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let half = |limit: fn(&Self) -> Option<f64>| -> Option<f64> {
            let squares = scores.iter().zip(&values);
            let squares =
                squares.map(|(score, value)| finite(limit(score)).map(|l| (l - value).powi(2)));
            finite(squares.sum::<Option<f64>>().map(|sum| sum.sqrt() / count))
        };
        Self {
            value: finite(Some(mean)),
            low: half(|score| score.low).map(|half| mean - half),
            high: half(|score| score.high).map(|half| mean + half),
        }
    }
}

/// The accuracy of one merged model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Accuracy {
    /// The mean over the tasks.
    pub average: Score,
    /// The mean over the tasks of the accuracy relative to that of the task's own fine-tuned model.
    /// Worked out from [`Evaluation::individual`] if not measured.
    pub normalised: Score,
    /// The accuracy on each task.
    pub tasks: Vec<Score>,
}

impl Accuracy {
    /// The accuracy on each task and its [mean](Score::mean).
    pub fn of_tasks(tasks: Vec<Score>) -> Self {
        Self {
            average: Score::mean(&tasks),
            normalised: Score::default(),
            tasks,
        }
    }
}

/// The terms of an evaluation and its two references.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// The base model.
    pub base: Option<Accuracy>,
    /// The fine-tuned models, each on its own task: what a merge would keep at best.
    pub individual: Option<Accuracy>,
    /// What was counted and on which samples, one sentence.
    pub note: Option<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_interval() {
        // Table of Newcombe, "Two-sided confidence intervals for the single proportion" (1998).
        let score = Score::proportion(81, 263);
        assert!((score.low.unwrap() - 0.2553).abs() < 1e-4);
        assert!((score.high.unwrap() - 0.3662).abs() < 1e-4);
        let none = Score::proportion(0, 20);
        assert_eq!(none.low, Some(0.0));
        assert!((none.high.unwrap() - 0.1611).abs() < 1e-4);
        assert_eq!(Score::proportion(0, 0), Score::default());
        assert_eq!(Score::proportion(9, 9).high, Some(1.0));
    }

    #[test]
    fn a_mean_of_four_equal_scores_has_half_the_interval() {
        let one = Score {
            value: Some(0.8),
            low: Some(0.76),
            high: Some(0.83),
        };
        let mean = Score::mean(&[one; 4]);
        assert!((mean.value.unwrap() - 0.80).abs() < 1e-12);
        assert!((mean.low.unwrap() - 0.78).abs() < 1e-12);
        assert!((mean.high.unwrap() - 0.815).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_measured_stays_so() {
        let nan = Score::exact(f64::NAN);
        assert_eq!(Score::mean(&[Score::exact(0.5), nan]), Score::default());
        assert_eq!(Score::mean(&[]), Score::default());
        assert_eq!(Score::exact(0.5).relative_to(nan), Score::default());
        assert_eq!(
            Score::exact(0.5).relative_to(Score::exact(0.0)),
            Score::default()
        );
        let mean = Score::mean(&[Score::proportion(5, 10), Score::exact(0.7)]);
        assert_eq!((mean.value, mean.low), (Some(0.6), None));
    }

    #[test]
    fn relative_to_the_fine_tuned_model() {
        let score = Score {
            value: Some(0.6),
            low: Some(0.4),
            high: None,
        };
        let relative = score.relative_to(Score::exact(0.8));
        assert_eq!(relative.value, Some(0.6 / 0.8));
        assert_eq!((relative.low, relative.high), (Some(0.4 / 0.8), None));
    }
}
