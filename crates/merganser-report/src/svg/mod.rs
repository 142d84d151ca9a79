//! Drawing in SVG: a writer of elements, scales and axes. Just what the plots of this crate need.
//!
//! Colours, line widths and fonts come from classes that the style sheet of the page defines, so
//! that one drawing serves light, dark and paper. Coordinates are in CSS pixels, rounded to tenths.

mod axis;
mod element;
mod scale;

pub(crate) use axis::{Categories, value_axis};
pub(crate) use element::{Path, Svg, text_width};
pub(crate) use scale::{Scale, nice, ticks};
