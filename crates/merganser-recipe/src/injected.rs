//! Pairs of models whose difference is a backdoor vector, `BACKDOORED:CLEAN`.

use std::fmt;
use std::str::FromStr;

use crate::model_ref::{ModelRef, ModelRefError};

/// A fine-tune with a backdoor that was put in on purpose, and the clean one of the same task and base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectedPair {
    /// The one with the backdoor.
    pub backdoored: ModelRef,
    /// The clean one.
    pub clean: ModelRef,
}

/// Why a text names no pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectedPairError {
    /// Not exactly one colon.
    #[error("a pair of models is written BACKDOORED:CLEAN, with one colon")]
    Colon,
    /// What stands beside the colon.
    #[error(transparent)]
    Model(#[from] ModelRefError),
}

impl InjectedPair {
    /// Both models, the backdoored one first.
    pub fn models(&self) -> [&ModelRef; 2] {
        [&self.backdoored, &self.clean]
    }
}

impl FromStr for InjectedPair {
    type Err = InjectedPairError;

    /// Reads `BACKDOORED:CLEAN`, each as [`ModelRef`] reads it; spans are left empty.
    fn from_str(text: &str) -> Result<Self, InjectedPairError> {
        let parts: Vec<&str> = text.split(':').collect();
        let [backdoored, clean] = parts[..] else {
            return Err(InjectedPairError::Colon);
        };
        Ok(Self {
            backdoored: backdoored.parse()?,
            clean: clean.parse()?,
        })
    }
}

impl fmt::Display for InjectedPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backdoored, self.clean)
    }
}
