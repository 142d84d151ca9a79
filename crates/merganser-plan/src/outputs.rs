//! Output tensors: which inputs each is made of, in which type and shape, and by which action.

use std::collections::{BTreeMap, BTreeSet};

use merganser_methods::{BasePolicy, Encoding, Kind, Method, Settings, Value};
use merganser_recipe::{Diagnostic, Document};
use merganser_store::Dtype;

use crate::dtypes::{float_dtype, kernel_float, narrows, promote};
use crate::layout::{Layout, Missing, Row, SliceScope};
use crate::model::{Found, Inputs, Model};
use crate::resolve::{Chosen, Scopes};
use crate::vocabulary::{Reindexing, RowMap};
use crate::{Action, InputRef, Options, Output, roles};

/// How many tensors an error about tensors names.
const NAMED: usize = 5;

/// How many batches a normalisation has seen in training: no two fine-tunes agree, and nothing that is run depends on it.
const BATCH_COUNTER: &str = "num_batches_tracked";

/// Index of the base among the sources, for methods that tell it from the others.
pub(crate) fn base_of(method: &dyn Method, scope: &SliceScope<'_>) -> Option<usize> {
    if method.info().base == BasePolicy::Ignored {
        return None;
    }
    scope
        .sources
        .iter()
        .position(|source| Some(source.model) == scope.base_model)
}

/// Makes the outputs, and collects notes and errors on the way.
pub(crate) struct Maker<'p> {
    document: &'p Document,
    inputs: &'p Inputs,
    models: &'p [Model],
    method: &'static dyn Method,
    chosen: &'p Chosen,
    options: &'p Options,
    pub(crate) notes: BTreeSet<String>,
    pub(crate) errors: Vec<Diagnostic>,
    /// New number of vocabulary rows, if it changes.
    pub(crate) rows: Option<usize>,
    reindexing: Option<&'p Reindexing>,
}

impl<'p> Maker<'p> {
    pub(crate) fn new(
        document: &'p Document,
        inputs: &'p Inputs,
        chosen: &'p Chosen,
        options: &'p Options,
        reindexing: Option<&'p Reindexing>,
    ) -> Self {
        Self {
            document,
            inputs,
            models: &inputs.models,
            method: chosen.method,
            chosen,
            options,
            notes: reindexing
                .iter()
                .flat_map(|r| r.notes.iter().cloned())
                .collect(),
            errors: Vec::new(),
            rows: reindexing.map(|r| r.rows),
            reindexing,
        }
    }

    /// Every output tensor of the layout that can be made.
    pub(crate) fn outputs(&mut self, layout: &Layout<'_>) -> Vec<Output> {
        let mut outputs = Vec::with_capacity(layout.rows.len());
        let mut missing: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
        let mut shapes: Vec<String> = Vec::new();
        let mut shape_span = None;
        for row in &layout.rows {
            let scope = &layout.slices[row.slice];
            let Some(present) = self.present(row, scope, &mut missing) else {
                continue;
            };
            match self.output(row, scope, &present) {
                Ok(Some(output)) => outputs.push(output),
                Ok(None) => {}
                Err(Fault::Shape(text)) => {
                    shape_span.get_or_insert(scope.span);
                    shapes.push(text);
                }
                Err(Fault::Recipe(diagnostic)) => {
                    // One parameter is missing for every tensor alike: say it once.
                    if !self
                        .errors
                        .iter()
                        .any(|known| known.labels == diagnostic.labels)
                    {
                        self.errors.push(*diagnostic);
                    }
                }
            }
        }
        self.report_missing(layout, &missing);
        if let Some(span) = shape_span {
            let more = shapes.len().saturating_sub(NAMED);
            let mut text = shapes[..shapes.len().min(NAMED)].join("\n  ");
            if more > 0 {
                text.push_str(&format!("\n  and {more} more"));
            }
            let vocabulary = shapes.iter().any(|text| text.contains("vocabulary"));
            let help = if vocabulary && self.document.tokenizer.is_some() {
                "the vocabularies differ, and the tokenizers do not tell how their rows belong together"
            } else if vocabulary {
                "the vocabularies differ: use `tokenizer_source: base` to re-index the rows by token, or \
                 --unsafe-truncate-embeddings to keep the common prefix of rows"
            } else {
                "only tensors of equal shape can be merged: check that the models are fine-tunes of one base"
            };
            self.errors.push(
                Diagnostic::error(format!("tensors have different shapes:\n  {text}"))
                    .label(span, "in this merge")
                    .help(help),
            );
        }
        outputs
    }

