//! The file of a head: `classifier.weight` (C, d) and `classifier.bias` (C) in `f32`, which `merganser evaluate --head` and
//! `torch.nn.Linear` take.

use std::collections::BTreeMap;
use std::path::Path;

use merganser_store::Dtype;
use merganser_store::new_file::write_tensors;

use super::Head;
use crate::error::Result;
use crate::tensors::spec;

impl Head {
    /// Writes the head. `facts` go into its metadata.
    ///
    /// # Errors
    /// If the file is there and `overwrite` is not set, or the disk fails.
    pub fn write(
        &self,
        path: &Path,
        overwrite: bool,
        facts: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut metadata = facts.clone();
        metadata.insert("format".into(), "pt".into());
        metadata.insert("method".into(), self.method.into());
        let bytes = |values: &[f64]| -> Vec<u8> {
            values
                .iter()
                .flat_map(|&x| (x as f32).to_le_bytes())
                .collect()
        };
        let tensors = [
            (
                spec(
                    "classifier.weight",
                    Dtype::F32,
                    &[self.weight.rows(), self.weight.cols()],
                ),
                bytes(self.weight.as_slice()),
            ),
            (
                spec("classifier.bias", Dtype::F32, &[self.bias.len()]),
                bytes(&self.bias),
            ),
        ];
        Ok(write_tensors(path, overwrite, &metadata, &tensors)?)
    }
}
