//! The two element types: `f64` wherever memory allows, `f32` for the Grams and weights of very wide layers.

use std::fmt::Debug;

/// `f32` or `f64`.
pub trait Real:
    faer::traits::RealField + pulp::bytemuck::Pod + Default + Debug + PartialOrd + Send + Sync + 'static
{
    /// Distance from 1 to the next larger number.
    const EPSILON: f64;
    /// The smallest number of full precision.
    const SMALLEST: f64;

    /// The nearest number of this type.
    fn from_f64(x: f64) -> Self;

    /// The same number in `f64`.
    fn to_f64(self) -> f64;
}

impl Real for f64 {
    const EPSILON: f64 = f64::EPSILON;
    const SMALLEST: f64 = f64::MIN_POSITIVE;

    fn from_f64(x: f64) -> Self {
        x
    }

    fn to_f64(self) -> f64 {
        self
    }
}

impl Real for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    const SMALLEST: f64 = f32::MIN_POSITIVE as f64;

    fn from_f64(x: f64) -> Self {
        x as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}
