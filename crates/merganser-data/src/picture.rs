//! Images into normalised pixels, as the model's `preprocessor_config.json` says:
//! resize → centre crop → (x · `rescale_factor` − `image_mean`) / `image_std`, each step with its `do_…` switch.
//!
//! The keys and their forms are those of the image processors of transformers
//! (<https://huggingface.co/docs/transformers/main_classes/image_processor>). A key that changes the result and is not
//! known here is refused.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageReader, Limits, RgbImage};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model_files::ModelFiles;
use crate::resample::{Filter, resize};

/// Largest image that is decoded, in bytes of pixels and in pixels a side.
const MAX_DECODED: u64 = 1 << 30;
const MAX_SIDE: u32 = 1 << 15;

/// How images become pixels.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageProcessor {
    resize: Option<Size>,
    filter: Filter,
    /// Height and width.
    crop: Option<(u32, u32)>,
    rescale: Option<f32>,
    /// Mean and standard deviation of each channel.
    normalise: Option<(Vec<f32>, Vec<f32>)>,
    channels: usize,
    /// Height and width the model expects, if its config says.
    expected: Option<(u32, u32)>,
}

/// The size images are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Height and width, whatever the proportions.
    Exact(u32, u32),
    /// The shorter side, keeping the proportions; the longer one at most that.
    Shortest(u32, Option<u32>),
}

/// Switches and numbers that change pixels in ways not done here, each with the value that means "not".
const UNKNOWN: [&str; 9] = [
    "do_pad",
    "do_flip_channel_order",
    "do_thumbnail",
    "do_align_long_axis",
    "do_image_splitting",
    "rescale_offset",
    "crop_pct",
    "size_divisor",
    "do_affine_transform",
];

impl ImageProcessor {
    /// The settings in the folder of a model, and notes about what was assumed.
    pub(crate) fn open(files: &ModelFiles) -> Result<(Self, Vec<String>)> {
        let mut notes = Vec::new();
        let expected = expected(files);
        let channels = ModelFiles::size(files.vision("num_channels")).unwrap_or(3);
        if !matches!(channels, 1 | 3) {
            return Err(Error::model(
                files.folder(),
                format!("config.json: `num_channels` is {channels}; images give 1 or 3"),
            ));
        }
        let mut name = "preprocessor_config.json";
        let mut settings = files.json(name)?;
        if settings.is_none() {
            name = "processor_config.json";
            settings = files
                .json(name)?
                .and_then(|mut config| config.get_mut("image_processor").map(Value::take));
        }
        let Some(settings) = settings else {
            let Some((height, width)) = expected else {
                return Err(Error::model(
                    files.folder(),
                    "it has neither `preprocessor_config.json` nor an `image_size` in config.json, so the size of its \
                     images is not known",
                ));
            };
            notes.push(format!(
                "no preprocessor_config.json: images are resized to {height}×{width} and normalised with mean 0.5 and \
                 standard deviation 0.5"
            ));
            let processor = Self {
                resize: Some(Size::Exact(height, width)),
                filter: Filter::Bilinear,
                crop: None,
                rescale: Some(1.0 / 255.0),
                normalise: Some((vec![0.5; channels], vec![0.5; channels])),
                channels,
                expected,
            };
            return Ok((processor, notes));
        };
        let path = files.folder().join(name);
        let settings = Settings {
            values: &settings,
            path: &path,
        };
        let processor = settings.read(expected, channels, &mut notes)?;
        Ok((processor, notes))
    }

