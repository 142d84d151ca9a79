//! The executor: every output tensor from its inputs to its place in its file.
//!
//! Large tensors are cut into chunks that run in parallel; small ones run side by side, whole. Either way a thread
//! holds one chunk of every input and nothing else, so memory follows from threads × inputs × chunk size and not
//! from the size of any tensor. The bytes do not depend on the number of threads: chunks are cut by shape, partial
//! sums are added in order.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use merganser_kernels::convert::{self, Float};
use merganser_methods::{
    CHUNK, Encoding, Input, MethodError, Program, Settings, Source, Survey, TensorGroup, chunk_len,
};
use merganser_plan::{Action, InputRef, Output, Plan, kernel_float};
use merganser_report::Report;
use merganser_store::journal::{Entry, Journal};
use merganser_store::publish::Staging;
use merganser_store::shard::ShardFile;
use rayon::prelude::*;
use twox_hash::XxHash3_128;

use crate::project::{self, Projection};
use crate::sources::{Hold, Pool};
use crate::{Event, Observer, Provenance, RunError, seal, sources, survey};

/// Bytes of a piece of a tensor that is copied as it is: it is read, checked, hashed and written while it is in L2.
const PIECE: usize = 1 << 18;

/// A merge about to run.
pub struct Merge<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// Where the result goes.
    pub out: &'a Path,
    /// Replace a model that is already there, once the new one is complete.
    pub overwrite: bool,
    /// Let NaN and infinity pass.
    pub allow_nonfinite: bool,
    /// Return before the files are on disk.
    pub no_sync: bool,
    /// Only part `i` of `n`, counted from 1.
    pub part: Option<(usize, usize)>,
    /// Bytes of working memory that may be used.
    pub memory: u64,
    /// What goes beside the weights.
    pub provenance: &'a Provenance,
}

/// Carries a merge out on the current rayon pool, or on fewer threads if the budget asks for it: half of it is for the
/// buffers of threads, a quarter for held tensors, the rest for statistics. A merge that looks at data comes with a
/// report, which lies beside the model too.
///
/// # Errors
/// Unreadable or unsuitable inputs, a full disk, an output folder that holds something else. The output folder is
/// then as it was before; what was finished is kept in the staging folder and reused by the next run.
pub fn merge(job: &Merge<'_>, observer: &dyn Observer) -> Result<Option<Report>, RunError> {
    let threads = affordable_threads(job)?;
    if threads < rayon::current_num_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        return pool
            .map_err(RunError::Threads)?
            .install(|| carry_out(job, observer));
    }
    carry_out(job, observer)
}

fn carry_out(job: &Merge<'_>, observer: &dyn Observer) -> Result<Option<Report>, RunError> {
    let plan = job.plan;
    // Bad samples, and too little memory, are found before there is a folder.
    project::lanes(plan, job.memory)?;
    let projection = Projection::of(plan)?;
    if let Some(projection) = &projection {
        observer.event(Event::Samples);
        projection.load()?;
    }
    let mut staging = match job.part {
        None => Staging::begin(job.out, job.overwrite)?,
        Some(_) => Staging::begin_shared(job.out, job.overwrite)?,
    };
    if job.no_sync {
        staging.without_waiting_for_the_disk();
    }
    let (shards, name) = match job.part {
        None => ((0..plan.shards.len()).collect(), "journal".to_owned()),
        Some((part, parts)) => {
            let share = plan.parts(parts).into_iter().nth(part.wrapping_sub(1));
            (
                share.ok_or(RunError::NoSuchPart { part, parts })?.shards,
                format!("journal-{part:05}-of-{parts:05}"),
            )
        }
    };
    let (journal, finished) = Journal::open(staging.dir(), &name, &plan.digest)?;
    if job.part.is_none() {
        staging.keep_only(&plan.shards.iter().map(|shard| shard.file.clone()).collect())?;
    }
    let mut work = Work {
        job,
        journal,
        files: Vec::new(),
        observer,
        survey: Survey::default(),
        pool: Pool::default(),
    };
    let mut pending = work.open_files(staging.files(), &shards, &finished)?;
    let bytes = pending.iter().map(|i| work.cost(&plan.outputs[*i])).sum();
    observer.event(Event::Started {
        tensors: pending.len(),
        bytes,
        reused: shards_outputs(plan, &shards) - pending.len(),
    });
    work.survey = survey::take(job, &staging, observer)?;
    // The largest first would balance better, but order of writing is order on disk.
    pending.sort_unstable();
    let (claimed, by_method): (Vec<usize>, Vec<usize>) = pending.into_iter().partition(|i| {
        projection
            .as_ref()
            .is_some_and(|projection| projection.claims(&plan.outputs[*i].name))
    });
    work.run(&by_method)?;
    let report = match &projection {
        Some(projection) => {
            let claimed = claimed
                .iter()
                .map(|i| plan.outputs[*i].name.as_str())
                .collect();
            projection.carry_out(&work, &work.survey, &claimed)?
        }
        None => None,
    };
    observer.event(Event::Publishing);
    if !job.no_sync {
        work.files.iter().flatten().try_for_each(ShardFile::sync)?;
        work.journal.sync()?;
    }
    let survey = std::mem::take(&mut work.survey);
    drop(work);
    match job.part {
        None => seal::publish(plan, job.provenance, &survey, report.as_ref(), staging)?,
        Some(part) => seal::mark(plan, job.provenance, &survey, &staging, part)?,
    }
    Ok(report)
}

