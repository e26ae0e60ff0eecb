//! Whole configurations: their filled values, and the helpers of the other tests.

mod files;
mod refusals;

use std::path::Path;

use super::*;
use crate::rlhf::preference::DpoLossType;

pub(super) const SAMPLE: &str = r#"
[run]
name = "trial"

[model]
hidden_size = 64
intermediate_size = 172
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 128

[pretrain]
data = ["a.txt", "b.txt"]
max_steps = 100
context_length = 64

[sft]
data = [{ path = "x.jsonl", weight = 2.0 }, { path = "y.jsonl", weight = 1 }]

[reward]
data = "pairs.jsonl"

[judge]
data = "other.jsonl"

[ppo]
prompts = "prompts.jsonl"
max_steps = 40
learning_rate = 3e-4

[dpo]
data = "pairs.jsonl"

[orpo]
data = "pairs.jsonl"
"#;

/// Another text with overrides.
pub(super) fn resolve_text(text: &str, overrides: &[&str]) -> Result<Config, ConfigError> {
    let overrides: Vec<Override> = overrides
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    Config::resolve(&Document::parse(text, Path::new("trial.toml"))?.with(&overrides)?)
}

/// The sample with overrides, for the tests of other files too.
pub(super) fn resolve(overrides: &[&str]) -> Result<Config, ConfigError> {
    resolve_text(SAMPLE, overrides)
}

/// The sample with these overrides is refused in words that hold these.
#[track_caller]
pub(super) fn refused(overrides: &[&str], words: &[&str]) {
    let message = refusal(overrides);
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

/// The error of the sample with overrides that must be refused.
pub(super) fn refusal(overrides: &[&str]) -> String {
    resolve(overrides).expect_err("must be refused").to_string()
}

#[test]
fn what_is_not_typed_is_filled() {
    let config = resolve(&["ppo.eval_prompts=held_out.jsonl"]).unwrap();
    assert_eq!(config.stages(), Stage::ALL);
    let Some(ModelStart::Scratch(architecture)) = &config.model.start else {
        panic!("{:?}", config.model)
    };
    assert_eq!(
        (architecture.num_key_value_heads, architecture.head_dim),
        (4, 16)
    );
    assert_eq!(
        config.sft.as_ref().unwrap().from,
        Path::new("runs/trial/pretrain/final")
    );
    assert_eq!(
        config.judge.as_ref().unwrap().from,
        Path::new("runs/trial/sft/final")
    );
    let ppo = config.ppo.as_ref().unwrap();
    assert_eq!(ppo.from, Path::new("runs/trial/sft/final"));
    assert_eq!(
        ppo.reward_model.as_deref(),
        Some(Path::new("runs/trial/reward/final"))
    );
    assert_eq!(
        ppo.judge_model.as_deref(),
        Some(Path::new("runs/trial/judge/final"))
    );
    assert_eq!(ppo.critic.critic_learning_rate, Some(3e-4));
    assert_eq!(ppo.training.length(), TrainingLength::Steps(40));
    // A stage's defaults are its own, though the keys are shared.
    assert_eq!(config.pretrain.as_ref().unwrap().training.weight_decay, 0.1);
    assert_eq!(ppo.training.weight_decay, 0.0);
}

#[test]
fn preference_tuning_starts_where_ppo_does() {
    let dpo = |overrides: &[&str]| resolve(overrides).unwrap().dpo.unwrap();
    assert_eq!(dpo(&[]).from, Path::new("runs/trial/sft/final"));
    let simpo = dpo(&["dpo.loss_type=simpo", "dpo.beta=2", "dpo.simpo_gamma=1"]);
    assert_eq!(
        (simpo.loss_type, simpo.beta, simpo.simpo_gamma),
        (DpoLossType::Simpo, 2.0, 1.0)
    );
}

#[test]
fn the_written_file_reads_back_the_same() {
    for overrides in [
        &[][..],
        &[
            "ppo.score_clip=5",
            "ppo.stop=[\"\\n\"]",
            "sft.max_epochs=2.5",
            "ppo.lam=1",
        ],
        &[
            "ppo.kl_in=loss",
            "ppo.loss_aggregation=constant",
            "ppo.target_kl=0.1",
            "ppo.ptx_coef=1",
            "ppo.ptx_data=a.txt",
            "ppo.critic_warmup=3",
        ],
    ] {
        let config = resolve(overrides).unwrap();
        let written = config.to_toml().unwrap();
        assert!(
            written.contains("kl_coef = 0.05") && written.contains("adam_epsilon = "),
            "{written}"
        );
        assert_eq!(resolve_text(&written, &[]).unwrap(), config, "{written}");
    }
}

#[test]
fn every_key_of_every_table_is_known_by_its_name() {
    let config = resolve(&[]).unwrap();
    let keys = written::key_names(config.ppo.as_ref().unwrap()).unwrap();
    for key in [
        "kl_coef",
        "vf_coef",
        "cliprange_high",
        "top_p",
        "max_new_tokens",
        "learning_rate",
        "save_steps",
    ] {
        assert!(
            keys.iter().any(|known| known == key),
            "{key} is not in {keys:?}"
        );
    }
    let mut sorted = keys.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(
        sorted.len(),
        keys.len(),
        "a key is declared twice: {keys:?}"
    );
}
