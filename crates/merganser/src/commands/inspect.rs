//! `merganser inspect`
use crate::{cli::Inspect, output::Output};
use merganser::Failure;
pub(crate) fn run(_arguments: &Inspect, _output: &Output) -> Result<(), Failure> {
    Err(Failure::Usage("in the works".into()))
}
