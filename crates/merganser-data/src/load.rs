//! From a source and a model's folder to samples.

use std::path::Path;

use crate::columns::{filter_of, input_column, label_column, texts_of};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model_files::ModelFiles;
use crate::picture::ImageProcessor;
use crate::samples::{Images, Inputs, Pictures, PixelLayout, Samples};
use crate::select::choose;
use crate::source::{Found, Source, find};
use crate::table::{Cell, Kind, Table};
use crate::tensors::{Element, TensorFile};
use crate::text::{Sequence, TextProcessor};

/// How many samples are wanted, and how they are prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Take this many samples, chosen at random without replacement; all of them if there are fewer or if `None`.
    /// The rows are those of smallest hash of (seed, row), so a larger number gives a superset.
    pub samples: Option<usize>,
    /// Seed of the choice.
    pub seed: u64,
    /// Cut texts at this many tokens (default: what the model takes, at most 512).
    pub max_length: Option<usize>,
    /// Whether labels are wanted. It is an error if they are and there are none.
    pub labels: bool,
}

/// The settings of one model for its inputs: tokenizer, image preprocessing, limits.
#[derive(Debug)]
pub struct Processor {
    pub(crate) files: ModelFiles,
}

impl Processor {
    /// Reads the folder of a model. What is missing there is missed when samples need it.
    ///
    /// # Errors
    /// If it is not a folder, or if its config.json is not JSON.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Self {
            files: ModelFiles::open(folder)?,
        })
    }

    /// Names of the classes of the model's head by their number, from `id2label` of config.json; `None` if they are
    /// missing or only the placeholders `LABEL_0`, ….
    pub fn class_names(&self) -> Option<Vec<String>> {
        self.files.class_names()
    }

    /// Loads the samples of `source`.
    ///
    /// # Errors
    /// A source that cannot be read or holds none, a column that cannot be chosen, a row that is wrong, a model without
    /// the tokenizer or image settings that the samples need.
    pub fn load(&self, source: &Source, options: &LoadOptions) -> Result<Samples> {
        if options.samples == Some(0) {
            return Err(Error::Setting("the number of samples must not be 0".into()));
        }
        match find(source)? {
            Found::Table {
                files,
                format,
                split,
            } => self.table(
                &Table::open(files, format)?,
                source,
                split.as_deref(),
                options,
            ),
            Found::Images { files, classes } => {
                let chosen = choose(files.len(), options.samples, options.seed);
                let labels = if options.labels {
                    let mut ids = Vec::with_capacity(chosen.len());
                    for &at in &chosen {
                        let (path, class) = &files[at];
                        ids.push(class.ok_or_else(|| {
                            Error::source(
                                path,
                                "lies in no sub-folder, whose name would be its class",
                            )
                        })?);
                    }
                    Some(Labels::Classes {
                        ids,
                        names: Some(classes),
                    })
                } else {
                    None
                };
                let paths = chosen.iter().map(|&at| files[at].0.clone()).collect();
                let rows = chosen.iter().map(|&at| at as u64).collect();
                self.images(Pictures::Files(paths), labels, rows, Vec::new())
            }
            Found::Safetensors(path) => {
                let file = TensorFile::safetensors(&path, source.split.as_deref())?;
                self.tensors(file, options)
            }
            Found::Npy(files) => {
                let file = TensorFile::npy(&files, source.split.as_deref())?;
                self.tensors(file, options)
            }
        }
    }

    /// The texts of `source` as one: joined by blank lines, tokenised as a whole and cut into windows of the maximum
    /// length, each of them a sample, as the perplexity of a corpus is made.
    ///
    /// # Errors
    /// As [`Processor::load`], and if the source is no table of texts.
    pub fn load_joined(&self, source: &Source, options: &LoadOptions) -> Result<Samples> {
        let Found::Table {
            files,
            format,
            split,
        } = find(source)?
        else {
            return Err(Error::source(
                &source.path,
                "holds no texts that could be joined",
            ));
        };
        let table = Table::open(files, format)?;
        let (column, kind) = input_column(&table, source)?;
        if kind == Kind::Image {
            return Err(table.refuse(format!("column `{column}` holds images, not texts")));
        }
        let filter = filter_of(&table, split.as_deref())?;
        let rows = table.read(&[&column], filter, options.samples, options.seed)?;
        let texts = texts_of(&table, &rows, 0, &column)?;
        let processor = TextProcessor::open(&self.files, options.max_length)?;
        let sequences = processor.windows(&texts.join("\n\n"))?;
        if sequences.is_empty() {
            return Err(Error::Setting(
                "the text has no token: the tokenizer gives none for it".into(),
            ));
        }
        Ok(Samples {
            rows: (0..).take(sequences.len()).collect(),
            inputs: Inputs::Text {
                sequences,
                pad: processor.pad(&self.files)?.unwrap_or(0),
            },
            labels: None,
            notes: vec![format!(
                "{} rows are read as one text, in windows of {} tokens",
                texts.len(),
                processor.max_length()
            )],
        })
    }

    /// How vectors of texts are made of tokens, by the `1_Pooling/config.json` of sentence-transformers: `cls`, `mean`,
    /// `last`; `None` if there is no such file or it says something else.
    ///
    /// # Errors
    /// If the file is not JSON.
    pub fn pooling(&self) -> Result<Option<&'static str>> {
        let config = self.files.json("1_Pooling/config.json")?;
        let modes = [
            ("pooling_mode_cls_token", "cls"),
            ("pooling_mode_mean_tokens", "mean"),
            ("pooling_mode_lasttoken", "last"),
        ];
        Ok(config.and_then(|config| {
            let on = |key: &str| config.get(key).and_then(serde_json::Value::as_bool) == Some(true);
            modes
                .into_iter()
                .find(|(key, _)| on(key))
                .map(|(_, name)| name)
        }))
    }

    /// Samples of texts that are at hand, each with a second text if `pairs` are given.
    ///
    /// # Errors
    /// If the model has no tokenizer, or one of another model.
    pub fn texts(
        &self,
        texts: &[String],
        pairs: Option<&[String]>,
        max_length: Option<usize>,
    ) -> Result<Samples> {
        self.encode(
            texts,
            pairs,
            None,
            None,
            (0..).take(texts.len()).collect(),
            max_length,
        )
    }

    fn table(
        &self,
        table: &Table,
        source: &Source,
        split: Option<&str>,
        options: &LoadOptions,
    ) -> Result<Samples> {
        let (main, kind) = input_column(table, source)?;
        let mut names = vec![main.as_str()];
        names.extend(source.pair.as_deref());
        names.extend(source.target.as_deref());
        let label = if options.labels {
            Some(label_column(table, source, &names)?)
        } else {
            None
        };
        names.extend(label.as_deref());
        let filter = filter_of(table, split)?;
        let rows = table.read(&names, filter, options.samples, options.seed)?;
        let mut notes = Vec::new();
        if rows.blank > 0 {
            notes.push(format!(
                "{} rows without a value in column `{main}` are left out",
                rows.blank
            ));
        }
        let place = |row: usize| (table.file(rows.places[row].0), rows.places[row].1);
        let labels = match &label {
            None => None,
            Some(column) => {
                let at = names.len() - 1;
                let cells = rows.cells.iter().enumerate().map(|(row, cells)| {
                    let (path, place) = place(row);
                    (path, place, &cells[at])
                });
                Some(Labels::of_cells(
                    cells,
                    column,
                    table.class_names(column).cloned(),
                )?)
            }
        };
        if kind == Kind::Image {
            if source.pair.is_some() || source.target.is_some() {
                return Err(Error::Setting(
                    "a column of second texts or targets goes with texts, not with images".into(),
                ));
            }
            let mut pictures = Vec::with_capacity(rows.cells.len());
            for (row, cells) in rows.cells.into_iter().enumerate() {
                let (file, place) = rows.places[row];
                match cells.into_iter().next() {
                    Some(Cell::Bytes(bytes)) => {
                        pictures.push((table.file(file).to_owned(), place, bytes));
                    }
                    _ => {
                        return Err(Error::row(
                            table.file(file),
                            place,
                            format!("`{main}` holds no image"),
                        ));
                    }
                }
            }
            return self.images(Pictures::Encoded(pictures), labels, rows.numbers, notes);
        }
        let texts = texts_of(table, &rows, 0, &main)?;
        let mut at = 0;
        let mut column = |name: &Option<String>| -> Result<Option<Vec<String>>> {
            match name {
                None => Ok(None),
                Some(name) => {
                    at += 1;
                    texts_of(table, &rows, at, name).map(Some)
                }
            }
        };
        let pairs = column(&source.pair)?;
        let targets = column(&source.target)?;
        let mut samples = self.encode(
            &texts,
            pairs.as_deref(),
            targets.as_deref(),
            labels,
            rows.numbers,
            options.max_length,
        )?;
        notes.append(&mut samples.notes);
        samples.notes = notes;
        Ok(samples)
    }

    fn encode(
        &self,
        texts: &[String],
        pairs: Option<&[String]>,
        targets: Option<&[String]>,
        mut labels: Option<Labels>,
        mut rows: Vec<u64>,
        max_length: Option<usize>,
    ) -> Result<Samples> {
        let processor = TextProcessor::open(&self.files, max_length)?;
        let mut notes = Vec::new();
        let (mut sequences, cut) = processor.encode(texts, pairs)?;
        if cut > 0 {
            notes.push(format!(
                "{cut} of {} samples were cut at {} tokens",
                texts.len(),
                processor.max_length()
            ));
        }
        if self.files.encoder_decoder() {
            self.decoder_side(&processor, &mut sequences, targets, &mut notes)?;
        } else if targets.is_some() {
            return Err(Error::Setting(
                "a target column is for encoder-decoder models, which this one is not".into(),
            ));
        }
        let keep: Vec<bool> = sequences.iter().map(|s| !s.ids.is_empty()).collect();
        let empty = keep.iter().filter(|&&keep| !keep).count();
        if empty > 0 {
            if empty == keep.len() {
                return Err(Error::Setting(
                    "no sample has a token: the tokenizer gives none for these texts".into(),
                ));
            }
            notes.push(format!("{empty} samples without a token are left out"));
            let mut each = keep.iter();
            rows.retain(|_| each.next().copied().unwrap_or(true));
            sequences.retain(|s| !s.ids.is_empty());
            if let Some(labels) = &mut labels {
                labels.retain(&keep);
            }
        }
        let pad = if let Some(pad) = processor.pad(&self.files)? {
            pad
        } else {
            notes.push(
                "the model names no padding token: short samples are filled with token 0, which the mask hides"
                    .to_owned(),
            );
            0
        };
        Ok(Samples {
            inputs: Inputs::Text { sequences, pad },
            labels,
            rows,
            notes,
        })
    }

    /// Adds what the decoder reads: the start token and the target but its last token.
    fn decoder_side(
        &self,
        processor: &TextProcessor,
        sequences: &mut [Sequence],
        targets: Option<&[String]>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let Some(start) = self.files.decoder_start() else {
            return Err(Error::model(
                self.files.folder(),
                "config.json names no `decoder_start_token_id`, which the decoder's text begins with",
            ));
        };
        let Some(targets) = targets else {
            notes.push(
                "no target column is named: the decoder reads its start token only, so its layers see one token a sample"
                    .to_owned(),
            );
            for sequence in sequences {
                sequence.decoder = vec![start];
            }
            return Ok(());
        };
        let (targets, cut) = processor.encode(targets, None)?;
        if cut > 0 {
            notes.push(format!(
                "{cut} of {} targets were cut at {} tokens",
                targets.len(),
                processor.max_length()
            ));
        }
        for (sequence, target) in sequences.iter_mut().zip(targets) {
            sequence.decoder = std::iter::once(start)
                .chain(target.ids.iter().copied())
                .take(target.ids.len().max(1))
                .collect();
            sequence.target = target.ids;
        }
        Ok(())
    }

    pub(crate) fn images(
        &self,
        pictures: Pictures,
        labels: Option<Labels>,
        rows: Vec<u64>,
        mut notes: Vec<String>,
    ) -> Result<Samples> {
        let (processor, more) = ImageProcessor::open(&self.files)?;
        match &pictures {
            // Ready tensors are not resized: what was assumed about size is of no interest.
            Pictures::Rows { array, .. } => {
                PixelLayout::of(array, &processor)?;
                if array.element() == Element::Byte {
                    notes.extend(more);
                }
            }
            _ => notes.extend(more),
        }
        Ok(Samples {
            inputs: Inputs::Images(Box::new(Images {
                pictures,
                processor,
                changed: None,
            })),
            labels,
            rows,
            notes,
        })
    }
}
