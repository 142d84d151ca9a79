//! The colours of plots, for a light and a dark page.
//!
//! Series were chosen by search: at least 3:1 against the page, and as far apart as possible in
//! Oklab (Ottosson, 2020) for full colour vision and for the three kinds of dichromacy as simulated
//! by Machado, Oliveira and Fernandes ("A physiologically-based model for simulation of color
//! vision deficiency", 2009). Shades are even steps in Oklab. Tests hold the contrasts.

#![allow(clippy::unreadable_literal, reason = "colours are read as RRGGBB")]

/// Colours of one theme, as `0xRRGGBB`.
struct Theme {
    page: u32,
    series: [u32; 8],
    /// Captured energy, from little to all.
    captured: [u32; 10],
    /// Conflict, from none to all.
    conflict: [u32; 10],
    /// Cosine, from −1 to 1.
    cosine: [u32; 11],
}

const LIGHT: Theme = Theme {
    page: 0xffffff,
    series: [
        0x125ed0, 0xa91605, 0x009490, 0x872093, 0xb98105, 0xe04a80, 0x3f4f4f, 0x1a0c78,
    ],
    captured: [
        0xeef3fa, 0xd7e5f7, 0xc0d6f3, 0xa9c8ef, 0x88b2e5, 0x679bda, 0x4585cf, 0x326cb6, 0x1f549d,
        0x0c3c84,
    ],
    conflict: [
        0xfbf1ec, 0xf8ddd0, 0xf4cab3, 0xf0b697, 0xe69a77, 0xdb7d56, 0xd2653a, 0xb34a24, 0x983516,
        0x7d1f06,
    ],
    cosine: [
        0x8c2a0a, 0xae5232, 0xcf7954, 0xe6a282, 0xeecbb9, 0xf3f3f1, 0xc0d5eb, 0x8eb7e3, 0x5f92cc,
        0x3566a8, 0x0c3c84,
    ],
};

const DARK: Theme = Theme {
    page: 0x14171b,
    series: [
        0x1b91ff, 0xe0603a, 0x60cea2, 0xc763c9, 0xe5dc4e, 0xfd9e68, 0x7f8a8a, 0xcfaafc,
    ],
    captured: [
        0x1e2731, 0x21344a, 0x234264, 0x24507f, 0x30659c, 0x3976b4, 0x4a92da, 0x78aee7, 0xa4caf3,
        0xcfe6ff,
    ],
    conflict: [
        0x2a2320, 0x442b21, 0x5f3321, 0x7a3a1e, 0x9a4f2d, 0xc26c44, 0xdd7c4d, 0xea9e7a, 0xf5bfa4,
        0xffe0cf,
    ],
    cosine: [
        0xffb48f, 0xe89068, 0xd06c40, 0xa35130, 0x633f33, 0x262a2f, 0x2f4864, 0x34679e, 0x4d89ca,
        0x7aade5, 0xa8d2ff,
    ],
};

/// Letters on shades.
const INKS: [u32; 2] = [0x15181c, 0xffffff];

/// The style sheet of the page's colour and all colours of plots: classes `s0`… set `--c` for the marks of a series,
/// `q0`…, `r0`…, `d0`… fill shapes with shades, and `on` makes letters readable on them.
pub(crate) fn style_sheet() -> String {
    format!(
        "{}\n@media screen and (prefers-color-scheme: dark) {{\n{}\n}}\n",
        rules(&LIGHT),
        rules(&DARK)
    )
}

fn rules(theme: &Theme) -> String {
    let series = theme.series.iter().enumerate();
    let mut rules = vec![format!(":root{{--page:#{:06x}}}", theme.page)];
    rules.extend(series.map(|(k, colour)| format!(".s{k}{{--c:#{colour:06x}}}")));
    for (letter, shades) in theme.shades() {
        for (k, &shade) in shades.iter().enumerate() {
            let ink = ink_on(shade);
            rules.push(format!(
                ".{letter}{k}{{fill:#{shade:06x}}}.on.{letter}{k}{{fill:#{ink:06x}}}"
            ));
        }
    }
    rules.join("\n")
}

impl Theme {
    fn shades(&self) -> [(char, &[u32]); 3] {
        [
            ('q', &self.captured),
            ('r', &self.conflict),
            ('d', &self.cosine),
        ]
    }
}

/// The ink that stands out more.
fn ink_on(shade: u32) -> u32 {
    let [dark, light] = INKS;
    if contrast(dark, shade) >= contrast(light, shade) {
        dark
    } else {
        light
    }
}

/// The contrast of two colours, from 1 to 21 (WCAG 2.2).
fn contrast(a: u32, b: u32) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

fn luminance(colour: u32) -> f64 {
    let channel = |shift: u32| {
        let value = f64::from(colour >> shift & 0xff) / 255.0;
        if value <= 0.04045 {
            value / 12.92
        } else {
            ((value + 0.055) / 1.055).powf(2.4)
        }
    };
    0.2126 * channel(16) + 0.7152 * channel(8) + 0.0722 * channel(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrast_of_known_pairs() {
        assert!((contrast(0x000000, 0xffffff) - 21.0).abs() < 1e-9);
        assert!((contrast(0x777777, 0xffffff) - 4.48).abs() < 0.01);
    }

    #[test]
    fn lines_stand_out_from_the_page() {
        for theme in [LIGHT, DARK] {
            for colour in theme.series {
                assert!(contrast(colour, theme.page) >= 3.0, "{colour:06x}");
            }
        }
    }

    #[test]
    fn letters_are_readable_on_every_shade() {
        for theme in [LIGHT, DARK] {
            for (_, shades) in theme.shades() {
                for &shade in shades {
                    assert!(contrast(ink_on(shade), shade) >= 4.5, "{shade:06x}");
                }
            }
        }
    }

    #[test]
    fn shades_follow_each_other_in_luminance() {
        for theme in [LIGHT, DARK] {
            for shades in [theme.captured, theme.conflict] {
                let distances = shades.map(|shade| contrast(shade, theme.page));
                assert!(distances.is_sorted(), "{distances:?}");
            }
        }
    }
}
