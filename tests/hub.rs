//! Models by their name on the hub, fetched from a small server that answers as the hub does:
//!
//! ```text
//! cargo test --release --features hub --test hub
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use serde_json::json;
use tempfile::TempDir;
use tiny_http::{Header, Request, Response, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What the test's model is made of; the weights and `config.json` are a fixture's.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;

/// A hub with the one model `tiny/llama`.
struct Hub {
    server: Arc<Server>,
    thread: Option<thread::JoinHandle<usize>>,
}

impl Hub {
    fn new() -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").expect("a free port"));
        let answering = Arc::clone(&server);
        let thread = thread::spawn(move || {
            let mut answered = 0;
            for request in answering.incoming_requests() {
                answer(request);
                answered += 1;
            }
            answered
        });
        Self {
            server,
            thread: Some(thread),
        }
    }

    fn address(&self) -> String {
        format!("http://{}", self.server.server_addr())
    }

    /// Ends the server; returns how many requests it had.
    fn close(mut self) -> usize {
        self.server.unblock();
        self.thread
            .take()
            .expect("a thread")
            .join()
            .expect("no panic")
    }
}

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/models/llama")
        .join(file)
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("a header")
}

fn answer(request: Request) {
    let url = request.url().to_owned();
    if url == "/api/models/tiny/llama/revision/main" {
        let files = [
            "README.md",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ];
        let siblings: Vec<_> = files.map(|file| json!({ "rfilename": file })).into();
        let body = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return request
            .respond(Response::from_string(body))
            .expect("a client");
    }
    let Some(file) = url.strip_prefix(&format!("/tiny/llama/resolve/{COMMIT}/")) else {
        return request.respond(Response::empty(404)).expect("a client");
    };
    let bytes = match file {
        "tokenizer.json" => TOKENIZER.into(),
        _ => fs::read(fixture(file)).expect("a fixture"),
    };
    let range = request
        .headers()
        .iter()
        .find(|h| h.field.equiv("Range"))
        .expect("a range");
    let (from, to) = range
        .value
        .as_str()
        .trim_start_matches("bytes=")
        .split_once('-')
        .expect("a range");
    let from: usize = from.parse().expect("a number");
    let end = to.parse().map_or(bytes.len(), |last: usize| last + 1);
    let part = Response::from_data(&bytes[from..end])
        .with_status_code(206)
        .with_header(header(
            "Content-Range",
            &format!("bytes {from}-{}/{}", end - 1, bytes.len()),
        ))
        .with_header(header("ETag", &format!("\"{file}\"")))
        .with_header(header("X-Repo-Commit", COMMIT));
    request.respond(part).expect("a client");
}

fn score(folder: &TempDir, model: &str, hub: &str) -> Output {
    fs::write(folder.path().join("ids.jsonl"), "{\"ids\": [1, 2, 3]}\n")
        .expect("a writable folder");
    Command::new(env!("CARGO_BIN_EXE_collimate"))
        .args([
            "score",
            "--data",
            "ids.jsonl",
            "--out",
            "out.jsonl",
            "--model",
            model,
        ])
        .current_dir(folder.path())
        .env("HF_HOME", folder.path().join("cache"))
        .env("HF_ENDPOINT", hub)
        .env_remove("HF_TOKEN")
        .output()
        .expect("the binary")
}

fn scores(folder: &TempDir, output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::read_to_string(folder.path().join("out.jsonl")).expect("scores")
}

#[test]
fn a_model_is_fetched_once_and_then_needs_no_network() {
    let (folder, hub) = (tempfile::tempdir().expect("a folder"), Hub::new());
    let local = fixture("");
    let expected = scores(
        &folder,
        score(
            &folder,
            local.to_str().expect("UTF-8"),
            "http://127.0.0.1:9",
        ),
    );
    assert_eq!(
        scores(&folder, score(&folder, "tiny/llama", &hub.address())),
        expected
    );
    let address = hub.address();
    // The list, and two requests a file: one for its size, one for its bytes.
    assert_eq!(hub.close(), 7);
    assert_eq!(
        scores(&folder, score(&folder, "tiny/llama", &address)),
        expected
    );
}

#[test]
fn a_model_that_the_hub_lacks_is_named() {
    let (folder, hub) = (tempfile::tempdir().expect("a folder"), Hub::new());
    let output = score(&folder, "tiny/gpt2", &hub.address());
    let says = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{says}");
    assert!(
        says.contains("tiny/gpt2@main") && says.contains("404"),
        "{says}"
    );
    hub.close();
}
