//! All batches through a network, stage by stage, with the weights of one stage resident.

use crate::error::Result;
use crate::network::{Network, Stage, StageKind};
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

    /// Called after `op` has run, when `op.output()` is filled and registers that died in it are still there.
    fn after(&mut self, stage: &Stage, op: &Op, batch: usize, state: &State) -> Result<()> {
        let _ = (stage, op, batch, state);
        Ok(())
    }
}

/// An observer that looks at nothing.
impl Observer for () {}

/// Runs every stage but a vocabulary head (see [`Network::logits`]) on all `states`, one stage after the other: the
/// weights of a stage are loaded once and dropped before the next. Afterwards the states hold the network's outputs.
pub fn walk(
    network: &Network,
    weights: &dyn Weights,
    states: &mut [State],
    observer: &mut dyn Observer,
) -> Result<()> {
    for stage in &network.stages {
        if stage.kind == StageKind::VocabularyHead {
            continue;
        }
        let weights = StageWeights::load(stage, weights)?;
        for (batch, state) in states.iter_mut().enumerate() {
            for op in &stage.ops {
                let seen = op.parameters().is_some();
                if seen {
                    observer.before(stage, op, batch, state)?;
                }
                network.write(op, state, &weights)?;
                if seen {
                    observer.after(stage, op, batch, state)?;
                }
                network.forget(op, state);
            }
        }
    }
    Ok(())
}
