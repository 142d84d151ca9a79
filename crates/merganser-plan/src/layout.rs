//! Which input tensors make which output tensor: slices and stacks of layers, laid out in output order.
//!
//! Follows mergekit 0.1.5: `models:` is one slice over all layers; output layers count on through the slices; what
//! stands before the layers comes from the first slice, what stands after them from the last; the position `t` of a
//! layer in a gradient restarts in every slice and is 0 outside the layers.

use std::collections::{BTreeMap, BTreeSet};

use merganser_recipe::{
    Body, Diagnostic, Document, ModelRef, Module, Parameters, Slice, Source, Span, Spanned,
};

use crate::model::{Found, Model};
use crate::roles::{Role, layer_name};

/// One source of a slice.
pub(crate) struct SourceScope<'r> {
    /// Index of the model.
    pub(crate) model: usize,
    /// Its own parameters.
    pub(crate) parameters: Option<&'r Parameters>,
    /// Where the recipe names it.
    pub(crate) span: Span,
    pub(crate) range: Option<(usize, usize, Span)>,
}

/// A slice and the scopes its parameters are looked up in.
pub(crate) struct SliceScope<'r> {
    pub(crate) sources: Vec<SourceScope<'r>>,
    /// The base model given for it, if any (a source or not).
    pub(crate) base_model: Option<usize>,
    pub(crate) slice: Option<&'r Parameters>,
    pub(crate) module: Option<&'r Parameters>,
    /// Where errors about the slice point.
    pub(crate) span: Span,
}

/// One output tensor, its inputs named.
pub(crate) struct Row {
    pub(crate) name: String,
    /// The tensor of each source of the slice, if it has one.
    pub(crate) cells: Vec<Option<Found>>,
    /// Position in the gradients.
    pub(crate) t: f64,
    pub(crate) slice: usize,
    pub(crate) layer: Option<usize>,
}

/// The whole output.
pub(crate) struct Layout<'r> {
    pub(crate) slices: Vec<SliceScope<'r>>,
    pub(crate) rows: Vec<Row>,
    /// For every stack whose layers move: the layer each output layer was in its first source.
    pub(crate) origins: Vec<Vec<usize>>,
}

/// What a raw merge does with tensors that some input lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// Refuse to merge.
    #[default]
    Error,
    /// Leave them out of the output.
    Intersection,
    /// Merge them from the inputs that have them.
    Union,
}

/// Lays out a document. `index` maps a model reference to its position in `models`.
pub(crate) fn layout<'r>(
    document: &'r Document,
    models: &[Model],
    index: &dyn Fn(&ModelRef) -> usize,
    state_dict: bool,
) -> Result<Layout<'r>, Vec<Diagnostic>> {
    let base = document.base_model.as_ref();
    let mut out = Layout {
        slices: Vec::new(),
        rows: Vec::new(),
        origins: Vec::new(),
    };
    match &document.body {
        Body::Models(sources) => {
            let scope = models_scope(sources, base, None, document.span, index);
            whole(&mut out, scope, models, |_| true, state_dict)?;
        }
        Body::Slices(slices) => {
            let stacks = stacks_of(slices, models, index);
            if stacks.len() > 1 {
                return Err(vec![several_stacks(&stacks, document.span)]);
            }
            let scopes = slices
                .iter()
                .map(|slice| slice_scope(slice, base, None, index))
                .collect();
            moved(&mut out, scopes, models, |_| true)?;
        }
        Body::Modules(modules) => by_module(&mut out, modules, base, models, index)?,
    }
    order(&mut out.rows);
    Ok(out)
}

fn models_scope<'r>(
    sources: &'r [Source],
    base: Option<&'r ModelRef>,
    module: Option<&'r Parameters>,
    span: Span,
    index: &dyn Fn(&ModelRef) -> usize,
) -> SliceScope<'r> {
    let mut scopes: Vec<SourceScope<'r>> = sources
        .iter()
        .map(|source| source_scope(source, index))
        .collect();
    let base_model = base.map(index);
    if let Some(base) = base
        && !sources.iter().any(|source| &source.model == base)
    {
        scopes.push(SourceScope {
            model: index(base),
            parameters: None,
            span: base.span,
            range: None,
        });
    }
    let span = sources.first().map_or(span, |source| source.model.span);
    SliceScope {
        sources: scopes,
        base_model,
        slice: None,
        module,
        span,
    }
}

