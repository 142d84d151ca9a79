//! Products of differences of models, ⟨x_a − x_b, x_c − x_d⟩, in one pass over all of them.
//!
//! Where [`compare`](crate::compare) measures every model against one base and says what cannot be compared, an audit needs
//! differences of any two models, exact ones, and no tensor left out in silence. Differences of stored numbers and their
//! products are taken in f64 and added in a fixed order: the numbers do not depend on the number of threads. A thread
//! holds one chunk of every model.

use merganser_methods::{CHUNK, Source};
use merganser_plan::Model;
use rayon::prelude::*;

use crate::compare::{Row, names, place, row};
use crate::{RunError, sources};

/// Names that a message lists.
const LISTED: usize = 8;

/// Products of n differences over some elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Products {
    /// n.
    pub count: usize,
    /// Number of elements.
    pub elements: u64,
    /// ⟨d_s, d_t⟩ by s · n + t.
    pub dots: Vec<f64>,
    /// Elements where d_s and d_t have one sign (or are both 0), by s · n + t.
    pub agree: Vec<u64>,
    /// ‖x‖² of what was subtracted, by difference.
    pub subtracted: Vec<f64>,
}

impl Products {
    fn new(count: usize) -> Self {
        Self {
            count,
            elements: 0,
            dots: vec![0.0; count * count],
            agree: vec![0; count * count],
            subtracted: vec![0.0; count],
        }
    }

    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        let sum = |a: &mut [f64], b: &[f64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        sum(&mut self.dots, &other.dots);
        sum(&mut self.subtracted, &other.subtracted);
        for (a, b) in self.agree.iter_mut().zip(&other.agree) {
            *a += b;
        }
    }

    /// ‖d_t‖.
    pub fn norm(&self, t: usize) -> f64 {
        self.dots[t * self.count + t].sqrt()
    }

    /// Cosine of the angle between two differences; 0 if one of them is 0.
    pub fn cosine(&self, s: usize, t: usize) -> f64 {
        let lengths = self.norm(s) * self.norm(t);
        if lengths > 0.0 {
            (self.dots[s * self.count + t] / lengths).clamp(-1.0, 1.0)
        } else {
            0.0
        }
    }

    /// Share of elements where two differences have one sign.
    pub fn agreement(&self, s: usize, t: usize) -> f64 {
        self.agree[s * self.count + t] as f64 / self.elements.max(1) as f64
    }
}

/// Products over all tensors of real numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Differences {
    /// By tensor, in layer order.
    pub tensors: Vec<(String, Products)>,
    /// Their sum.
    pub total: Products,
}

/// Takes the products of the differences `pairs` (what is subtracted from, what is subtracted), on the current rayon
/// pool. Tensors of whole numbers are left out.
///
/// # Errors
/// If the models do not have the same tensors in the same shapes, a tensor cannot be read, or one is not finite.
pub fn differences(models: &[Model], pairs: &[(usize, usize)]) -> Result<Differences, RunError> {
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for name in names(models) {
        match row(models, &name) {
            Ok(row) if row.dtypes.iter().all(|dtype| dtype.is_float()) => rows.push(row),
            Ok(_) => {}
            Err(_) if merganser_plan::is_rebuilt_buffer(&name) => {}
            Err(reason) => problems.push(format!("'{name}': {reason}")),
        }
    }
    if !problems.is_empty() {
        let more = problems.len().saturating_sub(LISTED);
        problems.truncate(LISTED);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        return Err(RunError::Compared(format!(
            "the models do not have the same tensors, so that differences between them mean nothing: {}",
            problems.join("; ")
        )));
    }
    rows.sort_by(|a, b| place(&a.name).cmp(&place(&b.name)));
    let tensors: Vec<(String, Products)> = rows
        .par_iter()
        .map(|row| Ok((row.name.clone(), products(models, row, pairs)?)))
        .collect::<Result<_, RunError>>()?;
    let mut total = Products::new(pairs.len());
    for (_, products) in &tensors {
        total.add(products);
    }
    Ok(Differences { tensors, total })
}

fn products(models: &[Model], row: &Row, pairs: &[(usize, usize)]) -> Result<Products, RunError> {
    let opened: Vec<Box<dyn Source + '_>> = models
        .iter()
        .zip(&row.found)
        .map(|(model, name)| sources::open(model, name))
        .collect::<Result<_, _>>()?;
    let elements: usize = row.shape.iter().product();
    let chunks: Vec<Products> = (0..elements.div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| {
            let first = chunk * CHUNK;
            let len = CHUNK.min(elements - first);
            let mut raw = Vec::new();
            let mut values = Vec::new();
            for (source, model) in opened.iter().zip(models) {
                source
                    .fetch(first..first + len, &mut raw)
                    .map_err(RunError::Read)?;
                let mut numbers = vec![0.0_f32; len];
                source.decode(&raw, first, 0, &mut numbers);
                if !merganser_kernels::convert::all_finite(&numbers) {
                    return Err(RunError::Compared(format!(
                        "tensor '{}' of {} holds NaN or infinity",
                        row.name, model.label
                    )));
                }
                values.push(numbers);
            }
            Ok(of_chunk(&values, pairs))
        })
        .collect::<Result<_, RunError>>()?;
    let mut sum = Products::new(pairs.len());
    for chunk in &chunks {
        sum.add(chunk);
    }
    Ok(sum)
}

fn of_chunk(values: &[Vec<f32>], pairs: &[(usize, usize)]) -> Products {
    let count = pairs.len();
    let mut found = Products::new(count);
    let len = values.first().map_or(0, Vec::len);
    found.elements = len as u64;
    let deltas: Vec<Vec<f64>> = pairs
        .iter()
        .map(|&(from, what)| {
            let both = values[from].iter().zip(&values[what]);
            both.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
        })
        .collect();
    for (square, &(_, what)) in found.subtracted.iter_mut().zip(pairs) {
        *square = values[what].iter().map(|x| f64::from(*x).powi(2)).sum();
    }
    let sign = |x: f64| i8::from(x > 0.0) - i8::from(x < 0.0);
    for (s, a) in deltas.iter().enumerate() {
        for (t, b) in deltas.iter().enumerate().skip(s) {
            let (mut dot, mut agree) = (0.0, 0_u64);
            for (x, y) in a.iter().zip(b) {
                dot += x * y;
                agree += u64::from(sign(*x) == sign(*y));
            }
            for at in [s * count + t, t * count + s] {
                found.dots[at] = dot;
                found.agree[at] = agree;
            }
        }
    }
    found
}
