//! What of a fine-tune becomes what in an adapter, told from names and shapes alone.

use std::collections::BTreeSet;

use merganser_plan::{Found, Model, Role, is_rebuilt_buffer};
use merganser_store::Dtype;
use regex::Regex;

use crate::RunError;

/// How a tensor can be carried by an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// By two factors: the weight of a linear layer or of a convolution, as a matrix of outputs × (inputs · kernel).
    Matrix,
    /// By two factors of its transpose: a table that is looked up.
    Embedding,
    /// By the bias of the second factor, if its layer's matrix has factors; else whole.
    Bias,
    /// Whole: embeddings, norms, heads, and what is no weight of a layer.
    Whole,
    /// Not at all: whole numbers.
    Exact,
}

/// One tensor.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Its module (`model.layers.0.self_attn.q_proj`), empty for a parameter of the model itself.
    pub(super) module: String,
    /// Its name in the module (`weight`).
    pub(super) parameter: String,
    /// Its name in the fine-tune.
    pub(super) fine: String,
    /// Its name in the base; `None` if the base has no such tensor.
    pub(super) base: Option<String>,
    /// Its type in the fine-tune.
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) part: Part,
    /// Whether it is stored as inputs × outputs.
    pub(super) transposed: bool,
    /// Whether it is saved, changed or not.
    pub(super) forced: bool,
}

impl Piece {
    /// Its name in the base's model.
    pub(super) fn name(&self) -> String {
        if self.module.is_empty() {
            self.parameter.clone()
        } else {
            format!("{}.{}", self.module, self.parameter)
        }
    }

    /// Whether it is carried by factors.
    pub(super) fn has_factors(&self) -> bool {
        matches!(self.part, Part::Matrix | Part::Embedding)
    }

    /// Extents of the kernel of a convolution; none of other matrices.
    pub(super) fn kernel(&self) -> &[usize] {
        self.shape.get(2..).unwrap_or_default()
    }

    /// Rows and columns of a matrix.
    pub(super) fn extents(&self) -> (usize, usize) {
        let rows = self.shape.first().copied().unwrap_or(1);
        (rows, self.shape.iter().skip(1).product())
    }
}

/// Which modules are wanted, by regular expressions that are looked for in their paths: those in which one of `include` is
/// found, or all if there is none, without those in which one of `exclude` is.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Vec<Regex>,
    exclude: Vec<Regex>,
}

impl Filter {
    /// Reads the expressions.
    ///
    /// # Errors
    /// The first that is none.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, RunError> {
        let read = |list: &[String]| {
            list.iter()
                .map(|text| {
                    Regex::new(text).map_err(|error| {
                        RunError::Extract(format!("'{text}' is no regular expression: {error}"))
                    })
                })
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            include: read(include)?,
            exclude: read(exclude)?,
        })
    }

    fn wants(&self, module: &str) -> bool {
        let matches = |list: &[Regex]| list.iter().any(|regex| regex.is_match(module));
        (self.include.is_empty() || matches(&self.include)) && !matches(&self.exclude)
    }
}

/// What is done otherwise than names and shapes suggest.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Tables that are looked up, and the output head, get factors instead of being saved whole.
    pub embeddings: bool,
    /// Modules that are saved whole, changed or not and whatever the filter says: by their paths, or the last words of these.
    pub save: Vec<String>,
}

impl Overrides {
    /// Whether `module`, or one that it lies in, is to be saved.
    fn saves(&self, module: &str) -> bool {
        let named = |path: &str| {
            let last = path.rsplit('.').next().unwrap_or(path);
            self.save.iter().any(|name| name == path || name == last)
        };
        let mut path = module;
        loop {
            if named(path) {
                return true;
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return false,
            }
        }
    }

    /// Refuses names that mean no module.
    fn check(&self, modules: &BTreeSet<String>, base: &str) -> Result<(), RunError> {
        let known = |name: &str| {
            let ends = |path: &String| path.rsplit('.').next() == Some(name) || path == name;
            modules.iter().any(ends)
        };
        match self.save.iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(RunError::Extract(format!(
                "{base} has no module '{name}' to be saved whole; expected the path of a module, such as \
                 model.layers.0.mlp.up_proj, or the last word of one"
            ))),
        }
    }
}

/// The tensors of a fine-tune, sorted.
pub(super) struct Parts {
    /// What is wanted, by name.
    pub(super) pieces: Vec<Piece>,
    /// Paths of all modules of the base, and of their parents.
    pub(super) modules: BTreeSet<String>,
    /// Tensors that the filter leaves out.
    pub(super) left_out: usize,
    /// Their modules.
    pub(super) unwanted: BTreeSet<String>,
    pub(super) notes: Vec<String>,
}

