//! Linear scales, and ticks at numbers people count in: 1, 2 or 5 times a power of ten
//! (Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990).

/// A linear map from data to pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// The least and the greatest value shown.
    pub(crate) domain: (f64, f64),
    /// Their places.
    pub(crate) range: (f64, f64),
}

impl Scale {
    /// The place of a value; beyond the ends of the domain, the place of the end.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let (low, high) = self.domain;
        let span = high - low;
        let share = if span > 0.0 && span.is_finite() {
            ((value - low) / span).clamp(0.0, 1.0)
        } else {
            0.5
        };
        self.range.0 + share * (self.range.1 - self.range.0)
    }
}

/// A step of 1, 2 or 5 times a power of ten that divides `span` into at most `most` parts (and not
/// into fewer than a third of them).
fn step(span: f64, most: usize) -> f64 {
    let least = span / most.max(1) as f64;
    let power = 10f64.powf(least.log10().floor());
    let factor = match least / power {
        // Slack for the rounding of the division.
        ratio if ratio <= 1.0 + 1e-9 => 1.0,
        ratio if ratio <= 2.0 + 1e-9 => 2.0,
        ratio if ratio <= 5.0 + 1e-9 => 5.0,
        _ => 10.0,
    };
    factor * power
}

/// The multiples of a nice step within `[low, high]`, at most `most + 1` of them.
pub(crate) fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return if low.is_finite() { vec![low] } else { vec![] };
    }
    let step = step(span, most);
    if !step.is_normal() {
        return vec![low];
    }
    let (first, last) = (
        (low / step - 1e-6).ceil() as i64,
        (high / step + 1e-6).floor() as i64,
    );
    // A multiple of the inverse is exact where the multiple of 0.1 is not.
    let tick = |k: i64| {
        if step < 1.0 {
            k as f64 / (1.0 / step).round()
        } else {
            k as f64 * step
        }
    };
    (first..=last).take(most + 1).map(tick).collect()
}

/// The domain widened to multiples of a nice step.
pub(crate) fn nice(low: f64, high: f64, most: usize) -> (f64, f64) {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return (low, high);
    }
    let step = step(span, most);
    if !step.is_normal() {
        return (low, high);
    }
    let down = (low / step + 1e-6).floor() * step;
    let up = (high / step - 1e-6).ceil() * step;
    (down, up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_people_count_in() {
        assert_eq!(ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(0.0, 1.0, 10).len(), 11);
        assert_eq!(ticks(-0.25, 1.0, 7), [-0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(0.83, 0.97, 4), [0.85, 0.9, 0.95]);
        assert_eq!(ticks(0.0, 80.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(ticks(3.0, 3.0, 5), [3.0]);
        assert_eq!(ticks(0.0, 5e-324, 5), [0.0]);
        assert_eq!(ticks(f64::NAN, 1.0, 5), [0.0; 0]);
    }

    #[test]
    fn ticks_are_few_equidistant_and_inside() {
        // A grid over intervals of many sizes, places and counts.
        for size in -8..=8 {
            for shift in -7..=7 {
                for most in 2..=12 {
                    let span = 10f64.powi(size) * 1.37;
                    let low = f64::from(shift) * span * 0.31;
                    let high = low + span;
                    let found = ticks(low, high, most);
                    assert!(found.len() <= most + 1, "{low} {high} {most}: {found:?}");
                    assert!(found.len() * 3 >= most, "{low} {high} {most}: {found:?}");
                    let slack = span * 1e-5;
                    let inside = |tick: &f64| (low - slack..=high + slack).contains(tick);
                    assert!(found.iter().all(inside), "{low} {high}: {found:?}");
                    for triple in found.windows(3) {
                        let uneven = (triple[2] - 2.0 * triple[1] + triple[0]).abs();
                        assert!(uneven <= 1e-9 * span, "{low} {high}: {found:?}");
                    }
                    let (down, up) = nice(low, high, most);
                    assert!(down <= low + slack && high - slack <= up);
                    assert!(up - down <= 3.0 * span, "{low} {high} {most}: {down} {up}");
                }
            }
        }
    }

    #[test]
    fn a_scale_ends_at_its_domain() {
        let scale = Scale {
            domain: (0.0, 1.0),
            range: (100.0, 0.0),
        };
        let places = [-3.0, 0.0, 0.25, 1.0, 9.0].map(|value| scale.at(value));
        assert_eq!(places, [100.0, 100.0, 75.0, 0.0, 0.0]);
        let point = Scale {
            domain: (2.0, 2.0),
            range: (0.0, 10.0),
        };
        assert_eq!(point.at(2.0), 5.0);
    }
}
