//! Settings of the hub, from the environment variables that `huggingface_hub` reads.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The public hub.
pub(super) const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where models come from and where they are kept.
#[derive(Clone)]
pub struct HubOptions {
    /// The cache folder, which holds `models--org--name` folders.
    pub cache: PathBuf,
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Token for private and gated models.
    pub token: Option<String>,
    /// Never use the network.
    pub offline: bool,
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cache,
            endpoint,
            token,
            offline,
        } = self;
        f.debug_struct("HubOptions")
            .field("cache", cache)
            .field("endpoint", endpoint)
            // A token must not end up in a log.
            .field("token", &token.as_ref().map(|_| "…"))
            .field("offline", offline)
            .finish()
    }
}

impl HubOptions {
    /// Settings of this process's environment: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`,
    /// `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`; a token saved by `hf auth login` is found too.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name))
    }

    fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| {
            var(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let text = |name: &str| {
            var(name)
                .and_then(|value| value.into_string().ok())
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let flag = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
            })
        };
        let home = path("HOME").unwrap_or_else(|| PathBuf::from("."));
        let xdg = || path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home =
            path("HF_HOME").map_or_else(|| xdg().join("huggingface"), |path| expand(path, &home));
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let saved_token = || {
            let token = std::fs::read_to_string(token_path).ok()?;
            Some(token.trim().to_owned()).filter(|token| !token.is_empty())
        };
        Self {
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .map_or_else(|| hf_home.join("hub"), |path| expand(path, &home)),
            endpoint: text("HF_ENDPOINT").map_or_else(
                || DEFAULT_ENDPOINT.to_owned(),
                |url| url.trim_end_matches('/').to_owned(),
            ),
            token: if flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                None
            } else {
                text("HF_TOKEN").or_else(saved_token)
            },
            offline: flag("HF_HUB_OFFLINE"),
        }
    }
}

/// A leading `~` as the shell would have read it, had it seen the variable.
fn expand(path: PathBuf, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => path,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_vars(|name| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_cache_is_found_where_huggingface_hub_puts_it() {
        for (vars, expected) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")],
                "/f/hub",
            ),
            (&[("HOME", "/h"), ("HF_HOME", "~/f")], "/h/f/hub"),
            (
                &[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")],
                "/old",
            ),
            (
                &[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")],
                "/new",
            ),
            (
                &[("HOME", "/h"), ("HF_HUB_CACHE", "")],
                "/h/.cache/huggingface/hub",
            ),
        ] {
            assert_eq!(options(vars).cache, Path::new(expected), "{vars:?}");
        }
    }

    #[test]
    fn endpoint_token_and_flags() {
        let plain = options(&[("HOME", "/nonexistent")]);
        assert_eq!(
            (
                plain.endpoint.as_str(),
                plain.token.as_deref(),
                plain.offline
            ),
            (DEFAULT_ENDPOINT, None, false)
        );
        let set = options(&[
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_TOKEN", " t\n"),
            ("HF_HUB_OFFLINE", "True"),
        ]);
        assert_eq!(
            (set.endpoint.as_str(), set.token.as_deref(), set.offline),
            ("http://mirror", Some("t"), true)
        );
        assert!(!format!("{:?}", options(&[("HF_TOKEN", "hf_secret")])).contains("hf_secret"));
        assert_eq!(
            options(&[("HF_TOKEN", "t"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token,
            None
        );
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn a_saved_token_is_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_saved\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(
            options(&[("HF_HOME", home)]).token.as_deref(),
            Some("hf_saved")
        );
        assert_eq!(
            options(&[("HF_HOME", home), ("HF_TOKEN", "given")])
                .token
                .as_deref(),
            Some("given")
        );
    }
}