/// Families whose linear layers are GPT-2's Conv1D, which store inputs × outputs.
const CONV1D_FAMILIES: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];

/// Names of these layers.
const CONV1D: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];

/// Words of a path that mark heads. PEFT keeps those of classifiers whole by itself.
const HEADS: [&str; 8] = [
    "lm_head",
    "embed_out",
    "output_layer",
    "score",
    "classifier",
    "qa_outputs",
    "cls",
    "predictions",
];

/// The module of the output head where it can be tied to the embedding.
pub(super) const HEAD: &str = "lm_head";

/// Heads that map hidden states to the vocabulary: linear layers, which can have factors.
const OUTPUT_HEADS: [&str; 3] = ["lm_head", "embed_out", "output_layer"];

/// Words of a path that mark layers with kernels which PEFT has no factors for.
const OTHER_KERNELS: [&str; 6] = [
    "deconv",
    "transpose",
    "upconv",
    "upscale",
    "resize",
    "expert",
];

/// Whether the model's linear layers are stored as inputs × outputs.
pub(super) fn is_conv1d_family(model: &Model) -> bool {
    model
        .model_type()
        .is_some_and(|kind| CONV1D_FAMILIES.contains(&kind))
}

/// The embedding that the output head of a language model shares, if it has no tensor of its own.
pub(super) fn tied_table(model: &Model) -> Option<String> {
    super::config::generates_text(model).then_some(())?;
    match model.find(&format!("{HEAD}.weight")) {
        Some(Found::Tied(table)) => Some(table),
        _ => None,
    }
}

/// Sorts the tensors of `fine` by what an adapter of `base` can do for them.
///
/// # Errors
/// If one cannot be a fine-tune of the other.
pub(super) fn sort(
    fine: &Model,
    base: &Model,
    filter: &Filter,
    overrides: &Overrides,
) -> Result<Parts, RunError> {
    merganser_plan::task_vector::same_architecture(base, fine).map_err(RunError::Extract)?;
    let mut parts = Parts {
        pieces: Vec::new(),
        modules: BTreeSet::new(),
        left_out: 0,
        unwanted: BTreeSet::new(),
        notes: Vec::new(),
    };
    for name in base.names() {
        let mut path = name;
        while let Some((parent, _)) = path.rsplit_once('.') {
            parts.modules.insert(parent.to_owned());
            path = parent;
        }
    }
    let tied = tied_table(base);
    if tied.is_some() {
        parts.modules.insert(HEAD.to_owned());
    }
    overrides.check(&parts.modules, &base.label)?;
    // A head that both models tie is where the fine-tune's embedding is.
    if overrides.saves(HEAD)
        && tied.is_some()
        && let Some(table) = tied_table(fine)
        && let Some((dtype, shape)) = fine.describe(&table)
    {
        parts.pieces.push(Piece {
            module: HEAD.to_owned(),
            parameter: "weight".to_owned(),
            fine: table.clone(),
            base: None,
            dtype,
            shape: shape.to_vec(),
            part: Part::Whole,
            transposed: false,
            forced: true,
        });
    }
    let conv1d = is_conv1d_family(base);
    let mut matched = BTreeSet::new();
    let mut fine_names: Vec<&str> = fine.names().collect();
    fine_names.sort_unstable();
    for in_fine in fine_names {
        let found = match base.find(in_fine) {
            None if is_rebuilt_buffer(in_fine) => continue,
            Some(Found::Tied(_)) if fine.is_tied() && !overrides.saves(HEAD) => {
                parts.notes.push(format!(
                    "'{in_fine}' is left out: both models tie it to their embedding"
                ));
                continue;
            }
            // The base's embedding stands in for a head, which the adapter must bring along all the same.
            Some(Found::Tied(_)) | None => None,
            Some(found) => Some(found.name().to_owned()),
        };
        let name = found.as_deref().unwrap_or(in_fine);
        matched.insert(name.to_owned());
        let (module, parameter) = name.rsplit_once('.').unwrap_or(("", name));
        let forced = overrides.saves(module);
        if !forced && !filter.wants(module) {
            parts.left_out += 1;
            parts.unwanted.insert(module.to_owned());
            continue;
        }
        let Some((dtype, shape)) = fine.describe(in_fine) else {
            continue;
        };
        if found.is_none() {
            parts.notes.push(format!(
                "'{in_fine}' is not in {}: it is saved whole",
                base.label
            ));
        }
        if let Some((other, wanted)) = found.as_deref().and_then(|name| base.describe(name)) {
            if shape != wanted {
                return Err(RunError::Extract(format!(
                    "tensor '{name}' has shape {shape:?} in {} and {wanted:?} in {}: an adapter cannot change a shape; \
                     give both models the same vocabulary and size first",
                    fine.label, base.label
                )));
            }
            if dtype.is_float() != other.is_float() {
                return Err(RunError::Extract(format!(
                    "tensor '{name}' is {dtype} in {} and {other} in {}: quantised or whole numbers have no difference",
                    fine.label, base.label
                )));
            }
        }
        let part = if forced && dtype.is_float() {
            Part::Whole
        } else {
            let known = Known {
                in_base: found.is_some(),
                conv1d,
                embeddings: overrides.embeddings,
            };
            part(name, shape, dtype, known)
        };
        parts.pieces.push(Piece {
            module: module.to_owned(),
            parameter: parameter.to_owned(),
            fine: in_fine.to_owned(),
            base: found,
            dtype,
            shape: shape.to_vec(),
            part,
            transposed: conv1d || part == Part::Embedding,
            forced: part == Part::Whole && forced,
        });
    }
    let gone: Vec<&str> = base
        .names()
        .filter(|name| !matched.contains(*name) && fine.find(name).is_none())
        .collect();
    let (heads, missing): (Vec<&str>, Vec<&str>) = gone
        .into_iter()
        .filter(|name| !is_rebuilt_buffer(name))
        .partition(|name| is_head(name) || Role::of(name) == Role::Post);
    if !missing.is_empty() {
        let more = match missing.len() {
            n if n > 4 => format!(" and {} more", n - 4),
            _ => String::new(),
        };
        return Err(RunError::Extract(format!(
            "{} lacks tensors of {}: {}{more}; is it a fine-tune of that base?",
            fine.label,
            base.label,
            missing[..missing.len().min(4)].join(", ")
        )));
    }
    for head in heads {
        parts.notes.push(format!(
            "'{head}' is not in {}: the adapter leaves the base's as it is",
            fine.label
        ));
    }
    parts.pieces.sort_by_key(Piece::name);
    Ok(parts)
}

