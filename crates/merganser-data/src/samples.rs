//! Samples that are ready for a model, and the batches they are run in.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use merganser_model::{Batch, Tokens};
use rayon::prelude::*;

use crate::changed;
use crate::error::{Error, Place, Result};
use crate::labels::Labels;
use crate::picture::ImageProcessor;
use crate::tensors::{Array, Element};
use crate::text::Sequence;

/// Samples of one source, prepared for one model.
#[derive(Debug)]
pub struct Samples {
    /// What the model reads.
    pub inputs: Inputs,
    /// The right answers, if they were asked for.
    pub labels: Option<Labels>,
    /// Number of each sample in its source, counted from 0.
    pub rows: Vec<u64>,
    /// What was assumed, left out or cut: to be told to the user.
    pub notes: Vec<String>,
}

/// What a model reads.
#[derive(Debug)]
pub enum Inputs {
    /// Token ids.
    Text {
        /// One sequence a sample.
        sequences: Vec<Sequence>,
        /// Id that fills the ends of short samples. Masks hide it from the model and from every statistic.
        pad: u32,
    },
    /// Images, decoded and prepared batch by batch.
    Images(Box<Images>),
}

/// Images that are decoded when a batch of them is asked for.
#[derive(Debug)]
pub struct Images {
    pub(crate) pictures: Pictures,
    pub(crate) processor: ImageProcessor,
    /// Seed of their changes and the number of each in its source, if they are to be changed.
    pub(crate) changed: Option<(u64, Vec<u64>)>,
}

#[derive(Debug)]
pub(crate) enum Pictures {
    Files(Vec<PathBuf>),
    Encoded(Vec<(PathBuf, Place, Vec<u8>)>),
    Rows { array: Array, rows: Vec<usize> },
}

/// Samples that are run together.
#[derive(Debug)]
pub struct Chunk {
    /// Which samples they are, as positions in [`Samples`].
    pub indices: Vec<usize>,
    /// What the model is given.
    pub batch: Batch,
}

impl Samples {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The samples, `size` at a time. Texts are taken longest first, so that those of one batch need little padding and
    /// a lack of memory shows at once; samples of equal length keep their order. Images keep theirs.
    ///
    /// Each item is made when it is asked for; it is an error if an image cannot be read.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Result<Chunk>> + '_ {
        let size = size.max(1);
        let mut order: Vec<usize> = (0..self.len()).collect();
        if let Inputs::Text { sequences, .. } = &self.inputs {
            order.sort_by_key(|&at| {
                std::cmp::Reverse(sequences[at].ids.len().max(sequences[at].decoder.len()))
            });
        }
        (0..order.len().div_ceil(size)).map(move |chunk| {
            let indices = order[chunk * size..order.len().min((chunk + 1) * size)].to_vec();
            let batch = self.batch(&indices)?;
            Ok(Chunk { indices, batch })
        })
    }

    /// All batches at once, for those who go over them many times.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn to_batches(&self, size: usize) -> Result<Vec<Batch>> {
        self.batches(size)
            .map(|chunk| chunk.map(|chunk| chunk.batch))
            .collect()
    }

    /// The samples `indices` as one batch.
    ///
    /// # Errors
    /// If an image cannot be read, or `indices` is empty.
    pub fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let refused = |error: &dyn std::fmt::Display| Error::Setting(error.to_string());
        match &self.inputs {
            Inputs::Text { sequences, pad } => {
                let ids: Vec<Vec<u32>> = indices
                    .iter()
                    .map(|&at| sequences[at].ids.clone())
                    .collect();
                let mut tokens = Tokens::new(&ids, *pad).map_err(|error| refused(&error))?;
                if indices.iter().any(|&at| !sequences[at].types.is_empty()) {
                    let length = tokens.sequence_len();
                    let mut types = Vec::with_capacity(length * indices.len());
                    for (row, &at) in indices.iter().enumerate() {
                        types.extend_from_slice(&sequences[at].types);
                        types.resize((row + 1) * length, 0);
                    }
                    tokens = tokens.with_types(types).map_err(|error| refused(&error))?;
                }
                if indices.iter().all(|&at| sequences[at].decoder.is_empty()) {
                    return Ok(Batch::text(tokens));
                }
                let ids: Vec<Vec<u32>> = indices
                    .iter()
                    .map(|&at| sequences[at].decoder.clone())
                    .collect();
                let decoder = Tokens::new(&ids, *pad).map_err(|error| refused(&error))?;
                Ok(Batch::text_pair(tokens, decoder))
            }
            Inputs::Images(images) => {
                let (pixels, [channels, height, width]) = images.pixels(indices)?;
                let shape = (indices.len(), channels, height, width);
                Tensor::from_vec(pixels, shape, &Device::Cpu)
                    .map(Batch::images)
                    .map_err(|error| refused(&error))
            }
        }
    }
}

