//! All batches through a network, stage by stage, with the weights of one stage resident.

use crate::error::Result;
use crate::network::{Network, Stage};
use crate::op::Op;
use crate::state::State;
use crate::weights::{StageWeights, Weights};

/// Sees every parametrised op of a [`walk`] on every batch.
pub trait Observer {
    /// Called before `op` runs on batch number `batch`: `op.input()` is filled.
    fn before(&mut self, stage: &Stage, op: &Op, batch: usize, state: &State) -> Result<()> {
        let _ = (stage, op, batch, state);
        Ok(())
    }

    /// Called after `op` has run, when `op.output()` is filled and the registers that die with it are still there.
    fn after(&mut self, stage: &Stage, op: &Op, batch: usize, state: &State) -> Result<()> {
        let _ = (stage, op, batch, state);
        Ok(())
    }
}

/// Looks at nothing.
impl Observer for () {}

/// Runs `network` on all `states`, one stage after the other: the weights of a stage are loaded once and dropped before
/// the next. Afterwards the states hold the network's outputs.
///
/// The matrix of a vocabulary head is not run, because its output is as large as all else together: the observer sees it
/// before, not after, and `logits` stays empty. [`Network::logits`] computes them for some rows at a time.
pub fn walk(
    network: &Network,
    weights: &dyn Weights,
    states: &mut [State],
    observer: &mut dyn Observer,
) -> Result<()> {
    for stage in &network.stages {
        let (ops, unrun) = match stage.vocabulary_matrix() {
            Some((at, _)) => (&stage.ops[..at], stage.ops.get(at)),
            None => (&stage.ops[..], None),
        };
        let weights = StageWeights::load_ops(ops, weights)?;
        for (batch, state) in states.iter_mut().enumerate() {
            for op in ops {
                let seen = op.parameters().is_some();
                if seen {
                    observer.before(stage, op, batch, state)?;
                }
                network.write(op, state, &weights)?;
                if seen {
                    observer.after(stage, op, batch, state)?;
                }
                state.forget(op);
            }
            if let Some(op) = unrun {
                observer.before(stage, op, batch, state)?;
            }
        }
    }
    Ok(())
}
