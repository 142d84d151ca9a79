//! Drifts of whole files of vectors, block by block.

use std::path::Path;

use merganser_data::VectorFile;
use merganser_linalg::dot;

use super::{Direction, Drift, Map};
use crate::error::{Error, Result};

impl Drift {
    /// Takes every vector of a file to the other space and writes a file of the same format; see
    /// [`VectorFile::transform`]. Vectors come out of length 1 if `unit` says so, by default where the drift is one of unit
    /// vectors.
    ///
    /// # Errors
    /// If the vectors have another length than those of the drift, the drift changes their length, the way is not known, a
    /// vector is not finite, or a file cannot be read or written.
    pub fn apply(
        &self,
        vectors: &VectorFile,
        direction: Direction,
        unit: Option<bool>,
        out: &Path,
        overwrite: bool,
    ) -> Result<()> {
        let transport = self.transport(direction, unit)?;
        let (name, space) = match direction {
            Direction::ToOld => (&self.to, "new"),
            Direction::ToNew => (&self.from, "old"),
        };
        if vectors.dim() != transport.dim() {
            return Err(vectors
                .refuse(format!(
                    "its vectors have {} elements, those of `{name}`, the drift's {space} space, {}",
                    vectors.dim(),
                    transport.dim()
                ))
                .into());
        }
        if transport.dim_out() != transport.dim() {
            return Err(Error::Unfit(format!(
                "the drift takes vectors of {} elements to such of {}, and a file is changed in its own shape; embed the \
                 documents again with `{}`",
                transport.dim(),
                transport.dim_out(),
                self.to
            )));
        }
        Ok(vectors.transform(out, overwrite, &|_, rows| transport.rows(rows))?)
    }

    /// −Δ·d for every document d of a file: what is to be added to its score by dot product with a query of the new model, so
    /// that the sum is the score of the compensated query (f(q) − Δ)·d. For engines in which queries cannot be changed.
    ///
    /// # Errors
    /// If the drift is no shift, the vectors have another length, or the file cannot be read.
    pub fn bias(&self, documents: &VectorFile) -> Result<Vec<f32>> {
        let Map::Shift(shift) = &self.map else {
            return Err(Error::Unfit(format!(
                "a bias of documents stands for a shift only, and this drift is {}; fit it with --kind shift, or change the \
                 queries with `merganser drift apply`",
                self.map.kind()
            )));
        };
        if documents.dim() != shift.len() {
            return Err(documents
                .refuse(format!(
                    "its vectors have {} elements, those of the drift {}",
                    documents.dim(),
                    shift.len()
                ))
                .into());
        }
        let mut bias = Vec::with_capacity(documents.rows());
        documents.visit(&mut |_, rows| {
            bias.extend(
                rows.chunks_exact(shift.len())
                    .map(|row| -dot(row, shift) as f32),
            );
            Ok(())
        })?;
        Ok(bias)
    }
}