    /// The sources that hold the tensor, or `None` if it is left out.
    fn present(
        &mut self,
        row: &Row,
        scope: &SliceScope<'_>,
        missing: &mut BTreeMap<(usize, usize), Vec<String>>,
    ) -> Option<Vec<(usize, Found)>> {
        let present: Vec<(usize, Found)> = row
            .cells
            .iter()
            .enumerate()
            .filter_map(|(i, cell)| Some((i, cell.clone()?)))
            .collect();
        for (i, found) in &present {
            let label = &self.models[scope.sources[*i].model].label;
            match found {
                Found::Same(_) => {}
                Found::Renamed(name) => {
                    let (long, short) = if name.len() > row.name.len() {
                        (name.as_str(), row.name.as_str())
                    } else {
                        (row.name.as_str(), name.as_str())
                    };
                    let prefix = long.strip_suffix(short).unwrap_or_default();
                    let how = if name.len() > row.name.len() {
                        "with"
                    } else {
                        "without"
                    };
                    self.notes.insert(format!(
                        "{label} names its tensors {how} the prefix '{prefix}': matched"
                    ));
                }
                Found::Tied(name) => {
                    self.notes.insert(format!(
                        "{label} has no {}: its tied embedding {name} stands in",
                        row.name
                    ));
                }
            }
        }
        if present.len() == row.cells.len() {
            return Some(present);
        }
        if self.options.state_dict {
            match self.options.missing {
                Missing::Intersection => {
                    self.notes
                        .insert(format!("{} is left out: not every input has it", row.name));
                    return None;
                }
                Missing::Union => return Some(present),
                Missing::Error => {}
            }
        } else if roles::is_rebuilt_buffer(&row.name) {
            self.notes.insert(format!(
                "{} is left out: a buffer that not every model stores",
                row.name
            ));
            return None;
        } else if self.options.allow_missing {
            self.notes.insert(format!(
                "{} is merged without the models that lack it",
                row.name
            ));
            return Some(present);
        }
        for i in (0..row.cells.len()).filter(|i| row.cells[*i].is_none()) {
            missing
                .entry((row.slice, i))
                .or_default()
                .push(row.name.clone());
        }
        None
    }

    fn report_missing(
        &mut self,
        layout: &Layout<'_>,
        missing: &BTreeMap<(usize, usize), Vec<String>>,
    ) {
        for ((slice, source), names) in missing {
            let source = &layout.slices[*slice].sources[*source];
            let more = names.len().saturating_sub(NAMED);
            let mut list = names[..names.len().min(NAMED)].join(", ");
            if more > 0 {
                list.push_str(&format!(" and {more} more"));
            }
            let help = if self.options.state_dict {
                "--tensor-intersection leaves such tensors out, --tensor-union merges them from the inputs that have them"
            } else {
                "--allow-missing merges such tensors from the models that have them"
            };
            self.errors.push(
                Diagnostic::error(format!(
                    "{} lacks {}: {list}",
                    self.models[source.model].label,
                    plural(names.len(), "tensor")
                ))
                .label(source.span, "other models of the merge have them")
                .help(help),
            );
        }
    }

