//! `--set`: one key of the configuration, set for one call.

use toml::Value;

use super::error::ConfigError;

/// An override of one key: `ppo.kl_coef=0.1`; of a key in a table, `sft.lora.r=4`; or of a key in
/// one table of an array, `ppo.rewards[0].weight=0.5` (or `ppo.rewards.0.weight=0.5`, for shells in
/// which brackets are special).
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) within: Within,
    pub(super) value: Value,
    /// The override as it was typed.
    pub(super) text: String,
}

/// Part of a key's value that is set.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Within {
    /// The whole value.
    Whole,
    /// A key of a value that is a table.
    Part(String),
    /// A key in one table of an array: index of the table, and the key.
    Item(usize, String),
}

impl Within {
    /// Reads `KEY`, `KEY.PART`, `KEY[INDEX].PART` or `KEY.INDEX.PART`.
    fn read(text: &str) -> Option<(&str, Self)> {
        let names: Vec<&str> = text.split('.').collect();
        if names.iter().any(|name| name.is_empty()) {
            return None;
        }
        let within = match names[..] {
            [key] => return Some((key, Self::Whole)),
            [key, part] => match indexed(key) {
                Some((key, index)) => return Some((key, Self::Item(index, part.to_owned()))),
                None => Self::Part(part.to_owned()),
            },
            [_, index, part] => Self::Item(index.parse().ok()?, part.to_owned()),
            _ => return None,
        };
        (!names[0].contains('[')).then_some((names[0], within))
    }
}

impl Override {
    /// The error of an override that cannot be applied to the file.
    pub(super) fn refused(&self, message: String) -> ConfigError {
        ConfigError::Override {
            text: self.text.clone(),
            message,
        }
    }
}

impl std::str::FromStr for Override {
    type Err = ConfigError;

    /// Reads `TABLE.KEY=VALUE`, `TABLE.KEY.PART=VALUE`, `TABLE.KEY[INDEX].PART=VALUE` or
    /// `TABLE.KEY.INDEX.PART=VALUE`. The value is TOML. A value that is not TOML is a string,
    /// unless it begins like a list, table or quoted string, so that `--set run.name=trial` needs
    /// no quotes.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |message: &str| ConfigError::Override {
            text: text.into(),
            message: message.into(),
        };
        let usage = "expected TABLE.KEY=VALUE, for example ppo.kl_coef=0.1";
        let (name, value) = text.split_once('=').ok_or_else(|| refuse(usage))?;
        let (table, key) = name.trim().split_once('.').ok_or_else(|| refuse(usage))?;
        let (key, within) = Within::read(key).ok_or_else(|| refuse(usage))?;
        if table.is_empty() {
            return Err(refuse(usage));
        }
        let value = parse_value(value.trim()).map_err(|message| refuse(&message))?;
        Ok(Self {
            table: table.into(),
            key: key.into(),
            within,
            value,
            text: text.into(),
        })
    }
}

/// `rewards[0]` → `rewards` and 0.
fn indexed(text: &str) -> Option<(&str, usize)> {
    let (key, index) = text.strip_suffix(']')?.split_once('[')?;
    Some((key, index.parse().ok()?))
}

fn parse_value(text: &str) -> Result<Value, String> {
    match text.parse::<Value>() {
        Ok(value) => Ok(value),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("the value is not valid TOML: {}", error.message()))
        }
        Err(_) => Ok(Value::String(text.into())),
    }
}