    /// Channels, height and width of what [`ImageProcessor::picture`] gives, where that is known beforehand.
    pub(crate) fn expected(&self) -> Option<(u32, u32)> {
        self.expected
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// The pixels of an encoded image, channel by channel, with height and width; or what is wrong with it.
    pub(crate) fn picture(&self, bytes: &[u8]) -> Result<(Vec<f32>, u32, u32), String> {
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| error.to_string())?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_DECODED);
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        reader.limits(limits);
        let image = reader
            .decode()
            .map_err(|error| format!("not a readable image: {error}"))?;
        let image = self.shape(image)?;
        let (width, height) = image.dimensions();
        if let Some(expected) = self.expected
            && expected != (height, width)
        {
            return Err(format!(
                "the preprocessor's settings make it {height}×{width} pixels, the model's config expects {}×{}",
                expected.0, expected.1
            ));
        }
        Ok((self.pixels(image.as_raw(), 3), height, width))
    }

    fn shape(&self, image: DynamicImage) -> Result<RgbImage, String> {
        let mut image = image.into_rgb8();
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err("it has no pixels".to_owned());
        }
        if let Some(size) = self.resize {
            let (new_height, new_width) = size.of(height, width);
            if new_height > MAX_SIDE || new_width > MAX_SIDE {
                return Err(format!(
                    "it is {height}×{width} pixels, so narrow that resizing gives {new_height}×{new_width}"
                ));
            }
            if (new_height, new_width) != (height, width) {
                image = resize(&image, new_width, new_height, self.filter);
            }
        }
        Ok(match self.crop {
            Some((height, width)) => crop(&image, height, width),
            None => image,
        })
    }

    /// Rescales and normalises 8-bit pixels of `channels` interleaved channels, and lays them out channel by channel.
    pub(crate) fn pixels(&self, bytes: &[u8], channels: usize) -> Vec<f32> {
        let plane = bytes.len() / channels;
        let mut out = Vec::with_capacity(plane * self.channels);
        for channel in 0..self.channels {
            let (mean, std) = match &self.normalise {
                Some((mean, std)) => (mean[channel], std[channel]),
                None => (0.0, 1.0),
            };
            let scale = self.rescale.unwrap_or(1.0);
            let table: Vec<f32> = (0..=255u8)
                .map(|level| (f32::from(level) * scale - mean) / std)
                .collect();
            out.extend(bytes.chunks_exact(channels).map(|pixel| {
                let level = match (self.channels, channels) {
                    (1, 3..) => luma(pixel),
                    (_, 1) => pixel[0],
                    _ => pixel[channel],
                };
                table[usize::from(level)]
            }));
        }
        out
    }
}

/// Rec. 601 grey in Pillow's fixed point.
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// The middle `height`×`width` of an image, with black around it where it is smaller.
fn crop(image: &RgbImage, height: u32, width: u32) -> RgbImage {
    // Division rounds down for negative margins too, as in transformers.
    let margin = |have: u32, want: u32| (i64::from(have) - i64::from(want)).div_euclid(2);
    let top = margin(image.height(), height);
    let left = margin(image.width(), width);
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (i64::from(x) + left, i64::from(y) + top);
        match (u32::try_from(x), u32::try_from(y)) {
            (Ok(x), Ok(y)) if x < image.width() && y < image.height() => *image.get_pixel(x, y),
            _ => image::Rgb([0; 3]),
        }
    })
}

impl Size {
    /// Height and width of an image of that height and width.
    fn of(self, height: u32, width: u32) -> (u32, u32) {
        match self {
            Self::Exact(height, width) => (height, width),
            Self::Shortest(side, longest) => {
                let (short, long) = (height.min(width), height.max(width));
                let ratio = f64::from(long) / f64::from(short);
                let mut new_short = side;
                let mut new_long = (f64::from(side) * ratio) as u32;
                if let Some(longest) = longest
                    && new_long > longest
                {
                    new_short = ((f64::from(longest) / ratio) as u32).max(1);
                    new_long = longest;
                }
                if height <= width {
                    (new_short, new_long)
                } else {
                    (new_long, new_short)
                }
            }
        }
    }
}

fn expected(files: &ModelFiles) -> Option<(u32, u32)> {
    let side = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    match files.vision("image_size")? {
        Value::Array(sides) => match &sides[..] {
            [height, width] => Some((side(height)?, side(width)?)),
            _ => None,
        },
        value => side(value).map(|side| (side, side)),
    }
    .filter(|&(height, width)| height > 0 && width > 0)
}

/// A preprocessor's settings with the file they are from.
struct Settings<'a> {
    values: &'a Value,
    path: &'a Path,
}

