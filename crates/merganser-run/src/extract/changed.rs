//! What differs between a fine-tune and its base, and where it belongs in an adapter.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::ExtractLora;
use super::config::is_inside;
use super::numbers::stored;
use super::parts::{Part, Parts, Piece};
use crate::{RunError, updates};

/// What differs between the models, as far as that is known without a decomposition.
pub(super) struct Changed {
    /// Matrices of layers, changed or not.
    pub(super) matrices: Vec<Piece>,
    /// Changed tensors to be saved whole, and what else their modules hold.
    pub(super) whole: Vec<Piece>,
    /// Changed biases of the layers of `matrices`.
    pub(super) biases: Vec<Piece>,
    pub(super) modules: BTreeSet<String>,
    pub(super) unchanged: usize,
    pub(super) left_out: usize,
    pub(super) notes: Vec<String>,
}

impl Changed {
    pub(super) fn of(job: &ExtractLora<'_>, parts: Parts) -> Result<Self, RunError> {
        let (mut matrices, others): (Vec<Piece>, Vec<Piece>) =
            parts.pieces.into_iter().partition(Piece::has_factors);
        let (mut others, same) = by_difference(job, others)?;
        refuse(job, &others)?;
        // PEFT cannot adapt a layer inside a module that it saves whole.
        let linear: BTreeSet<String> = matrices.iter().map(|piece| piece.module.clone()).collect();
        let outer: BTreeSet<String> = others
            .iter()
            .filter(|piece| piece.part == Part::Whole || !linear.contains(&piece.module))
            .map(|piece| piece.module.clone())
            .collect();
        let inside = |piece: &Piece| {
            let module = &piece.module;
            outer.contains(module) || outer.iter().any(|outer| is_inside(module, outer))
        };
        let mut notes = parts.notes;
        for module in &outer {
            let unwanted = parts.unwanted.iter().find(|path| is_inside(path, module));
            if let Some(unwanted) = unwanted {
                notes.push(format!(
                    "'{module}' is saved whole without '{unwanted}', which --include and --exclude leave out: PEFT loads a \
                     saved module only with all that is in it; leave both out, or neither"
                ));
            }
        }
        let (enclosed, rest): (Vec<Piece>, Vec<Piece>) = matrices.into_iter().partition(inside);
        matrices = rest;
        others.extend(enclosed);
        // And it loads a module that it saves whole only with all tensors of it.
        let (along, same): (Vec<Piece>, Vec<Piece>) = same.into_iter().partition(inside);
        others.extend(along);
        let linear: BTreeSet<&str> = matrices.iter().map(|piece| piece.module.as_str()).collect();
        let (biases, mut whole): (Vec<Piece>, Vec<Piece>) = others
            .into_iter()
            .partition(|piece| piece.part == Part::Bias && linear.contains(piece.module.as_str()));
        whole.sort_by_key(Piece::name);
        if !biases.is_empty() {
            refuse_biases(job, &biases, &matrices)?;
        }
        Ok(Self {
            matrices,
            whole,
            biases,
            modules: parts.modules,
            unchanged: same.len(),
            left_out: parts.left_out,
            notes,
        })
    }
}

/// The pieces that are not the same in both models, and those that are.
fn by_difference(
    job: &ExtractLora<'_>,
    pieces: Vec<Piece>,
) -> Result<(Vec<Piece>, Vec<Piece>), RunError> {
    let differs: Vec<bool> = pieces
        .par_iter()
        .map(|piece| differs(job, piece))
        .collect::<Result<_, _>>()?;
    let both = pieces.into_iter().zip(differs);
    let (changed, same): (Vec<_>, Vec<_>) = both.partition(|(_, differs)| *differs);
    let pieces = |list: Vec<(Piece, bool)>| list.into_iter().map(|(piece, _)| piece).collect();
    Ok((pieces(changed), pieces(same)))
}

/// Refuses changes that an adapter cannot carry.
fn refuse(job: &ExtractLora<'_>, changed: &[Piece]) -> Result<(), RunError> {
    let named = |bad: &dyn Fn(&Piece) -> bool| {
        let names: Vec<String> = changed.iter().filter(|p| bad(p)).map(Piece::name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let advice = "leave it out with --exclude, or use `merganser extract task-vector`";
    if let Some(names) = named(&|piece| piece.part == Part::Exact) {
        return Err(RunError::Extract(format!(
            "{} changed whole numbers or switches of {}: {names}; an adapter cannot carry them: {advice}",
            job.fine.label, job.base.label
        )));
    }
    if let Some(names) = named(&|piece| piece.module.is_empty()) {
        return Err(RunError::Extract(format!(
            "{} changed parameters that belong to no module: {names}; PEFT cannot save them: {advice}",
            job.fine.label
        )));
    }
    Ok(())
}

/// Refuses biases of second factors beside factors of embeddings: PEFT does not load such an adapter.
fn refuse_biases(
    job: &ExtractLora<'_>,
    biases: &[Piece],
    matrices: &[Piece],
) -> Result<(), RunError> {
    let tables = matrices
        .iter()
        .filter(|piece| piece.part == Part::Embedding)
        .cloned();
    let Some(table) = by_difference(job, tables.collect())?.0.into_iter().next() else {
        return Ok(());
    };
    Err(RunError::Extract(format!(
        "{} changed '{}' and {} biases of layers, such as '{}': these become biases of second factors (`lora_bias`), beside \
         which PEFT loads no factors of embeddings; leave out --embed-lora, and embeddings are saved whole",
        job.fine.label,
        table.name(),
        biases.len(),
        biases[0].name(),
    )))
}

/// Whether a tensor is not the same in both models.
fn differs(job: &ExtractLora<'_>, piece: &Piece) -> Result<bool, RunError> {
    let Some(in_base) = piece.base.as_ref().filter(|_| !piece.forced) else {
        return Ok(true);
    };
    if piece.part == Part::Exact {
        return Ok(stored(job.fine, &piece.fine)? != stored(job.base, in_base)?);
    }
    let extents = piece.extents();
    let mut differs = false;
    let mut other = updates::Reader::open(job.base, in_base)?;
    updates::rows(job.fine, &piece.fine, extents, |_, values| {
        differs |= other.next(values.len()).is_some_and(|base| base != values);
    })?;
    other.finish()?;
    Ok(differs)
}
