//! The files of a tokenizer, unchanged, and the contents of its two configuration files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::llama;
use crate::data::error::{DataError, Result};
use crate::files::regular;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Folder of a model's other templates, each `NAME.jinja`.
pub const TEMPLATES: &str = "additional_chat_templates";
/// Name of the template that transformers uses for records with tools.
const TOOL_USE: &str = "tool_use";

/// Stands for the folder of a tokenizer that this run trained.
pub(super) const TRAINED: &str = "(trained)";

/// All files of a fast tokenizer; copied when a model is saved.
const NAMES: [&str; 8] = [
    TOKENIZER,
    CONFIG,
    SPECIAL_TOKENS,
    TEMPLATE,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// Names of the special tokens that transformers passes to chat templates.
const SPECIAL_NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A tokenizer's files by name, and their folder.
pub(super) struct TokenizerFiles {
    /// Folder or file, for messages.
    pub place: String,
    /// File of a chat template that is in none of `contents` by itself, for messages.
    pub template_file: Option<PathBuf>,
    contents: Vec<(String, Vec<u8>)>,
    /// `model_type` of `config.json`.
    model_type: Option<String>,
}

impl TokenizerFiles {
    /// Files of a trained tokenizer.
    pub fn made(place: &str, contents: Vec<(String, Vec<u8>)>) -> Self {
        TokenizerFiles {
            place: place.to_owned(),
            template_file: None,
            contents,
            model_type: None,
        }
    }

    /// Reads a folder, or a single file. With a file called `tokenizer.json`, the other files of
    /// its folder are read too.
    pub fn read(path: &Path) -> Result<Self> {
        let mut files = TokenizerFiles::made(&path.display().to_string(), Vec::new());
        if path.is_dir() {
            files.read_folder(path)?;
        } else if path.is_file() && path.file_name().is_some_and(|name| name == TOKENIZER) {
            files.read_folder(path.parent().unwrap_or(Path::new("")))?;
        } else if path.is_file() {
            let bytes = regular::read(path).map_err(|e| DataError::io(path, e))?;
            files.contents.push((TOKENIZER.to_owned(), bytes));
        } else {
            let message = "does not exist; expected a model folder or a tokenizer.json \
                           (relative to the current folder)";
            return Err(files.error(message.into()));
        }
        Ok(files)
    }

    fn read_folder(&mut self, folder: &Path) -> Result<()> {
        for name in NAMES {
            let path = folder.join(name);
            match regular::read(&path) {
                Ok(bytes) => self.contents.push((name.to_owned(), bytes)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(DataError::io(&path, e)),
            }
        }
        self.read_templates(folder)?;
        self.model_type = model_type(folder);
        Ok(())
    }

    fn read_templates(&mut self, folder: &Path) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(folder.join(TEMPLATES)) else {
            return Ok(());
        };
        for entry in entries {
            let path = entry.map_err(|e| DataError::io(folder, e))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| name.ends_with(".jinja")) {
                let bytes = regular::read(&path).map_err(|e| DataError::io(&path, e))?;
                self.contents.push((format!("{TEMPLATES}/{name}"), bytes));
            }
        }
        Ok(())
    }

    /// Writes all files into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.contents {
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).map_err(|e| DataError::io(parent, e))?;
            std::fs::write(&path, bytes).map_err(|e| DataError::io(&path, e))?;
        }
        Ok(())
    }

    /// The bytes of `tokenizer.json`.
    pub fn tokenizer_json(&self) -> Result<&[u8]> {
        self.get(TOKENIZER).ok_or_else(|| {
            self.error(
                "the folder has no tokenizer.json; with transformers, \
                 AutoTokenizer.from_pretrained(folder).save_pretrained(folder) makes it \
                 from other files"
                    .into(),
            )
        })
    }

    /// Special tokens by name; `tokenizer_config.json` wins over `special_tokens_map.json`.
    pub fn special_tokens(&self) -> Result<BTreeMap<String, String>> {
        let mut tokens = BTreeMap::new();
        for file in [SPECIAL_TOKENS, CONFIG] {
            let fields = self.object(file)?;
            for name in SPECIAL_NAMES {
                match fields.get(name) {
                    None | Some(Value::Null) => {}
                    Some(value) => {
                        let token = self.token_text(file, name, value)?;
                        tokens.insert(name.to_owned(), token);
                    }
                }
            }
        }
        Ok(tokens)
    }

    /// The files with `pad_token` set in `tokenizer_config.json`, and in `special_tokens_map.json`
    /// if there is one.
    pub fn with_pad(&self, token: &str) -> Result<Self> {
        let mut files = TokenizerFiles {
            model_type: self.model_type.clone(),
            template_file: self.template_file.clone(),
            ..TokenizerFiles::made(&self.place, self.contents.clone())
        };
        files.set_pad(CONFIG, token)?;
        if self.get(SPECIAL_TOKENS).is_some() {
            files.set_pad(SPECIAL_TOKENS, token)?;
        }
        Ok(files)
    }

    fn set_pad(&mut self, name: &str, token: &str) -> Result<()> {
        let mut object = self.object(name)?;
        object.insert("pad_token".to_owned(), token.into());
        let text = serde_json::to_vec_pretty(&object)
            .map_err(|e| self.error(format!("{name} cannot be written: {e}")))?;
        match self.contents.iter_mut().find(|(n, _)| n == name) {
            Some((_, bytes)) => *bytes = text,
            None => self.contents.push((name.to_owned(), text)),
        }
        Ok(())
    }

    /// `tokenizer.json` with the parts that transformers replaces; `None` if it uses the file
    /// unchanged.
    pub fn rebuilt_json(&self) -> Result<Option<Value>> {
        // A configuration that cannot be read is reported when the special tokens are read.
        let config = self.object(CONFIG).unwrap_or_default();
        let class = llama::LlamaClass {
            config: &config,
            model_type: self.model_type.as_deref(),
        };
        if !class.is_llama() {
            return Ok(None);
        }
        // A file that is not JSON is reported when the library reads it.
        let json = serde_json::from_slice(self.tokenizer_json()?).ok();
        Ok(json.and_then(|json| class.rebuilt(json)))
    }

    /// The chat template: `chat_template.jinja`, else the configuration's (of several, the one
    /// named `default`).
    pub fn chat_template(&self) -> Result<Option<String>> {
        if let Some(bytes) = self.get(TEMPLATE) {
            return self.utf8(TEMPLATE, bytes).map(Some);
        }
        match self.configured_template()? {
            Value::Null => Ok(None),
            Value::String(source) => Ok(Some(source)),
            Value::Array(named) => Ok(template_named(&named, "default")),
            _ => Err(self.error(format!("{CONFIG}: `chat_template` is not a string"))),
        }
    }

    /// The file of the chat template, for messages.
    pub fn template_place(&self) -> String {
        if let Some(file) = &self.template_file {
            return file.display().to_string();
        }
        let name = match self.get(TEMPLATE) {
            Some(_) => TEMPLATE,
            None => CONFIG,
        };
        let folder = self.place.strip_suffix(TOKENIZER).unwrap_or(&self.place);
        Path::new(folder).join(name).display().to_string()
    }

    /// The chat template for records with tools, if there is a separate one.
    pub fn tool_template(&self) -> Result<Option<String>> {
        let file = format!("{TEMPLATES}/{TOOL_USE}.jinja");
        if let Some(bytes) = self.get(&file) {
            return self.utf8(&file, bytes).map(Some);
        }
        // If there is a template file, all templates of the configuration are ignored.
        match (self.get(TEMPLATE), self.configured_template()?) {
            (None, Value::Array(named)) => Ok(template_named(&named, TOOL_USE)),
            _ => Ok(None),
        }
    }

    fn configured_template(&self) -> Result<Value> {
        let template = self.object(CONFIG)?.remove("chat_template");
        Ok(template.unwrap_or(Value::Null))
    }

    fn utf8(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let text = String::from_utf8(bytes.to_vec());
        text.map_err(|_| self.error(format!("{name} is not UTF-8")))
    }

    /// An error that names the tokenizer's folder.
    pub fn error(&self, message: String) -> DataError {
        DataError::Tokenizer {
            place: self.place.clone(),
            message,
        }
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.contents
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, bytes)| bytes.as_slice())
    }

    fn object(&self, name: &str) -> Result<Map<String, Value>> {
        let Some(bytes) = self.get(name) else {
            return Ok(Map::new());
        };
        serde_json::from_slice(bytes).map_err(|e| self.error(format!("{name} cannot be read: {e}")))
    }

    /// A token is its text, or an object with the text in `content`.
    fn token_text(&self, file: &str, name: &str, value: &Value) -> Result<String> {
        let text = value
            .as_str()
            .or_else(|| value.get("content").and_then(Value::as_str));
        text.map(str::to_owned).ok_or_else(|| {
            self.error(format!(
                "{file}: `{name}` is {value}; expected a string or {{\"content\": string}}"
            ))
        })
    }
}

