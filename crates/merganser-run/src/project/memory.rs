//! How much memory the merge of a whole matrix takes, by its method.

use merganser_methods::is_adapter_method;
use merganser_plan::{Calibrated, Output, Plan};

use super::matrices::{claimed, rank_of_factors};
use super::merges_matrices;
use crate::RunError;
use crate::lanes::{USUAL_MEMORY, affordable};

/// Matrices of more elements are held in f32.
pub(super) const LARGE: u64 = 1 << 22;

/// Bytes that the most demanding matrix of a merge takes while it is merged, and its name: about, and rather too many.
/// `None` for methods that do not hold whole matrices, and for those that look at data, which is not known before.
pub fn matrix_bytes(plan: &Plan) -> Option<(u64, &str)> {
    let calibrated = plan.calibrated.as_ref()?;
    if !merges_matrices(calibrated) {
        return None;
    }
    let claimed = claimed(plan, calibrated);
    plan.tensors()
        .filter(|output| claimed.contains(&output.name))
        .map(|output| (bytes(plan, calibrated, output), output.name.as_str()))
        .max()
}

/// The budget of a merge where none is given: [`USUAL_MEMORY`], or what one matrix takes where whole matrices are merged that
/// need more.
pub fn usual_memory(plan: &Plan) -> u64 {
    matrix_bytes(plan).map_or(USUAL_MEMORY, |(bytes, _)| bytes.max(USUAL_MEMORY))
}

/// How many matrices of such a merge have room in `memory` side by side; 1 where they are not held whole.
///
/// # Errors
/// If not even one has.
pub(crate) fn lanes(plan: &Plan, memory: u64) -> Result<usize, RunError> {
    match matrix_bytes(plan) {
        Some((bytes, name)) => affordable(Some(memory), bytes, name),
        None => Ok(1),
    }
}

fn bytes(plan: &Plan, calibrated: &Calibrated, output: &Output) -> u64 {
    let rows = output.shape.first().map_or(0, |&n| n as u64);
    let all = output.elements() as u64;
    let columns = all / rows.max(1);
    let (tasks, settings) = (
        calibrated.tasks.len() as u64,
        output.calibrated.as_ref().unwrap_or(&calibrated.settings),
    );
    if is_adapter_method(calibrated.info.name) {
        let rank = rank_of_factors(plan, calibrated, &output.name).unwrap_or(0) as u64;
        let combination = settings.text("combination_type").unwrap_or_default();
        let whole = match combination.strip_suffix("_svd") {
            Some(_) => 2 * tasks + 4,
            None => 1,
        };
        // The base, the merged update, the result.
        return 4 * 3 * all + 8 * (whole * all + 4 * tasks * rank * (rows + columns));
    }
    let small = rows.min(columns).pow(2);
    // What was measured with a matrix held in f32, and a tenth or two on top. Smaller ones take more an element, and little.
    let element = if all <= LARGE { 8 } else { 4 };
    let of_type = (element - 4) * 3 * all;
    of_type
        + match calibrated.info.name {
            "iso_c" => 24 * all + 32 * small,
            "tsv_m" => 34 * all + 70 * small,
            "iso_cts" => 42 * all + 64 * small,
            "cart" => 34 * all + 28 * small,
            // All updates side by side, and the coordinates of each.
            "knots" => 40 * tasks * all + 16 * rows.pow(2),
            // All updates, the moments of the gradient, and the eigenvectors of the inputs' side.
            _ => (4 * tasks + 32) * all + element * 6 * columns.pow(2),
        }
}
