//! Inner products between the inputs of a group: all that the spherical methods need to know about a tensor.
//!
//! Whatever lies in the span of the inputs is a list of coefficients, and every length or angle in that span follows
//! from the Gram matrix. So an iteration such as the Karcher mean costs one pass over the tensor, not one a step.

use merganser_kernels::reduce;

use crate::{Grain, MethodError, TensorGroup, View};

/// The matrix ⟨v_i, v_j⟩ of some inputs, summed in f64 in a fixed order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gram {
    size: usize,
    products: Vec<f64>,
}

impl Gram {
    /// Reads the tensor once and takes the products of the inputs numbered `inputs`.
    pub(crate) fn of(
        group: &TensorGroup<'_>,
        view: View,
        inputs: &[usize],
    ) -> Result<Self, MethodError> {
        let size = inputs.len();
        let parts = group.scan(
            Grain::Elements,
            view,
            |_| vec![0.0; size * (size + 1) / 2],
            |products, block| {
                let vectors: Vec<&[f32]> = inputs.iter().map(|&i| block.input(i)).collect();
                add_products(products, &vectors);
            },
        )?;
        Ok(Self::from_triangle(size, parts))
    }

    /// The products of vectors in memory.
    pub(crate) fn of_slices(vectors: &[&[f32]]) -> Self {
        let size = vectors.len();
        let mut products = vec![0.0; size * (size + 1) / 2];
        add_products(&mut products, vectors);
        Self::from_triangle(size, [products])
    }

    fn from_triangle(size: usize, parts: impl IntoIterator<Item = Vec<f64>>) -> Self {
        let mut products = vec![0.0; size * size];
        for part in parts {
            let mut part = part.into_iter();
            for i in 0..size {
                for (j, product) in (i..size).zip(&mut part) {
                    products[i * size + j] += product;
                }
            }
        }
        for i in 0..size {
            for j in 0..i {
                products[i * size + j] = products[j * size + i];
            }
        }
        Self { size, products }
    }

    /// Number of vectors.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// ⟨v_i, v_j⟩.
    pub(crate) fn product(&self, i: usize, j: usize) -> f64 {
        self.products[i * self.size + j]
    }

    /// ‖v_i‖.
    pub(crate) fn norm(&self, i: usize) -> f64 {
        self.product(i, i).sqrt()
    }

    /// All norms.
    pub(crate) fn norms(&self) -> Vec<f64> {
        (0..self.size).map(|i| self.norm(i)).collect()
    }

    /// ‖Σ c_i v_i‖.
    pub(crate) fn norm_of(&self, coefficients: &[f64]) -> f64 {
        let square: f64 = (0..self.size)
            .map(|i| coefficients[i] * self.product_with(i, coefficients))
            .sum();
        square.max(0.0).sqrt()
    }

    /// ⟨v_i, Σ c_j v_j⟩.
    pub(crate) fn product_with(&self, i: usize, coefficients: &[f64]) -> f64 {
        coefficients
            .iter()
            .enumerate()
            .map(|(j, c)| c * self.product(i, j))
            .sum()
    }
}

fn add_products(products: &mut [f64], vectors: &[&[f32]]) {
    if let [a, b] = vectors {
        for (sum, product) in products.iter_mut().zip(reduce::products(a, b)) {
            *sum += product;
        }
        return;
    }
    let mut at = 0;
    for (i, a) in vectors.iter().enumerate() {
        for b in &vectors[i..] {
            products[at] += reduce::dot(a, b);
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_products() {
        let gram = Gram::of_slices(&[&[3.0, 4.0], &[0.0, 2.0], &[1.0, 0.0]]);
        assert_eq!(gram.norms(), [5.0, 2.0, 1.0]);
        assert_eq!(
            (gram.product(0, 1), gram.product(1, 0), gram.product(2, 1)),
            (8.0, 8.0, 0.0)
        );
        assert_eq!(gram.norm_of(&[1.0, -2.0, 0.0]), 3.0);
        assert_eq!(gram.product_with(0, &[0.0, 1.0, 1.0]), 11.0);
    }
}
