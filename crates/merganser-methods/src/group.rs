//! One output tensor and the input tensors it is made of, readable in chunks.
//!
//! The cut into chunks depends on the shape and the grain alone, never on the number of threads or on the memory
//! budget, and partial results come back in chunk order: sums are the same whatever runs them.
//! Two sizes matter. A *chunk* is what is fetched and written at once ([`CHUNK`] elements, about L2); a *block* is
//! what a method sees at once ([`BLOCK`] elements, about L1).

use std::cell::Cell;
use std::ops::Range;

use merganser_kernels::convert::{self, Float};
use merganser_kernels::elementwise;
use rayon::prelude::*;

use crate::{MethodError, Program, Settings};

/// Elements fetched at once.
pub const CHUNK: usize = 1 << 16;
/// Elements a method sees at once.
pub const BLOCK: usize = 1 << 11;
/// Accumulators of a [`TensorGroup::scan_runs`].
const RUNS: usize = 16;

/// Where the elements of one input tensor come from.
pub trait Source: Send + Sync {
    /// Reads the bytes of elements `range` into `raw`, whose length becomes what [`Source::decode`] expects.
    ///
    /// # Errors
    /// Whatever the storage reports, saying which file and tensor.
    fn fetch(
        &self,
        range: Range<usize>,
        raw: &mut Vec<u8>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Converts part of a fetched range to f32: `out` receives the elements `first + skip ..`, where `first` is the
    /// start of the range that `raw` was fetched for.
    fn decode(&self, raw: &[u8], first: usize, skip: usize, out: &mut [f32]);

    /// The bytes that [`Source::decode`] would convert to `len` numbers, and their type, if conversion is all it does:
    /// the loop that converts can then check and subtract on the way.
    fn stored<'r>(
        &'r self,
        raw: &'r [u8],
        first: usize,
        skip: usize,
        len: usize,
    ) -> Option<(Float, &'r [u8])> {
        let _ = (raw, first, skip, len);
        None
    }
}

/// How a tensor may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Anywhere.
    Elements,
    /// Between rows: vectors along the last dimension stay whole.
    Rows,
    /// Between items of the first dimension.
    Items,
}

/// What the blocks of a scan hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The inputs as they are.
    Values,
    /// `x_i − base` for every input but the base, which stays as it is. Needs a base.
    Deltas,
}

/// How the merged values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As floating-point numbers, rounded once.
    Float(Float),
    /// As one bit an element, least significant bit first: set where the value is not zero.
    Bits,
}

impl Encoding {
    /// Bytes of `elements` values that start at a multiple of 8 elements.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Float(kind) => elements * kind.size(),
            Self::Bits => elements.div_ceil(8),
        }
    }
}

/// One input of an output tensor.
pub struct Input<'a> {
    /// The model's label, for messages.
    pub model: &'a str,
    /// Its elements.
    pub source: &'a dyn Source,
    /// A second tensor of the same shape that goes with it (its Fisher information, say).
    pub companion: Option<&'a dyn Source>,
    /// The type its values are rounded to before anything else (a recipe's `dtype`).
    pub round_to: Option<Float>,
}

/// The same tensor of every input model, and how the recipe wants it merged.
pub struct TensorGroup<'a> {
    /// Name of the output tensor.
    pub name: &'a str,
    /// Shape of all of them.
    pub shape: &'a [usize],
    /// The inputs, in recipe order.
    pub inputs: Vec<Input<'a>>,
    /// Which of them is the base model.
    pub base: Option<usize>,
    /// Resolved parameters.
    pub settings: &'a Settings,
    /// Key of the random masks.
    pub seed: u64,
    /// Lets NaN and infinity pass.
    pub allow_nonfinite: bool,
}

/// A few consecutive elements of every input, as f32.
pub struct Block<'b> {
    /// Flat index of the first element.
    pub start: usize,
    /// Number of the chunk it lies in.
    pub chunk: usize,
    values: &'b [Vec<f32>],
    companions: &'b [Vec<f32>],
    base: Option<usize>,
    len: usize,
}

