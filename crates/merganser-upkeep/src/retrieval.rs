//! Search in an index, by brute force, and how good it is: nDCG, recall, and the contrastive loss of training.
//!
//! Documents may have been embedded by several versions of a model. Then every query is given once for each version, taken
//! to its space, and a document is scored with the query of its own. Scores of several versions can be compared only by
//! cosine; dot products with compensated queries of different length cannot.

use merganser_linalg::{Matrix, dot, gemm};

use crate::error::{Error, Result, check_size};

/// How a document is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// By the cosine.
    Cosine,
    /// By the dot product.
    Dot,
}

/// The `k` documents of the highest score for each query, best first; of equal ones the earlier first.
#[derive(Debug)]
pub struct Search<'a> {
    /// Queries by version.
    queries: Vec<Matrix>,
    scoring: Scoring,
    k: usize,
    best: Vec<Vec<(f64, usize)>>,
    contrast: Option<Contrast<'a>>,
}

/// One over the temperature of the contrastive loss.
const LOGIT_SCALE: f64 = 50.0;

/// Sums over all documents, and over those with the label of the query, for each query.
#[derive(Debug)]
struct Contrast<'a> {
    query_labels: &'a [usize],
    document_labels: &'a [usize],
    all: Vec<f64>,
    relevant: Vec<f64>,
}

impl Contrast<'_> {
    /// Takes the cosine of query `query` and document `document`.
    fn take(&mut self, query: usize, document: usize, cosine: f64) {
        // No cosine is greater than 1, and e^(−2 · 50) is not small for a double.
        let term = (LOGIT_SCALE * (cosine - 1.0)).exp();
        self.all[query] += term;
        if self.document_labels.get(document) == Some(&self.query_labels[query]) {
            self.relevant[query] += term;
        }
    }

    fn loss(&self) -> Option<f64> {
        let sums = self.all.iter().zip(&self.relevant);
        let losses: Vec<f64> = sums
            .filter(|(_, relevant)| **relevant > 0.0)
            .map(|(all, relevant)| (all / relevant).ln())
            .collect();
        (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
    }
}

impl<'a> Search<'a> {
    /// A search with the queries taken to the space of each version of the index, in the order of the versions.
    ///
    /// # Errors
    /// If there are no queries, they differ in number or length, or `k` is 0.
    pub fn new(mut queries: Vec<Matrix>, scoring: Scoring, k: usize) -> Result<Self> {
        let Some(first) = queries.first() else {
            return Err(Error::Unfit("there are no queries".into()));
        };
        let (rows, cols) = first.shape();
        if rows == 0 || k == 0 {
            return Err(Error::Unfit(
                "a search needs queries, and a number of documents to be found".into(),
            ));
        }
        for other in &queries {
            check_size(|| "number of queries".into(), other.rows(), rows)?;
            check_size(|| "length of the queries".into(), other.cols(), cols)?;
        }
        if scoring == Scoring::Cosine {
            for queries in &mut queries {
                crate::drift::normalise(queries);
            }
        }
        Ok(Self {
            best: vec![Vec::new(); rows],
            queries,
            scoring,
            k,
            contrast: None,
        })
    }

    /// Takes the contrastive loss, too, for documents with the label of the query as the relevant ones.
    ///
    /// # Errors
    /// If there is not one label for each query.
    pub fn with_labels(
        mut self,
        query_labels: &'a [usize],
        document_labels: &'a [usize],
    ) -> Result<Self> {
        let queries = self.queries[0].rows();
        check_size(
            || "number of labels of queries".into(),
            query_labels.len(),
            queries,
        )?;
        // Dot products have no temperature of their own.
        self.contrast = (self.scoring == Scoring::Cosine).then(|| Contrast {
            query_labels,
            document_labels,
            all: vec![0.0; queries],
            relevant: vec![0.0; queries],
        });
        Ok(self)
    }

