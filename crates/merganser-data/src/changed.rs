//! Changed copies of samples, of which a good model says the same: small moves, contrast, brightness and noise of images, a
//! different order of a few neighbouring tokens of texts. What is changed, and how, follows from a seed and the number of
//! the sample in its source.

use merganser_kernels::random;

use crate::samples::{Inputs, Samples};
use crate::text::Sequence;

/// Share of pairs of neighbouring tokens that change places.
const SWAPPED: f64 = 0.15;
/// Farthest move, as a share of the image's height and width.
const MOVED: f64 = 0.06;
/// Contrast is multiplied by 1 ± this, and this is added to or taken from the brightness of normalised pixels at most.
const LIGHT: f64 = 0.15;
/// Standard deviation of the noise of normalised pixels.
const NOISE: f64 = 0.05;

/// What was done, in words.
pub(crate) const WORDS: &str = "changed copies: images moved by up to 6 % with other light and some noise, texts with 15 % of \
                                their neighbouring tokens exchanged";

impl Samples {
    /// Changes every sample a little. Labels stay as they are.
    pub fn change(&mut self, seed: u64) {
        match &mut self.inputs {
            Inputs::Text { sequences, .. } => {
                for (sequence, row) in sequences.iter_mut().zip(&self.rows) {
                    exchange(sequence, &mut random::Sequence::new(seed, *row));
                }
            }
            Inputs::Images(images) => images.changed = Some((seed, self.rows.clone())),
        }
        self.notes.push(WORDS.into());
    }
}

/// Exchanges neighbours. The first and the last token are special in most models and stay.
fn exchange(sequence: &mut Sequence, numbers: &mut random::Sequence) {
    let end = sequence.ids.len().saturating_sub(1);
    let mut at = 1;
    while at + 1 < end {
        let alike = sequence.types.get(at) == sequence.types.get(at + 1);
        if numbers.symmetric().abs() < SWAPPED && alike {
            sequence.ids.swap(at, at + 1);
            at += 1;
        }
        at += 1;
    }
}

/// Changes an image of normalised pixels, channels × height × width. What moves in is the nearest pixel of the edge.
pub(crate) fn image(
    pixels: &[f32],
    [channels, height, width]: [usize; 3],
    seed: u64,
    row: u64,
) -> Vec<f32> {
    let mut numbers = random::Sequence::new(seed, row);
    let mut step = |size: usize| (MOVED * numbers.symmetric() * size as f64).round() as isize;
    let (down, right) = (step(height), step(width));
    let (contrast, brightness) = (
        1.0 + LIGHT * numbers.symmetric(),
        LIGHT * numbers.symmetric(),
    );
    let from =
        |i: usize, by: isize, size: usize| (i as isize - by).clamp(0, size as isize - 1) as usize;
    let mut out = Vec::with_capacity(pixels.len());
    for c in 0..channels {
        for i in 0..height {
            let line = &pixels[(c * height + from(i, down, height)) * width..][..width];
            out.extend((0..width).map(|j| {
                let x = f64::from(line[from(j, right, width)]);
                (x * contrast + brightness + NOISE * numbers.normal()) as f32
            }));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_the_same_but_for_their_order() {
        let ids: Vec<u32> = (0..200).collect();
        let sequence = Sequence {
            ids: ids.clone(),
            types: (0..200).map(|i| u32::from(i >= 100)).collect(),
            decoder: Vec::new(),
            target: Vec::new(),
        };
        let change = |seed| {
            let mut changed = sequence.clone();
            exchange(&mut changed, &mut random::Sequence::new(seed, 3));
            changed.ids
        };
        let changed = change(1);
        assert_eq!(changed, change(1));
        assert_ne!(changed, change(2));
        assert_eq!((changed[0], changed[199]), (0, 199));
        assert!(
            changed[..100].iter().all(|id| *id < 100),
            "segments stay apart"
        );
        let moved = changed.iter().zip(&ids).filter(|(a, b)| a != b).count();
        assert!((20..100).contains(&moved), "{moved}");
        let mut sorted = changed;
        sorted.sort_unstable();
        assert_eq!(sorted, ids);
        for short in 0..4 {
            let mut few = Sequence {
                ids: vec![7; short],
                types: Vec::new(),
                decoder: Vec::new(),
                target: Vec::new(),
            };
            exchange(&mut few, &mut random::Sequence::new(0, 0));
            assert_eq!(few.ids, vec![7; short]);
        }
    }

    #[test]
    fn images_change_a_little_and_each_in_its_own_way() {
        let shape = [3, 20, 30];
        let pixels: Vec<f32> = (0..1800)
            .map(|i| ((i * 7) % 30) as f32 / 15.0 - 1.0)
            .collect();
        let flat = vec![0.5_f32; 1800];
        let changed = image(&flat, shape, 4, 9);
        let mean = changed.iter().sum::<f32>() / 1800.0;
        assert!((mean - 0.5).abs() < 0.24, "{mean}");
        let spread = changed.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 1800.0;
        assert!((spread.sqrt() - NOISE as f32).abs() < 0.005, "{spread}");
        assert_eq!(image(&pixels, shape, 4, 9), image(&pixels, shape, 4, 9));
        assert_ne!(image(&pixels, shape, 4, 9), image(&pixels, shape, 4, 10));
        assert_eq!(image(&[1.0], [1, 1, 1], 0, 0).len(), 1);
        assert!(image(&[], [3, 0, 0], 0, 0).is_empty());
    }
}
