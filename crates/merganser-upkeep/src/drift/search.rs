//! What drifts are worth for search: the same queries against an index of old versions as they are, compensated, and after
//! all documents were embedded again.

use merganser_data::VectorFile;
use merganser_linalg::Matrix;
use serde::Serialize;

use super::{Direction, Drift};
use crate::error::{Error, Result, check_size};
use crate::retrieval::{Quality, Scoring, Search, quality};

/// Queries, documents, and which belong together.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// Queries, embedded by the newest version.
    pub queries: &'a VectorFile,
    /// A label a query.
    pub query_labels: &'a [usize],
    /// Documents, as they are in the index.
    pub documents: &'a VectorFile,
    /// A label a document; those with the label of the query are relevant.
    pub document_labels: &'a [usize],
    /// The version each document was embedded with: the number of drifts that lie before it. Without it, all are of the
    /// oldest.
    pub versions: Option<&'a [usize]>,
    /// The documents, embedded by the newest version.
    pub reindexed: Option<&'a VectorFile>,
    /// How documents are scored.
    pub scoring: Scoring,
    /// How many are looked at.
    pub k: usize,
}

/// How good the search is in each case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// Queries of the newest version against the index as it is. Absent where the versions differ in dimension.
    pub as_is: Option<Quality>,
    /// Queries taken to the space of each document.
    pub compensated: Quality,
    /// Queries against documents that were embedded again.
    pub reindexed: Option<Quality>,
}

fn matrix(file: &VectorFile) -> Result<Matrix> {
    Ok(Matrix::new(file.rows(), file.dim(), file.all()?)?)
}

impl Trial<'_> {
    /// Searches with `drifts`, from the oldest version to the newest.
    ///
    /// # Errors
    /// If the drifts do not follow on each other, sizes or numbers of labels do not fit, or a file cannot be read.
    pub fn run(&self, drifts: &[Drift]) -> Result<Outcome> {
        check_size(
            || "number of labels of documents".into(),
            self.document_labels.len(),
            self.documents.rows(),
        )?;
        check_size(
            || "number of labels of queries".into(),
            self.query_labels.len(),
            self.queries.rows(),
        )?;
        if let Some(versions) = self.versions {
            check_size(
                || "number of versions, one a document".into(),
                versions.len(),
                self.documents.rows(),
            )?;
        }
        let queries = matrix(self.queries)?;
        let mut moved = Vec::with_capacity(drifts.len() + 1);
        for version in 0..drifts.len() {
            let all = Drift::chain(&drifts[version..])?;
            moved.push(all.transport(Direction::ToOld, None)?.matrix(&queries)?);
        }
        moved.push(queries.clone());
        let same = moved[0].cols() == queries.cols();
        if !same && self.versions.is_some() {
            return Err(Error::Unfit(
                "versions of different dimension cannot be in one file of documents".into(),
            ));
        }
        let count = moved.len();
        if !same {
            // All documents are of the oldest version.
            moved.truncate(1);
        }
        let as_is = if same {
            Some(self.search(vec![queries.clone(); count], self.documents, self.versions)?)
        } else {
            None
        };
        Ok(Outcome {
            as_is,
            compensated: self.search(moved, self.documents, self.versions)?,
            reindexed: match self.reindexed {
                None => None,
                Some(documents) => {
                    check_size(
                        || "number of documents that were embedded again".into(),
                        documents.rows(),
                        self.documents.rows(),
                    )?;
                    Some(self.search(vec![queries], documents, None)?)
                }
            },
        })
    }

    fn search(
        &self,
        queries: Vec<Matrix>,
        documents: &VectorFile,
        versions: Option<&[usize]>,
    ) -> Result<Quality> {
        let mut search = Search::new(queries, self.scoring, self.k)?
            .with_labels(self.query_labels, self.document_labels)?;
        let mut failed = None;
        let visited = documents.visit(&mut |first, rows| {
            let count = rows.len() / documents.dim();
            let done = Matrix::new(count, documents.dim(), rows.to_vec())
                .map_err(Error::from)
                .and_then(|rows| {
                    let versions = versions.map(|all| &all[first..first + count]);
                    search.documents(first, &rows, versions)
                });
            done.map_err(|error| {
                let answer = documents.refuse(error.to_string());
                failed = Some(error);
                answer
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        visited?;
        let contrastive_loss = search.contrastive_loss();
        let found = search.finish();
        Ok(Quality {
            contrastive_loss,
            ..quality(&found, self.k, self.query_labels, self.document_labels)?
        })
    }
}