    fn output(
        &mut self,
        row: &Row,
        scope: &SliceScope<'_>,
        present: &[(usize, Found)],
    ) -> Result<Option<Output>, Fault> {
        let dtype = self
            .document
            .dtype
            .as_ref()
            .map(|dtype| float_dtype(dtype.value));
        let described: Vec<(Dtype, Vec<usize>)> = present
            .iter()
            .filter_map(|(i, found)| {
                let model = &self.models[scope.sources[*i].model];
                let (dtype, shape) = model.describe(found.name())?;
                let adapted = self
                    .options
                    .adapter_dtype
                    .filter(|_| model.adapter.is_some() && dtype.is_float());
                Some((adapted.unwrap_or(dtype), shape.to_vec()))
            })
            .collect();
        let shape = self.common_shape(row, scope, present, &described)?;
        let inputs: Vec<InputRef> = present
            .iter()
            .zip(&described)
            .map(|((i, found), (own, _))| InputRef {
                model: scope.sources[*i].model,
                tensor: found.name().to_owned(),
                round_to: dtype.filter(|wanted| narrows(*own, *wanted)),
                companion: None,
                packed: false,
                rows: self.row_map(&row.name, scope.sources[*i].model),
            })
            .collect();
        let new = |dtype: Dtype, action: Action| {
            let nbytes = (shape.iter().product::<usize>() * dtype.size()) as u64;
            Output {
                name: row.name.clone(),
                shape: shape.clone(),
                dtype,
                nbytes,
                shard: 0,
                offset: 0,
                t: row.t,
                action,
                extra: None,
                calibrated: None,
            }
        };
        if described.iter().any(|(dtype, _)| !dtype.is_float()) {
            let first = described[0].0;
            if described.iter().any(|(dtype, _)| *dtype != first) {
                let types: Vec<String> = described
                    .iter()
                    .map(|(dtype, _)| dtype.to_string())
                    .collect();
                return Err(Fault::Shape(format!(
                    "{}: types {} cannot be merged",
                    row.name,
                    types.join(", ")
                )));
            }
            let counts = row.name.ends_with(BATCH_COUNTER);
            if inputs.len() > 1 && (counts || self.method.keeps_whole_numbers()) {
                let of_base = |input: &InputRef| Some(input.model) == scope.base_model;
                let mut inputs = inputs;
                let kept = inputs.swap_remove(inputs.iter().position(of_base).unwrap_or(0));
                let what = if counts {
                    "counters of batches (num_batches_tracked)"
                } else {
                    "tensors of whole numbers"
                };
                let label = &self.models[kept.model].label;
                self.notes
                    .insert(format!("{what} are not merged: they are those of {label}"));
                return Ok(Some(new(first, Action::Copy(kept))));
            }
            return Ok(Some(new(first, Action::Identical(inputs))));
        }
        let promoted = promote(described.iter().map(|(dtype, _)| *dtype));
        let stored = self
            .document
            .out_dtype
            .as_ref()
            .map(|dtype| float_dtype(dtype.value))
            .or(dtype)
            .unwrap_or(promoted);

        let base_source = base_of(self.method, scope);
        let base = base_source.and_then(|base| present.iter().position(|(i, _)| *i == base));
        if base_source.is_some()
            && base.is_none()
            && self.method.info().base == BasePolicy::Required
        {
            if present.len() == 1 {
                self.notes.insert(format!(
                    "{} is copied: the base lacks it and one model has it",
                    row.name
                ));
                return Ok(Some(self.copy_or_cast(new, inputs, stored)));
            }
            return Err(Fault::Shape(format!(
                "{}: the base model lacks it",
                row.name
            )));
        }
        let others = present.len() - usize::from(base.is_some());
        if present.len() < row.cells.len() && others < self.method.info().inputs.min.max(1) {
            if present.len() == 1 {
                return Ok(Some(self.copy_or_cast(new, inputs, stored)));
            }
            self.notes
                .insert(format!("{} is left out: too few models have it", row.name));
            return Ok(None);
        }
        let names: Vec<(usize, &str)> = present
            .iter()
            .map(|(i, found)| (*i, found.name()))
            .collect();
        let scopes = Scopes {
            document: self.document,
            slice: scope,
            models: self.models,
            chosen: self.chosen,
        };
        let look_up = |info| {
            scopes
                .settings(info, (&row.name, row.t), &names, base)
                .map_err(|diagnostic| Fault::Recipe(Box::new(diagnostic)))
        };
        let settings = look_up(self.method.info())?;
        let calibrated = self.chosen.calibrated.map(look_up).transpose()?;
        self.method
            .check(&shape, base, &settings)
            .map_err(|reason| {
                Fault::Recipe(Box::new(
                    Diagnostic::error(format!(
                        "{} cannot merge tensor '{}': {reason}",
                        self.method.info().name,
                        row.name
                    ))
                    .label(self.document.merge_method.span, "with these parameters"),
                ))
            })?;
        if self.method.is_copy(&settings) && inputs.len() == 1 {
            return Ok(Some(self.copy_or_cast(new, inputs, stored)));
        }
        let encoding =
            Encoding::Float(kernel_float(stored).unwrap_or(merganser_methods::Float::F32));
        let mut inputs = inputs;
        for (i, input) in inputs.iter_mut().enumerate() {
            input.companion = self.companion(&settings, i, &input.tensor, &shape)?;
        }
        Ok(Some(new(
            stored,
            Action::Merge {
                inputs,
                base,
                settings,
                encoding,
            },
        ))
        .map(|mut output| {
            output.calibrated = calibrated;
            output
        }))
    }

    /// How the rows of a vocabulary tensor of this model are re-indexed.
    fn row_map(&self, name: &str, model: usize) -> Option<RowMap> {
        self.reindexing
            .filter(|_| roles::is_vocabulary(name))?
            .map(model)
            .cloned()
    }