fn slice_scope<'r>(
    slice: &'r Slice,
    base: Option<&'r ModelRef>,
    module: Option<&'r Parameters>,
    index: &dyn Fn(&ModelRef) -> usize,
) -> SliceScope<'r> {
    SliceScope {
        sources: slice
            .sources
            .iter()
            .map(|source| source_scope(source, index))
            .collect(),
        base_model: slice.base_model.as_ref().or(base).map(index),
        slice: Some(&slice.parameters),
        module,
        span: slice
            .sources
            .first()
            .map_or(slice.span, |source| source.model.span),
    }
}

fn source_scope<'r>(source: &'r Source, index: &dyn Fn(&ModelRef) -> usize) -> SourceScope<'r> {
    SourceScope {
        model: index(&source.model),
        parameters: Some(&source.parameters),
        span: source.model.span,
        range: source
            .layer_range
            .as_ref()
            .map(|range| (range.value[0] as usize, range.value[1] as usize, range.span)),
    }
}

/// The stacks of layers of a model and the layer numbers in each.
pub(crate) fn stacks(model: &Model) -> BTreeMap<String, BTreeSet<usize>> {
    let mut stacks: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for name in model.names() {
        if let Role::Layer { stack, index, .. } = Role::of(name) {
            stacks.entry(stack.to_owned()).or_default().insert(index);
        }
    }
    stacks
}

fn stacks_of(
    slices: &[Slice],
    models: &[Model],
    index: &dyn Fn(&ModelRef) -> usize,
) -> Vec<String> {
    slices
        .iter()
        .flat_map(|slice| &slice.sources)
        .map(|source| {
            stacks(&models[index(&source.model)])
                .into_keys()
                .collect::<Vec<_>>()
        })
        .max_by_key(Vec::len)
        .unwrap_or_default()
}

fn several_stacks(stacks: &[String], span: Span) -> Diagnostic {
    Diagnostic::error("slices need a model with a single stack of layers")
        .label(span, format!("this model has {}: {}", stacks.len(), stacks.join(", ")))
        .help("use `modules:` with one entry for each stack, or `models:` to merge all layers in place")
}

/// One slice over all layers of the tensors that `belongs` selects.
fn whole<'r>(
    out: &mut Layout<'r>,
    scope: SliceScope<'r>,
    models: &[Model],
    belongs: impl Fn(&str) -> bool,
    state_dict: bool,
) -> Result<(), Vec<Diagnostic>> {
    let slice = out.slices.len();
    if !state_dict {
        same_depth(&scope, models, &belongs)?;
    }
    let mut depth: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for source in &scope.sources {
        // A state dict recipe takes the names of `models` alone: the base only lends its values.
        if state_dict && source.parameters.is_none() {
            continue;
        }
        for name in models[source.model].names().filter(|name| belongs(name)) {
            let known = seen.contains(name)
                || !names.is_empty() && scope.sources.iter().any(|other| {
                    other.model != source.model
                        && matches!(models[other.model].find(name), Some(Found::Renamed(other)) if seen.contains(&other))
                });
            if known {
                continue;
            }
            if let Role::Layer { stack, index, .. } = Role::of(name) {
                depth.entry(stack.to_owned()).or_default().insert(index);
            }
            seen.insert(name.to_owned());
            names.push(name.to_owned());
        }
    }
    for name in names {
        let (t, layer) = match Role::of(&name) {
            Role::Layer { stack, index, .. } if !state_dict => {
                let layers = depth.get(stack).map_or(1, BTreeSet::len);
                let position = depth.get(stack).map_or(0, |set| set.range(..index).count());
                (gradient_position(position, layers), Some(index))
            }
            _ => (0.0, None),
        };
        let cells = scope
            .sources
            .iter()
            .map(|source| models[source.model].find(&name))
            .collect();
        out.rows.push(Row {
            name,
            cells,
            t,
            slice,
            layer,
        });
    }
    out.slices.push(scope);
    Ok(())
}

/// Position of layer `j` of `layers` in a gradient; a single layer stands at the end.
pub(crate) fn gradient_position(j: usize, layers: usize) -> f64 {
    if layers <= 1 {
        1.0
    } else {
        j as f64 / (layers - 1) as f64
    }
}