fn shards_outputs(plan: &Plan, shards: &[usize]) -> usize {
    shards
        .iter()
        .map(|shard| plan.shards[*shard].outputs.len())
        .sum()
}

/// How many threads have room for their buffers.
fn affordable_threads(job: &Merge<'_>) -> Result<usize, RunError> {
    let Some((needed, tensor)) = job.plan.thread_bytes() else {
        return Ok(usize::MAX);
    };
    if needed > job.memory {
        return Err(RunError::Memory {
            budget: readable(job.memory),
            needed: readable(needed),
            tensor: tensor.to_owned(),
        });
    }
    Ok((job.memory / 2 / needed.max(1)).max(1) as usize)
}

/// Bytes in the unit people use.
pub(crate) fn readable(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / f64::from(1 << 30)),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / f64::from(1 << 20)),
        b => format!("{:.1} KiB", b as f64 / 1024.0),
    }
}

/// Everything a running merge needs.
pub(crate) struct Work<'a> {
    pub(crate) job: &'a Merge<'a>,
    journal: Journal,
    /// The open output files, by shard.
    files: Vec<Option<ShardFile>>,
    pub(crate) observer: &'a dyn Observer,
    survey: Survey,
    pool: Pool,
}

impl Work<'_> {
    /// Memory for the inputs of a tensor that is read several times, if they fit an eighth of the budget: two such
    /// tensors are in work at a time. Larger ones are read from the file every time: to hold a part of them was measured
    /// to gain nothing, fresh pages cost as much.
    fn hold_for(&self, output: &Output, settings: &Settings) -> Option<Hold<'_>> {
        let plan = self.job.plan;
        let fits = plan.input_bytes_of(output) <= self.job.memory / 8;
        let large = output.elements() > CHUNK;
        (fits && large && plan.passes(output) > 1).then(|| Hold {
            pool: &self.pool,
            len: chunk_len(plan.method.grain(settings), &output.shape),
        })
    }

    /// Opens the files of the given shards and says which of their tensors are still to be written.
    fn open_files(
        &mut self,
        dir: &Path,
        shards: &[usize],
        finished: &[Entry],
    ) -> Result<Vec<usize>, RunError> {
        let plan = self.job.plan;
        self.files.resize_with(plan.shards.len(), || None);
        let mut pending = Vec::new();
        for i in shards {
            let shard = &plan.shards[*i];
            let path = dir.join(&shard.file);
            let left_over = if finished.is_empty() {
                None
            } else {
                ShardFile::reopen(&path, shard.size)?
            };
            let resumed = left_over.is_some();
            let file = match left_over {
                Some(file) => file,
                None => ShardFile::create(&path, shard.size)?,
            };
            file.write_at(0, &shard.header)?;
            let known = |output: &Output| {
                finished
                    .iter()
                    .rev()
                    .find(|entry| resumed && entry.tensor == output.name)
            };
            let checked: Vec<(usize, bool)> = shard
                .outputs
                .par_iter()
                .map(|k| {
                    let output = &plan.outputs[*k];
                    let place = (output.offset, output.nbytes);
                    let intact = known(output).is_some_and(|entry| intact(&file, place, entry));
                    (*k, intact)
                })
                .collect();
            pending.extend(
                checked
                    .into_iter()
                    .filter(|(_, intact)| !intact)
                    .map(|(k, _)| k),
            );
            self.files[*i] = Some(file);
        }
        Ok(pending)
    }

    /// Bytes read and written for an output tensor.
    fn cost(&self, output: &Output) -> u64 {
        let plan = self.job.plan;
        plan.input_bytes_of(output) * u64::from(plan.passes(output)) + output.nbytes
    }

    fn run(&self, pending: &[usize]) -> Result<(), RunError> {
        let outputs = &self.job.plan.outputs;
        let small = |i: usize| outputs[i].elements() <= CHUNK;
        for batch in pending.chunk_by(|a, b| small(*a) == small(*b)) {
            if small(batch[0]) {
                batch
                    .par_iter()
                    .try_for_each(|i| self.produce(&outputs[*i]))?;
            } else {
                self.side_by_side(batch)?;
            }
        }
        Ok(())
    }

    /// Makes large tensors, two at a time: while one is being read the other is being written, and no thread waits for the
    /// others at the end of a pass.
    fn side_by_side(&self, batch: &[usize]) -> Result<(), RunError> {
        let outputs = &self.job.plan.outputs;
        let next = AtomicUsize::new(0);
        let worker = || {
            while let Some(i) = batch.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.produce(&outputs[*i])?;
            }
            Ok(())
        };
        let (first, second) = rayon::join(worker, worker);
        first.and(second)
    }

    /// Makes one output tensor and records it.
    fn produce(&self, output: &Output) -> Result<(), RunError> {
        let (piece, hashes) = match &output.action {
            Action::Copy(input) => self.copy(output, std::slice::from_ref(input))?,
            Action::Identical(inputs) => self.copy(output, inputs)?,
            Action::Cast { input, encoding } => {
                let settings = Settings::default();
                let opened = Opened::new(self.job.plan, std::slice::from_ref(input), None)?;
                let group = opened.group(output, None, &settings, self.job.allow_nonfinite);
                let copy = Program::values(|block, out| out.copy_from_slice(block.input(0)));
                self.merge(output, &group, &copy, *encoding)?
            }
            Action::Merge {
                inputs,
                base,
                settings,
                encoding,
            } => {
                let opened = Opened::new(self.job.plan, inputs, self.hold_for(output, settings))?;
                let group = opened.group(output, *base, settings, self.job.allow_nonfinite);
                let method = self.job.plan.method;
                let program = match output.extra {
                    None => method.prepare(&group, &self.survey)?,
                    Some(number) => method.extra(&group, number)?,
                };
                let passes = u64::from(self.job.plan.passes(output));
                let read = self.job.plan.input_bytes_of(output);
                self.observer.event(Event::Progress {
                    bytes: read * passes.saturating_sub(1),
                });
                self.merge(output, &group, &program, *encoding)?
            }
        };
        self.journal.append(&Entry {
            tensor: output.name.clone(),
            digest: digest(piece, &hashes),
            bytes: output.nbytes,
        })?;
        self.observer.event(Event::Tensor {
            name: &output.name,
            bytes: output.nbytes,
        });
        Ok(())
    }

    fn merge(
        &self,
        output: &Output,
        group: &TensorGroup<'_>,
        program: &Program<'_>,
        encoding: Encoding,
    ) -> Result<(usize, Vec<u128>), RunError> {
        let file = self.file(output)?;
        let per_element = self.job.plan.input_bytes_of(output) / (output.elements().max(1) as u64);
        let hashes = group.run(program, encoding, |start, bytes| {
            file.write_at(output.offset + encoding.bytes(start) as u64, bytes)?;
            let read = per_element * (bytes.len() * output.elements().max(1)) as u64
                / output.nbytes.max(1);
            self.observer.event(Event::Progress {
                bytes: read + bytes.len() as u64,
            });
            Ok(fingerprint(bytes))
        })?;
        Ok((encoding.bytes(group.chunk_len(program.grain)), hashes))
    }

    /// Copies the bytes of the first input, after comparing all others with it.
    fn copy(&self, output: &Output, inputs: &[InputRef]) -> Result<(usize, Vec<u128>), RunError> {
        let plan = self.job.plan;
        let file = self.file(output)?;
        let found: Vec<_> = inputs
            .iter()
            .map(|input| plan.stored(input))
            .collect::<Option<_>>()
            .ok_or_else(|| RunError::Vanished {
                tensor: output.name.clone(),
                model: plan.models[inputs[0].model].label.clone(),
            })?;
        let check = kernel_float(output.dtype).filter(|_| !self.job.allow_nonfinite);
        let pieces = (output.nbytes as usize).div_ceil(PIECE);
        let hashes = (0..pieces)
            .into_par_iter()
            .map_init(
                || (Vec::new(), Vec::new()),
                |(bytes, other), k| {
                    let at = k * PIECE;
                    let len = PIECE.min(output.nbytes as usize - at);
                    bytes.resize(len, 0);
                    let (checkpoint, info) = found[0];
                    checkpoint.read(info, at as u64, bytes)?;
                    for (input, (checkpoint, info)) in inputs.iter().zip(&found).skip(1) {
                        other.resize(len, 0);
                        checkpoint.read(info, at as u64, other)?;
                        if other != bytes {
                            return Err(RunError::Differs {
                                tensor: output.name.clone(),
                                dtype: output.dtype,
                                first: plan.models[inputs[0].model].label.clone(),
                                second: plan.models[input.model].label.clone(),
                            });
                        }
                    }
                    if let Some((element, value)) =
                        check.and_then(|kind| first_nonfinite(kind, bytes))
                    {
                        return Err(RunError::Method(MethodError::NonFinite {
                            tensor: output.name.clone(),
                            model: plan.models[inputs[0].model].label.clone(),
                            index: at / output.dtype.size() + element,
                            value,
                        }));
                    }
                    file.write_at(output.offset + at as u64, bytes)?;
                    self.observer.event(Event::Progress {
                        bytes: len as u64 * (inputs.len() as u64 + 1),
                    });
                    Ok(fingerprint(bytes))
                },
            )
            .collect::<Result<Vec<_>, RunError>>()?;
        Ok((PIECE, hashes))
    }

    /// The bytes of a tensor that is finished.
    pub(crate) fn stored(&self, output: &Output) -> Result<Vec<u8>, RunError> {
        let mut bytes = vec![0; output.nbytes as usize];
        self.file(output)?.read_at(output.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes a tensor that was made elsewhere and records it.
    pub(crate) fn put(&self, output: &Output, bytes: &[u8]) -> Result<(), RunError> {
        let file = self.file(output)?;
        file.write_at(output.offset, bytes)?;
        self.journal.append(&recorded(&output.name, bytes))?;
        self.observer.event(Event::Progress {
            bytes: self.cost(output),
        });
        self.observer.event(Event::Tensor {
            name: &output.name,
            bytes: output.nbytes,
        });
        Ok(())
    }

    fn file(&self, output: &Output) -> Result<&ShardFile, RunError> {
        self.files[output.shard]
            .as_ref()
            .ok_or_else(|| RunError::Vanished {
                tensor: output.name.clone(),
                model: self.job.plan.shards[output.shard].file.clone(),
            })
    }
}

/// The opened inputs of an output tensor.
pub(crate) struct Opened<'a> {
    plan: &'a Plan,
    inputs: &'a [InputRef],
    sources: Vec<Box<dyn Source + 'a>>,
    companions: Vec<Option<Box<dyn Source + 'a>>>,
}

