//! The rules by which merged tensors are compared with mergekit's.

use std::collections::BTreeMap;

use merganser_testkit::{Dtype, Tensor};

use super::{Case, ambiguous};
use crate::models;

type Tensors = BTreeMap<String, Tensor>;

/// Compares by `rule`; panics with the tensor and the element at fault.
pub(super) fn check(case: &Case, rule: &str, merged: &Tensors, expected: &Tensors) {
    let names = |x: &Tensors| x.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(merged), names(expected), "names of tensors");
    for (name, theirs) in expected {
        let ours = &merged[name];
        assert_eq!(ours.shape, theirs.shape, "shape of '{name}'");
        if case.name == "arcee_fusion-03-bf16" {
            // mergekit's float32 mask promotes what was bfloat16; here a type is never widened by accident.
            assert_eq!((ours.dtype, theirs.dtype), (Dtype::BF16, Dtype::F32));
        } else {
            assert_eq!(ours.dtype, theirs.dtype, "type of '{name}'");
        }
    }
    let tolerance = &case.info["tolerance"];
    let number = |key: &str| tolerance[key].as_f64();
    let ambiguous = number("ambiguous_elements").unwrap_or(0.0) as usize;
    match rule {
        "bitwise" => exact(merged, expected),
        "atol" | "see note" => {
            let atol = number("atol").unwrap_or(1e-6);
            let off = outside(merged, expected, |_| move |_| atol);
            undecided(case, &off);
            assert!(
                off.len() <= ambiguous,
                "{} elements are off, {ambiguous} may be; the first ones: {:#?}",
                off.len(),
                &off[..off.len().min(5)]
            );
        }
        "half" => {
            let off = outside(merged, expected, ulp);
            undecided(case, &off);
            let total: usize = expected.values().map(|tensor| tensor.values.len()).sum();
            let accept = number("accept_frac_within_1ulp").expect("a fraction");
            let allowed = ambiguous as f64 + (1.0 - accept) * total as f64;
            assert!(
                off.len() as f64 <= allowed,
                "{} of {total} are more than one ulp off, {allowed:.0} may be",
                off.len()
            );
        }
        "fusion" => fusion(
            case,
            merged,
            expected,
            number("max_flipped_fraction").expect("a fraction"),
        ),
        other => panic!("there is no rule '{other}'"),
    }
}

fn exact(merged: &Tensors, expected: &Tensors) {
    for (name, theirs) in expected {
        let bits = |tensor: &Tensor| {
            tensor
                .values
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>()
        };
        assert!(bits(&merged[name]) == bits(theirs), "'{name}' differs");
    }
}

/// Of a TIES merge, only elements that mergekit decides by chance may be off.
fn undecided(case: &Case, off: &[Off]) {
    if !case.name.starts_with("ties-") || off.is_empty() {
        return;
    }
    let merge = ambiguous::Ties::load(case);
    for off in off {
        assert!(
            merge.is_ambiguous(&off.tensor, off.index),
            "{off:?} is off and not ambiguous"
        );
    }
}

/// An element that is out of tolerance.
#[derive(Debug)]
#[allow(dead_code)] // the values are for messages
struct Off {
    tensor: String,
    index: usize,
    ours: f64,
    theirs: f64,
}

/// The elements further from the expectation than `tolerance(expected tensor)(element)`.
fn outside<T: Fn(f64) -> f64>(
    merged: &Tensors,
    expected: &Tensors,
    tolerance: impl Fn(&Tensor) -> T,
) -> Vec<Off> {
    let mut off = Vec::new();
    for (name, theirs) in expected {
        let tolerance = tolerance(theirs);
        for (index, (&a, &b)) in merged[name].values.iter().zip(&theirs.values).enumerate() {
            let within = (a - b).abs() <= tolerance(b);
            if !within {
                off.push(Off {
                    tensor: name.clone(),
                    index,
                    ours: a,
                    theirs: b,
                });
            }
        }
    }
    off
}

/// The distance between `x` and the next number of the tensor's type, where numbers much smaller than the others count
/// as if they were 1/32 of the root mean square: their own ulp would ask for more than the sums they come from hold.
fn ulp(tensor: &Tensor) -> impl Fn(f64) -> f64 + use<> {
    let squares: f64 = tensor.values.iter().map(|x| x * x).sum();
    let rms = (squares / tensor.values.len().max(1) as f64).sqrt();
    let bits = match tensor.dtype {
        Dtype::BF16 => 7,
        Dtype::F16 => 10,
        other => panic!("{other:?} is no half"),
    };
    move |x| {
        let magnitude = x.abs().max(rms / 32.0).max(f64::MIN_POSITIVE);
        2.0_f64.powi(magnitude.log2().floor() as i32 - bits)
    }
}

/// A hard threshold on a number near rounding noise: some elements may take the other of the two values, none a third.
fn fusion(case: &Case, merged: &Tensors, expected: &Tensors, allowed: f64) {
    let inputs = case.inputs();
    let [base, tuned] = [&inputs[0], &inputs[1]].map(|folder| models::read(folder));
    // Half a unit in the last place of bfloat16, where that is what is written.
    let halves = merged.values().all(|tensor| tensor.dtype == Dtype::BF16);
    let relative = if halves { 1.0 / 256.0 } else { 0.0 };
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 + relative * b.abs();

    let off = outside(merged, expected, |_| |x: f64| 1e-6 + relative * x.abs());
    let total: usize = expected.values().map(|tensor| tensor.values.len()).sum();
    assert!(
        off.len() as f64 <= allowed * total as f64,
        "{} of {total} elements are decided otherwise, a fraction of {allowed} may be",
        off.len()
    );
    for (name, tensor) in merged {
        for (i, &x) in tensor.values.iter().enumerate() {
            let choices = [base[name].values[i], tuned[name].values[i]];
            assert!(
                choices.iter().any(|&choice| near(x, choice)),
                "element {i} of '{name}' is {x}, neither of {choices:?}"
            );
        }
    }
}
