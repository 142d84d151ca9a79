//! Short names of blocks and tensors for axes: `model.layers.12` is `12`,
//! `model.layers.12.self_attn.q_proj.weight` is `self_attn.q_proj` of its block.

use std::collections::BTreeSet;

use crate::Layer;

/// Short and distinct names for blocks. Numbered blocks of one stack get their number; of several
/// stacks, the initial of the stack and the number; others the end of their name.
pub(crate) fn short_blocks(names: &[&str]) -> Vec<String> {
    let stacks: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| numbered(name))
        .map(|(stack, _)| stack)
        .collect();
    let short = |name: &str| match numbered(name) {
        Some((_, number)) if stacks.len() == 1 => number.to_owned(),
        Some((stack, number)) => format!("{}{number}", stack.chars().next().unwrap_or(' ')),
        None => end(name).to_owned(),
    };
    distinct(names, short)
}

/// Short and distinct names for the tensors of one block.
pub(crate) fn short_tensors(layers: &[Layer]) -> Vec<String> {
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    let roles: Vec<String> = layers.iter().map(role).collect();
    if roles.iter().collect::<BTreeSet<_>>().len() == roles.len() {
        roles
    } else {
        distinct(&names, |name| weight_of(name).to_owned())
    }
}

/// What a tensor is within its block.
pub(crate) fn role(layer: &Layer) -> String {
    let name = &layer.name;
    let inside = name.match_indices(&layer.block).find_map(|(start, block)| {
        let whole = start == 0 || name[..start].ends_with('.');
        let rest = name[start + block.len()..].strip_prefix('.');
        rest.filter(|_| whole && !block.is_empty())
    });
    weight_of(inside.unwrap_or(name)).to_owned()
}

fn weight_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn end(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// A name that ends in a number, as stack and number.
pub(crate) fn numbered(name: &str) -> Option<(&str, &str)> {
    let (stack, number) = name.rsplit_once('.')?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some((stack, number))
}

/// The short names if they are distinct, the full ones otherwise.
fn distinct(names: &[&str], short: impl Fn(&str) -> String) -> Vec<String> {
    let shortened: Vec<String> = names.iter().map(|name| short(name)).collect();
    let different: BTreeSet<&String> = shortened.iter().collect();
    if different.len() == names.len() {
        shortened
    } else {
        names.iter().map(|&name| name.to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks() {
        let short = |names: &[&str]| short_blocks(names).join(" ");
        assert_eq!(
            short(&["vit.embeddings", "vit.layer.0", "vit.layer.11", "head"]),
            "embeddings 0 11 head"
        );
        assert_eq!(short(&["encoder.block.0", "decoder.block.0"]), "e0 d0");
        assert_eq!(short(&["a.x.0", "a.y.0"]), "a.x.0 a.y.0");
        assert_eq!(short(&["", "ü.1"]), " 1");
    }

    #[test]
    fn tensors() {
        let layer = |name: &str, block: &str| Layer {
            name: name.into(),
            block: block.into(),
            ..Layer::default()
        };
        let q = layer("model.layers.12.self_attn.q_proj.weight", "layers.12");
        assert_eq!(role(&q), "self_attn.q_proj");
        assert_eq!(role(&layer("lm_head.weight", "head")), "lm_head");
        assert_eq!(role(&layer("a.bias", "")), "a.bias");
        // A block whose name is the beginning of another's.
        assert_eq!(role(&layer("layers.12.w", "layers.1")), "layers.12.w");
        let same = [layer("x.0.w", "x.0"), layer("y.0.w", "y.0")];
        assert_eq!(short_tensors(&same), ["x.0.w", "y.0.w"]);
    }
}