impl<'a> Opened<'a> {
    /// Opens the inputs; those that lie in a file as they are keep chunks in memory if asked to.
    pub(crate) fn new(
        plan: &'a Plan,
        inputs: &'a [InputRef],
        hold: Option<Hold<'a>>,
    ) -> Result<Self, RunError> {
        let sources = inputs
            .iter()
            .map(|input| {
                let model = &plan.models[input.model];
                match &input.rows {
                    Some(map) => sources::open_reordered(plan, input, map),
                    None if input.packed => sources::open_packed(model, &input.tensor),
                    None => match hold {
                        Some(hold) => sources::open_held(model, &input.tensor, hold),
                        None => sources::open(model, &input.tensor),
                    },
                }
            })
            .collect::<Result<_, _>>()?;
        let companions = inputs
            .iter()
            .map(|input| {
                input
                    .companion
                    .map(|model| sources::open(&plan.models[model], &input.tensor))
                    .transpose()
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            plan,
            inputs,
            sources,
            companions,
        })
    }

    pub(crate) fn group<'b>(
        &'b self,
        output: &'b Output,
        base: Option<usize>,
        settings: &'b Settings,
        allow_nonfinite: bool,
    ) -> TensorGroup<'b> {
        let inputs = self
            .inputs
            .iter()
            .zip(self.sources.iter().zip(&self.companions))
            .map(|(input, (source, companion))| Input {
                model: &self.plan.models[input.model].label,
                source: source.as_ref(),
                companion: companion.as_deref(),
                round_to: input.round_to.and_then(kernel_float),
            })
            .collect();
        TensorGroup {
            name: &output.name,
            shape: &output.shape,
            inputs,
            base,
            settings,
            seed: self.plan.seed,
            allow_nonfinite,
        }
    }
}