impl Settings<'_> {
    fn read(
        &self,
        expected: Option<(u32, u32)>,
        channels: usize,
        notes: &mut Vec<String>,
    ) -> Result<ImageProcessor> {
        for key in UNKNOWN {
            match self.values.get(key) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(value) => {
                    return Err(self.refuse(
                        key,
                        value,
                        "which is not supported; give ready `pixel_values` instead",
                    ));
                }
            }
        }
        let crop = if self.switch("do_center_crop", false)? {
            match self.values.get("crop_size").or(self.values.get("size")) {
                None => expected,
                Some(value) => match self.size("crop_size", value)? {
                    Size::Exact(height, width) => Some((height, width)),
                    Size::Shortest(side, _) => Some((side, side)),
                },
            }
        } else {
            None
        };
        let resize = if self.switch("do_resize", true)? {
            match self.values.get("size") {
                Some(value) if !value.is_null() => Some(self.size("size", value)?),
                _ => match expected {
                    Some((height, width)) => {
                        notes.push(format!(
                            "preprocessor_config.json names no size: images are resized to {height}×{width} as \
                             config.json says"
                        ));
                        Some(Size::Exact(height, width))
                    }
                    None => {
                        return Err(self.refuse(
                            "size",
                            &Value::Null,
                            "expected a number, {height, width} or {shortest_edge}",
                        ));
                    }
                },
            }
        } else {
            None
        };
        let rescale = if self.switch("do_rescale", true)? {
            Some(self.number("rescale_factor")?.unwrap_or(1.0 / 255.0))
        } else {
            None
        };
        let normalise = if self.switch("do_normalize", true)? {
            let mean = self.per_channel("image_mean", channels)?;
            let std = self.per_channel("image_std", channels)?;
            if let Some(std) = &std
                && std.contains(&0.0)
            {
                return Err(self.refuse(
                    "image_std",
                    &self.values["image_std"],
                    "a standard deviation must not be 0",
                ));
            }
            if mean.is_none() || std.is_none() {
                notes.push(
                    "preprocessor_config.json names no image_mean or image_std: 0.5 is used"
                        .to_owned(),
                );
            }
            let half = || vec![0.5; channels];
            Some((mean.unwrap_or_else(half), std.unwrap_or_else(half)))
        } else {
            None
        };
        Ok(ImageProcessor {
            resize,
            filter: self.filter()?,
            crop,
            rescale,
            normalise,
            channels,
            expected,
        })
    }

    fn refuse(&self, key: &str, value: &Value, expected: &str) -> Error {
        Error::model(self.path, format!("`{key}` is {value}, {expected}"))
    }

    fn switch(&self, key: &str, default: bool) -> Result<bool> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.refuse(key, other, "expected true or false")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if (number as f32).is_finite() => Ok(Some(number as f32)),
                _ => Err(self.refuse(key, value, "expected a number")),
            },
        }
    }

    fn per_channel(&self, key: &str, channels: usize) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.values.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let numbers: Option<Vec<f32>> = match value {
            Value::Array(list) => list.iter().map(|x| x.as_f64().map(|x| x as f32)).collect(),
            other => other.as_f64().map(|x| vec![x as f32; channels]),
        };
        match numbers {
            Some(numbers) if numbers.len() == channels && numbers.iter().all(|x| x.is_finite()) => {
                Ok(Some(numbers))
            }
            _ => Err(self.refuse(
                key,
                value,
                &format!("expected {channels} numbers, one a channel"),
            )),
        }
    }

    fn size(&self, key: &str, value: &Value) -> Result<Size> {
        let refused = || {
            self.refuse(
                key,
                value,
                "expected a number, {height, width} or {shortest_edge}",
            )
        };
        let side = |value: &Value| {
            value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| (1..=MAX_SIDE).contains(n))
        };
        if let Some(n) = side(value) {
            return Ok(Size::Exact(n, n));
        }
        let get = |name: &str| value.get(name).and_then(side);
        match (get("height"), get("width"), get("shortest_edge")) {
            (Some(height), Some(width), _) => Ok(Size::Exact(height, width)),
            (_, _, Some(shortest)) => Ok(Size::Shortest(shortest, get("longest_edge"))),
            _ => Err(refused()),
        }
    }

    /// Pillow's numbers of filters, or their names.
    fn filter(&self) -> Result<Filter> {
        let value = self.values.get("resample").unwrap_or(&Value::Null);
        if value.is_null() {
            return Ok(Filter::Bilinear);
        }
        let name = value.as_str().map(str::to_ascii_lowercase);
        Filter::new(value.as_u64(), name.as_deref()).ok_or_else(|| {
            self.refuse(
                "resample",
                value,
                "expected 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (hamming)",
            )
        })
    }
}
