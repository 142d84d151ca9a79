//! What an extraction kept and what it lost.

use serde::Serialize;

/// The update of one module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModuleReport {
    /// Its path in the base.
    pub module: String,
    /// Outputs and inputs; of a convolution, inputs · kernel.
    pub shape: [usize; 2],
    /// Rank of its factors; 0 if its update is no more than rounding, or below the threshold: nothing is written of it.
    pub rank: usize,
    /// ‖Δ‖_F.
    pub norm: f64,
    /// ‖Δ − B A‖_F / ‖Δ‖_F with the factors as they are stored.
    #[serde(rename = "relative_error")]
    pub error: f64,
    /// Share of ‖Δ‖²_F in the directions kept, 0 to 1.
    pub energy: f64,
}

/// The outcome of an extraction.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoraReport {
    /// Modules whose matrix changed, in layer order.
    pub modules: Vec<ModuleReport>,
    /// Tensors saved whole.
    pub saved: Vec<String>,
    /// Biases carried by second factors.
    pub biases: Vec<String>,
    /// Tensors that are the same in both models.
    pub unchanged: usize,
    /// Tensors that the filter left out.
    pub left_out: usize,
    /// The largest rank.
    pub rank: usize,
    /// (Σ ‖Δ − B A‖²_F / Σ ‖Δ‖²_F)^½ over all modules.
    #[serde(rename = "relative_error")]
    pub error: f64,
    /// Bytes of the adapter's file.
    pub bytes: u64,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// The relative error of several updates together.
pub(super) fn total_error(modules: &[ModuleReport]) -> f64 {
    let sum = |f: &dyn Fn(&ModuleReport) -> f64| modules.iter().map(f).sum::<f64>();
    let all = sum(&|module| module.norm.powi(2));
    if all > 0.0 {
        (sum(&|module| (module.error * module.norm).powi(2)) / all).sqrt()
    } else {
        0.0
    }
}
