//! `merganser rebuild`
use merganser::Failure;
use crate::{cli::Rebuild, output::Output};
pub(crate) fn run(_arguments: &Rebuild, _memory: u64, _output: &Output) -> Result<(), Failure> { Err(Failure::Usage("in the works".into())) }
