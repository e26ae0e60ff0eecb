use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::config::SaveDtype;
use crate::config::{CriticFrom, Data, LayersToTransform, LoraTable, Ppo, Share};
use crate::model::config::TensorSpec;
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::ADAPTER_CONFIG;
use crate::model::lora::folder::ADAPTER_WEIGHTS;
use crate::model::trunk::in_trunk;
use crate::ops::param::Param;
use crate::roles::{ModelDescription, PpoModels};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// `[ppo]` on a policy, with these folders and what they share.
fn config(policy: &Path, reward: Option<&Path>, judge: Option<&Path>) -> Ppo {
    Ppo {
        from: policy.to_owned(),
        reward_model: reward.map(Path::to_owned),
        judge_model: judge.map(Path::to_owned),
        eval_prompts: judge.map_or_else(Data::default, |_| "prompts.jsonl".into()),
        ..Ppo::default()
    }
}

fn on_trunk(mut config: Ppo, layers: usize) -> Ppo {
    config.sharing.share = Share::Trunk;
    config.sharing.trunk_layers = Some(layers);
    config
}

/// Adapters on the layers from `lowest` on, of three.
fn on_base(mut config: Ppo, lowest: usize) -> Ppo {
    config.sharing.share = Share::Adapter;
    config.sharing.lora = Some(LoraTable {
        layers_to_transform: Some(LayersToTransform::These((lowest..3).collect())),
        ..LoraTable::default()
    });
    config
}

fn load(config: &Ppo) -> Result<Roles, RolesError> {
    let models = PpoModels::describe(config, ModelDescription::read)?;
    let layout = RoleLayout::new(config, models)?;
    Roles::load(layout, &config.reward_components(), 0, &Backend::CPU)
}

fn refused(config: &Ppo) -> String {
    let error = load(config).err().expect("must be refused");
    let mut causes = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    causes.join(": ")
}

/// An adapter that PEFT wrote has no checksum of its base: the base that it names is compared with
/// the policy.
#[expect(clippy::disallowed_methods, reason = "the file is to lack a tensor")]
#[test]
fn an_adapter_of_another_base_or_without_a_head_is_no_reward_model() {
    let (policy, reward) = (golden("models/llama"), golden("adapters/llama_reward"));
    let roles = load(&on_base(config(&policy, Some(&reward), None), 0)).unwrap();
    let (_, model) = roles.reward.models().next().unwrap();
    assert!(model.decoder().params().shared().count() > 0);

    let folder = tempfile::tempdir().unwrap();
    let sizes = HfConfig::read(&policy).unwrap();
    let other = Decoder::fresh(sizes, 5, |_| Trainability::Frozen, &Backend::CPU).unwrap();
    other.save(folder.path(), SaveDtype::Float32).unwrap();
    let error = refused(&on_base(config(folder.path(), Some(&reward), None), 0));
    assert!(
        error.contains("trained on a base with fingerprint"),
        "{error}"
    );

    let headless = tempfile::tempdir().unwrap();
    let tensors =
        candle_core::safetensors::load(reward.join(ADAPTER_WEIGHTS), &candle_core::Device::Cpu);
    let mut tensors = tensors.unwrap();
    tensors.retain(|name, _| !name.contains("score"));
    candle_core::safetensors::save(&tensors, headless.path().join(ADAPTER_WEIGHTS)).unwrap();
    let text = std::fs::read_to_string(reward.join(ADAPTER_CONFIG)).unwrap();
    let mut keys: serde_json::Value = serde_json::from_str(&text).unwrap();
    keys["base_model_name_or_path"] = policy.display().to_string().into();
    std::fs::write(headless.path().join(ADAPTER_CONFIG), keys.to_string()).unwrap();
    let error = refused(&on_base(config(&policy, Some(headless.path()), None), 0));
    assert!(error.contains("without score.weight"), "{error}");
}

/// The number of tensors that the judge shares, and whether it starts from the states.
fn judge(config: &Ppo) -> (usize, bool) {
    let roles = load(config).unwrap();
    let (layout, judge) = (roles.layout.judge.as_ref(), roles.judge.as_ref());
    (
        judge.unwrap().decoder().params().shared().count(),
        roles.layout.starts_at_boundary(layout.unwrap()),
    )
}

const ALONE: (usize, bool) = (0, false);

/// A reward model that was trained above one frozen layer of the policy.
fn branch(policy: &Path) -> tempfile::TempDir {
    let training = |spec: &TensorSpec| match in_trunk(&spec.name, 1) {
        true => Trainability::Frozen,
        false => Trainability::Trained,
    };
    let branch = Decoder::load(policy, Head::Score, 3, training, &Backend::CPU).unwrap();
    shift(&branch);
    let folder = tempfile::tempdir().unwrap();
    branch.save(folder.path(), SaveDtype::Float32).unwrap();
    folder
}

fn shift(model: &Decoder) {
    let shift = |values: &mut [f32]| values.iter_mut().for_each(|x| *x += 0.01);
    let mut trained = model.params().trained();
    trained.try_for_each(|param| param.update(shift)).unwrap();
}