fn same_depth(
    scope: &SliceScope<'_>,
    models: &[Model],
    belongs: &impl Fn(&str) -> bool,
) -> Result<(), Vec<Diagnostic>> {
    let depth = |source: &SourceScope<'_>| -> usize {
        stacks(&models[source.model])
            .iter()
            .filter(|(stack, _)| belongs(stack))
            .map(|(_, layers)| layers.len())
            .max()
            .unwrap_or(0)
    };
    let Some(first) = scope.sources.first() else {
        return Ok(());
    };
    let wanted = depth(first);
    let different: Vec<_> = scope
        .sources
        .iter()
        .filter(|source| depth(source) != wanted)
        .collect();
    if different.is_empty() {
        return Ok(());
    }
    let mut diagnostic = Diagnostic::error("the models have different numbers of layers")
        .label(first.span, format!("{wanted} layers"));
    for source in different {
        diagnostic = diagnostic.label(source.span, format!("{} layers", depth(source)));
    }
    Err(vec![diagnostic.help(
        "choose the layers to merge with `slices:` and `layer_range`",
    )])
}

/// Slices whose layers move to new places.
fn moved<'r>(
    out: &mut Layout<'r>,
    scopes: Vec<SliceScope<'r>>,
    models: &[Model],
    belongs: impl Fn(&str) -> bool,
) -> Result<(), Vec<Diagnostic>> {
    let first = out.slices.len();
    let last = first + scopes.len().saturating_sub(1);
    let mut errors = Vec::new();
    let mut next = 0;
    let mut origin = Vec::new();
    for (i, scope) in scopes.iter().enumerate() {
        let slice = first + i;
        if slice == first {
            outside(out, scope, slice, models, &belongs, Role::Pre);
        }
        errors.extend(ranges_inside(scope, models, &belongs));
        if errors.is_empty() {
            let ranges: Vec<(usize, usize)> = scope
                .sources
                .iter()
                .map(|s| s.range.map_or((0, 0), |(a, b, _)| (a, b)))
                .collect();
            let layers = ranges.first().map_or(0, |(a, b)| b - a);
            for j in 0..layers {
                layer(
                    out, scope, slice, models, &belongs, &ranges, j, layers, next,
                );
                origin.push(ranges[0].0 + j);
                next += 1;
            }
        }
        if slice == last {
            outside(out, scope, slice, models, &belongs, Role::Post);
        }
    }
    out.slices.extend(scopes);
    out.origins.push(origin);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn ranges_inside(
    scope: &SliceScope<'_>,
    models: &[Model],
    belongs: &impl Fn(&str) -> bool,
) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    for source in &scope.sources {
        let layers = stacks(&models[source.model])
            .iter()
            .filter(|(stack, _)| belongs(stack))
            .filter_map(|(_, layers)| layers.last().map(|last| last + 1))
            .max()
            .unwrap_or(0);
        if let Some((start, end, span)) = source.range
            && end > layers
        {
            errors.push(
                Diagnostic::error(format!(
                    "layer_range [{start}, {end}] reaches beyond the model"
                ))
                .label(
                    span,
                    format!("{} has {layers} layers", models[source.model].label),
                )
                .help(format!(
                    "the end is exclusive, so the largest range is [0, {layers}]"
                )),
            );
        }
    }
    errors
}

/// The tensors of one role outside the layers, from one slice.
fn outside(
    out: &mut Layout<'_>,
    scope: &SliceScope<'_>,
    slice: usize,
    models: &[Model],
    belongs: &impl Fn(&str) -> bool,
    role: Role<'_>,
) {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for source in &scope.sources {
        for name in models[source.model]
            .names()
            .filter(|name| Role::of(name) == role && belongs(name))
        {
            let alias = |other: &SourceScope<'_>| matches!(models[other.model].find(name), Some(Found::Renamed(other)) if names.contains(other.as_str()));
            if !scope.sources.iter().any(alias) {
                names.insert(name);
            }
        }
    }
    for name in names {
        let cells = scope
            .sources
            .iter()
            .map(|source| models[source.model].find(name))
            .collect();
        out.rows.push(Row {
            name: name.to_owned(),
            cells,
            t: 0.0,
            slice,
            layer: None,
        });
    }
}