/// What tells the part of a tensor beside its name and shape.
#[derive(Clone, Copy)]
struct Known {
    /// Whether the base has it.
    in_base: bool,
    /// Whether linear layers are stored as inputs × outputs.
    conv1d: bool,
    /// Whether embeddings get factors.
    embeddings: bool,
}

fn part(name: &str, shape: &[usize], dtype: Dtype, known: Known) -> Part {
    let (module, parameter) = name.rsplit_once('.').unwrap_or(("", name));
    let last = module.rsplit('.').next().unwrap_or(module);
    if !dtype.is_float() {
        return Part::Exact;
    }
    let has_factors = known.embeddings && OUTPUT_HEADS.contains(&last);
    if !known.in_base || is_head(name) && !has_factors {
        return Part::Whole;
    }
    // PEFT has one setting for the whole adapter, so that other layers of such a family are not given factors.
    let linear = !known.conv1d || CONV1D.contains(&last);
    let filled = shape.iter().all(|&n| n > 0);
    match (parameter, shape.len()) {
        ("weight", 2) if is_embedding(last) && !has_factors => {
            if known.embeddings && filled {
                Part::Embedding
            } else {
                Part::Whole
            }
        }
        ("weight", 2) if linear && filled => Part::Matrix,
        ("weight", 3..) if !known.conv1d && filled && is_convolution(module, shape) => Part::Matrix,
        ("bias", 1) if linear => Part::Bias,
        _ => Part::Whole,
    }
}

/// Whether the weight of a module is that of a convolution of one group, in one to three dimensions. One input a group
/// means as many groups as inputs, for all that a shape can tell; more inputs a group cannot be told from one group.
fn is_convolution(module: &str, shape: &[usize]) -> bool {
    let path = module.to_ascii_lowercase();
    let named = shape.len() > 3 || path.contains("conv");
    let depthwise = shape[1] == 1 && shape[0] > 1;
    let other = OTHER_KERNELS.iter().any(|word| path.contains(word));
    shape.len() <= 5 && named && !depthwise && !other
}

fn is_head(name: &str) -> bool {
    name.split('.').any(|word| HEADS.contains(&word))
}

