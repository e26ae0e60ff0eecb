//! Tokenizers that put a space before a text: the joined ids of spans are those that transformers
//! gives for the whole text. See `tests/golden/make_prefixed.py`.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::data::Ends;
use crate::data::records::{RecordPlace, RecordSource};

struct PrefixedCase {
    golden: Value,
    folders: tempfile::TempDir,
}

impl PrefixedCase {
    fn read() -> Self {
        let golden = include_str!("../../../tests/golden/prefixed.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        let folders = tempfile::tempdir().unwrap();
        for (name, parts) in golden["folders"].as_object().unwrap() {
            let folder = folders.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let write = |file: &str, content: &Value| {
                std::fs::write(folder.join(file), content.to_string()).unwrap();
            };
            write(
                "tokenizer.json",
                &golden["tokenizers"][parts[0].as_str().unwrap()],
            );
            write("tokenizer_config.json", &parts[1]);
            if parts[2].is_string() {
                write("config.json", &json!({"model_type": parts[2]}));
            }
        }
        PrefixedCase { golden, folders }
    }

    /// The cases of `kind`, each with its tokenizer, which has the chat template of the case if it
    /// names one.
    fn each(&self, kind: &str, mut check: impl FnMut(&Tokenizer, &Value)) {
        for case in self.golden[kind].as_array().unwrap() {
            let folder = self.folders.path().join(text(&case["folder"]));
            let template = folder.join("chat_template.jinja");
            if let Some(name) = case["template"].as_str() {
                std::fs::write(template, text(&self.golden["templates"][name])).unwrap();
            }
            check(&Tokenizer::load(&folder).unwrap(), case);
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn record(fields: Value) -> [Record; 1] {
    let Value::Object(fields) = fields else {
        panic!("an object")
    };
    let source = RecordSource {
        file: Path::new("golden").into(),
        place: RecordPlace::Line(1),
    };
    [Record { fields, source }]
}

fn encoder(tokenizer: &Tokenizer) -> Encoder<'_> {
    Encoder::new(tokenizer, Limit::none(), TooLong::Error).unwrap()
}

/// The only item of `encoded`.
fn only<T>(encoded: Result<Encoded<T>>) -> T {
    encoded.unwrap().items.pop().unwrap()
}

#[test]
fn prompt_and_completion_have_the_ids_of_the_whole() {
    let mut whole = 0;
    PrefixedCase::read().each("plain", |tokenizer, case| {
        let eos = tokenizer.eos_id().unwrap();
        let fields = json!({"prompt": case["prompt"], "completion": case["completion"]});
        let example = only(encoder(tokenizer).examples(&record(fields))).remove(0);
        let start = example.answer[0].start;
        assert_eq!(example.ids[..start], ids(&case["prompt_ids"]), "{case}");
        if case["border"] == true {
            let closed = [ids(&case["ids"]), vec![eos]].concat();
            assert_eq!(example.ids, closed, "{case}");
            whole += 1;
        }
        let pair = json!({"prompt": case["prompt"], "chosen": case["completion"], "rejected": "x"});
        let pair = only(encoder(tokenizer).pairs(&record(pair)));
        assert_eq!(pair.sequences()[0], example.ids, "{case}");
    });
    assert!(whole > 150, "{whole}");
}

#[test]
fn conversations_have_the_ids_of_the_whole() {
    let mut whole = 0;
    PrefixedCase::read().each("chats", |tokenizer, case| {
        let prompt = case["messages"].as_array().unwrap();
        let prompt = &prompt[..prompt.len() - 1];
        let prompt = only(encoder(tokenizer).prompts(&record(json!({"prompt": prompt}))));
        assert_eq!(prompt.ids, ids(&case["prompt_ids"]), "{case}");
        let mut examples = only(encoder(tokenizer).examples(&record(case.clone())));
        assert_eq!(examples.len(), 1, "{case}");
        let example = examples.remove(0);
        let last = example.answer.last().unwrap();
        if case["border"] == true {
            assert_eq!(example.ids, ids(&case["ids"]), "{case}");
            assert_eq!(example.ids[..last.start], prompt.ids, "{case}");
            whole += 1;
        }
    });
    assert!(whole > 70, "{whole}");
}

/// The text of a generated completion has the space at the border with the prompt, and no
/// additional one.
#[test]
fn a_completion_decodes_to_its_own_text() {
    let mut read_back = 0;
    let golden = PrefixedCase::read();
    golden.each("plain", |tokenizer, case| {
        let (prompt, whole) = (ids(&case["prompt_ids"]), ids(&case["ids"]));
        // At the start of a text, a space cannot be distinguished from the tokenizer's.
        let is_start = case["prompt"] == "" && text(&case["completion"]).starts_with(' ');
        if case["border"] != true || case["text_returns"] != true || is_start {
            return;
        }
        let ends = Ends::new(Vec::new(), &["Paris".to_owned()], tokenizer);
        let completion = &whole[prompt.len()..];
        let found = ends.text(tokenizer, &prompt, completion).unwrap();
        assert_eq!(
            found,
            text(&case["completion"]).trim_end_matches("Paris"),
            "{case}"
        );
        read_back += 1;
    });
    assert!(read_back > 80, "{read_back}");
}

#[test]
fn a_stop_text_with_a_leading_space_is_met_and_left_out() {
    let golden = PrefixedCase::read();
    for name in ["prepend", "first", "always"] {
        let tokenizer = Tokenizer::load(golden.folders.path().join(name)).unwrap();
        let ends = Ends::new(Vec::new(), &[" Paris".to_owned()], &tokenizer);
        let prompt = tokenizer
            .encode_rendered("The capital of France is")
            .unwrap();
        let completion = tokenizer
            .encode_at(" Paris and Paris", tokenizer.place_after(&prompt))
            .unwrap();
        let lengths =
            (0..=completion.len()).filter(|&n| ends.completed(&tokenizer, &completion[..n]));
        let lengths: Vec<usize> = lengths.collect();
        assert_eq!((lengths.len(), lengths[1]), (2, completion.len()), "{name}");
        let text = |n: usize| ends.text(&tokenizer, &prompt, &completion[..n]).unwrap();
        assert_eq!(
            (text(lengths[0]), text(lengths[1])),
            ("".into(), " Paris and".into()),
            "{name}"
        );
    }
}

/// The tokenizer's class changes its parts when a folder is read; the files do not change.
#[test]
fn a_rebuilt_tokenizer_is_saved_as_it_was_read() {
    let golden = PrefixedCase::read();
    let [folder, saved] = ["llama", "saved"].map(|name| golden.folders.path().join(name));
    let tokenizer = Tokenizer::load(&folder).unwrap();
    tokenizer.save(&saved).unwrap();
    let read = |folder: &Path| std::fs::read(folder.join("tokenizer.json")).unwrap();
    assert_eq!(read(&folder), read(&saved));
    let ids = |tokenizer: &Tokenizer| tokenizer.encode_rendered("end</s>Paris").unwrap();
    assert_eq!(ids(&Tokenizer::load(&saved).unwrap()), ids(&tokenizer));
    let plain = Tokenizer::load(golden.folders.path().join("prepend")).unwrap();
    assert_ne!(ids(&plain), ids(&tokenizer));
}

/// An adapter's folder has no model configuration; the family is read from the base's.
#[test]
fn an_adapters_tokenizer_is_read_as_its_bases() {
    let golden = PrefixedCase::read();
    let [base, adapter] = ["mistral", "adapter"].map(|name| golden.folders.path().join(name));
    let tokenizer = Tokenizer::load(&base).unwrap();
    tokenizer.save(&adapter).unwrap();
    let config = json!({"base_model_name_or_path": base}).to_string();
    std::fs::write(adapter.join("adapter_config.json"), config).unwrap();
    let ids = |tokenizer: &Tokenizer| tokenizer.encode_rendered("end</s>Paris").unwrap();
    assert_eq!(ids(&Tokenizer::load(&adapter).unwrap()), ids(&tokenizer));
    std::fs::remove_file(adapter.join("adapter_config.json")).unwrap();
    assert_ne!(ids(&Tokenizer::load(&adapter).unwrap()), ids(&tokenizer));
}
