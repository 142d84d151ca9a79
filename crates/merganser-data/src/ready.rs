//! Samples of ready tensors: padding taken off, ids held against the model's vocabulary.

use crate::error::{Error, Result};
use crate::labels::{Labels, class};
use crate::load::{LoadOptions, Processor};
use crate::samples::{Inputs, Pictures, Samples};
use crate::select::choose;
use crate::tensors::{Array, Element, TensorFile};
use crate::text::{Sequence, check_length, config_pad, outside};

impl Processor {
    /// The samples of a file of tensors.
    pub(crate) fn tensors(&self, mut file: TensorFile, options: &LoadOptions) -> Result<Samples> {
        let pixels = file.take("pixel_values");
        let ids = file.take("input_ids");
        let (input, is_text) = match (pixels, ids) {
            (Some(_), Some(_)) => {
                return Err(Error::source(
                    file.path(),
                    "holds pixels and token ids; samples are read for one side of a model: put them into two files",
                ));
            }
            (Some(pixels), None) => (pixels, false),
            (None, Some(ids)) => (ids, true),
            // The prefix was chosen by one of the two.
            (None, None) => return Err(Error::source(file.path(), "holds no samples")),
        };
        if input.rows() == 0 {
            return Err(input.refuse("holds no samples"));
        }
        let chosen = choose(input.rows(), options.samples, options.seed);
        let rows: Vec<u64> = chosen.iter().map(|&row| row as u64).collect();
        let labels = if options.labels {
            Some(tensor_labels(&mut file, &input, &chosen)?)
        } else {
            None
        };
        if is_text {
            let (sequences, notes) = self.ready_text(&mut file, &input, &chosen, options)?;
            return Ok(Samples {
                inputs: Inputs::Text {
                    sequences,
                    pad: config_pad(&self.files).unwrap_or(0),
                },
                labels,
                rows,
                notes,
            });
        }
        let pictures = Pictures::Rows {
            array: input,
            rows: chosen,
        };
        self.images(pictures, labels, rows, Vec::new())
    }

    fn ready_text(
        &self,
        file: &mut TensorFile,
        ids: &Array,
        rows: &[usize],
        options: &LoadOptions,
    ) -> Result<(Vec<Sequence>, Vec<String>)> {
        let mut notes = Vec::new();
        let check = |array: &Array, like: &Array| -> Result<()> {
            if array.shape.len() == 2 && array.shape == like.shape {
                Ok(())
            } else {
                Err(array.refuse(format!(
                    "shape {:?}; expected {:?} as `{}` has",
                    array.shape, like.shape, like.name
                )))
            }
        };
        check(ids, ids)?;
        let mask = file.take("attention_mask");
        let types = file.take("token_type_ids");
        for array in mask.iter().chain(&types) {
            check(array, ids)?;
        }
        if mask.is_none() {
            notes.push(format!(
                "`{}` has no attention_mask beside it: every token counts, padding too if there is some",
                ids.name
            ));
        }
        let decoder = file.take("decoder_input_ids");
        let decoder_mask = file.take("decoder_attention_mask");
        if let Some(decoder) = &decoder {
            if decoder.shape.len() != 2 || decoder.rows() != ids.rows() {
                return Err(decoder.refuse(format!(
                    "shape {:?}; expected ({}, S)",
                    decoder.shape,
                    ids.rows()
                )));
            }
            if let Some(mask) = &decoder_mask {
                check(mask, decoder)?;
            }
        } else if self.files.encoder_decoder() {
            notes.push(
                "there are no decoder_input_ids: the decoder reads its start token only, so its layers see one token a \
                 sample"
                    .to_owned(),
            );
        }
        let mut sequences = Vec::with_capacity(rows.len());
        let mut cut = 0;
        let mut shifted = false;
        for &row in rows {
            let (mut tokens, start) = self.unpadded(ids, mask.as_ref(), row)?;
            shifted |= start > 0;
            let mut kinds = Vec::new();
            if let Some(types) = &types {
                let values = types.integers(row)?;
                kinds = values[start..start + tokens.len()]
                    .iter()
                    .map(|&kind| {
                        u32::try_from(kind)
                            .map_err(|_| types.refuse(format!("row {row} holds {kind}")))
                    })
                    .collect::<Result<_>>()?;
                if kinds.iter().all(|&kind| kind == 0) {
                    kinds.clear();
                }
            }
            if let Some(limit) = options.max_length
                && tokens.len() > limit.max(1)
            {
                tokens.truncate(limit.max(1));
                kinds.truncate(limit.max(1));
                cut += 1;
            }
            check_length(tokens.len(), &self.files)?;
            let decoder = match &decoder {
                Some(decoder) => self.unpadded(decoder, decoder_mask.as_ref(), row)?.0,
                None if self.files.encoder_decoder() => {
                    self.files.decoder_start().into_iter().collect()
                }
                None => Vec::new(),
            };
            sequences.push(Sequence {
                ids: tokens,
                types: kinds,
                decoder,
                target: Vec::new(),
            });
        }
        if cut > 0 {
            notes.push(format!(
                "{cut} of {} samples were cut at {} tokens",
                rows.len(),
                options.max_length.unwrap_or(0)
            ));
        }
        if shifted {
            notes.push(
                "samples are padded on the left; the padding is taken off and positions begin at the first real token"
                    .to_owned(),
            );
        }
        Ok((sequences, notes))
    }

