//! Resizing of 8-bit images with the results of Pillow, which models were trained with.
//!
//! Output pixel i of an axis that goes from n to m pixels is a weighted mean of the input pixels around its centre
//! c = (i + ½) n/m: pixel j weighs f((j + ½ − c)/s) with s = max(1, n/m), so that a filter widens when an image shrinks.
//! Rows come first, then columns (Pillow 13 turns this round where an image becomes wider and lower). As in Pillow,
//! weights are multiples of 2⁻²² and the values between the passes are rounded and clamped to 8 bits: a filter that
//! overshoots gives other pixels without that.
//!
//! Filters: Pillow's documentation, "Concepts: filters"; bicubic has a = −½ (Keys 1981).

use std::f64::consts::PI;

use image::RgbImage;
use rayon::prelude::*;

/// Bits behind the point of a weight.
const BITS: u32 = 22;

/// How pixels are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// The one pixel at the centre.
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// By Pillow's number or name.
    pub(crate) fn new(number: Option<u64>, name: Option<&str>) -> Option<Self> {
        Some(match (number, name) {
            (Some(0), _) | (_, Some("nearest")) => Self::Nearest,
            (Some(1), _) | (_, Some("lanczos")) => Self::Lanczos,
            (Some(2), _) | (_, Some("bilinear")) => Self::Bilinear,
            (Some(3), _) | (_, Some("bicubic")) => Self::Bicubic,
            (Some(4), _) | (_, Some("box")) => Self::Box,
            (Some(5), _) | (_, Some("hamming")) => Self::Hamming,
            _ => return None,
        })
    }

    /// Beyond this distance from the centre weights are 0.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 {
                1.0
            } else {
                (PI * x).sin() / (PI * x)
            }
        };
        let d = x.abs();
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - d).max(0.0),
            Self::Hamming if d < 1.0 => sinc(d) * (0.54 + 0.46 * (PI * d).cos()),
            Self::Bicubic if d < 1.0 => (1.5 * d - 2.5) * d * d + 1.0,
            Self::Bicubic if d < 2.0 => ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0,
            Self::Lanczos if d < 3.0 => sinc(d) * sinc(d / 3.0),
            Self::Nearest | Self::Hamming | Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

/// The input pixels of one output pixel: the first of them, and their weights in units of 2⁻²².
struct Window {
    first: usize,
    weights: Vec<i64>,
}

/// The windows of an axis that goes from `from` to `to` pixels.
fn windows(filter: Filter, from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            if filter == Filter::Nearest {
                return Window {
                    first: (centre as usize).min(from - 1),
                    weights: vec![1 << BITS],
                };
            }
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (first..end)
                .map(|j| filter.weight((j as f64 - centre + 0.5) * (1.0 / stretch)))
                .collect();
            let sum: f64 = weights.iter().sum();
            let unit = f64::from(1 << BITS);
            let rounded = |w: &f64| (w / sum * unit).round() as i64;
            Window {
                first,
                weights: weights.iter().map(rounded).collect(),
            }
        })
        .collect()
}

fn rounded(sum: i64) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

/// `image` at `width`×`height`, both positive.
pub(crate) fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (old_width, old_height) = (image.width() as usize, image.height() as usize);
    let (new_width, new_height) = (width as usize, height as usize);
    let mut pixels = image.as_raw().clone();
    if new_width != old_width {
        let windows = windows(filter, old_width, new_width);
        let mut out = vec![0; new_width * old_height * 3];
        out.par_chunks_mut(new_width * 3)
            .zip(pixels.par_chunks(old_width * 3))
            .for_each(|(out, row)| {
                for (window, out) in windows.iter().zip(out.chunks_exact_mut(3)) {
                    for (channel, out) in out.iter_mut().enumerate() {
                        let row = row[window.first * 3 + channel..].iter().step_by(3);
                        let terms = window.weights.iter().zip(row);
                        *out = rounded(terms.map(|(w, &x)| w * i64::from(x)).sum());
                    }
                }
            });
        pixels = out;
    }
    if new_height != old_height {
        let windows = windows(filter, old_height, new_height);
        let stride = new_width * 3;
        let mut out = vec![0; stride * new_height];
        out.par_chunks_mut(stride)
            .zip(&windows)
            .for_each(|(out, window)| {
                let mut sums = vec![0_i64; stride];
                let rows = pixels[window.first * stride..].chunks_exact(stride);
                for (weight, row) in window.weights.iter().zip(rows) {
                    for (sum, &x) in sums.iter_mut().zip(row) {
                        *sum += weight * i64::from(x);
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = rounded(sum);
                }
            });
        pixels = out;
    }
    // The buffer has the size just computed.
    RgbImage::from_raw(width, height, pixels).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Filter; 6] = [
        Filter::Nearest,
        Filter::Lanczos,
        Filter::Bilinear,
        Filter::Bicubic,
        Filter::Box,
        Filter::Hamming,
    ];

    /// `tests/golden/resize.png` was resized by Pillow 13 with each of its filters.
    #[test]
    fn every_pixel_is_that_of_pillow() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let bytes = std::fs::read(golden.join("resize.safetensors")).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let image = image::open(golden.join("resize.png")).unwrap().into_rgb8();
        for filter in ALL {
            for (width, height) in [(10, 8), (50, 40), (37, 9), (11, 23), (9, 50)] {
                let name = format!("{filter:?}.{width}.{height}").to_lowercase();
                let expected = expected.tensor(&name).unwrap();
                assert_eq!(expected.shape(), [height as usize, width as usize, 3]);
                let found = resize(&image, width, height, filter);
                assert!(found.as_raw() == expected.data(), "{name}");
            }
        }
    }

    proptest! {
        #[test]
        fn one_colour_stays_that_colour(
            from in (1_u32..30, 1_u32..30),
            to in (1_u32..30, 1_u32..30),
            level in any::<u8>(),
            filter in prop::sample::select(ALL.to_vec()),
        ) {
            let image = RgbImage::from_pixel(from.0, from.1, image::Rgb([level; 3]));
            let found = resize(&image, to.0, to.1, filter);
            prop_assert_eq!(found.dimensions(), to);
            prop_assert!(found.as_raw().iter().all(|&x| x == level));
        }
    }
}