impl Images {
    /// Prepared pixels of some images, back to back, and the channels, height and width of each.
    fn pixels(&self, indices: &[usize]) -> Result<(Vec<f32>, [usize; 3])> {
        let read: Vec<(Vec<f32>, [usize; 3])> = indices
            .par_iter()
            .map(|&at| {
                let (pixels, shape) = self.one(at)?;
                Ok(match &self.changed {
                    Some((seed, rows)) => (changed::image(&pixels, shape, *seed, rows[at]), shape),
                    None => (pixels, shape),
                })
            })
            .collect::<Result<_>>()?;
        let shape = read.first().map_or([0; 3], |(_, shape)| *shape);
        let mut pixels = Vec::with_capacity(read.len() * shape.iter().product::<usize>());
        for (&at, (values, found)) in indices.iter().zip(&read) {
            if *found != shape {
                return Err(self.refuse(
                    at,
                    format!(
                        "it becomes {}×{} pixels, another one {}×{}; images of one size are needed",
                        found[1], found[2], shape[1], shape[2]
                    ),
                ));
            }
            pixels.extend_from_slice(values);
        }
        Ok((pixels, shape))
    }

    fn one(&self, at: usize) -> Result<(Vec<f32>, [usize; 3])> {
        let picture = |bytes: &[u8]| {
            self.processor
                .picture(bytes)
                .map(|(pixels, height, width)| {
                    let shape = [self.processor.channels(), height as usize, width as usize];
                    (pixels, shape)
                })
                .map_err(|problem| self.refuse(at, problem))
        };
        match &self.pictures {
            Pictures::Files(paths) => {
                let path = &paths[at];
                picture(&std::fs::read(path).map_err(|cause| Error::io("read", path, cause))?)
            }
            Pictures::Encoded(images) => picture(&images[at].2),
            Pictures::Rows { array, rows } => {
                let row = rows[at];
                let layout = PixelLayout::of(array, &self.processor)?;
                let values = if array.element() == Element::Float {
                    array.floats(row)?
                } else {
                    let bytes = layout.interleave(array.bytes(row)?);
                    self.processor.pixels(&bytes, layout.channels)
                };
                if let Some(bad) = values.iter().find(|x| !x.is_finite()) {
                    return Err(
                        array.refuse(format!("image {row} holds {bad}; expected finite pixels"))
                    );
                }
                Ok((
                    values,
                    [self.processor.channels(), layout.height, layout.width],
                ))
            }
        }
    }

    fn refuse(&self, at: usize, problem: String) -> Error {
        match &self.pictures {
            Pictures::Files(paths) => Error::Source {
                path: paths[at].clone(),
                problem: format!("cannot be used: {problem}"),
            },
            Pictures::Encoded(images) => Error::row(&images[at].0, images[at].1, problem),
            Pictures::Rows { array, .. } => array.refuse(problem),
        }
    }
}

/// How the pixels of a tensor lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PixelLayout {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Whether 8-bit pixels lie channel by channel.
    planar: bool,
}

impl PixelLayout {
    /// The layout of a tensor of pixels, held against what the model expects.
    pub(crate) fn of(array: &Array, processor: &ImageProcessor) -> Result<Self> {
        let want = processor.channels();
        let layout = |channels, height, width, planar| Self {
            channels,
            height,
            width,
            planar,
        };
        let channels = |n: usize| matches!(n, 1 | 3 | 4);
        let fits = |found: &Self| {
            processor.expected().is_none_or(|(height, width)| {
                (found.height, found.width) == (height as usize, width as usize)
            })
        };
        let found = match (array.element(), &array.shape[..]) {
            (Element::Float, &[_, c, h, w]) if c == want => Some(layout(c, h, w, true)),
            (Element::Byte, &[_, h, w]) => Some(layout(1, h, w, false)),
            // Where either axis could be the channels, the size decides.
            (Element::Byte, &[_, a, b, c]) => {
                let last = channels(c).then(|| layout(c, a, b, false));
                let first = channels(a).then(|| layout(a, b, c, true));
                last.filter(fits).or(first.filter(fits)).or(last).or(first)
            }
            _ => None,
        };
        let Some(found) = found else {
            return Err(array.refuse(format!(
                "shape {:?}; expected normalised pixels (N, {want}, H, W) in floating point or 8-bit pixels (N, H, W, C)",
                array.shape
            )));
        };
        if let Some((height, width)) = processor.expected()
            && (found.height, found.width) != (height as usize, width as usize)
        {
            return Err(array.refuse(format!(
                "images of {}×{} pixels; the model expects {height}×{width}",
                found.height, found.width
            )));
        }
        Ok(found)
    }

    /// 8-bit pixels with the channels of a pixel side by side.
    fn interleave(self, bytes: Vec<u8>) -> Vec<u8> {
        if !self.planar || self.channels == 1 {
            return bytes;
        }
        let plane = self.height * self.width;
        (0..plane)
            .flat_map(|at| (0..self.channels).map(move |channel| (channel, at)))
            .map(|(channel, at)| bytes[channel * plane + at])
            .collect()
    }
}