    /// The real tokens of a row and where they begin.
    fn unpadded(&self, ids: &Array, mask: Option<&Array>, row: usize) -> Result<(Vec<u32>, usize)> {
        let values = ids.integers(row)?;
        let (start, end) = match mask {
            None => (0, values.len()),
            Some(mask) => {
                let real = mask.integers(row)?;
                let start = real.iter().position(|&x| x != 0);
                let end = real.iter().rposition(|&x| x != 0).map_or(0, |at| at + 1);
                let Some(start) = start else {
                    return Err(mask.refuse(format!("row {row} is padding only")));
                };
                if real[start..end].contains(&0) {
                    return Err(mask.refuse(format!(
                        "row {row} hides tokens between real ones; padding belongs at the ends"
                    )));
                }
                (start, end)
            }
        };
        let tokens: Vec<u32> = values[start..end]
            .iter()
            .map(|&id| {
                u32::try_from(id)
                    .map_err(|_| ids.refuse(format!("row {row} holds {id}, which is no token id")))
            })
            .collect::<Result<_>>()?;
        if tokens.is_empty() {
            return Err(ids.refuse(format!("row {row} has no tokens")));
        }
        if let Some(id) = outside(&tokens, self.files.vocabulary()) {
            return Err(ids.refuse(format!(
                "row {row} holds token {id}, but the model's vocabulary has {} tokens; were the ids made for another model?",
                self.files.vocabulary().unwrap_or(0)
            )));
        }
        Ok((tokens, start))
    }
}

fn tensor_labels(file: &mut TensorFile, input: &Array, rows: &[usize]) -> Result<Labels> {
    let Some(labels) = file.take("labels") else {
        return Err(Error::source(
            file.path(),
            format!(
                "has no labels beside `{}`; expected a tensor `{}`",
                input.name,
                input
                    .name
                    .rsplit_once('.')
                    .map_or("labels".to_owned(), |(prefix, _)| format!(
                        "{prefix}.labels"
                    ))
            ),
        ));
    };
    if labels.shape != [input.rows()] {
        return Err(labels.refuse(format!(
            "shape {:?}; expected [{}], one label a sample",
            labels.shape,
            input.rows()
        )));
    }
    if labels.element() == Element::Float {
        let scores = rows
            .iter()
            .map(|&row| Ok(labels.floats(row)?.into_iter().map(f64::from).sum()))
            .collect::<Result<Vec<f64>>>()?;
        if let Some(bad) = scores.iter().find(|x| !x.is_finite()) {
            return Err(labels.refuse(format!("holds {bad}; expected finite numbers")));
        }
        return Ok(Labels::Scores(scores));
    }
    let ids = rows
        .iter()
        .map(|&row| {
            let label: i64 = labels.integers(row)?.into_iter().sum();
            class(label as f64).map_err(|problem| labels.refuse(format!("row {row}: {problem}")))
        })
        .collect::<Result<_>>()?;
    Ok(Labels::Classes {
        ids,
        names: file.class_names.clone(),
    })
}