/// Whether the last word of a module's path is that of a table that is looked up.
fn is_embedding(word: &str) -> bool {
    word.contains("embed") || ["wte", "wpe", "shared", "relative_attention_bias"].contains(&word)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shapes_tell_the_part() {
        let of = |name: &str, shape: &[usize], conv1d: bool| {
            let known = Known {
                in_base: true,
                conv1d,
                embeddings: false,
            };
            part(name, shape, Dtype::F32, known)
        };
        for (name, shape, conv1d, expected) in [
            (
                "model.layers.0.self_attn.q_proj.weight",
                &[4, 4][..],
                false,
                Part::Matrix,
            ),
            (
                "model.layers.0.self_attn.q_proj.bias",
                &[4],
                false,
                Part::Bias,
            ),
            (
                "model.layers.0.input_layernorm.weight",
                &[4],
                false,
                Part::Whole,
            ),
            ("model.embed_tokens.weight", &[9, 4], false, Part::Whole),
            (
                "bert.embeddings.word_embeddings.weight",
                &[9, 4],
                false,
                Part::Whole,
            ),
            ("lm_head.weight", &[9, 4], false, Part::Whole),
            ("classifier.out_proj.weight", &[3, 4], false, Part::Whole),
            ("bert.pooler.dense.weight", &[4, 4], false, Part::Matrix),
            (
                "vit.embeddings.patch_embeddings.projection.weight",
                &[4, 3, 2, 2],
                false,
                Part::Matrix,
            ),
            (
                "vision_model.embeddings.patch_embedding.weight",
                &[4, 3, 2, 2],
                false,
                Part::Matrix,
            ),
            ("encoder.conv1.weight", &[4, 3, 3], false, Part::Matrix),
            (
                "visual.patch_embed.proj.weight",
                &[4, 3, 2, 2, 2],
                false,
                Part::Matrix,
            ),
            ("stages.0.dwconv.weight", &[4, 1, 7, 7], false, Part::Whole),
            ("neck.0.deconv.weight", &[4, 3, 2, 2], false, Part::Whole),
            ("moe.input_linear.weight", &[4, 3, 2], false, Part::Whole),
            (
                "transformer.h.0.attn.c_attn.weight",
                &[4, 12],
                true,
                Part::Matrix,
            ),
            ("transformer.h.0.other.weight", &[4, 12], true, Part::Whole),
            ("transformer.wpe.weight", &[9, 4], true, Part::Whole),
            (
                "model.layers.0.mlp.experts.gate_up_proj",
                &[2, 4, 4],
                false,
                Part::Whole,
            ),
        ] {
            assert_eq!(of(name, shape, conv1d), expected, "{name}");
        }
    }

    #[test]
    fn embeddings_and_output_heads_get_factors_if_asked_for() {
        let of = |name: &str, shape: &[usize]| {
            let known = Known {
                in_base: true,
                conv1d: false,
                embeddings: true,
            };
            part(name, shape, Dtype::F32, known)
        };
        for (name, expected) in [
            ("model.embed_tokens.weight", Part::Embedding),
            ("embed_out.weight", Part::Matrix),
            ("lm_head.weight", Part::Matrix),
            ("score.weight", Part::Whole),
            ("model.layers.0.mlp.up_proj.weight", Part::Matrix),
        ] {
            assert_eq!(of(name, &[9, 4]), expected, "{name}");
        }
        assert_eq!(of("lm_head.bias", &[9]), Part::Bias);
        assert_eq!(of("embeddings.LayerNorm.weight", &[9]), Part::Whole);
    }

    #[test]
    fn modules_are_saved_by_path_last_word_or_parent() {
        let overrides = Overrides {
            save: ["up_proj", "model.layers.1.mlp", "score"]
                .map(str::to_owned)
                .into(),
            ..Overrides::default()
        };
        for (module, expected) in [
            ("model.layers.0.mlp.up_proj", true),
            ("model.layers.0.mlp.gate_up_proj", false),
            ("model.layers.1.mlp.down_proj", true),
            ("model.layers.11.mlp.down_proj", false),
            ("score", true),
            ("", false),
        ] {
            assert_eq!(overrides.saves(module), expected, "{module}");
        }
        let modules = ["score", "a.up_proj", "model.layers.1.mlp"].map(str::to_owned);
        let modules: BTreeSet<String> = modules.into();
        assert!(overrides.check(&modules, "b").is_ok());
        let missing = Overrides {
            save: vec!["proj".into()],
            ..Overrides::default()
        };
        let said = missing.check(&modules, "b").unwrap_err().to_string();
        assert!(said.contains("b has no module 'proj'"), "{said}");
    }
}