/// `model_type` of the folder's `config.json`, or of its base's if it holds an adapter; `None` in a
/// folder without a model. A damaged file is reported when the model is read.
fn model_type(folder: &Path) -> Option<String> {
    let json =
        |path: &Path| -> Option<Value> { serde_json::from_slice(&regular::read(path).ok()?).ok() };
    let config = json(&folder.join("config.json")).or_else(|| {
        let adapter = json(&folder.join("adapter_config.json"))?;
        let base = Path::new(adapter["base_model_name_or_path"].as_str()?);
        let places = [folder.join(base), base.to_owned()];
        places
            .iter()
            .find_map(|base| json(&base.join("config.json")))
    })?;
    config["model_type"].as_str().map(str::to_owned)
}

fn template_named(named: &[Value], name: &str) -> Option<String> {
    let template = named.iter().find(|template| template["name"] == name)?;
    template["template"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(contents: &[(&str, &str)]) -> TokenizerFiles {
        let own = |(name, text): &(&str, &str)| (name.to_string(), text.as_bytes().to_vec());
        TokenizerFiles::made("here", contents.iter().map(own).collect())
    }

    #[test]
    fn tokens_are_strings_or_objects_and_the_config_wins() {
        let map = r#"{"eos_token": {"content": "</s>"}, "pad_token": "old"}"#;
        let config = r#"{"pad_token": "<pad>", "bos_token": null}"#;
        let tokens = files(&[(SPECIAL_TOKENS, map), (CONFIG, config)])
            .special_tokens()
            .unwrap();
        assert_eq!(
            tokens.into_iter().collect::<Vec<_>>(),
            [
                ("eos_token".to_owned(), "</s>".to_owned()),
                ("pad_token".to_owned(), "<pad>".to_owned())
            ]
        );
        let e = files(&[(CONFIG, r#"{"eos_token": 3}"#)])
            .special_tokens()
            .unwrap_err()
            .to_string();
        assert!(e.contains("here") && e.contains("`eos_token` is 3"), "{e}");
    }

    /// A pipe without a writer would never open.
    #[test]
    #[expect(unsafe_code, reason = "mkfifo is a call of the C library")]
    fn a_named_pipe_is_no_config() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(model_type(folder.path()), None);
        let config = folder.path().join("config.json");
        std::fs::write(&config, r#"{"model_type": "llama"}"#).unwrap();
        assert_eq!(model_type(folder.path()).as_deref(), Some("llama"));
        std::fs::remove_file(&config).unwrap();
        let name = std::ffi::CString::new(config.to_str().unwrap()).unwrap();
        // SAFETY: the name is a string that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert_eq!(model_type(folder.path()), None);
    }

    #[test]
    fn templates_by_file_string_or_list() {
        let template = |contents: &[(&str, &str)]| files(contents).chat_template().unwrap();
        assert_eq!(template(&[]), None);
        assert_eq!(
            template(&[(CONFIG, r#"{"chat_template": "x"}"#)]).as_deref(),
            Some("x")
        );
        let several = r#"{"chat_template": [{"name": "tool", "template": "t"},
                                            {"name": "default", "template": "d"}]}"#;
        assert_eq!(template(&[(CONFIG, several)]).as_deref(), Some("d"));
        assert_eq!(
            template(&[(CONFIG, several), (TEMPLATE, "file")]).as_deref(),
            Some("file")
        );
    }
}
