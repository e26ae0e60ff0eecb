//! The class `LlamaTokenizer` of `tokenizer_config.json`: transformers 5 takes vocabulary, merges,
//! added tokens and post-processor from `tokenizer.json`, and builds the other parts from the keys
//! `legacy` and `add_prefix_space`. So the same file gives different ids under this class than
//! under `PreTrainedTokenizerFast`.

use serde_json::{Map, Value, json};

const CLASS: &str = "LlamaTokenizer";

/// The keys that determine the parts.
pub(super) struct LlamaClass<'a> {
    /// `tokenizer_config.json`.
    pub config: &'a Map<String, Value>,
    /// `model_type` of the folder's `config.json`, if there is one.
    pub model_type: Option<&'a str>,
}

impl LlamaClass<'_> {
    /// `tokenizer.json` with the parts that transformers builds; `None` if it uses the file
    /// unchanged.
    pub fn rebuilt(&self, mut json: Value) -> Option<Value> {
        let parts = [&json["pre_tokenizer"], &json["decoder"]];
        let is_byte_level = parts
            .iter()
            .any(|part| part.to_string().contains("ByteLevel"));
        if json["model"]["type"] != "BPE" || is_byte_level {
            return None;
        }
        let scheme = self.prepend_scheme();
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if scheme != "never" {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json["normalizer"] = Value::Null;
        json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁",
                                       "prepend_scheme": scheme, "split": false});
        json["decoder"] = json!({"type": "Sequence", "decoders": decoders});
        json["model"]["byte_fallback"] = json!(true);
        json["model"]["fuse_unk"] = json!(true);
        json["model"]["ignore_merges"] = json!(false);
        json["model"]["dropout"] = Value::Null;
        Some(json)
    }

    /// True if the class builds its own parts. Models of other families whose configuration names
    /// the class use the file unchanged.
    pub fn is_llama(&self) -> bool {
        let class = self.config.get("tokenizer_class").and_then(Value::as_str);
        class.is_some_and(|class| class.strip_suffix("Fast").unwrap_or(class) == CLASS)
            && self.model_type.is_none_or(|model| model == "llama")
    }

    fn prepend_scheme(&self) -> &'static str {
        let is = |key: &str, default| {
            let value = self.config.get(key).and_then(Value::as_bool);
            value.unwrap_or(default)
        };
        match (is("add_prefix_space", true), is("legacy", false)) {
            (false, _) => "never",
            (true, true) => "always",
            (true, false) => "first",
        }
    }
}