impl<'b> Block<'b> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of inputs, the base included.
    pub fn inputs(&self) -> usize {
        self.values.len()
    }

    /// Input `i`: its values, or its task vector in a [`View::Deltas`] scan.
    pub fn input(&self, i: usize) -> &'b [f32] {
        &self.values[i][..self.len]
    }

    /// The companion of input `i`; empty if it has none.
    pub fn companion(&self, i: usize) -> &'b [f32] {
        let values = &self.companions[i];
        &values[..self.len.min(values.len())]
    }

    /// The base model's values.
    ///
    /// # Panics
    /// If the group has no base; methods that ask for it declare that they need one.
    pub fn base(&self) -> &'b [f32] {
        self.input(self.base.expect("the method requires a base model"))
    }

    /// Whether one of the inputs is the base model.
    pub fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// Every input in order.
    pub fn all(&self) -> Vec<&'b [f32]> {
        (0..self.inputs()).map(|i| self.input(i)).collect()
    }

    /// Every input but the base, in order.
    pub fn others(&self) -> Vec<&'b [f32]> {
        (0..self.inputs())
            .filter(|i| Some(*i) != self.base)
            .map(|i| self.input(i))
            .collect()
    }
}

/// Buffers of one thread, reused from chunk to chunk: a first touch of a page costs several times the copy.
#[derive(Default)]
struct Worker {
    raw: Vec<Vec<u8>>,
    raw_companions: Vec<Vec<u8>>,
    values: Vec<Vec<f32>>,
    companions: Vec<Vec<f32>>,
    merged: Vec<f32>,
    encoded: Vec<u8>,
}

thread_local! {
    static WORKER: Cell<Worker> = Cell::default();
}

fn with_worker<R>(f: impl FnOnce(&mut Worker) -> R) -> R {
    let mut worker = WORKER.take();
    let result = f(&mut worker);
    WORKER.set(worker);
    result
}

/// Where a block lies: elements `first + skip ..` of which there are `len`, in a chunk that starts at `first`.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    skip: usize,
    len: usize,
}

/// The largest multiple of the grain's unit up to `wanted` elements, one unit at least.
fn whole(grain: Grain, shape: &[usize], wanted: usize) -> usize {
    let unit = match grain {
        Grain::Elements => 1,
        Grain::Rows => shape.last().copied().unwrap_or(1),
        Grain::Items if shape.len() < 2 => shape.iter().product(),
        Grain::Items => shape[1..].iter().product(),
    }
    .max(1);
    (wanted / unit).max(1) * unit
}

/// Elements of every chunk but the last of a tensor of this shape.
pub fn chunk_len(grain: Grain, shape: &[usize]) -> usize {
    whole(grain, shape, CHUNK)
}

/// Bytes of working memory a thread needs to merge a tensor of this shape from `streams` input tensors.
pub fn scratch_bytes(grain: Grain, shape: &[usize], streams: usize) -> usize {
    let chunk = whole(grain, shape, CHUNK).min(shape.iter().product::<usize>().max(1));
    let block = whole(grain, shape, BLOCK).min(chunk);
    streams * (chunk * 8 + block * 4) + block * 4 + chunk * 8
}

