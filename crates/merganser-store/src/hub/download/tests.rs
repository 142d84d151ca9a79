//! Against a hub on the loopback interface that answers the requests `hf-hub` makes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::hub::resolve;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds and what it was asked.
struct Hub {
    files: BTreeMap<&'static str, &'static str>,
    /// Answer to everything, if not 200: status and `X-Error-Code`.
    refusal: Option<(u16, &'static str)>,
    requests: Mutex<Vec<String>>,
    tokens: Mutex<BTreeSet<String>>,
}

impl Hub {
    /// Serves until the test ends.
    fn serve(
        files: &[(&'static str, &'static str)],
        refusal: Option<(u16, &'static str)>,
    ) -> (Arc<Self>, String) {
        let hub = Arc::new(Self {
            files: files.iter().copied().collect(),
            refusal,
            requests: Mutex::default(),
            tokens: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Arc::clone(&hub);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = Arc::clone(&server);
                std::thread::spawn(move || server.answer(stream.unwrap()));
            }
        });
        (hub, endpoint)
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut request = String::new();
        if reader.read_line(&mut request).is_err() || request.is_empty() {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("authorization")
            {
                self.tokens.lock().unwrap().insert(value.trim().to_owned());
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let path = path.split('?').next().unwrap();
        self.requests
            .lock()
            .unwrap()
            .push(format!("{method} {path}"));
        let (status, headers, body) = self.response(path);
        let body_sent = if method == "HEAD" { "" } else { body.as_str() };
        let _ = write!(
            stream,
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body_sent}",
            body.len()
        );
    }

    fn response(&self, path: &str) -> (u16, String, String) {
        if let Some((status, code)) = self.refusal {
            return (status, format!("X-Error-Code: {code}\r\n"), String::new());
        }
        let json = "Content-Type: application/json\r\n".to_owned();
        if let Some(file) = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) {
            if let Some(content) = self.files.get(file) {
                let etag = blake3::hash(content.as_bytes()).to_hex();
                return (
                    200,
                    format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n"),
                    (*content).to_owned(),
                );
            }
        } else if path == "/api/models/org/name/revision/main" {
            let siblings: Vec<_> = self
                .files
                .keys()
                .map(|name| serde_json::json!({ "rfilename": name }))
                .collect();
            let body = serde_json::json!({ "id": "org/name", "sha": COMMIT, "siblings": siblings });
            return (200, json, body.to_string());
        } else if path == format!("/api/models/org/name/tree/{COMMIT}") {
            let tree: Vec<_> = self
                .files
                .iter()
                .map(|(name, content)| {
                    serde_json::json!({ "type": "file", "path": name, "size": content.len(), "oid": "0" })
                })
                .collect();
            return (200, json, serde_json::json!(tree).to_string());
        }
        (
            404,
            "X-Error-Code: RevisionNotFound\r\n".to_owned(),
            String::new(),
        )
    }

    fn downloaded(&self) -> BTreeSet<String> {
        let prefix = format!("GET /org/name/resolve/{COMMIT}/");
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter_map(|request| Some(request.strip_prefix(&prefix)?.to_owned()))
            .collect()
    }
}

fn options(cache: &Path, endpoint: &str) -> HubOptions {
    HubOptions {
        cache: cache.to_owned(),
        endpoint: endpoint.to_owned(),
        token: Some("hf_test".into()),
        offline: false,
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_a_merge_needs_is_downloaded_once() {
    let (hub, endpoint) = Hub::serve(
        &[
            ("config.json", "{}"),
            (
                "model.safetensors.index.json",
                r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#,
            ),
            ("model-1.safetensors", "one"),
            ("model-2.safetensors", "two"),
            ("pytorch_model.bin", "not wanted"),
            ("consolidated.safetensors", "not wanted"),
            ("tokenizer.json", "tok"),
            ("LICENSE", "free"),
            ("README.md", "not wanted"),
            ("modeling_x.py", "not wanted"),
            ("onnx/config.json", "not wanted"),
        ],
        None,
    );
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), &endpoint);
    let found = resolve("org/name", None, &options).unwrap();
    assert_eq!(
        std::fs::read_to_string(found.join("model-2.safetensors")).unwrap(),
        "two"
    );
    assert_eq!(
        std::fs::read_to_string(found.join("tokenizer.json")).unwrap(),
        "tok"
    );
    let wanted = set(&[
        "config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "tokenizer.json",
        "LICENSE",
    ]);
    assert_eq!(hub.downloaded(), wanted);
    assert_eq!(*hub.tokens.lock().unwrap(), set(&["Bearer hf_test"]));

    // Now it is in the cache: no request more, and offline works too.
    let asked = hub.requests.lock().unwrap().len();
    assert_eq!(resolve("org/name", None, &options).unwrap(), found);
    options.offline = true;
    assert_eq!(resolve("org/name", Some(COMMIT), &options).unwrap(), found);
    assert_eq!(hub.requests.lock().unwrap().len(), asked);
}

#[test]
fn only_missing_files_are_downloaded() {
    let (hub, endpoint) = Hub::serve(&[("config.json", "{}"), ("model.safetensors", "w")], None);
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--org--name/snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    resolve("org/name", None, &options(dir.path(), &endpoint)).unwrap();
    assert_eq!(hub.downloaded(), set(&["model.safetensors"]));
}

#[test]
fn an_adapter_is_downloaded_too() {
    let (hub, endpoint) = Hub::serve(
        &[
            ("adapter_config.json", "{}"),
            ("adapter_model.safetensors", "w"),
            ("README.md", ""),
        ],
        None,
    );
    let dir = tempfile::tempdir().unwrap();
    resolve("org/name", None, &options(dir.path(), &endpoint)).unwrap();
    assert_eq!(
        hub.downloaded(),
        set(&["adapter_config.json", "adapter_model.safetensors"])
    );
}

#[test]
fn refusals_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (refusal, expected) in [
        (
            (401, "GatedRepo"),
            "(HTTP 401): accept its conditions at http",
        ),
        ((403, "GatedRepo"), "(HTTP 403): accept its conditions"),
        (
            (401, "RepoNotFound"),
            "there is no model `org/name` on http",
        ),
        (
            (404, "RepoNotFound"),
            "there is no model `org/name` on http",
        ),
        (
            (404, "RevisionNotFound"),
            "model `org/name` has no revision `main`",
        ),
        ((500, ""), "cannot download `file list` of `org/name`"),
    ] {
        let (_hub, endpoint) = Hub::serve(&[], Some(refusal));
        let message = resolve("org/name", None, &options(dir.path(), &endpoint))
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{refusal:?}: {message}");
    }
    let (_hub, endpoint) = Hub::serve(&[("model.gguf", "")], None);
    let message = resolve("org/name", None, &options(dir.path(), &endpoint))
        .unwrap_err()
        .to_string();
    assert!(message.contains("holds no weights"), "{message}");
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let unused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let endpoint = format!("http://{unused}");
    let message = resolve("org/name", None, &options(dir.path(), &endpoint))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains(&endpoint) && message.contains("run again"),
        "{message}"
    );
}