/// One output layer: layer `start + j` of every source becomes layer `to`.
#[allow(clippy::too_many_arguments)]
fn layer(
    out: &mut Layout<'_>,
    scope: &SliceScope<'_>,
    slice: usize,
    models: &[Model],
    belongs: &impl Fn(&str) -> bool,
    ranges: &[(usize, usize)],
    j: usize,
    layers: usize,
    to: usize,
) {
    let mut parts: BTreeSet<(String, String)> = BTreeSet::new();
    for (source, (start, _)) in scope.sources.iter().zip(ranges) {
        for name in models[source.model].names() {
            if let Role::Layer {
                stack,
                index,
                suffix,
            } = Role::of(name)
                && index == start + j
                && belongs(stack)
                && !parts.iter().any(|(_, known)| known == suffix)
            {
                parts.insert((stack.to_owned(), suffix.to_owned()));
            }
        }
    }
    for (stack, suffix) in parts {
        let cells = scope
            .sources
            .iter()
            .zip(ranges)
            .map(|(source, (start, _))| {
                models[source.model].find(&layer_name(&stack, start + j, &suffix))
            })
            .collect();
        let name = layer_name(&stack, to, &suffix);
        out.rows.push(Row {
            name,
            cells,
            t: gradient_position(j, layers),
            slice,
            layer: Some(to),
        });
    }
}

fn by_module<'r>(
    out: &mut Layout<'r>,
    modules: &'r [(Spanned<String>, Module)],
    base: Option<&'r ModelRef>,
    models: &[Model],
    index: &dyn Fn(&ModelRef) -> usize,
) -> Result<(), Vec<Diagnostic>> {
    let all: BTreeSet<String> = models
        .iter()
        .flat_map(|model| stacks(model).into_keys())
        .collect();
    let roots = module_roots(&all);
    let mut given: Vec<&str> = Vec::new();
    for (name, module) in modules {
        let root = if name.value == "default" && roots.len() <= 1 {
            roots.first().map_or("", String::as_str)
        } else {
            match roots
                .iter()
                .find(|root| root.split('.').any(|word| word == name.value) || **root == name.value)
            {
                Some(root) => root,
                None => {
                    return Err(vec![
                        Diagnostic::error(format!(
                            "the model has no module called '{}'",
                            name.value
                        ))
                        .label(name.span, "not found in the tensor names")
                        .help(format!("its modules are: {}", roots.join(", "))),
                    ]);
                }
            }
        };
        given.push(root);
        let belongs = |tensor: &str| module_of(tensor, &roots).is_none_or(|own| own == root);
        let parameters = Some(&module.parameters);
        match &module.body {
            Body::Models(sources) => {
                whole(
                    out,
                    models_scope(sources, base, parameters, name.span, index),
                    models,
                    belongs,
                    false,
                )?;
            }
            Body::Slices(slices) => {
                let scopes = slices
                    .iter()
                    .map(|slice| slice_scope(slice, base, parameters, index))
                    .collect();
                moved(out, scopes, models, belongs)?;
            }
            Body::Modules(_) => {}
        }
    }
    let left: Vec<&str> = roots
        .iter()
        .map(String::as_str)
        .filter(|root| !given.contains(root))
        .collect();
    if !left.is_empty() && roots.len() > 1 {
        let span = modules
            .first()
            .map_or(Span::default(), |(name, _)| name.span);
        return Err(vec![
            Diagnostic::error("the recipe leaves out part of the model")
                .label(span, format!("nothing is said about: {}", left.join(", ")))
                .help("give every module its models or slices"),
        ]);
    }
    Ok(())
}

/// The shortest name prefix that tells each stack from the others.
fn module_roots(stacks: &BTreeSet<String>) -> Vec<String> {
    stacks
        .iter()
        .map(|stack| {
            let words: Vec<&str> = stack.split('.').collect();
            (1..=words.len())
                .map(|n| words[..n].join("."))
                .find(|root| stacks.iter().filter(|other| within(other, root)).count() == 1)
                .unwrap_or_else(|| stack.clone())
        })
        .collect()
}

/// The module a tensor or stack lies in: the root with the longest match.
fn module_of<'a>(name: &str, roots: &'a [String]) -> Option<&'a str> {
    if roots.len() <= 1 {
        return None;
    }
    let inside = roots
        .iter()
        .filter(|root| within(name, root))
        .max_by_key(|root| root.len());
    inside.or(roots.first()).map(String::as_str)
}

fn within(name: &str, root: &str) -> bool {
    name.strip_prefix(root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Embeddings, then layers by number, then the rest; by name within each.
fn order(rows: &mut [Row]) {
    rows.sort_by(|a, b| {
        let key = |row: &Row| match (row.layer, Role::of(&row.name)) {
            (Some(layer), _) => (1, layer),
            (None, Role::Post) => (2, 0),
            (None, _) => (0, 0),
        };
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
}
