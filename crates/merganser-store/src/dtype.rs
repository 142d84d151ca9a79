//! Element types of stored tensors and their names in safetensors headers and in torch.
//!
//! Only types whose elements are whole bytes and which some model is really distributed in are
//! represented. The others that safetensors 0.8 knows (4- and 6-bit floats, `F8_E8M0` block
//! scales, the FNUZ variants, complex numbers) are recognised by name so that the refusal can say
//! "unsupported" rather than "unknown".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Type of one tensor element. All are stored little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// 8-bit float with 4 exponent and 3 mantissa bits, no infinities (torch's `float8_e4m3fn`).
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    /// 8-bit float with 5 exponent and 2 mantissa bits.
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, 0 or 1.
    #[serde(rename = "BOOL")]
    Bool,
}

/// Types of the safetensors format that this crate does not read.
const UNSUPPORTED: [&str; 9] = [
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "C64",
    "C32",
    "C128",
];

/// A dtype name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DtypeError {
    /// The format defines this type, this crate does not read it.
    #[error("unsupported dtype `{0}` (supported: {list})", list = supported())]
    Unsupported(String),
    /// No such type exists.
    #[error("unknown dtype `{0}` (supported: {list})", list = supported())]
    Unknown(String),
}

fn supported() -> String {
    Dtype::ALL.map(Dtype::name).join(", ")
}

impl Dtype {
    /// Every type, widest floats first.
    pub const ALL: [Self; 15] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2
        )
    }

    /// Name in a safetensors header, as in `"dtype": "BF16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// Name in torch and in `config.json`, without the `torch.` prefix.
    pub const fn torch_name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::F8E5M2 => "float8_e5m2",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U64 => "uint64",
            Self::U32 => "uint32",
            Self::U16 => "uint16",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        }
    }

    /// The type of a torch name, with or without `torch.` and including torch's short aliases
    /// (`half`, `float`, `double`, `long`, …).
    pub fn from_torch_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        let canonical = match name {
            "half" => "float16",
            "float" => "float32",
            "double" => "float64",
            "long" => "int64",
            "int" => "int32",
            "short" => "int16",
            other => other,
        };
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.torch_name() == canonical)
    }

    /// Bytes of a tensor of this type and `shape` (`[]` is a scalar), or `None` if the number does
    /// not fit in 64 bits.
    pub fn nbytes(self, shape: &[usize]) -> Option<u64> {
        let zero = shape.contains(&0);
        // A zero extent makes the tensor empty, yet the other extents must still be sane numbers:
        // torch and safetensors multiply from the left and would overflow.
        let elements = shape.iter().try_fold(1_u64, |product, &extent| {
            product.checked_mul(if zero { extent.max(1) } else { extent } as u64)
        })?;
        let bytes = elements.checked_mul(self.size() as u64)?;
        Some(if zero { 0 } else { bytes })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = DtypeError;

    /// Parses a safetensors name.
    fn from_str(name: &str) -> Result<Self, DtypeError> {
        if let Some(dtype) = Self::ALL.into_iter().find(|dtype| dtype.name() == name) {
            Ok(dtype)
        } else if UNSUPPORTED.contains(&name) {
            Err(DtypeError::Unsupported(name.to_owned()))
        } else {
            Err(DtypeError::Unknown(name.chars().take(40).collect()))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            assert_eq!(Dtype::from_torch_name(dtype.torch_name()), Some(dtype));
            assert_eq!(
                Dtype::from_torch_name(&format!("torch.{}", dtype.torch_name())),
                Some(dtype)
            );
            assert_eq!(
                serde_json::to_string(&dtype).unwrap(),
                format!("\"{dtype}\"")
            );
        }
        assert_eq!(Dtype::from_torch_name("half"), Some(Dtype::F16));
        assert_eq!(Dtype::from_torch_name("quint8"), None);
    }

    #[test]
    fn names_and_sizes_agree_with_the_safetensors_crate() {
        for dtype in Dtype::ALL {
            let theirs: safetensors::Dtype =
                serde_json::from_str(&format!("\"{}\"", dtype.name())).unwrap();
            assert_eq!(theirs.bitsize(), dtype.size() * 8, "{dtype}");
        }
    }

    #[test]
    fn an_unsupported_type_is_told_from_an_unknown_one() {
        let unsupported = "F8_E8M0".parse::<Dtype>().unwrap_err().to_string();
        assert!(
            unsupported.starts_with("unsupported dtype `F8_E8M0` (supported: F64, F32"),
            "{unsupported}"
        );
        let unknown = "bf16".parse::<Dtype>().unwrap_err().to_string();
        assert!(unknown.starts_with("unknown dtype `bf16`"), "{unknown}");
    }

    #[test]
    fn sizes_of_tensors() {
        assert_eq!(Dtype::BF16.nbytes(&[3, 5]), Some(30));
        assert_eq!(Dtype::F64.nbytes(&[]), Some(8));
        assert_eq!(Dtype::F32.nbytes(&[7, 0, 2]), Some(0));
        assert_eq!(Dtype::F32.nbytes(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F32.nbytes(&[usize::MAX, 2, 0]), None);
        assert_eq!(Dtype::U8.nbytes(&[usize::MAX]), Some(u64::MAX));
    }
}
