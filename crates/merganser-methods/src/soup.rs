//! Greedy soup: the average of those models that improve a held-out score when they are added.
//!
//! Models are tried from best to worst; a model stays if the average with it scores higher than the best average so
//! far. [`greedy_soup`] runs that loop with a callback that evaluates a candidate. The method `greedy_soup` only
//! averages the `ingredients` best of the models by the scores that the recipe gives; equal scores go to the model that
//! is listed first. The uniform soup is `linear` with equal weights.
//! Wortsman et al., "Model soups", ICML 2022 (arXiv 2203.05482).

use merganser_kernels::elementwise;

use crate::{
    Arity, BasePolicy, Kind, Method, MethodError, MethodInfo, Parameter, Program, Scope, Settings,
    Survey, TensorGroup,
};

/// See the module's documentation.
pub(crate) struct GreedySoup;

static INFO: MethodInfo = MethodInfo {
    name: "greedy_soup",
    summary: "average of the best models by the scores given",
    formula: "y = mean of the x_i with the `ingredients` highest scores",
    source: "Wortsman et al., Model soups, ICML 2022 (arXiv 2203.05482)",
    in_mergekit: false,
    base: BasePolicy::Ignored,
    inputs: Arity::at_least(1),
    parameters: &[
        Parameter {
            name: "score",
            scope: Scope::PerInput,
            kind: Kind::Float {
                min: f64::NEG_INFINITY,
                max: f64::INFINITY,
            },
            default: None,
            required: true,
            summary: "held-out score of the model; higher is better",
        },
        Parameter::int(
            "ingredients",
            (1, i64::MAX),
            1,
            "how many of the best models are averaged",
        )
        .required(),
    ],
};

impl Method for GreedySoup {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn check(
        &self,
        _shape: &[usize],
        _base: Option<usize>,
        settings: &Settings,
    ) -> Result<(), String> {
        let (wanted, models) = (settings.int("ingredients"), settings.inputs.len());
        if wanted > models as i64 {
            return Err(format!(
                "ingredients: {wanted} is more than the {models} models of the recipe; lower it"
            ));
        }
        Ok(())
    }

    fn prepare<'a>(
        &self,
        group: &'a TensorGroup<'a>,
        _survey: &'a Survey,
    ) -> Result<Program<'a>, MethodError> {
        let settings = group.settings;
        let scores: Vec<f64> = (0..settings.inputs.len())
            .map(|i| {
                settings
                    .input_float(i, "score")
                    .unwrap_or(f64::NEG_INFINITY)
            })
            .collect();
        let mut chosen = ranked(&scores);
        chosen.truncate(
            usize::try_from(settings.int("ingredients"))
                .unwrap_or(1)
                .max(1),
        );
        // In recipe order, so that the sum does not depend on the scores.
        chosen.sort_unstable();
        let weights = vec![1.0 / chosen.len() as f32; chosen.len()];
        Ok(Program::values(move |block, out| {
            let inputs: Vec<&[f32]> = chosen.iter().map(|&i| block.input(i)).collect();
            elementwise::linear_combination(out, &weights, &inputs);
        }))
    }
}

/// Indices of the models from best to worst; equal scores in their order.
fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// The outcome of [`greedy_soup`].
#[derive(Debug, Clone, PartialEq)]
pub struct Soup {
    /// The models whose plain average is the soup, in the order in which they were added.
    pub ingredients: Vec<usize>,
    /// The score of that average.
    pub score: f64,
}

/// Chooses the ingredients of a greedy soup.
///
/// `scores` are the held-out scores of the single models, higher being better. `evaluate` is given the models of a
/// candidate (at least two) and returns the score of their plain average. A model is added if that score is strictly
/// higher than the best one so far. No model, no soup: `ingredients` is empty and the score −∞.
///
/// # Errors
/// The first error of `evaluate`.
pub fn greedy_soup<E>(
    scores: &[f64],
    mut evaluate: impl FnMut(&[usize]) -> Result<f64, E>,
) -> Result<Soup, E> {
    let order = ranked(scores);
    let Some((&best, rest)) = order.split_first() else {
        return Ok(Soup {
            ingredients: Vec::new(),
            score: f64::NEG_INFINITY,
        });
    };
    let mut soup = Soup {
        ingredients: vec![best],
        score: scores[best],
    };
    for &model in rest {
        soup.ingredients.push(model);
        let score = evaluate(&soup.ingredients)?;
        if score > soup.score {
            soup.score = score;
        } else {
            soup.ingredients.pop();
        }
    }
    Ok(soup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn models_are_tried_from_best_to_worst_and_stay_if_they_help() {
        let mut tried = Vec::new();
        let soup = greedy_soup(&[0.5, 0.9, 0.7, 0.7], |models| {
            tried.push(models.to_vec());
            Ok::<_, Infallible>(if models.contains(&3) {
                0.1
            } else {
                0.9 + 0.01 * (models.len() - 1) as f64
            })
        });
        assert_eq!(
            soup,
            Ok(Soup {
                ingredients: vec![1, 2, 0],
                score: 0.92
            })
        );
        assert_eq!(tried, [vec![1, 2], vec![1, 2, 3], vec![1, 2, 0]]);
    }

    #[test]
    fn an_equal_score_is_no_improvement() {
        let soup = greedy_soup(&[1.0, 1.0], |_| Ok::<_, Infallible>(1.0));
        assert_eq!(
            soup,
            Ok(Soup {
                ingredients: vec![0],
                score: 1.0
            })
        );
        let none = greedy_soup(&[], |_| Ok::<_, Infallible>(1.0)).map(|soup| soup.ingredients);
        assert_eq!(none, Ok(vec![]));
        assert_eq!(greedy_soup(&[1.0, 2.0], |_| Err("no data")), Err("no data"));
    }
}
