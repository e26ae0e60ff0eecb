//! `[sft.lora]`, `[dpo.lora]`, `[reward.lora]`, `[judge.lora]` and `[ppo.lora]`: adapters on a frozen model instead of training all of it.
//!
//! Keys are those of PEFT's `LoraConfig`, and `r` and `lora_alpha` begin where TRL's do. Where a stage trains the adapters of a PEFT folder
//! further, keys that are not set are the folder's.

use serde::{Deserialize, Serialize};

use super::check::Keys;

/// The `lora` table of a stage. A stage that has it, even empty, trains low-rank adapters (Hu et al. 2021) and leaves the model's own
/// weights as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of the adapters. When unset 16, or the rank of the folder's adapters that are trained further; so with the other keys.
    pub r: Option<usize>,
    /// The adapters are multiplied by `lora_alpha / r`. When unset 32.
    pub lora_alpha: Option<f64>,
    /// Dropout before the adapters. Only 0: training sees what generation sees.
    pub lora_dropout: f64,
    /// Names of the projections that are adapted, or `"all-linear"`. When unset those that PEFT adapts by default: `q_proj` and
    /// `v_proj`, for GPT-2 `c_attn`.
    pub target_modules: Option<TargetModules>,
    /// The layers that are adapted, counted from 0, or `"top:N"` for the uppermost N; when unset all of them. What lies below the
    /// lowest is passed without a graph.
    pub layers_to_transform: Option<LayersToTransform>,
    /// Divides by the root of `r` instead of by `r` (Kalajdzievski 2023). When unset it does not.
    pub use_rslora: Option<bool>,
}

/// Which projections are adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "target_modules: expected a list of names, or \"all-linear\""
)]
pub enum TargetModules {
    /// `"all-linear"`
    Word(AllLinear),
    /// Their names.
    Names(Vec<String>),
}

/// The word for all projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllLinear {
    /// All of them.
    #[serde(rename = "all-linear")]
    AllLinear,
}

/// Which layers are adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "layers_to_transform: expected a list of layers, counted from 0, or \"top:N\""
)]
pub enum LayersToTransform {
    /// Counted from 0.
    These(Vec<usize>),
    /// `"top:N"`
    Top(Top),
}

/// The uppermost layers, as many as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Top(pub usize);

impl TryFrom<String> for Top {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let count = text
            .strip_prefix("top:")
            .and_then(|n| n.trim().parse().ok());
        count
            .map(Self)
            .ok_or_else(|| "expected \"top:N\"".to_owned())
    }
}

impl From<Top> for String {
    fn from(Top(count): Top) -> Self {
        format!("top:{count}")
    }
}

impl Lora {
    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        let mut wrong = |key: &str, value: String, message: &str| {
            keys.wrong("lora", format!("{{ {key} = {value} }}"), message);
        };
        if self.r == Some(0) {
            wrong(
                "r",
                "0".into(),
                "r must be 1 or larger; leave the lora table out to train all weights",
            );
        }
        let is_scale = |alpha: &f64| *alpha > 0.0 && alpha.is_finite();
        if let Some(alpha) = self.lora_alpha.filter(|alpha| !is_scale(alpha)) {
            let message = "lora_alpha must be larger than 0; twice r is usual";
            wrong("lora_alpha", alpha.to_string(), message);
        }
        if self.lora_dropout != 0.0 {
            let message = "lora_dropout must be 0: adapters train on what they generate with; weight_decay is a way to hold them back";
            wrong("lora_dropout", self.lora_dropout.to_string(), message);
        }
        if self.target_modules == Some(TargetModules::Names(Vec::new())) {
            let message = "target_modules names nothing; remove it, or write \"all-linear\"";
            wrong("target_modules", "[]".into(), message);
        }
        match &self.layers_to_transform {
            Some(LayersToTransform::These(layers)) if layers.is_empty() => {
                wrong(
                    "layers_to_transform",
                    "[]".into(),
                    "layers_to_transform names no layer; remove it to adapt all",
                );
            }
            Some(LayersToTransform::Top(Top(0))) => {
                wrong(
                    "layers_to_transform",
                    "\"top:0\"".into(),
                    "layers_to_transform must leave a layer, as \"top:4\" does",
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::resolve;

    fn lora(value: &str) -> Result<Option<Lora>, String> {
        let config = resolve(&[&format!("sft.lora={value}")]).map_err(|e| e.to_string())?;
        Ok(config.sft.unwrap().trainable.lora)
    }

    #[test]
    fn an_empty_table_leaves_all_to_the_defaults_or_to_a_folder() {
        assert_eq!(resolve(&[]).unwrap().sft.unwrap().trainable.lora, None);
        let lora = lora("{}").unwrap().unwrap();
        assert_eq!(lora, Lora::default());
        assert_eq!(
            (lora.r, lora.lora_alpha, lora.use_rslora),
            (None, None, None)
        );
        let written = resolve(&["sft.lora={}"]).unwrap().to_toml().unwrap();
        assert!(
            written.contains("lora") && !written.contains("lora_alpha"),
            "{written}"
        );
    }

    #[test]
    fn words_and_lists_are_read_and_written() {
        let text = "{ r = 4, target_modules = \"all-linear\", layers_to_transform = \"top:2\" }";
        let words = lora(text).unwrap().unwrap();
        let all = TargetModules::Word(AllLinear::AllLinear);
        assert_eq!(words.target_modules, Some(all));
        assert_eq!(
            words.layers_to_transform,
            Some(LayersToTransform::Top(Top(2)))
        );
        let text =
            "{ target_modules = [\"q_proj\"], layers_to_transform = [0, 1], use_rslora = true }";
        let lists = lora(text).unwrap().unwrap();
        assert_eq!(
            lists.layers_to_transform,
            Some(LayersToTransform::These(vec![0, 1]))
        );
        for read in [words, lists] {
            let written = toml::to_string(&read).unwrap();
            assert_eq!(toml::from_str::<Lora>(&written).unwrap(), read, "{written}");
        }
    }

    #[test]
    fn one_key_of_the_table_can_be_set() {
        let config = resolve(&["reward.lora.r=2", "reward.lora.lora_alpha=3"]).unwrap();
        let lora = config.reward.unwrap().trainable.lora.unwrap();
        assert_eq!((lora.r, lora.lora_alpha), (Some(2), Some(3.0)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (value, says) in [
            ("{ r = 0 }", "r must be 1"),
            ("{ lora_alpha = -1.0 }", "larger than 0"),
            ("{ lora_dropout = 0.05 }", "lora_dropout must be 0"),
            ("{ target_modules = [] }", "names nothing"),
            ("{ target_modules = \"all\" }", "\"all-linear\""),
            ("{ layers_to_transform = [] }", "names no layer"),
            ("{ layers_to_transform = \"top:0\" }", "must leave a layer"),
            ("{ layers_to_transform = \"upper\" }", "\"top:N\""),
            ("{ rank = 4 }", "unknown key `rank`, expected one of `r`"),
        ] {
            let message = lora(value).unwrap_err();
            assert!(message.starts_with("sft.lora"), "{message}");
            assert!(message.contains(says), "{value}: {message}");
        }
    }
}
