//! The one list of methods.

use crate::Method;

static METHODS: &[&dyn Method] = &[
    &crate::linear::Linear,
    &crate::task_arithmetic::TASK_ARITHMETIC,
    &crate::ties::TIES,
    &crate::dare_linear::DARE_LINEAR,
    &crate::dare_ties::DARE_TIES,
    &crate::breadcrumbs::BREADCRUMBS,
    &crate::breadcrumbs_ties::BREADCRUMBS_TIES,
    &crate::della::DELLA,
    &crate::della_linear::DELLA_LINEAR,
    &crate::sce::Sce,
    &crate::arcee_fusion::ArceeFusion,
    &crate::pcb::Pcb,
    &crate::slerp::Slerp,
    &crate::nuslerp::Nuslerp,
    &crate::multislerp::Multislerp,
    &crate::karcher::Karcher,
    &crate::passthrough::Passthrough,
    &crate::nearswap::Nearswap,
    &crate::model_stock::ModelStock,
    &crate::ram::Ram,
    &crate::ram::RamPlus,
    &crate::magmax::Magmax,
    &crate::tall::Consensus,
    &crate::tall::TallMask,
    &crate::emr::Emr,
    &crate::fisher::Fisher,
    &crate::soup::GreedySoup,
];

/// Every method, in the order of the documentation.
pub fn registry() -> &'static [&'static dyn Method] {
    METHODS
}

/// The method called `name`.
pub fn find(name: &str) -> Option<&'static dyn Method> {
    METHODS
        .iter()
        .copied()
        .find(|method| method.info().name == name)
}
