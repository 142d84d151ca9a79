//! `calibration` and `prior`: what the methods that look at data need.

use crate::recipe::{Calibration, Prior};
use crate::setting::Parameters;
use crate::yaml::Kind;

use super::{Fields, Reader, keys};

const PRIOR: &str = "prior: {merge_method: ties, parameters: {density: 0.5}}";
const CALIBRATION: &str = "calibration: samples.jsonl";

impl Reader {
    /// `calibration: path` or `calibration: {data: path, column: …}`.
    pub(super) fn calibration(&mut self, fields: &Fields<'_>) -> Option<Calibration> {
        let entry = fields.get("calibration")?;
        let node = &*entry.value;
        if matches!(node.kind, Kind::Scalar { .. }) {
            let data = self.text(node, "`calibration`", CALIBRATION)?;
            return Some(Calibration {
                data: Some(data),
                span: node.span,
                ..Calibration::default()
            });
        }
        let fields = self.fields(node, "`calibration`", keys::CALIBRATION, CALIBRATION)?;
        let mut text = |key: &str, example: &str| {
            let entry = fields.get(key)?;
            self.text(&entry.value, &format!("`{key}`"), example)
        };
        let data = text("data", "data: samples.jsonl");
        let column = text("column", "column: sentence");
        let prefix = text("prefix", "prefix: calib");
        let mut whole = |key: &str, least: u64, example: &str| {
            let entry = fields.get(key)?;
            self.whole(&entry.value, &format!("`{key}`"), least, example)
        };
        Some(Calibration {
            data,
            column,
            prefix,
            samples: whole("samples", 1, "samples: 256"),
            max_length: whole("max_length", 1, "max_length: 128"),
            seed: whole("seed", 0, "seed: 0"),
            span: node.span,
        })
    }

    /// `prior: method` or `prior: {merge_method: …, parameters: …}`.
    pub(super) fn prior(&mut self, fields: &Fields<'_>) -> Option<Prior> {
        let entry = fields.get("prior")?;
        let node = &*entry.value;
        if matches!(node.kind, Kind::Scalar { .. }) {
            return Some(Prior {
                merge_method: self.text(node, "`prior`", "prior: linear")?,
                parameters: Parameters::default(),
                span: node.span,
            });
        }
        let fields = self.fields(node, "`prior`", keys::PRIOR, PRIOR)?;
        let merge_method = self
            .required(&fields, "merge_method", "`prior`", "merge_method: ties")
            .and_then(|entry| self.text(&entry.value, "`merge_method`", "merge_method: ties"));
        let parameters = self.parameters(&fields);
        Some(Prior {
            merge_method: merge_method?,
            parameters,
            span: node.span,
        })
    }
}