    /// Looks through some documents, the first of which has number `first`. `versions` has the version of each, from 0;
    /// without it all are of version 0.
    ///
    /// # Errors
    /// If the documents have another length than the queries, or a version without queries.
    pub fn documents(
        &mut self,
        first: usize,
        rows: &Matrix,
        versions: Option<&[usize]>,
    ) -> Result<()> {
        check_size(
            || "length of the documents' vectors, which must be that of the queries".into(),
            rows.cols(),
            self.queries[0].cols(),
        )?;
        if let Some(versions) = versions {
            check_size(
                || "number of versions, one a document".into(),
                versions.len(),
                rows.rows(),
            )?;
        }
        for (version, queries) in self.queries.iter().enumerate() {
            let own: Vec<usize> = (0..rows.rows())
                .filter(|&i| versions.map_or(0, |versions| versions[i]) == version)
                .collect();
            if own.is_empty() {
                continue;
            }
            let documents = rows.gather_rows(&own);
            let scores = gemm::mul_nt(queries, &documents);
            let factors: Vec<f64> = (0..own.len())
                .map(|i| match self.scoring {
                    Scoring::Dot => 1.0,
                    Scoring::Cosine => {
                        let square = dot(documents.row(i), documents.row(i));
                        if square > 0.0 {
                            1.0 / square.sqrt()
                        } else {
                            0.0
                        }
                    }
                })
                .collect();
            for (query, best) in self.best.iter_mut().enumerate() {
                let row = scores.row(query);
                let scored = own
                    .iter()
                    .zip(row)
                    .zip(&factors)
                    .map(|((&i, score), factor)| (score * factor, first + i));
                if let Some(contrast) = &mut self.contrast {
                    scored
                        .clone()
                        .for_each(|(score, document)| contrast.take(query, document, score));
                }
                best.extend(scored);
            }
        }
        for best in &mut self.best {
            best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            best.truncate(self.k);
        }
        let known = self.queries.len();
        if let Some(&other) = versions.and_then(|all| all.iter().find(|&&v| v >= known)) {
            return Err(Error::Unfit(format!(
                "a document has version {other}; with {} drifts the versions are 0 to {}",
                known - 1,
                known - 1
            )));
        }
        Ok(())
    }

    /// Mean over the queries that have a relevant document of −log(Σ_relevant e^(50 cos) / Σ_all e^(50 cos)), what encoders
    /// for search are trained to make small (InfoNCE at temperature 0.02; Goswami et al., arXiv 2506.00037). It tells models
    /// apart whose first ten documents are the same. Absent without labels, and of dot products.
    pub fn contrastive_loss(&self) -> Option<f64> {
        self.contrast.as_ref()?.loss()
    }

    /// What was found: the numbers of documents for each query, best first.
    pub fn finish(self) -> Vec<Vec<usize>> {
        let numbers = |best: Vec<(f64, usize)>| best.into_iter().map(|(_, i)| i).collect();
        self.best.into_iter().map(numbers).collect()
    }
}

/// nDCG and recall at k, the means over the queries that have a relevant document.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Mean of DCG / ideal DCG, with gain 1 for a relevant document and discount log₂(rank + 1).
    pub ndcg: f64,
    /// Mean share of the relevant documents that were found, of at most k that can be.
    pub recall: f64,
    /// [`Search::contrastive_loss`], where it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contrastive_loss: Option<f64>,
    /// Queries that count.
    pub queries: usize,
}

/// How good a search is if documents with the label of the query are the relevant ones.
///
/// # Errors
/// If there is not one label for each query, or a document found has none.
pub fn quality(
    found: &[Vec<usize>],
    k: usize,
    query_labels: &[usize],
    document_labels: &[usize],
) -> Result<Quality> {
    check_size(
        || "number of labels of queries".into(),
        query_labels.len(),
        found.len(),
    )?;
    let mut counts = std::collections::HashMap::new();
    for label in document_labels {
        *counts.entry(*label).or_insert(0_usize) += 1;
    }
    let discount = |rank: usize| 1.0 / (rank as f64 + 2.0).log2();
    let (mut ndcg, mut recall, mut queries) = (0.0, 0.0, 0);
    for (found, label) in found.iter().zip(query_labels) {
        let relevant = counts.get(label).copied().unwrap_or(0).min(k);
        if relevant == 0 {
            continue;
        }
        queries += 1;
        let (mut gain, mut hits) = (0.0, 0);
        for (rank, &document) in found.iter().take(k).enumerate() {
            let own = document_labels.get(document).ok_or_else(|| {
                Error::Unfit(format!(
                    "document {document} has no label; give one a document"
                ))
            })?;
            if own == label {
                gain += discount(rank);
                hits += 1;
            }
        }
        ndcg += gain / (0..relevant).map(discount).sum::<f64>();
        recall += hits as f64 / relevant as f64;
    }
    if queries == 0 {
        return Err(Error::Unfit(
            "no query has a document of its label; are the labels of queries and documents of one kind?".into(),
        ));
    }
    Ok(Quality {
        ndcg: ndcg / queries as f64,
        recall: recall / queries as f64,
        contrastive_loss: None,
        queries,
    })
}
