//! Activation functions in f64: value, derivative, and how much they can stretch a distance.
//!
//! The Lipschitz constant of a differentiable function is the largest magnitude of its derivative. For GELU, x Φ(x), the
//! derivative Φ(x) + x φ(x) is largest at x = √2; for SiLU, x σ(x), at x ≈ 2.3994, the root of 2 + x (1 − 2σ(x)) = 0.
//! Both constants are rounded up here, because a certificate multiplies by them.

use std::fmt;

use candle_core::cpu::erf::erf_f64;
use merganser_kernels::special::{exp, tanh};

use crate::error::{ModelError, Result};

/// An activation function that acts on every number by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pointwise {
    /// x
    Identity,
    /// max(x, 0); its derivative at 0 is taken as 0
    Relu,
    /// x where x > 0, slope · x elsewhere
    LeakyRelu(f64),
    /// tanh x
    Tanh,
    /// σ(x) = 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// x Φ(x), with the distribution function Φ of the normal distribution, exact
    Gelu,
    /// x σ(x)
    Silu,
}

impl Pointwise {
    /// The names [`parse`](Self::parse) knows.
    pub const NAMES: &'static str =
        "identity, relu, leaky_relu (slope 0.01), leaky_relu:SLOPE, tanh, sigmoid, gelu, silu";

    /// The function of that name, `leaky_relu:0.2` with its slope.
    ///
    /// # Errors
    /// [`ModelError::Layers`] if there is none, or the slope is not a finite number.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "identity" | "linear" | "none" => Self::Identity,
            "relu" => Self::Relu,
            "leaky_relu" => Self::LeakyRelu(0.01),
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "gelu" => Self::Gelu,
            "silu" | "swish" => Self::Silu,
            _ => {
                let slope = text.strip_prefix("leaky_relu:");
                let slope = slope.and_then(|slope| slope.parse::<f64>().ok());
                match slope {
                    Some(slope) if slope.is_finite() => Self::LeakyRelu(slope),
                    _ => {
                        return Err(ModelError::Layers(format!(
                            "no activation is called `{text}`; known are {}",
                            Self::NAMES
                        )));
                    }
                }
            }
        })
    }

    /// The function at `x`.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Self::Identity => x,
            // Not `max`, which would hide NaN.
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::LeakyRelu(slope) => {
                if x > 0.0 {
                    x
                } else {
                    slope * x
                }
            }
            Self::Tanh => tanh(x),
            Self::Sigmoid => sigmoid(x),
            Self::Gelu => x * phi(x),
            Self::Silu => x * sigmoid(x),
        }
    }

    /// Its derivative at `x`; at a kink, the one from the left, as PyTorch takes it.
    pub fn derivative(self, x: f64) -> f64 {
        match self {
            Self::Identity => 1.0,
            Self::Relu => f64::from(u8::from(x > 0.0)),
            Self::LeakyRelu(slope) => {
                if x > 0.0 {
                    1.0
                } else {
                    slope
                }
            }
            Self::Tanh => 1.0 - tanh(x).powi(2),
            Self::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
            Self::Gelu => {
                let density = exp(-0.5 * x * x) / std::f64::consts::TAU.sqrt();
                phi(x) + x * density
            }
            Self::Silu => {
                let s = sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
        }
    }

    /// A number L with |f(x) − f(y)| ≤ L |x − y| for all x and y, never too small.
    pub fn lipschitz(self) -> f64 {
        match self {
            Self::Identity | Self::Relu | Self::Tanh => 1.0,
            Self::LeakyRelu(slope) => slope.abs().max(1.0),
            Self::Sigmoid => 0.25,
            Self::Gelu => 1.128_905,
            Self::Silu => 1.099_85,
        }
    }
}

impl fmt::Display for Pointwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Relu => f.write_str("relu"),
            Self::LeakyRelu(slope) => write!(f, "leaky_relu:{slope}"),
            Self::Tanh => f.write_str("tanh"),
            Self::Sigmoid => f.write_str("sigmoid"),
            Self::Gelu => f.write_str("gelu"),
            Self::Silu => f.write_str("silu"),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    // The exponential of a negative number never overflows.
    let e = exp(-x.abs());
    if x >= 0.0 {
        1.0 / (1.0 + e)
    } else {
        e / (1.0 + e)
    }
}

fn phi(x: f64) -> f64 {
    0.5 * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ALL: [Pointwise; 8] = [
        Pointwise::Identity,
        Pointwise::Relu,
        Pointwise::LeakyRelu(0.2),
        Pointwise::LeakyRelu(-1.5),
        Pointwise::Tanh,
        Pointwise::Sigmoid,
        Pointwise::Gelu,
        Pointwise::Silu,
    ];

    #[test]
    fn derivatives_are_differences_and_below_the_lipschitz_constant_which_is_tight() {
        for f in ALL {
            let mut steepest = 0.0_f64;
            for i in -40_000..=40_000 {
                let x = f64::from(i) * 2.5e-4;
                let slope = f.derivative(x);
                steepest = steepest.max(slope.abs());
                if i != 0 {
                    let h = 1e-5;
                    let measured = (f.value(x + h) - f.value(x - h)) / (2.0 * h);
                    assert!((measured - slope).abs() < 1e-8, "{f} at {x}");
                }
            }
            assert!(steepest <= f.lipschitz(), "{f}: {steepest}");
            assert!(steepest > f.lipschitz() - 2e-5, "{f}: {steepest}");
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(Pointwise::Gelu.value(0.0), 0.0);
        assert!((Pointwise::Gelu.value(1.0) - 0.841_344_746_068_542_9).abs() < 1e-14);
        assert!((Pointwise::Silu.value(2.0) - 1.761_594_155_955_764_9).abs() < 1e-14);
        for f in ALL {
            for x in [-1e308, -800.0, 800.0, 1e300] {
                assert!(f.derivative(x).is_finite(), "{f} at {x}");
                assert!(!f.value(x).is_nan(), "{f} at {x}");
            }
        }
    }

    #[test]
    fn names_are_read_and_written_alike() {
        for f in ALL {
            assert_eq!(Pointwise::parse(&f.to_string()).unwrap(), f);
        }
        for wrong in ["rellu", "leaky_relu:", "leaky_relu:nan", ""] {
            let message = Pointwise::parse(wrong).unwrap_err().to_string();
            assert!(message.contains("known are identity"), "{message}");
        }
    }
}
