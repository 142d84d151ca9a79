//! `merganser inspect`
use merganser::Failure;
use crate::{cli::Inspect, output::Output};
pub(crate) fn run(_arguments: &Inspect, _output: &Output) -> Result<(), Failure> { Err(Failure::Usage("in the works".into())) }
