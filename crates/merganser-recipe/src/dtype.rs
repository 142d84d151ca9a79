//! Floating-point types a recipe can name in `dtype` and `out_dtype`.

use std::fmt;

/// A floating-point type of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    BFloat16,
    /// IEEE single precision.
    Float32,
    /// IEEE double precision.
    Float64,
    /// 8 bits with 4 of exponent, no infinities (`float8_e4m3fn`).
    Float8E4M3,
    /// 8 bits with 5 of exponent (`float8_e5m2`).
    Float8E5M2,
}

impl FloatType {
    /// Every type, in the order messages list them.
    pub const ALL: [Self; 6] = [
        Self::BFloat16,
        Self::Float16,
        Self::Float32,
        Self::Float64,
        Self::Float8E4M3,
        Self::Float8E5M2,
    ];

    /// The name torch and mergekit use, such as `bfloat16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::BFloat16 => "bfloat16",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Float8E4M3 => "float8_e4m3fn",
            Self::Float8E5M2 => "float8_e5m2",
        }
    }

    /// The type called `name`, with or without `torch.` in front.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// What a wrong name most likely stands for: common abbreviations and slips.
    pub(crate) fn suggestion(name: &str) -> Option<Self> {
        let bare = name
            .strip_prefix("torch.")
            .unwrap_or(name)
            .to_ascii_lowercase();
        match bare.as_str() {
            "fp16" | "f16" | "half" => Some(Self::Float16),
            "bf16" => Some(Self::BFloat16),
            "fp32" | "f32" | "float" | "single" => Some(Self::Float32),
            "fp64" | "f64" | "double" => Some(Self::Float64),
            "fp8" | "f8" | "float8" | "float8_e4m3" | "f8_e4m3" => Some(Self::Float8E4M3),
            "f8_e5m2" => Some(Self::Float8E5M2),
            _ => crate::nearest(&bare, Self::ALL.map(Self::name)).and_then(Self::from_name),
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for dtype in FloatType::ALL {
            assert_eq!(FloatType::from_name(dtype.name()), Some(dtype));
            assert_eq!(FloatType::from_name(&format!("torch.{dtype}")), Some(dtype));
        }
    }

    #[test]
    fn other_names_are_refused_with_a_suggestion() {
        for (name, meant) in [
            ("bf16", Some(FloatType::BFloat16)),
            ("half", Some(FloatType::Float16)),
            ("flaot32", Some(FloatType::Float32)),
            ("torch.double", Some(FloatType::Float64)),
            ("BFloat16", Some(FloatType::BFloat16)),
            ("int8", None),
            ("auto", None),
        ] {
            assert_eq!(FloatType::from_name(name), None, "{name}");
            assert_eq!(FloatType::suggestion(name), meant, "{name}");
        }
    }
}