#[test]
fn a_judge_shares_the_trunk_that_it_was_trained_on() {
    let policy = golden("models/llama");
    let folder = branch(&policy);
    let of = |judge: &Path| config(&policy, None, Some(judge));
    let own = of(folder.path());
    let tensors = HfConfig::read(&policy).unwrap().decoder.tensors();
    let shared = tensors.iter().filter(|spec| in_trunk(&spec.name, 1));
    assert_eq!(judge(&on_trunk(own.clone(), 1)), (shared.count(), true));
    // A trunk that reaches into the layers that the judge was trained in.
    assert_eq!(judge(&on_trunk(own.clone(), 2)), ALONE);
    assert_eq!(judge(&own), ALONE);
    assert_eq!(judge(&on_base(own, 1)), ALONE);
    let other = of(&golden("models/llama_reward"));
    assert_eq!(judge(&on_trunk(other, 1)), ALONE);
    let error = refused(&on_trunk(of(&policy), 1));
    assert!(error.contains("a language model"), "{error}");
}

#[test]
fn a_reward_model_of_another_trunk_is_refused() {
    let policy = golden("models/llama");
    let folder = branch(&policy);
    let mut config = on_trunk(config(&policy, Some(folder.path()), None), 1);
    config.critic.critic_from = Some(CriticFrom::RewardModel);
    let roles = load(&config).unwrap();
    let critic = roles.critic.unwrap();
    assert!(critic.params().shared().count() > 0);
    let all = |_: &_| Trainability::Trained;
    let moved = Decoder::load(folder.path(), Head::Score, 3, all, &Backend::CPU).unwrap();
    shift(&moved);
    moved.save(folder.path(), SaveDtype::Float32).unwrap();
    let error = refused(&config);
    assert!(error.contains("have the fingerprint"), "{error}");
}

/// The judge's adapters do not lower the boundary: it reads ids if they reach below it.
#[test]
fn a_judge_of_adapters_shares_their_base() {
    let (policy, folder) = (golden("models/llama"), tempfile::tempdir().unwrap());
    let frozen = |_: &_| Trainability::Frozen;
    let head = Head::LanguageModel;
    let base = Decoder::load(&policy, head, 0, frozen, &Backend::CPU).unwrap();
    let lora = LoraTable {
        layers_to_transform: Some(LayersToTransform::Top(2)),
        ..LoraTable::default()
    };
    let adapted = Decoder::adapt(&base, &lora, Head::Score, 3, Trainability::Trained).unwrap();
    let saved = adapted.save_adapter(folder.path(), &policy, SaveDtype::Float32);
    saved.unwrap();
    let judged =
        |policy: &Path, lowest| judge(&on_base(config(policy, None, Some(folder.path())), lowest));
    let all = base.params().iter().count();
    let score_has_no_lm_head = all - usize::from(!base.decoder_config().tie_word_embeddings);
    for (lowest, from_states) in [(1, true), (2, false), (0, false)] {
        assert_eq!(judged(&policy, lowest), (score_has_no_lm_head, from_states));
    }
    // A copy of the base is the same base.
    let copy = tempfile::tempdir().unwrap();
    base.save(copy.path(), SaveDtype::Float32).unwrap();
    assert_eq!(judged(copy.path(), 1), (score_has_no_lm_head, true));
    // On another base it is merged into its own.
    let other = tempfile::tempdir().unwrap();
    let config = HfConfig::read(&policy).unwrap();
    let fresh = Decoder::fresh(config, 5, frozen, &Backend::CPU).unwrap();
    fresh.save(other.path(), SaveDtype::Float32).unwrap();
    assert_eq!(judged(other.path(), 1), ALONE);
}

/// The name and the values of each tensor.
fn weights(model: &Decoder) -> Vec<(String, Vec<f32>)> {
    let read = |p: &Arc<Param>| (p.name().to_owned(), p.read(<[f32]>::to_vec).unwrap());
    model.params().iter().map(read).collect()
}

#[test]
fn a_critic_of_the_policy_has_its_weights_and_a_head_of_the_seed() {
    let config = config(&golden("models/llama"), None, None);
    let roles = |seed| {
        let models = PpoModels::describe(&config, ModelDescription::read).unwrap();
        let layout = RoleLayout::new(&config, models).unwrap();
        Roles::load(layout, &[], seed, &Backend::CPU).unwrap()
    };
    let critic = |seed| weights(&roles(seed).critic.unwrap());
    let policy = weights(&roles(0).actor);
    let (first, again, other) = (critic(1), critic(1), critic(2));
    assert!(first == again);
    for ((name, values), (_, others)) in first.iter().zip(&other) {
        match policy.iter().find(|(known, _)| known == name) {
            Some((_, start)) => assert!(values == start && others == start, "{name}"),
            None => {
                assert_eq!(name, "score.weight");
                assert!(values != others && values.iter().any(|&v| v != 0.0));
            }
        }
    }
    assert!(first.iter().any(|(name, _)| name == "score.weight"));
}
