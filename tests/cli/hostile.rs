//! Malicious model files: each ends soon with exit code 1 and a message that names the file.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Ended, Workspace};

/// Seconds after which a run counts as hanging. The limits under test are in processor time, and
/// the machine may be busy.
const SOON: u64 = 120;

fn tokenizer() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    })
}

/// A workspace with a model that has this tokenizer and this template.
fn workspace(tokenizer: &Value, template: &str) -> Workspace {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    workspace.write("model/tokenizer.json", &tokenizer.to_string());
    workspace.write("model/tokenizer_config.json", r#"{"eos_token": "b"}"#);
    workspace.write("model/chat_template.jinja", template);
    workspace
}

/// Generates from a model with this tokenizer and this template.
fn generate(tokenizer: &Value, template: &str) -> Ended {
    let workspace = workspace(tokenizer, template);
    let prompt = json!({"prompt": [{"role": "user", "content": "a"}]});
    workspace.write("prompts.jsonl", &prompt.to_string());
    let start = Instant::now();
    let ended = workspace
        .run("generate --model model --prompts prompts.jsonl --out out.jsonl --max-new-tokens 3");
    assert!(start.elapsed().as_secs() < SOON, "{template:.80}");
    let leftover = fs::read(workspace.path("out.jsonl")).unwrap_or_default();
    assert!(
        ended.code == Some(0) || leftover.is_empty(),
        "a file was left"
    );
    ended
}

#[track_caller]
fn refused(ended: &Ended, says: &[&str]) {
    ended.assert_refused(says);
    let text = &ended.stderr;
    assert!(text.starts_with("error: "), "{text:.2000}");
}

#[test]
fn a_good_template_and_tokenizer_generate() {
    let ended = generate(&tokenizer(), "{{ messages[0].content }}");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn templates_without_end_are_refused_by_name() {
    let says = ["model/chat_template.jinja", "the template takes more than"];
    // The limits on steps, in a loop and in text.
    let doubling = "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ \
                    ns.s %}{% endfor %}";
    refused(&generate(&tokenizer(), doubling), &says);
    // A single expression that compares forever and one that prints forever: neither uses up any
    // steps.
    let list = |n: usize| "[".repeat(n) + "1" + &"]*9".repeat(n);
    let comparison = format!("{{{{ {} == {} }}}}", list(40), list(40));
    refused(&generate(&tokenizer(), &comparison), &says);
    let print = format!("{{{{ {} ~ '' }}}}", list(40));
    refused(&generate(&tokenizer(), &print), &says);
    let deep = "{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}";
    let says = ["model/chat_template.jinja", "a namespace in a namespace"];
    refused(&generate(&tokenizer(), deep), &says);
    let deep = format!("{{{{ {}1 }}}}", "not ".repeat(100_000));
    let says = ["model/chat_template.jinja", "more than 2000 tokens"];
    refused(&generate(&tokenizer(), &deep), &says);
}

#[test]
fn tokenizers_that_panic_or_explode_are_refused_by_name() {
    let changed = |key: &str, value: Value| {
        let mut tokenizer = tokenizer();
        tokenizer[key] = value;
        generate(&tokenizer, "{{ messages[0].content }}")
    };
    let says = ["model", "tokenizer.json cannot be read"];
    let map = |text: &str| json!({"type": "Precompiled", "precompiled_charsmap": text});
    refused(&changed("normalizer", map("AAAA")), &says);
    refused(&changed("normalizer", map("/////w==")), &says);
    let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)});
    let bomb = json!({"type": "Sequence", "normalizers": vec![step; 5]});
    refused(&changed("normalizer", bomb), &says);
    let single = json!([
        {"SpecialToken": {"id": "Z", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}]);
    let missing =
        json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    refused(&changed("post_processor", missing), &says);
}

/// A template that never ends is not the fault of a record, so leaving out bad records must not try
/// it on each of them.
#[test]
fn a_template_without_end_is_not_left_out_as_a_bad_record() {
    let endless = "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}";
    let workspace = workspace(&tokenizer(), endless);
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    workspace.write("chats.jsonl", &format!("{chat}\n").repeat(3));
    for command in ["score --data", "generate --prompts"] {
        let skip = "--bad-records skip --max-bad-share 1";
        let ended = workspace.run(&format!(
            "{command} chats.jsonl --model model --out out.jsonl {skip}"
        ));
        let says = [
            "chat_template.jinja",
            "takes more than 10 million steps",
            "(at chats.jsonl:1)",
        ];
        refused(&ended, &says);
    }
}
