use serde_json::json;

use super::*;
use crate::data::tokenizer::{BpeTraining, Tokenizer};

/// A trained tokenizer's file, changed, and read again.
fn changed(change: impl FnOnce(&mut Value)) -> std::result::Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let trained = Tokenizer::train_bpe(&["low lower new newer"], &BpeTraining::new(270)).unwrap();
    trained.save(folder.path()).unwrap();
    let file = folder.path().join("tokenizer.json");
    let mut value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&file, value.to_string()).unwrap();
    let loaded = Tokenizer::load(folder.path());
    loaded.map_err(|e| {
        let place = folder.path().display().to_string();
        assert!(e.to_string().contains(&place), "{e}");
        e.to_string()
    })
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Value), says: &str) {
    let error = changed(change).unwrap_err();
    assert!(error.contains(says), "{error}");
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

#[test]
fn a_chain_that_grows_without_bound_is_refused() {
    let step = replace(json!({"String": "a"}), &"a".repeat(1000));
    let chain = json!({"type": "Sequence", "normalizers": vec![step.clone(); 5]});
    refused(
        |t| t["normalizer"] = chain.clone(),
        "2000000000000000 bytes of one",
    );
    // Without types, inside one another, and in the decoder.
    let nested =
        json!({"normalizers": [{"normalizers": [step, replace(json!({"Regex": "x*"}), "yy")]}]});
    refused(|t| t["normalizer"] = nested.clone(), "may make 6000 bytes");
    let decoders =
        json!({"type": "Sequence", "decoders": vec![replace(json!({"String": ""}), "bb"); 8]});
    refused(
        |t| t["decoder"] = decoders.clone(),
        "its decoder may make 6561 bytes",
    );
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                       "use_regex": false});
    let levels = json!({"type": "Sequence", "pretokenizers": vec![bytes; 60]});
    refused(|t| t["pre_tokenizer"] = levels.clone(), "bytes of one");
}

#[test]
fn chains_of_published_tokenizers_are_read() {
    let llama = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, replace(json!({"String": " "}), "▁"),
    ]});
    assert!(changed(|t| t["normalizer"] = llama.clone()).is_ok());
    let albert = json!({"type": "Sequence", "normalizers": [
        replace(json!({"String": "``"}), "\""), replace(json!({"String": "''"}), "\""),
        {"type": "NFKD"},
        {"type": "StripAccents"}, {"type": "Lowercase"}, replace(json!({"Regex": " {2,}"}), " "),
    ]});
    assert!(changed(|t| t["normalizer"] = albert.clone()).is_ok());
    assert_eq!(growth(&albert), Ok(1.0));
    assert_eq!(growth(&llama), Ok(3.0));
}

#[test]
fn character_maps_are_checked() {
    let map = |bytes: &[u8]| {
        json!({"type": "Precompiled",
                                    "precompiled_charsmap": STANDARD.encode(bytes)})
    };
    for bytes in [
        &[][..],
        &[0, 0, 0],
        &[0; 4],
        &[255; 4],
        &[8, 0, 0, 0, 1, 1, 1, 1],
    ] {
        refused(|t| t["normalizer"] = map(bytes), "precompiled_charsmap");
    }
    let long = [&[4, 0, 0, 0, 0, 0, 0, 0][..], &[b'x'; 2000]].concat();
    refused(|t| t["normalizer"] = map(&long), "may make 4000 bytes");
    // A trie that points beyond its end.
    let outside = [4, 0, 0, 0, 255, 255, 255, 255, b'x', 0];
    refused(
        |t| t["normalizer"] = map(&outside),
        "cannot be read: it fails",
    );
}

#[test]
fn contradictions_are_errors_and_no_panics() {
    let special = json!([{"SpecialToken": {"id": "Z", "type_id": 0}},
                         {"Sequence": {"id": "A", "type_id": 0}}]);
    let template = |single: Value| {
        json!({"type": "TemplateProcessing", "single": single,
                                          "pair": [], "special_tokens": {}})
    };
    refused(
        |t| t["post_processor"] = template(special),
        "cannot be read",
    );
    let second = json!([{"Sequence": {"id": "B", "type_id": 0}}]);
    refused(|t| t["post_processor"] = template(second), "cannot be read");
    let many = json!(vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 5]);
    let processors = json!({"type": "Sequence", "processors": vec![template(many); 2]});
    refused(
        |t| t["post_processor"] = processors,
        "repeats the text 25 times",
    );
    refused(
        |t| t["model"]["continuing_subword_prefix"] = json!("long prefix"),
        "cannot be read",
    );
    refused(
        |t| t["model"]["vocab"]["far"] = json!(4_000_000_000u32),
        "\"far\" has the id 4000000000",
    );
    refused(
        |t| t["decoder"] = json!({"type": "Nonsense"}),
        "cannot be read",
    );
    refused(
        |t| t["normalizer"] = replace(json!({"Regex": "("}), ""),
        "cannot be read",
    );
}

/// A decoder that breaks on some texts alone: the error comes when it is used.
#[test]
fn panics_of_later_calls_are_errors() {
    let strip = json!({"type": "Strip", "content": "n", "start": 0, "stop": 9});
    let tokenizer = changed(|t| t["decoder"] = strip).unwrap();
    let ids = tokenizer.encode_text("n").unwrap();
    let error = tokenizer.decode(&ids).unwrap_err().to_string();
    assert!(
        error.contains("cannot decode: tokenizer.json contradicts itself"),
        "{error}"
    );
}

#[test]
fn broken_json_says_where() {
    let folder = tempfile::tempdir().unwrap();
    for text in [
        "{\"decoder\": {x",
        "{\"normalizer\": null, \"normalizer\": null}",
    ] {
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.json cannot be read") && error.contains("line 1"),
            "{error}"
        );
    }
}
