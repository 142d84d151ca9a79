//! From a source and a model's folder to samples.

use std::path::Path;

use crate::error::{Error, Result};
use crate::labels::{Labels, class};
use crate::model_files::ModelFiles;
use crate::picture::ImageProcessor;
use crate::samples::{Images, Inputs, Pictures, PixelLayout, Samples};
use crate::select::choose;
use crate::source::{Found, Source, find};
use crate::table::{Cell, Kind, Rows, Table};
use crate::tensors::{Array, Element, TensorFile};
use crate::text::{Sequence, TextProcessor, check_length, config_pad, outside};

/// Columns that hold conversations.
const CHATS: [&str; 5] = [
    "messages",
    "conversations",
    "conversation",
    "chat",
    "dialog",
];
/// Names a column of images has by custom.
const IMAGES: [&str; 4] = ["image", "img", "images", "pixel_values"];

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
    files: ModelFiles,
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
        if let Some(split) = split
            && table.find("split").is_none()
        {
            return Err(table.refuse(format!(
                "there is no column `split`, by which `{split}` would be told apart"
            )));
        }
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
        let filter = split.map(|split| ("split", split));
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

    fn images(
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
            inputs: Inputs::Images(Images {
                pictures,
                processor,
            }),
            labels,
            rows,
            notes,
        })
    }

    fn tensors(&self, mut file: TensorFile, options: &LoadOptions) -> Result<Samples> {
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

/// Texts and numbers of the columns of a source, for tasks that compare them.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// The texts of each column asked for.
    pub texts: Vec<Vec<String>>,
    /// The numbers of the column asked for.
    pub scores: Option<Vec<f64>>,
    /// Number of each row in its source.
    pub rows: Vec<u64>,
    /// What was left out.
    pub notes: Vec<String>,
}

/// Reads columns of texts, and one of numbers, from a source that is a table.
///
/// # Errors
/// A source that is no table, a column that is missing, a row without a value.
pub fn read_columns(
    source: &Source,
    texts_from: &[&str],
    scores_from: Option<&str>,
    samples: Option<usize>,
    seed: u64,
) -> Result<Columns> {
    let Found::Table {
        files,
        format,
        split,
    } = find(source)?
    else {
        return Err(Error::source(
            &source.path,
            "is no table; texts to be compared are read from columns of JSON lines, JSON, CSV, TSV or Parquet",
        ));
    };
    let table = Table::open(files, format)?;
    let mut names = texts_from.to_vec();
    names.extend(scores_from);
    let filter = split.as_deref().map(|split| ("split", split));
    let rows = table.read(&names, filter, samples, seed)?;
    let columns = texts_from
        .iter()
        .enumerate()
        .map(|(at, name)| texts_of(&table, &rows, at, name))
        .collect::<Result<_>>()?;
    let scores = match scores_from {
        None => None,
        Some(name) => {
            let at = texts_from.len();
            let mut scores = Vec::with_capacity(rows.cells.len());
            for (cells, &(file, place)) in rows.cells.iter().zip(&rows.places) {
                let number = match &cells[at] {
                    Cell::Int(n) => Some(*n as f64),
                    Cell::Float(x) => Some(*x),
                    Cell::Bool(b) => Some(f64::from(u8::from(*b))),
                    Cell::Text(text) => text.trim().parse().ok(),
                    _ => None,
                };
                match number.filter(|x: &f64| x.is_finite()) {
                    Some(number) => scores.push(number),
                    None => {
                        return Err(Error::row(
                            table.file(file),
                            place,
                            format!("`{name}` is {}, expected a number", cells[at].kind()),
                        ));
                    }
                }
            }
            Some(scores)
        }
    };
    let notes = match rows.blank {
        0 => Vec::new(),
        n => vec![format!(
            "{n} rows without a value in column `{}` are left out",
            texts_from[0]
        )],
    };
    Ok(Columns {
        texts: columns,
        scores,
        rows: rows.numbers,
        notes,
    })
}

/// The texts of column `at` of the rows read, called `name`.
fn texts_of(table: &Table, rows: &Rows, at: usize, name: &str) -> Result<Vec<String>> {
    rows.cells
        .iter()
        .zip(&rows.places)
        .map(|(cells, &(file, place))| match &cells[at] {
            Cell::Text(text) => Ok(text.clone()),
            other => Err(Error::row(
                table.file(file),
                place,
                format!("`{name}` is {}, expected a string", other.kind()),
            )),
        })
        .collect()
}

/// The column that the model reads, and whether it holds texts or images.
fn input_column(table: &Table, source: &Source) -> Result<(String, Kind)> {
    if let Some(name) = &source.column {
        let column = table.column(name)?;
        return match column.kind {
            Kind::Text | Kind::Image => Ok((name.clone(), column.kind)),
            // A column of digits, in a format that does not tell strings from numbers.
            Kind::Integer | Kind::Number => Ok((name.clone(), Kind::Text)),
            _ if CHATS.contains(&name.as_str()) => Err(chat(table, name)),
            kind => Err(table.refuse(format!(
                "column `{name}` holds {kind}; expected strings or images"
            ))),
        };
    }
    let is = |name: &str, kind| table.find(name).is_some_and(|column| column.kind == kind);
    if is("text", Kind::Text) {
        return Ok(("text".into(), Kind::Text));
    }
    if let Some(name) = IMAGES.iter().find(|name| is(name, Kind::Image)) {
        return Ok(((*name).into(), Kind::Image));
    }
    let taken = |name: &str| {
        name == "split"
            || [&source.pair, &source.target, &source.label]
                .into_iter()
                .any(|other| other.as_deref() == Some(name))
    };
    let of = |kind| {
        table
            .columns()
            .iter()
            .filter(move |column| column.kind == kind && !taken(&column.name))
            .map(|column| column.name.clone())
            .collect::<Vec<_>>()
    };
    match (&of(Kind::Text)[..], &of(Kind::Image)[..]) {
        ([only], _) => Ok((only.clone(), Kind::Text)),
        ([], [only]) => Ok((only.clone(), Kind::Image)),
        ([], _) => {
            if let Some(name) = CHATS.iter().find(|name| table.find(name).is_some()) {
                return Err(chat(table, name));
            }
            Err(table.refuse("there is no column of strings or images"))
        }
        _ => Err(table.refuse(
            "there is no column `text`, and several hold strings; name the one that is meant",
        )),
    }
}

fn chat(table: &Table, name: &str) -> Error {
    table.refuse(format!(
        "column `{name}` holds conversations, whose template belongs to the model and is not applied here; write them \
         to a column of texts first, for example with `tokenizer.apply_chat_template(messages, tokenize=False)`"
    ))
}

fn label_column(table: &Table, source: &Source, taken: &[&str]) -> Result<String> {
    if let Some(name) = &source.label {
        return Ok(table.column(name)?.name.clone());
    }
    if let Some(name) = ["label", "labels"]
        .iter()
        .find(|name| table.find(name).is_some())
    {
        return Ok((*name).into());
    }
    let mut integers = table.columns().iter().filter(|column| {
        matches!(column.kind, Kind::Integer | Kind::Bool) && !taken.contains(&column.name.as_str())
    });
    match (integers.next(), integers.next()) {
        (Some(only), None) => Ok(only.name.clone()),
        _ => Err(table.refuse(
            "there is no column `label`, and none that is clearly the labels; name the one that is meant",
        )),
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
