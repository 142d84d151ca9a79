//! What a running merge tells whoever watches it.

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The work is known: so many tensors to write, so many bytes to read and write in all.
    Started {
        /// Output tensors.
        tensors: usize,
        /// Bytes to read (all passes) and write.
        bytes: u64,
        /// Tensors kept from an interrupted run.
        reused: usize,
    },
    /// Numbers over the whole model are being taken before the first tensor is merged.
    Survey,
    /// The samples of a calibrated merge are being read.
    Samples,
    /// A calibrated merge has come to a stage of the network.
    Stage {
        /// What the stage is called.
        name: &'a str,
        /// Its number, from 0.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// A step of distillation is done.
    Distilled {
        /// Its number, from 1.
        step: usize,
        /// How many there are.
        of: usize,
        /// The loss before it.
        loss: f64,
    },
    /// So many more bytes were read and written.
    Progress {
        /// Bytes.
        bytes: u64,
    },
    /// A tensor is finished.
    Tensor {
        /// Its name.
        name: &'a str,
        /// Its size in the output.
        bytes: u64,
    },
    /// Something about the result that the user should know.
    Remark(&'a str),
    /// All tensors are written; the files are being made durable and moved into place.
    Publishing,
}

/// A watcher. Called from several threads at once.
pub trait Observer: Sync {
    /// Takes note.
    fn event(&self, event: Event<'_>);
}

/// Watches nothing.
pub struct Quiet;

impl Observer for Quiet {
    fn event(&self, _event: Event<'_>) {}
}
