//! Downloading into the cache.

use std::path::PathBuf;

use super::{HubError, HubOptions, not_cached};

pub(super) fn download(
    id: &str,
    revision: &str,
    options: &HubOptions,
) -> Result<PathBuf, HubError> {
    not_cached(id, revision, options, "downloading is not built yet")
}
