//! The `lora` table of `[ppo]` and of the stages that learn from examples: adapters on a frozen
//! model instead of training all of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;

/// Low-rank adapters (Hu et al. 2021), trained on a frozen model.
///
/// A stage that has this table, even empty, trains adapters and leaves the model's own weights as
/// they are. Keys are those of PEFT's `LoraConfig`. When the stage starts from a PEFT folder, its
/// adapters are trained further and unset keys are the folder's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraTable {
    /// Rank of the adapters.
    #[schemars(extend("x-default" = R))]
    pub r: Option<usize>,
    /// Scale of the adapters: their output is multiplied by `lora_alpha / r`.
    #[schemars(extend("x-default" = ALPHA))]
    pub lora_alpha: Option<f64>,
    /// Dropout before the adapters, which must be 0, so that training and generation compute the
    /// same.
    pub lora_dropout: f64,
    /// Names of the projections that have adapters, or `"all-linear"` for all of them.
    #[schemars(extend("x-default" = "`q_proj` and `v_proj`; GPT-2: `c_attn`"))]
    pub target_modules: Option<TargetModules>,
    /// Layers that have adapters, counted from 0, or `"top:N"` for the uppermost N.
    ///
    /// Layers below the lowest adapter need no backward pass.
    #[schemars(extend("x-default" = "all layers"))]
    pub layers_to_transform: Option<LayersToTransform>,
    /// Whether the scale is `lora_alpha / sqrt(r)` instead (Kalajdzievski 2023).
    #[schemars(extend("x-default" = false))]
    pub use_rslora: Option<bool>,
}

/// Rank of new adapters, as in TRL.
const R: usize = 16;
/// Numerator of the scale of new adapters, as in TRL.
const ALPHA: f64 = 32.0;

/// Projections that have adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(expecting = "target_modules: expected a list of names, or \"all-linear\"")]
#[schemars(extend("x-type" = "list of names, or `\"all-linear\"`"))]
pub enum TargetModules {
    /// All projections.
    #[serde(rename = "all-linear")]
    AllLinear,
    /// Projections whose name is, or ends in, one of these.
    #[serde(untagged)]
    Named(Vec<String>),
}

/// Layers that have adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "layers_to_transform: expected a list of layers, counted from 0, or \"top:N\""
)]
#[schemars(extend("x-type" = "list of whole numbers, or `\"top:N\"`"))]
pub enum LayersToTransform {
    /// These layers, counted from 0.
    These(Vec<usize>),
    /// `"top:N"`: the uppermost N layers.
    #[serde(with = "top")]
    #[schemars(with = "String")]
    Top(usize),
}

/// The text `top:N`.
mod top {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(count: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("top:{count}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        let text = String::deserialize(deserializer)?;
        let count = text
            .strip_prefix("top:")
            .and_then(|count| count.trim().parse().ok());
        count.ok_or_else(|| D::Error::custom("expected \"top:N\""))
    }
}

impl LoraTable {
    /// Rank of the adapters, with its default.
    pub fn r(&self) -> usize {
        self.r.unwrap_or(R)
    }

    /// Numerator of the scale, with its default.
    pub fn lora_alpha(&self) -> f64 {
        self.lora_alpha.unwrap_or(ALPHA)
    }

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
            let message = "lora_dropout must be 0, so that training and generation compute the \
                           same; weight_decay regularises too";
            wrong("lora_dropout", self.lora_dropout.to_string(), message);
        }
        if self.target_modules == Some(TargetModules::Named(Vec::new())) {
            let message = "target_modules names no module; remove it, or set \"all-linear\"";
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
            Some(LayersToTransform::Top(0)) => {
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

    fn lora(value: &str) -> Result<Option<LoraTable>, String> {
        let config = resolve(&[&format!("sft.lora={value}")]).map_err(|e| e.to_string())?;
        Ok(config.sft.unwrap().trainable.lora)
    }

    #[test]
    fn an_empty_table_leaves_all_to_the_defaults_or_to_a_folder() {
        assert_eq!(resolve(&[]).unwrap().sft.unwrap().trainable.lora, None);
        let lora = lora("{}").unwrap().unwrap();
        assert_eq!(lora, LoraTable::default());
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
        assert_eq!(words.target_modules, Some(TargetModules::AllLinear));
        assert_eq!(words.layers_to_transform, Some(LayersToTransform::Top(2)));
        let text =
            "{ target_modules = [\"q_proj\"], layers_to_transform = [0, 1], use_rslora = true }";
        let lists = lora(text).unwrap().unwrap();
        assert_eq!(
            lists.layers_to_transform,
            Some(LayersToTransform::These(vec![0, 1]))
        );
        let named = TargetModules::Named(vec!["q_proj".into()]);
        assert_eq!(lists.target_modules, Some(named));
        for read in [words, lists] {
            let written = toml::to_string(&read).unwrap();
            assert_eq!(
                toml::from_str::<LoraTable>(&written).unwrap(),
                read,
                "{written}"
            );
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
            ("{ target_modules = [] }", "names no module"),
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
