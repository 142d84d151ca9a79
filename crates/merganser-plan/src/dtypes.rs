//! Types: what a recipe calls them, what files call them, what kernels call them, and what mixing them gives.

use merganser_recipe::FloatType;
use merganser_store::Dtype;

/// The narrowest type that holds values of all of them without loss of range: equal types stay, others become f32.
pub(crate) fn promote(mut dtypes: impl Iterator<Item = Dtype>) -> Dtype {
    let Some(first) = dtypes.next() else {
        return Dtype::F32;
    };
    dtypes.fold(first, |a, b| match (a, b) {
        (a, b) if a == b => a,
        (Dtype::F64, _) | (_, Dtype::F64) => Dtype::F64,
        _ => Dtype::F32,
    })
}

/// Whether values of type `own` must be rounded to become values of type `wanted`.
pub(crate) fn narrows(own: Dtype, wanted: Dtype) -> bool {
    own.is_float() && own != wanted && !matches!(wanted, Dtype::F32 | Dtype::F64)
}

/// The stored type of a type that recipes name.
pub fn float_dtype(dtype: FloatType) -> Dtype {
    match dtype {
        FloatType::Float16 => Dtype::F16,
        FloatType::BFloat16 => Dtype::BF16,
        FloatType::Float32 => Dtype::F32,
        FloatType::Float64 => Dtype::F64,
        FloatType::Float8E4M3 => Dtype::F8E4M3,
        FloatType::Float8E5M2 => Dtype::F8E5M2,
    }
}

/// The kernels' name of a stored type; `None` if it is not a floating-point type.
pub fn kernel_float(dtype: Dtype) -> Option<merganser_methods::Float> {
    use merganser_methods::Float;
    Some(match dtype {
        Dtype::F64 => Float::F64,
        Dtype::F32 => Float::F32,
        Dtype::F16 => Float::F16,
        Dtype::BF16 => Float::BF16,
        Dtype::F8E4M3 => Float::F8E4M3,
        Dtype::F8E5M2 => Float::F8E5M2,
        _ => return None,
    })
}
