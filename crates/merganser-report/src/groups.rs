//! Layers taken together: blocks, bands of blocks, tasks, the network.

use std::collections::{BTreeMap, BTreeSet};

use crate::Layer;
use crate::names::numbered;
use crate::statistics::finite;

/// The mean of pairs (weight, value) over those that have both. A single value needs no weight.
pub(crate) fn weighted_mean(
    pairs: impl Iterator<Item = (Option<f64>, Option<f64>)>,
) -> Option<f64> {
    let measured: Vec<(Option<f64>, f64)> = pairs
        .filter_map(|(weight, value)| Some((weight, value?)))
        .collect();
    if let [(_, only)] = measured[..] {
        return Some(only);
    }
    let weighted = || {
        let pairs = measured.iter();
        pairs.filter_map(|&(weight, value)| Some((weight?, value)))
    };
    // Energies of deep networks differ by many orders of magnitude; shares cannot overflow.
    let largest = weighted().map(|(weight, _)| weight).fold(0.0, f64::max);
    if largest <= 0.0 {
        return None;
    }
    let total: f64 = weighted().map(|(weight, _)| weight / largest).sum();
    let sum: f64 = weighted()
        .map(|(weight, value)| weight / largest * value)
        .sum();
    finite(Some(sum / total))
}

/// A group of layers shown as one: a block of the network, or a single tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// The name of the block or tensor.
    pub(crate) name: String,
    /// How many tensors.
    pub(crate) layers: usize,
    /// The share of the network's energy.
    pub(crate) share: Option<f64>,
    /// Captured energy by method.
    pub(crate) captured: BTreeMap<String, f64>,
    /// Captured energy of the chosen method by task.
    pub(crate) by_task: Vec<Option<f64>>,
    /// The irreducible conflict.
    pub(crate) conflict: Option<f64>,
}

impl Group {
    fn of(name: &str, layers: &[&Layer], total: f64) -> Self {
        let mean = |value: &dyn Fn(&Layer) -> Option<f64>| {
            weighted_mean(layers.iter().map(|layer| (layer.energy, value(layer))))
        };
        let names: BTreeSet<&String> = layers.iter().flat_map(|it| it.captured.keys()).collect();
        let captured = names.into_iter().filter_map(|name| {
            let value = mean(&|layer| layer.captured.get(name).copied().flatten())?;
            Some((name.clone(), value))
        });
        let tasks = layers.iter().map(|it| it.captured_by_task.len()).max();
        let by_task = (0..tasks.unwrap_or(0)).map(|task| task_mean(layers, task));
        let energies = layers.iter().filter_map(|layer| layer.energy);
        Self {
            name: name.to_owned(),
            layers: layers.len(),
            share: energies
                .reduce(|sum, energy| sum + energy)
                .filter(|_| total > 0.0)
                .and_then(|energy| finite(Some(energy / total))),
            captured: captured.collect(),
            by_task: by_task.collect(),
            conflict: mean(&|layer| layer.conflict),
        }
    }
}

/// The captured energy of one task by the chosen method. The weights are the energies of the task
/// where they are known, those of the layers otherwise.
pub(crate) fn task_mean(layers: &[&Layer], task: usize) -> Option<f64> {
    weighted_mean(layers.iter().map(|layer| {
        let own = layer.energy_by_task.get(task).copied().flatten();
        let captured = layer.captured_by_task.get(task).copied().flatten();
        (own.or(layer.energy), captured)
    }))
}

/// The energy of the whole network.
pub(crate) fn total_energy(layers: &[Layer]) -> f64 {
    layers.iter().filter_map(|layer| layer.energy).sum()
}

/// The layers by block, in the order in which blocks first appear.
pub(crate) fn blocks(layers: &[Layer]) -> Vec<Group> {
    let total = total_energy(layers);
    let members = members(layers);
    let groups = members.iter();
    let groups = groups.map(|(name, layers)| Group::of(name, layers, total));
    groups.collect()
}

/// The same in at most about `most` groups: neighbours of one stack are taken together, as
/// `layers.8 … 11`.
pub(crate) fn bands(layers: &[Layer], most: usize) -> Vec<Group> {
    let total = total_energy(layers);
    let members = members(layers);
    let size = members.len().div_ceil(most.max(1));
    let stack = |name: &str| numbered(name).map(|(stack, _)| stack.to_owned());
    let mut bands = Vec::new();
    for run in members.chunk_by(|(a, _), (b, _)| stack(a).is_some() && stack(a) == stack(b)) {
        for band in run.chunks(size.max(1)) {
            let [(first, _), .., (last, _)] = band else {
                bands.extend(band.iter().map(|(name, it)| Group::of(name, it, total)));
                continue;
            };
            let number = numbered(last).map_or(*last, |(_, number)| number);
            let layers: Vec<&Layer> = band.iter().flat_map(|(_, it)| it.iter().copied()).collect();
            bands.push(Group::of(&format!("{first} … {number}"), &layers, total));
        }
    }
    bands
}

/// The layers of each block.
fn members(layers: &[Layer]) -> Vec<(&str, Vec<&Layer>)> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut members: Vec<(&str, Vec<&Layer>)> = Vec::new();
    for layer in layers {
        let place = *places.entry(&layer.block).or_insert_with(|| {
            members.push((&layer.block, Vec::new()));
            members.len() - 1
        });
        members[place].1.push(layer);
    }
    members
}

/// Every layer as a group of its own.
pub(crate) fn tensors(layers: &[Layer]) -> Vec<Group> {
    let total = total_energy(layers);
    let groups = layers.iter();
    let groups = groups.map(|layer| Group::of(&layer.name, &[layer], total));
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(block: &str, energy: f64, captured: &[(&str, f64)]) -> Layer {
        Layer {
            name: format!("{block}.weight"),
            block: block.to_owned(),
            energy: Some(energy),
            captured: captured
                .iter()
                .map(|&(name, value)| (name.to_owned(), Some(value)))
                .collect(),
            ..Layer::default()
        }
    }

    #[test]
    fn bands_join_neighbours_of_one_stack() {
        let names = ["embed", "l.0", "l.1", "l.2", "l.3", "l.4", "head"];
        let layers = names.map(|name| layer(name, 1.0, &[("task", 0.5)]));
        let found = bands(&layers, 4);
        let found: Vec<(&str, usize)> = found
            .iter()
            .map(|band| (band.name.as_str(), band.layers))
            .collect();
        let expected = [
            ("embed", 1),
            ("l.0 … 1", 2),
            ("l.2 … 3", 2),
            ("l.4", 1),
            ("head", 1),
        ];
        assert_eq!(found, expected);
        assert_eq!(bands(&layers, 100), blocks(&layers));
        assert_eq!(bands(&[], 4), []);
    }

    #[test]
    fn weights_of_any_size() {
        let mean = |pairs: &[(f64, f64)]| {
            weighted_mean(
                pairs
                    .iter()
                    .map(|&(weight, value)| (Some(weight), Some(value))),
            )
        };
        assert_eq!(mean(&[(1e308, 0.5), (1e308, 0.7), (1e308, 0.6)]), Some(0.6));
        assert_eq!(mean(&[(0.0, 0.5), (0.0, 0.7)]), None);
        assert_eq!(weighted_mean([(None, Some(0.5))].into_iter()), Some(0.5));
        assert_eq!(
            weighted_mean([(None, Some(0.5)), (None, Some(0.6))].into_iter()),
            None
        );
    }
}
