//! Opens the models a document of a recipe names: headers, configs, adapters, and no tensor data but a small sample.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merganser_plan::{Inputs, Model, Tokenizer};
use merganser_recipe::{AdapterRef, Body, Diagnostic, Document, ModelRef, Parameters, Span, Value};
use merganser_store::adapter::Adapter;
use merganser_store::checkpoint::Checkpoint;
use merganser_store::hub::{self, HubOptions};

/// Bytes sampled of every tensor.
const SAMPLE: u64 = 256;

/// Where models are looked for.
#[derive(Debug, Clone)]
pub struct Opener {
    /// Folder of the recipe, tried for relative paths that the working directory does not have.
    pub recipe_dir: Option<PathBuf>,
    /// Cache and endpoint of the Hugging Face Hub.
    pub hub: HubOptions,
    /// Folders of documents of the same recipe that are merged already, by name.
    pub named: BTreeMap<String, PathBuf>,
}

impl Opener {
    /// Looks for models in the working directory, then in `recipe_dir`, then on the Hub as the environment says.
    pub fn new(recipe_dir: Option<PathBuf>) -> Self {
        Self {
            recipe_dir,
            hub: HubOptions::from_env(),
            named: BTreeMap::new(),
        }
    }

    /// Opens every model of a document.
    ///
    /// # Errors
    /// One diagnostic for every model that cannot be opened.
    pub fn open(&self, document: &Document) -> Result<Inputs, Vec<Diagnostic>> {
        let mut inputs = Inputs::default();
        let mut errors = Vec::new();
        for reference in document.model_refs() {
            if inputs.contains(reference) {
                continue;
            }
            match self.model(reference) {
                Ok(model) => inputs.add(reference.clone(), model),
                Err(reason) => {
                    if !errors.iter().any(|(known, _)| known == reference) {
                        errors.push((reference.clone(), reason));
                    }
                }
            }
        }
        let mut errors: Vec<Diagnostic> = errors
            .into_iter()
            .map(|(reference, reason)| {
                Diagnostic::error(format!("cannot open model {reference}: {reason}"))
                    .label(reference.span, "named here")
            })
            .collect();
        let mut files = BTreeSet::new();
        companions(&document.body, &document.parameters, &mut files);
        for (path, span) in files {
            match self.folder(&path, None).and_then(|at| checkpoint(&at)) {
                Ok(found) => match Model::new(path.clone(), Arc::new(found), None) {
                    Ok(model) => inputs.add_companion(&path, model),
                    Err(reason) => errors.push(Diagnostic::error(reason).label(span, "named here")),
                },
                Err(reason) => {
                    errors.push(
                        Diagnostic::error(format!("cannot open {path}: {reason}"))
                            .label(span, "named here"),
                    );
                }
            }
        }
        match crate::calibration::find(document, self.recipe_dir.as_deref()) {
            Ok(found) => {
                for (name, (path, digest)) in found {
                    inputs.add_calibration(&name, path, digest);
                }
            }
            Err(found) => errors.extend(found),
        }
        if errors.is_empty() {
            Ok(inputs)
        } else {
            Err(errors)
        }
    }

    /// Whether every model of a document is a single file rather than a folder: a merge of state dicts.
    pub fn is_state_dicts(&self, document: &Document) -> bool {
        document.model_refs().all(|reference| {
            self.folder(&reference.path, reference.revision.as_deref())
                .is_ok_and(|path| path.is_file())
        })
    }

    /// Opens one model, adapter included.
    ///
    /// # Errors
    /// Why it cannot be opened and what to do.
    pub fn model(&self, reference: &ModelRef) -> Result<Model, String> {
        let path = self.folder(&reference.path, reference.revision.as_deref())?;
        if is_adapter(&path) {
            return Err(format!(
                "it is a LoRA adapter, not a model: write `base+{}` with the model it was trained on",
                reference.path
            ));
        }
        let found = checkpoint(&path)?;
        let adapter = match &reference.lora {
            Some(lora) => {
                let path = self.folder(&lora.path, lora.revision.as_deref())?;
                Some(Arc::new(
                    Adapter::open(&path).map_err(|error| error.to_string())?,
                ))
            }
            None => None,
        };
        let sample = sample(&found, adapter.as_deref())?;
        let tokenizer = tokenizer(found.path());
        let model = Model::new(reference.to_string(), Arc::new(found), adapter)?;
        model.check_adapter()?;
        Ok(model.with_sample(sample).with_tokenizer(tokenizer))
    }

