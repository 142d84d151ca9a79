//! Model Stock: interpolates between the base and the mean of its fine-tunes, as far as their angle suggests.
//!
//! With d_i = x_i − base, N fine-tunes and c the mean cosine between their d_i: t = N c / (1 + (N − 1) c),
//! y = t · mean(x_i) + (1 − t) · base. Two ways to average are in use: of the cosines (mergekit; the product of norms
//! is at least 10⁻⁶) or of the angles (FusionBench; 10⁻⁸ is added to the product and to the denominator).
//! Jang et al., "Model Stock: All we need is just a few fine-tuned models", ECCV 2024 (arXiv 2403.19522).

use merganser_kernels::{angle, elementwise};

use crate::gram::Gram;
use crate::{
    Arity, BasePolicy, Block, Grain, Method, MethodError, MethodInfo, Parameter, Program, Settings,
    Survey, TensorGroup, View,
};

/// See the module's documentation.
pub(crate) struct ModelStock;

static INFO: MethodInfo = MethodInfo {
    name: "model_stock",
    summary: "interpolates between the base and the mean of its fine-tunes by the angle between their task vectors",
    formula: "t = N c/(1 + (N-1) c), c = mean cos(d_i, d_j); y = t · mean(x_i) + (1-t) · base",
    source: "Jang et al., Model Stock, ECCV 2024 (arXiv 2403.19522); forms of mergekit and FusionBench",
    in_mergekit: true,
    base: BasePolicy::Required,
    inputs: Arity::at_least(2),
    parameters: &[
        Parameter::flag(
            "filter_wise",
            false,
            "one ratio for every vector along the last dimension",
        ),
        Parameter::choice(
            "angles",
            &["cosine", "degrees"],
            "cosine",
            "what is averaged over the pairs: cosines (mergekit) or angles (FusionBench)",
        ),
        Parameter::flag("clamp", false, "keep the ratio in [0, 1]"),
    ],
};

impl Method for ModelStock {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn passes(&self, settings: &Settings) -> u32 {
        if settings.flag("filter_wise") { 1 } else { 2 }
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let rule = Rule::of(group.settings);
        let others = group.others();
        let weights = vec![1.0 / others.len() as f32; others.len()];
        if group.settings.flag("filter_wise") && group.shape.len() > 1 {
            let row = group.row_len();
            return Ok(Program {
                grain: Grain::Rows,
                view: View::Deltas,
                combine: Box::new(move |block, out| rows(block, row, &weights, rule, out)),
            });
        }
        let ratio = rule.ratio(&Gram::of(group, View::Deltas, &others)?) as f32;
        Ok(Program::deltas(move |block, out| {
            elementwise::delta_combination(out, block.base(), &weights, &block.others(), ratio);
        }))
    }
}

fn rows(block: &Block<'_>, row: usize, weights: &[f32], rule: Rule, out: &mut [f32]) {
    let (base, others) = (block.base(), block.others());
    for (i, out) in out.chunks_mut(row).enumerate() {
        let part = i * row..i * row + out.len();
        let deltas: Vec<&[f32]> = others.iter().map(|other| &other[part.clone()]).collect();
        let ratio = rule.ratio(&Gram::of_slices(&deltas)) as f32;
        elementwise::delta_combination(out, &base[part], weights, &deltas, ratio);
    }
}

/// How a ratio is made from the task vectors.
#[derive(Debug, Clone, Copy)]
struct Rule {
    degrees: bool,
    clamp: bool,
}

impl Rule {
    fn of(settings: &Settings) -> Self {
        Self {
            degrees: settings.text("angles") == Some("degrees"),
            clamp: settings.flag("clamp"),
        }
    }

    /// t of the formula.
    fn ratio(self, gram: &Gram) -> f64 {
        let count = gram.size();
        let pairs = (0..count).flat_map(|i| (0..i).map(move |j| (i, j)));
        let values: Vec<f64> = pairs.map(|(i, j)| self.pair(gram, i, j)).collect();
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        let cosine = if self.degrees { angle::cos(mean) } else { mean };
        let guard = if self.degrees { 1e-8 } else { 0.0 };
        let n = count as f64;
        let denominator = 1.0 + (n - 1.0) * cosine + guard;
        let ratio = if denominator.abs() < 1e-6 {
            0.0
        } else {
            n * cosine / denominator
        };
        if self.clamp {
            ratio.clamp(0.0, 1.0)
        } else {
            ratio
        }
    }

    /// The cosine or the angle of one pair.
    fn pair(self, gram: &Gram, i: usize, j: usize) -> f64 {
        let norms = gram.norm(i) * gram.norm(j);
        let divisor = if self.degrees {
            norms + 1e-8
        } else {
            norms.max(1e-6)
        };
        let cosine = (gram.product(i, j) / divisor).clamp(-1.0, 1.0);
        if self.degrees {
            angle::acos(cosine)
        } else {
            cosine
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSINE: Rule = Rule {
        degrees: false,
        clamp: false,
    };

    #[test]
    fn agreement_means_the_mean_and_independence_the_base() {
        let same = Gram::of_slices(&[&[3.0, 4.0], &[3.0, 4.0], &[3.0, 4.0]]);
        let orthogonal = Gram::of_slices(&[&[3.0, 0.0], &[0.0, 4.0]]);
        let degrees = Rule {
            degrees: true,
            ..COSINE
        };
        assert_eq!((COSINE.ratio(&same), COSINE.ratio(&orthogonal)), (1.0, 0.0));
        assert!(
            (degrees.ratio(&same) - 1.0).abs() < 1e-3 && degrees.ratio(&orthogonal).abs() < 1e-12
        );
    }

    #[test]
    fn opposition_and_zeros() {
        let opposed = Gram::of_slices(&[&[1.0], &[-1.0]]);
        assert_eq!(COSINE.ratio(&opposed), 0.0);
        let wide = Gram::of_slices(&[&[1.0, 0.0], &[-0.5, 0.75_f32.sqrt()]]);
        assert!(COSINE.ratio(&wide) < -1.9);
        assert_eq!(
            Rule {
                clamp: true,
                ..COSINE
            }
            .ratio(&wide),
            0.0
        );
        assert_eq!(COSINE.ratio(&Gram::of_slices(&[&[0.0], &[0.0]])), 0.0);
    }
}