impl TensorGroup<'_> {
    /// Number of elements of the tensor.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Length of the vectors along the last dimension (1-D tensors are one row, scalars a row of one).
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Elements of one item of the first dimension (all of a 1-D tensor).
    pub fn item_len(&self) -> usize {
        if self.shape.len() < 2 {
            self.elements()
        } else {
            self.shape[1..].iter().product()
        }
    }

    /// Indices of the inputs other than the base.
    pub fn others(&self) -> Vec<usize> {
        (0..self.inputs.len())
            .filter(|i| Some(*i) != self.base)
            .collect()
    }

    /// Index of the base model, for a method that cannot work without one.
    pub(crate) fn base_index(&self, method: &'static str) -> Result<usize, MethodError> {
        self.base
            .ok_or_else(|| self.undefined(method, "it needs a base model; name one in base_model"))
    }

    /// Indices of the inputs other than the base, for a method that takes exactly `N` of them.
    pub(crate) fn exactly<const N: usize>(
        &self,
        method: &'static str,
    ) -> Result<[usize; N], MethodError> {
        self.others().try_into().map_err(|others: Vec<usize>| {
            self.undefined(
                method,
                &format!("it takes {N} models besides the base, not {}", others.len()),
            )
        })
    }

    /// The parameter `task`, an index among the inputs other than the base.
    pub(crate) fn task(&self, method: &'static str) -> Result<usize, MethodError> {
        self.settings
            .check_task(self.base)
            .map_err(|reason| self.undefined(method, &reason))?;
        Ok(self.settings.int("task") as usize)
    }

    /// Refuses `groups` that are not all merged from the same models in the same order, which numbers taken for each
    /// model over all tensors need.
    pub(crate) fn check_same_models(
        groups: &[TensorGroup<'_>],
        method: &'static str,
    ) -> Result<(), MethodError> {
        let models = |group: &TensorGroup<'_>| -> Vec<String> {
            group
                .inputs
                .iter()
                .map(|input| input.model.to_owned())
                .collect()
        };
        let expected = groups.first().map(models).unwrap_or_default();
        let odd = groups.iter().find(|group| models(group) != expected);
        odd.map_or(Ok(()), |group| {
            Err(group.undefined(
                method,
                &format!(
                    "it is merged from {}, other tensors from {}; one number a model needs the same models everywhere",
                    models(group).join(", "),
                    expected.join(", "),
                ),
            ))
        })
    }

    /// The error that `method` cannot merge this tensor.
    pub(crate) fn undefined(&self, method: &'static str, reason: &str) -> MethodError {
        MethodError::Undefined {
            method,
            tensor: self.name.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Parameter `name` of every input other than the base.
    pub fn other_floats(&self, name: &str) -> Vec<f64> {
        self.others()
            .into_iter()
            .map(|i| self.settings.input_float(i, name).unwrap_or(0.0))
            .collect()
    }

    /// Number of chunks a scan with this grain has.
    pub fn chunks(&self, grain: Grain) -> usize {
        self.elements().div_ceil(self.chunk_len(grain))
    }

    /// Elements of every chunk but the last.
    pub fn chunk_len(&self, grain: Grain) -> usize {
        chunk_len(grain, self.shape)
    }

    /// Elements of every block of a chunk but its last.
    pub fn block_len(&self, grain: Grain) -> usize {
        self.whole(grain, BLOCK)
    }

    fn whole(&self, grain: Grain, wanted: usize) -> usize {
        whole(grain, self.shape, wanted)
    }

    /// Reads the whole tensor once: every chunk is folded into its own accumulator, and the accumulators come back
    /// in chunk order. Chunks run in parallel.
    ///
    /// # Errors
    /// Unreadable inputs; NaN or infinity where they are not allowed.
    pub fn scan<A: Send>(
        &self,
        grain: Grain,
        view: View,
        init: impl Fn(usize) -> A + Sync,
        fold: impl Fn(&mut A, &Block<'_>) + Sync,
    ) -> Result<Vec<A>, MethodError> {
        self.each_chunk(grain, |chunk, range| {
            with_worker(|worker| {
                let mut accumulator = init(chunk);
                self.blocks(worker, grain, view, chunk, range, |block, _, _| {
                    fold(&mut accumulator, block);
                    Ok(())
                })?;
                Ok(accumulator)
            })
        })
    }

    /// Reads the whole tensor once as [`TensorGroup::scan`] does, but folds a run of consecutive chunks into one
    /// accumulator: for accumulators too large to have one a chunk. There are at most 16 runs.
    ///
    /// # Errors
    /// Those of [`TensorGroup::scan`].
    pub fn scan_runs<A: Send>(
        &self,
        grain: Grain,
        view: View,
        init: impl Fn() -> A + Sync,
        fold: impl Fn(&mut A, &Block<'_>) + Sync,
    ) -> Result<Vec<A>, MethodError> {
        let (elements, len, chunks) = (self.elements(), self.chunk_len(grain), self.chunks(grain));
        let runs = chunks.min(RUNS);
        let work = |run: usize| {
            with_worker(|worker| {
                let mut accumulator = init();
                for chunk in run * chunks / runs..(run + 1) * chunks / runs {
                    let range = chunk * len..((chunk + 1) * len).min(elements);
                    self.blocks(worker, grain, view, chunk, range, |block, _, _| {
                        fold(&mut accumulator, block);
                        Ok(())
                    })?;
                }
                Ok(accumulator)
            })
        };
        (0..runs).into_par_iter().map(work).collect()
    }

    /// Reads some of the elements, on this thread, and shows them to `visit` block by block.
    ///
    /// # Errors
    /// Those of [`TensorGroup::scan`].
    pub fn read(
        &self,
        view: View,
        range: Range<usize>,
        mut visit: impl FnMut(&Block<'_>),
    ) -> Result<(), MethodError> {
        if range.is_empty() {
            return Ok(());
        }
        with_worker(|worker| {
            self.blocks(
                worker,
                Grain::Elements,
                view,
                range.start / CHUNK,
                range,
                |block, _, _| {
                    visit(block);
                    Ok(())
                },
            )
        })
    }

    /// Merges the whole tensor: every chunk is combined, encoded and handed to `write` with the index of its first
    /// element, in parallel and in any order; what `write` returns comes back in chunk order.
    ///
    /// # Errors
    /// Those of [`TensorGroup::scan`], those of `write`, and results that the output type cannot hold.
    pub fn run<R: Send>(
        &self,
        program: &Program<'_>,
        encoding: Encoding,
        write: impl Fn(usize, &[u8]) -> Result<R, Box<dyn std::error::Error + Send + Sync>> + Sync,
    ) -> Result<Vec<R>, MethodError> {
        self.each_chunk(program.grain, |chunk, range| {
            with_worker(|worker| {
                let start = range.start;
                let size = encoding.bytes(range.len());
                let mut encoded = std::mem::take(&mut worker.encoded);
                encoded.resize(size.max(encoded.len()), 0);
                let done = self.blocks(
                    worker,
                    program.grain,
                    program.view,
                    chunk,
                    range,
                    |block, merged, _| {
                        (program.combine)(block, merged);
                        self.check_result(encoding, block.start, merged)?;
                        let at = encoding.bytes(block.start - start);
                        let out = &mut encoded[at..at + encoding.bytes(block.len())];
                        match encoding {
                            Encoding::Float(kind) => convert::encode(kind, merged, out),
                            Encoding::Bits => convert::pack_bits(merged, out),
                        }
                        Ok(())
                    },
                );
                let written = done.and_then(|()| Ok(write(start, &encoded[..size])?));
                worker.encoded = encoded;
                written
            })
        })
    }

    fn each_chunk<A: Send>(
        &self,
        grain: Grain,
        work: impl Fn(usize, Range<usize>) -> Result<A, MethodError> + Sync,
    ) -> Result<Vec<A>, MethodError> {
        let (elements, len) = (self.elements(), self.chunk_len(grain));
        let range = |chunk: usize| chunk * len..((chunk + 1) * len).min(elements);
        match self.chunks(grain) {
            0 => Ok(Vec::new()),
            1 => Ok(vec![work(0, range(0))?]),
            chunks => (0..chunks)
                .into_par_iter()
                .map(|chunk| work(chunk, range(chunk)))
                .collect(),
        }
    }

    /// Fetches one chunk of every input and shows it to `visit` block by block.
    fn blocks(
        &self,
        worker: &mut Worker,
        grain: Grain,
        view: View,
        chunk: usize,
        range: Range<usize>,
        mut visit: impl FnMut(&Block<'_>, &mut [f32], usize) -> Result<(), MethodError>,
    ) -> Result<(), MethodError> {
        let count = self.inputs.len();
        worker
            .raw
            .resize_with(count.max(worker.raw.len()), Vec::new);
        worker
            .raw_companions
            .resize_with(count.max(worker.raw_companions.len()), Vec::new);
        worker
            .values
            .resize_with(count.max(worker.values.len()), Vec::new);
        worker
            .companions
            .resize_with(count.max(worker.companions.len()), Vec::new);
        for (i, input) in self.inputs.iter().enumerate() {
            input.source.fetch(range.clone(), &mut worker.raw[i])?;
            if let Some(companion) = input.companion {
                companion.fetch(range.clone(), &mut worker.raw_companions[i])?;
            }
        }
        let step = self.whole(grain, BLOCK).min(range.len());
        worker.merged.resize(step.max(worker.merged.len()), 0.0);
        for values in &mut worker.values[..count] {
            values.resize(step.max(values.len()), 0.0);
        }
        let mut start = range.start;
        while start < range.end {
            let len = step.min(range.end - start);
            let skip = start - range.start;
            let place = Place {
                first: range.start,
                skip,
                len,
            };
            let base = self.base.filter(|base| *base < count);
            if let Some(base) = base {
                self.decode(base, &worker.raw, place, None, &mut worker.values[base])?;
            }
            for i in (0..count).filter(|i| Some(*i) != base) {
                let mut values = std::mem::take(&mut worker.values[i]);
                let minus = base
                    .filter(|_| view == View::Deltas)
                    .map(|base| &worker.values[base][..len]);
                let done = self.decode(i, &worker.raw, place, minus, &mut values);
                worker.values[i] = values;
                done?;
            }
            for (i, input) in self.inputs.iter().enumerate() {
                worker.companions[i].clear();
                if let Some(companion) = input.companion {
                    worker.companions[i].resize(len, 0.0);
                    companion.decode(
                        &worker.raw_companions[i],
                        range.start,
                        skip,
                        &mut worker.companions[i],
                    );
                    self.check_input(input, start, &worker.companions[i])?;
                }
            }
            let block = Block {
                start,
                chunk,
                values: &worker.values[..count],
                companions: &worker.companions[..count],
                base: self.base,
                len,
            };
            visit(&block, &mut worker.merged[..len], skip)?;
            start += len;
        }
        Ok(())
    }

    /// Decodes one block of input `i`, less `minus` if there is that.
    fn decode(
        &self,
        i: usize,
        raw: &[Vec<u8>],
        Place { first, skip, len }: Place,
        minus: Option<&[f32]>,
        values: &mut [f32],
    ) -> Result<(), MethodError> {
        let (input, values) = (&self.inputs[i], &mut values[..len]);
        let (source, raw) = (input.source, raw[i].as_slice());
        if input.round_to.is_none()
            && let Some((kind, bytes)) = source.stored(raw, first, skip, len)
        {
            let finite = match minus {
                Some(base) => convert::decode_delta(kind, bytes, base, values),
                None => convert::decode_finite(kind, bytes, values),
            };
            if finite || self.allow_nonfinite {
                return Ok(());
            }
        }
        source.decode(raw, first, skip, values);
        self.check_input(input, first + skip, values)?;
        if let Some(kind) = input.round_to {
            convert::round_to(kind, values);
        }
        if let Some(base) = minus {
            elementwise::sub_assign(values, base);
        }
        Ok(())
    }

    fn check_input(
        &self,
        input: &Input<'_>,
        start: usize,
        values: &[f32],
    ) -> Result<(), MethodError> {
        if self.allow_nonfinite || convert::all_finite(values) {
            return Ok(());
        }
        let at = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
        Err(MethodError::NonFinite {
            tensor: self.name.to_owned(),
            model: input.model.to_owned(),
            index: start + at,
            value: values[at],
        })
    }

    fn check_result(
        &self,
        encoding: Encoding,
        start: usize,
        merged: &[f32],
    ) -> Result<(), MethodError> {
        let (limit, dtype, hint) = match encoding {
            Encoding::Float(Float::F16) => (
                65519.996,
                "float16",
                "; choose out_dtype: bfloat16 or float32",
            ),
            Encoding::Float(Float::F8E4M3) => {
                (463.99997, "float8_e4m3", "; choose a wider out_dtype")
            }
            Encoding::Float(Float::F8E5M2) => {
                (61439.996, "float8_e5m2", "; choose a wider out_dtype")
            }
            Encoding::Float(Float::BF16) => (3.396e38, "bfloat16", "; choose out_dtype: float32"),
            Encoding::Float(_) | Encoding::Bits => {
                (f32::MAX, "float32", "; check the weights of the recipe")
            }
        };
        if self.allow_nonfinite || convert::all_within(merged, limit) {
            return Ok(());
        }
        let at = merged
            .iter()
            .position(|x| x.abs() > limit || !x.is_finite())
            .unwrap_or(0);
        Err(MethodError::Overflow {
            tensor: self.name.to_owned(),
            index: start + at,
            value: merged[at],
            dtype,
            hint,
        })
    }
}
