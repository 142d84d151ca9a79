//! Embeddings: similarity of pairs against human scores, and retrieval.

use merganser_data::Samples;
use merganser_model::Modality;
use rayon::prelude::*;

use crate::error::{EvalError, Result};
use crate::forward::{Feature, Vectors, features};
use crate::loaded::Loaded;

/// Queries scored at a time.
const QUERIES: usize = 256;

/// Embeddings of texts, of unit length, in their order; each text is run once.
///
/// # Errors
/// A model without a tokenizer, a failing forward pass.
pub fn embed(
    model: &Loaded,
    texts: &[String],
    feature: Option<Feature>,
    max_length: Option<usize>,
    batch_size: usize,
) -> Result<(Vectors, Vec<String>)> {
    let mut distinct: Vec<String> = texts.to_vec();
    distinct.sort();
    distinct.dedup();
    let samples: Samples = model.processor().texts(&distinct, None, max_length)?;
    if samples.len() != distinct.len() {
        return Err(EvalError::Setting(
            "a text without a token has no embedding; take empty texts out".into(),
        ));
    }
    let network = model.network(Modality::Text)?;
    let feature = feature.map_or_else(|| model.feature(&network), Ok)?;
    let mut vectors = features(&network, model, &samples, feature, batch_size)?;
    vectors.normalise();
    let mut all = Vectors {
        width: vectors.width,
        values: Vec::with_capacity(texts.len() * vectors.width),
    };
    for text in texts {
        // Every text is among the distinct ones.
        let at = distinct.binary_search(text).unwrap_or(0);
        all.values.extend_from_slice(vectors.row(at));
    }
    Ok((all, samples.notes))
}

/// Cosines of the pairs of two lists of unit vectors.
pub fn cosines(a: &Vectors, b: &Vectors) -> Vec<f64> {
    (0..a.len()).map(|at| dot(a.row(at), b.row(at))).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f64::from(x) * f64::from(y))
        .sum()
}

/// Queries, passages, and which passages answer which query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matches {
    /// Distinct queries, in the order they appear.
    pub queries: Vec<String>,
    /// Distinct passages, in the order they appear: what is searched.
    pub passages: Vec<String>,
    /// For each query, its passages, as positions in `passages`.
    pub relevant: Vec<Vec<usize>>,
}

impl Matches {
    /// From rows of a query and a passage that answers it.
    pub fn new(queries: &[String], passages: &[String]) -> Self {
        use std::collections::HashMap;
        fn number<'a>(
            text: &'a str,
            known: &mut HashMap<&'a str, usize>,
            list: &mut Vec<String>,
        ) -> usize {
            *known.entry(text).or_insert_with(|| {
                list.push(text.to_owned());
                list.len() - 1
            })
        }
        let (mut known_queries, mut known_passages) = (HashMap::new(), HashMap::new());
        let mut matches = Self {
            queries: Vec::new(),
            passages: Vec::new(),
            relevant: Vec::new(),
        };
        for (query, passage) in queries.iter().zip(passages) {
            let query = number(query, &mut known_queries, &mut matches.queries);
            let passage = number(passage, &mut known_passages, &mut matches.passages);
            matches.relevant.resize(matches.queries.len(), Vec::new());
            if !matches.relevant[query].contains(&passage) {
                matches.relevant[query].push(passage);
            }
        }
        matches
    }

    /// For each query, the share of its passages among the `k` nearest ones, for every `k` of `ks`. Of passages that are
    /// equally near, the earlier comes first.
    ///
    /// # Errors
    /// If the product of the two matrices cannot be made.
    pub fn recall(
        &self,
        queries: &Vectors,
        passages: &Vectors,
        ks: &[usize],
    ) -> Result<Vec<Vec<f64>>> {
        let all = passages.tensor()?.t()?;
        let mut found = vec![Vec::with_capacity(queries.len()); ks.len()];
        for start in (0..queries.len()).step_by(QUERIES) {
            let end = queries.len().min(start + QUERIES);
            let some = Vectors {
                width: queries.width,
                values: queries.values[start * queries.width..end * queries.width].to_vec(),
            };
            let scores: Vec<f32> = some.tensor()?.matmul(&all)?.flatten_all()?.to_vec1()?;
            let ranks: Vec<Vec<usize>> = scores
                .par_chunks(passages.len())
                .zip(&self.relevant[start..end])
                .map(|(row, relevant)| relevant.iter().map(|&at| rank(row, at)).collect())
                .collect();
            for ranks in ranks {
                for (k, found) in ks.iter().zip(&mut found) {
                    let hits = ranks.iter().filter(|&rank| rank < k).count();
                    found.push(hits as f64 / ranks.len() as f64);
                }
            }
        }
        Ok(found)
    }
}

/// How many entries come before entry `at`.
fn rank(row: &[f32], at: usize) -> usize {
    let own = row[at];
    row.iter()
        .enumerate()
        .filter(|&(other, &score)| score > own || (score == own && other < at))
        .count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn recall_counts_the_answers_among_the_nearest() {
        let matches = Matches::new(
            &strings(&["q", "r", "q", "q"]),
            &strings(&["a", "b", "c", "a"]),
        );
        assert_eq!(matches.passages, strings(&["a", "b", "c"]));
        assert_eq!(matches.relevant, [vec![0, 2], vec![1]]);
        let queries = Vectors {
            width: 2,
            values: vec![1.0, 0.0, 0.0, 1.0],
        };
        let passages = Vectors {
            width: 2,
            values: vec![1.0, 0.0, 0.8, 0.6, 0.0, 1.0],
        };
        let recall = matches.recall(&queries, &passages, &[1, 2, 3]).unwrap();
        // q finds a first, then b, then c; r finds c before b.
        assert_eq!(recall, [vec![0.5, 0.0], vec![0.5, 1.0], vec![1.0, 1.0]]);
    }

    #[test]
    fn equal_scores_keep_their_order() {
        assert_eq!([0, 1, 2].map(|at| rank(&[1.0, 2.0, 1.0], at)), [1, 0, 2]);
    }
}
