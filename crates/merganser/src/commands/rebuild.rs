//! `merganser rebuild`
use crate::{cli::Rebuild, output::Output};
use merganser::Failure;
pub(crate) fn run(_arguments: &Rebuild, _memory: u64, _output: &Output) -> Result<(), Failure> {
    Err(Failure::Usage("in the works".into()))
}
