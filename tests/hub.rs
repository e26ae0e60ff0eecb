//! Models by their name on the hub, downloaded from a small local server that answers as the hub
//! does:
//!
//! ```text
//! cargo test --release --features hub --test hub
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tiny_http::{Header, Request, Response, Server};

const SINGLE: &str = "model.safetensors";
const TOOL_USE: &str = "additional_chat_templates/tool_use.jinja";
const INDEX: &str = "model.safetensors.index.json";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The files of the test's model; the weights and `config.json` are those of a fixture.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [], "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;

/// A fake hub with the model `tiny/llama`, whose weights are one file or the shards of an index.
struct Hub {
    server: Arc<Server>,
    thread: Option<thread::JoinHandle<Vec<String>>>,
}

/// The hub's answer about its model.
#[derive(Clone)]
struct Model {
    commit: String,
    /// The shard that the index names; `None` without an index.
    shard: Option<String>,
    /// The template for records with tools; `None` if the model has no such file.
    tool_use: Option<&'static str>,
}

impl Model {
    fn new() -> Self {
        Self {
            commit: COMMIT.to_owned(),
            shard: None,
            tool_use: None,
        }
    }
}

impl Hub {
    fn new() -> Self {
        Self::of(Model::new())
    }

    fn of(model: Model) -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").expect("a free port"));
        let answering = Arc::clone(&server);
        let thread = thread::spawn(move || {
            let mut asked = Vec::new();
            for request in answering.incoming_requests() {
                asked.push(request.url().to_owned());
                answer(&model, request);
            }
            asked
        });
        Self {
            server,
            thread: Some(thread),
        }
    }

    fn address(&self) -> String {
        format!("http://{}", self.server.server_addr())
    }

    /// Stops the server and returns the addresses that were requested.
    fn close(mut self) -> Vec<String> {
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

/// The index of a model in one shard: every tensor of the fixture.
fn index(shard: &str) -> Vec<u8> {
    let bytes = fs::read(fixture(SINGLE)).expect("a fixture");
    let length = u64::from_le_bytes(*bytes.first_chunk().expect("a header")) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    let names = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__");
    let map: Map<String, Value> = names.map(|(name, _)| (name, shard.into())).collect();
    json!({"metadata": {}, "weight_map": map})
        .to_string()
        .into()
}

fn answer(model: &Model, request: Request) {
    let url = request.url().to_owned();
    if url == "/api/models/tiny/llama/revision/main" {
        let weights = if model.shard.is_some() { INDEX } else { SINGLE };
        let files = ["README.md", "config.json", weights, "tokenizer.json"].into_iter();
        let files = files.chain(model.tool_use.map(|_| TOOL_USE));
        let siblings: Vec<_> = files.map(|file| json!({ "rfilename": file })).collect();
        let body = json!({ "sha": model.commit, "siblings": siblings }).to_string();
        return request
            .respond(Response::from_string(body))
            .expect("a client");
    }
    let Some(file) = url.strip_prefix(&format!("/tiny/llama/resolve/{COMMIT}/")) else {
        return request.respond(Response::empty(404)).expect("a client");
    };
    let bytes = match (file, &model.shard) {
        ("tokenizer.json", _) => TOKENIZER.into(),
        (TOOL_USE, _) => model.tool_use.expect("no request for it").into(),
        (INDEX, Some(shard)) => index(shard),
        (file, Some(shard)) if file == shard => fs::read(fixture(SINGLE)).expect("a fixture"),
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
        .with_header(header("ETag", &format!("\"{}\"", file.replace('/', "-"))))
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
    // One request for the list, then two for each file: its size and its bytes.
    assert_eq!(hub.close().len(), 7);
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

#[test]
fn shards_that_an_index_names_are_fetched() {
    let (folder, local) = (tempfile::tempdir().expect("a folder"), fixture(""));
    let nowhere = "http://127.0.0.1:9";
    let expected = score(&folder, local.to_str().expect("UTF-8"), nowhere);
    let expected = scores(&folder, expected);
    let shard = "model-00001-of-00001.safetensors";
    let hub = Hub::of(Model {
        shard: Some(shard.to_owned()),
        ..Model::new()
    });
    let found = scores(&folder, score(&folder, "tiny/llama", &hub.address()));
    assert_eq!(found, expected);
    assert!(hub.close().iter().any(|url| url.ends_with(shard)));
}

/// A model without a template is downloaded in
/// [`a_model_is_fetched_once_and_then_needs_no_network`].
#[test]
fn the_template_for_tools_is_fetched_where_there_is_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = "{{ tools | length }} tools";
    let hub = Hub::of(Model {
        tool_use: Some(template),
        ..Model::new()
    });
    scores(&folder, score(&folder, "tiny/llama", &hub.address()));
    assert!(hub.close().iter().any(|url| url.ends_with(TOOL_USE)));
    let fetched = files(&folder.path().join("cache"));
    let beside = |path: &&PathBuf| path.ends_with(TOOL_USE);
    let path = fetched.iter().find(beside).expect("the template");
    assert_eq!(fs::read_to_string(path).expect("a template"), template);
    let snapshot = path.parent().and_then(Path::parent).expect("a folder");
    assert!(snapshot.join("config.json").exists());
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => vec![path],
    };
    paths.flat_map(below).collect()
}

/// Shard names that point outside the repository or the folder, or that end the address: nothing is
/// requested after the index, and nothing but the index is written.
#[test]
fn shards_with_other_names_are_not_asked_for() {
    let long = "x".repeat(5000) + ".safetensors";
    for shard in [
        "../../../other/repo/resolve/main/model.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a?download=true.safetensors",
        "a#b.safetensors",
        "%2e%2e%2fmodel.safetensors",
        "a\\b.safetensors",
        "a\0.safetensors",
        "folder/model.safetensors",
        "config.json",
        &long,
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let hub = Hub::of(Model {
            shard: Some(shard.to_owned()),
            ..Model::new()
        });
        let output = score(&folder, "tiny/llama", &hub.address());
        let says = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{shard}: {says}");
        for part in ["tiny/llama@main", INDEX, "the download stops"] {
            assert!(says.contains(part), "{shard}: {says}");
        }
        let asked = hub.close();
        let of_index = |url: &String| url.ends_with(INDEX) || url.contains("/api/");
        assert!(asked.iter().all(of_index), "{shard}: {asked:?}");
        let written = files(&folder.path().join("cache"));
        assert!(!written.is_empty(), "the index is in the cache");
        let names: Vec<_> = written.iter().filter_map(|p| p.file_name()).collect();
        let expected = |name: &&std::ffi::OsStr| {
            let name = name.to_string_lossy();
            name.starts_with("model.safetensors.index.") || name == COMMIT
        };
        assert!(names.iter().all(expected), "{shard}: {written:?}");
    }
}

#[test]
fn a_commit_that_is_a_path_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = Hub::of(Model {
        commit: "../../../somewhere".to_owned(),
        ..Model::new()
    });
    let output = score(&folder, "tiny/llama", &hub.address());
    let says = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{says}");
    assert!(says.contains("it is not a commit"), "{says}");
    assert_eq!(hub.close().len(), 1);
}