    /// The model of companion tensors that the parameters of input `i` name.
    fn companion(
        &self,
        settings: &Settings,
        i: usize,
        tensor: &str,
        shape: &[usize],
    ) -> Result<Option<usize>, Fault> {
        let files = self
            .method
            .info()
            .parameters
            .iter()
            .filter(|parameter| parameter.kind == Kind::File);
        for parameter in files {
            let Some(Value::Text(path)) = settings.inputs[i].get(parameter.name) else {
                continue;
            };
            let Some(model) = self.inputs.companion(path) else {
                continue;
            };
            return match self.models[model].describe(tensor) {
                Some((_, found)) if found == shape => Ok(Some(model)),
                Some((_, found)) => Err(Fault::Shape(format!(
                    "{tensor}: {path} has {found:?}, the model {shape:?}"
                ))),
                None => Err(Fault::Shape(format!("{tensor}: {path} lacks it"))),
            };
        }
        Ok(None)
    }

    /// A byte copy if the type stays and no adapter is in the way, else a conversion.
    fn copy_or_cast(
        &self,
        new: impl Fn(Dtype, Action) -> Output,
        mut inputs: Vec<InputRef>,
        stored: Dtype,
    ) -> Output {
        let input = inputs.swap_remove(0);
        let model = &self.models[input.model];
        let own = model.describe(&input.tensor).map(|(dtype, _)| dtype);
        let untouched = input.round_to.is_none()
            && input.rows.is_none()
            && model.deltas(&input.tensor).is_empty();
        if own == Some(stored) && untouched {
            return new(stored, Action::Copy(input));
        }
        let encoding =
            Encoding::Float(kernel_float(stored).unwrap_or(merganser_methods::Float::F32));
        new(stored, Action::Cast { input, encoding })
    }

    fn common_shape(
        &mut self,
        row: &Row,
        scope: &SliceScope<'_>,
        present: &[(usize, Found)],
        described: &[(Dtype, Vec<usize>)],
    ) -> Result<Vec<usize>, Fault> {
        let first = &described[0].1;
        if let Some(reindexing) = self.reindexing.filter(|_| roles::is_vocabulary(&row.name))
            && described
                .iter()
                .all(|(_, shape)| !shape.is_empty() && shape[1..] == first[1..])
        {
            let mut shape = first.clone();
            shape[0] = reindexing.rows;
            return Ok(shape);
        }
        if described.iter().all(|(_, shape)| shape == first) {
            return Ok(first.clone());
        }
        let label = |k: usize| &self.models[scope.sources[present[k].0].model].label;
        let rows_alone = roles::is_vocabulary(&row.name)
            && described.iter().all(|(_, shape)| {
                !shape.is_empty() && shape.len() == first.len() && shape[1..] == first[1..]
            });
        let list = described
            .iter()
            .enumerate()
            .map(|(k, (_, shape))| format!("{} has {shape:?}", label(k)))
            .collect::<Vec<_>>()
            .join(", ");
        if rows_alone {
            let least = described
                .iter()
                .map(|(_, shape)| shape[0])
                .min()
                .unwrap_or(0);
            let padded = self.only_padding_differs(scope, present, least);
            if self.options.truncate_embeddings || padded {
                let why = if padded {
                    "the tokenizers are equal and the rows cut off are padding"
                } else {
                    "UNSAFE: token ids beyond are lost"
                };
                self.notes
                    .insert(format!("{}: rows cut to {least} ({list}); {why}", row.name));
                self.rows = Some(least);
                let mut shape = first.clone();
                shape[0] = least;
                return Ok(shape);
            }
            return Err(Fault::Shape(format!(
                "{} (vocabulary rows): {list}",
                row.name
            )));
        }
        Err(Fault::Shape(format!("{}: {list}", row.name)))
    }

    /// Whether all models have the same tokenizer and no token of it lies beyond the first `rows` rows.
    fn only_padding_differs(
        &self,
        scope: &SliceScope<'_>,
        present: &[(usize, Found)],
        rows: usize,
    ) -> bool {
        let mut tokenizers = present
            .iter()
            .map(|(i, _)| self.models[scope.sources[*i].model].tokenizer());
        let Some(Some(first)) = tokenizers.next() else {
            return false;
        };
        first.rows <= rows
            && tokenizers.all(|other| other.is_some_and(|other| other.digest == first.digest))
    }
}

enum Fault {
    Shape(String),
    Recipe(Box<Diagnostic>),
}

fn plural(n: usize, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}