    /// Opens an adapter, named alone or behind the model it was trained on, which is then not looked at.
    ///
    /// # Errors
    /// Why it cannot be opened and what to do.
    pub fn adapter(&self, reference: &ModelRef) -> Result<Adapter, String> {
        let (path, revision) = match &reference.lora {
            Some(lora) => (&lora.path, &lora.revision),
            None => (&reference.path, &reference.revision),
        };
        let path = self.folder(path, revision.as_deref())?;
        if path.join("config.json").is_file() && !path.join("adapter_config.json").is_file() {
            return Err("it is a whole model, not an adapter; `merganser extract lora` makes an adapter of a fine-tune".into());
        }
        Adapter::open(&path).map_err(|error| error.to_string())
    }

    /// Opens what can be added to the model `base`: an adapter, as the base with that adapter on it, or else the model
    /// that `reference` means (a stored task vector, if the caller's user knows what they want).
    ///
    /// # Errors
    /// Those of [`model`](Self::model).
    pub fn addition(&self, base: &ModelRef, reference: &ModelRef) -> Result<Model, String> {
        let path = self.folder(&reference.path, reference.revision.as_deref())?;
        if reference.lora.is_some() || !is_adapter(&path) {
            return self.model(reference);
        }
        let adapter = AdapterRef {
            path: reference.path.clone(),
            revision: reference.revision.clone(),
        };
        self.model(&ModelRef {
            lora: Some(Box::new(adapter)),
            ..base.clone()
        })
    }

    fn folder(&self, path: &str, revision: Option<&str>) -> Result<PathBuf, String> {
        if let Some(folder) = self.named.get(path) {
            return Ok(folder.clone());
        }
        if let Some(dir) = &self.recipe_dir {
            let beside = dir.join(path);
            if !Path::new(path).exists() && beside.exists() {
                return Ok(beside);
            }
        }
        hub::resolve(path, revision, &self.hub).map_err(|error| error.to_string())
    }
}

/// Whether a folder holds an adapter rather than a model.
fn is_adapter(path: &Path) -> bool {
    path.is_dir()
        && path.join("adapter_config.json").is_file()
        && !path.join("config.json").is_file()
}

fn checkpoint(path: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open(path).map_err(|error| error.to_string())
}

/// Files that parameters of sources name as companions of their tensors.
fn companions(body: &Body, shared: &Parameters, found: &mut BTreeSet<(String, Span)>) {
    let mut take = |parameters: &Parameters| {
        if let Some(setting) = parameters.get("fisher") {
            for value in setting.value.values() {
                if let Value::Text(path) = &value.value {
                    found.insert((path.clone(), value.span));
                }
            }
        }
    };
    take(shared);
    match body {
        Body::Models(sources) => sources.iter().for_each(|source| take(&source.parameters)),
        Body::Slices(slices) => {
            for slice in slices {
                take(&slice.parameters);
                slice
                    .sources
                    .iter()
                    .for_each(|source| take(&source.parameters));
            }
        }
        Body::Modules(modules) => {
            for (_, module) in modules {
                companions(&module.body, &module.parameters, found);
            }
        }
    }
}

/// A hash over the first, middle and last bytes of every tensor: enough to tell versions of a model apart without
/// reading it.
fn sample(checkpoint: &Checkpoint, adapter: Option<&Adapter>) -> Result<String, String> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for checkpoint in std::iter::once(checkpoint).chain(adapter.map(Adapter::checkpoint)) {
        for tensor in checkpoint.tensors().values() {
            for at in [0, tensor.nbytes / 2, tensor.nbytes.saturating_sub(SAMPLE)] {
                bytes.resize(SAMPLE.min(tensor.nbytes - at) as usize, 0);
                checkpoint
                    .read(tensor, at, &mut bytes)
                    .map_err(|error| error.to_string())?;
                hasher.update(&bytes);
            }
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The vocabulary of tokenizer.json, if there is one that can be read.
fn tokenizer(folder: &Path) -> Option<Tokenizer> {
    let text = std::fs::read_to_string(folder.join("tokenizer.json")).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    let row = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut tokens: HashMap<String, u32> = match json.get("model")?.get("vocab")? {
        serde_json::Value::Object(vocabulary) => vocabulary
            .iter()
            .filter_map(|(token, id)| Some((token.clone(), row(id)?)))
            .collect(),
        // Unigram models list [piece, score] in the order of the ids.
        serde_json::Value::Array(pieces) => pieces
            .iter()
            .zip(0..)
            .filter_map(|(piece, id)| Some((piece.get(0)?.as_str()?.to_owned(), id)))
            .collect(),
        _ => return None,
    };
    let added = json.get("added_tokens").and_then(|list| list.as_array());
    for token in added.into_iter().flatten() {
        if let (Some(content), Some(id)) = (
            token.get("content").and_then(|c| c.as_str()),
            token.get("id").and_then(row),
        ) {
            tokens.insert(content.to_owned(), id);
        }
    }
    Some(Tokenizer::new(tokens))
}