/// The first element that is not a finite number, and its value.
fn first_nonfinite(kind: Float, bytes: &[u8]) -> Option<(usize, f32)> {
    if convert::encoded_finite(kind, bytes) {
        return None;
    }
    let mut values = [0.0; 2048];
    for (i, block) in bytes.chunks(values.len() * kind.size()).enumerate() {
        let found = &mut values[..block.len() / kind.size()];
        convert::decode(kind, block, found);
        if !convert::all_finite(found) {
            let at = found.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Some((i * 2048 + at, found[at]));
        }
    }
    None
}

/// Tells a damaged piece from a whole one after a crash. Against accidents, not against forgery, so a hash that runs at
/// memory speed will do.
fn fingerprint(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

/// Size of the hashed pieces and a hash over their hashes.
fn digest(piece: usize, hashes: &[u128]) -> String {
    let mut all = blake3::Hasher::new();
    for hash in hashes {
        all.update(&hash.to_le_bytes());
    }
    format!("{piece}:{}", all.finalize().to_hex())
}

/// The journal's entry of a tensor whose bytes were written at once.
pub(crate) fn recorded(tensor: &str, bytes: &[u8]) -> Entry {
    let hashes: Vec<u128> = bytes.chunks(PIECE).map(fingerprint).collect();
    Entry {
        tensor: tensor.to_owned(),
        digest: digest(PIECE, &hashes),
        bytes: bytes.len() as u64,
    }
}

/// Whether the bytes at an offset, so many, are those an earlier run recorded.
pub(crate) fn intact(file: &ShardFile, (offset, nbytes): (u64, u64), entry: &Entry) -> bool {
    let Some(piece) = entry
        .digest
        .split(':')
        .next()
        .and_then(|piece| piece.parse::<usize>().ok())
    else {
        return false;
    };
    if entry.bytes != nbytes || piece == 0 {
        return false;
    }
    let mut hashes = Vec::new();
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < nbytes {
        bytes.resize(piece.min((nbytes - at) as usize), 0);
        if file.read_at(offset + at, &mut bytes).is_err() {
            return false;
        }
        hashes.push(fingerprint(&bytes));
        at += bytes.len() as u64;
    }
    digest(piece, &hashes) == entry.digest
}
