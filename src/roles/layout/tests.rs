use std::path::PathBuf;

use rollout::LastToken;

use super::*;
use crate::config::LayersToTransform::{self, These, Top};
use crate::config::{Stage, TooLong};
use crate::roles::{AdapterDescription, Origin};

/// Adapters on all layers of the fixture.
fn all() -> LayersToTransform {
    These(vec![0, 1, 2])
}

/// A fixture of three layers, with this head, or adapters on these layers.
fn described(head: Head, adapter: Option<LayersToTransform>) -> ModelDescription {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama");
    let mut model = ModelDescription::read(&folder).unwrap();
    model.decoder.head = head;
    model.adapter = adapter.map(|layers| AdapterDescription {
        lora: Lora::new(&on(layers), &model.decoder).unwrap(),
        base: folder,
        has_score: head == Head::Score,
    });
    model
}

fn on(layers: LayersToTransform) -> LoraTable {
    LoraTable {
        layers_to_transform: Some(layers),
        ..LoraTable::default()
    }
}

fn scorer(adapter: Option<LayersToTransform>) -> ModelDescription {
    described(Head::Score, adapter)
}

fn models(rewards: Vec<ModelDescription>, judge: Option<ModelDescription>) -> PpoModels {
    PpoModels {
        policy: described(Head::LanguageModel, None),
        rewards,
        judge,
    }
}

/// `[ppo]` whose actor and critic have adapters on the top layer, or which shares a trunk.
fn config(share: Share) -> Ppo {
    let mut config = Ppo::default();
    config.sharing.share = share;
    config.sharing.trunk_layers = (share == Share::Trunk).then_some(1);
    config.sharing.lora = (share == Share::Adapter).then(|| on(These(vec![2])));
    config
}

fn layout(share: Share, models: PpoModels) -> RoleLayout {
    RoleLayout::new(&config(share), models).unwrap()
}

#[test]
fn the_boundary_lies_below_all_that_is_trained_or_adapted() {
    let boundary = |share, reward: Option<LayersToTransform>| {
        layout(share, models(vec![scorer(reward)], None)).boundary
    };
    assert_eq!(boundary(Share::None, None), None);
    assert_eq!(boundary(Share::Trunk, None), Some(1));
    // A whole reward model shares nothing and does not lower the boundary.
    assert_eq!(boundary(Share::Adapter, None), Some(2));
    assert_eq!(boundary(Share::Adapter, Some(Top(1))), Some(2));
    assert_eq!(boundary(Share::Adapter, Some(Top(2))), Some(1));
    assert_eq!(boundary(Share::Adapter, Some(all())), None);
    // Adapters that the policy has are those of actor and critic.
    let mut adapted = models(Vec::new(), None);
    adapted.policy = described(Head::LanguageModel, Some(Top(2)));
    let mut config = config(Share::Adapter);
    config.sharing.lora = None;
    let layout = RoleLayout::new(&config, adapted).unwrap();
    assert_eq!(layout.boundary, Some(1));
}

/// A judge that a stage is yet to train on the policy, in the layers above `frozen_layers`.
fn to_be_trained(adapter: Option<LayersToTransform>, frozen_layers: usize) -> ModelDescription {
    let policy = described(Head::LanguageModel, None);
    made_by(Stage::Judge, policy, scorer(adapter), frozen_layers)
}

/// A model that a stage is yet to train from another one.
fn made_by(
    stage: Stage,
    from: ModelDescription,
    model: ModelDescription,
    frozen_layers: usize,
) -> ModelDescription {
    ModelDescription {
        folder: PathBuf::from(format!("runs/trial/{stage}/final")),
        origin: Origin::Stage {
            stage,
            from: Some(Box::new(from)),
            frozen_layers,
        },
        ..model
    }
}

/// Policy and reward model share a trunk if no stage between them and a common start trains it.
#[test]
fn a_reward_model_is_refused_unless_it_keeps_the_trunk_of_the_policy() {
    let start = || described(Head::LanguageModel, None);
    let tuned = |stage, frozen| made_by(stage, start(), start(), frozen);
    let reward = |from, frozen| made_by(Stage::Reward, from, scorer(None), frozen);
    let layout = |policy: ModelDescription, reward| {
        let models = PpoModels {
            policy,
            ..models(vec![reward], None)
        };
        RoleLayout::new(&config(Share::Trunk), models)
    };
    for frozen in [1, 2] {
        layout(tuned(Stage::Sft, 0), reward(tuned(Stage::Sft, 0), frozen)).unwrap();
        // Siblings that leave the trunk of one start as it is.
        layout(tuned(Stage::Dpo, 1), reward(start(), frozen)).unwrap();
        layout(tuned(Stage::Dpo, 1), reward(tuned(Stage::Sft, 1), frozen)).unwrap();
    }
    let sft_final = "reward.from = \"runs/trial/sft/final\"";
    for (policy, reward, says) in [
        (
            Stage::Sft,
            reward(tuned(Stage::Sft, 0), 0),
            vec!["set reward.freeze_layers = 1"],
        ),
        (
            Stage::Sft,
            reward(start(), 1),
            vec!["set sft.freeze_layers = 1", sft_final],
        ),
        (
            Stage::Orpo,
            reward(start(), 1),
            vec!["set orpo.freeze_layers = 1"],
        ),
    ] {
        let error = layout(tuned(policy, 0), reward).unwrap_err().to_string();
        assert!(says.iter().all(|says| error.contains(says)), "{error}");
    }
    // Adapters that reach into the trunk train it.
    let adapted = |layers| made_by(Stage::Reward, start(), scorer(Some(layers)), 0);
    let error = layout(start(), adapted(all())).unwrap_err().to_string();
    let says = "set reward.lora.layers_to_transform = \"top:2\"";
    assert!(error.contains(says), "{error}");
}

/// Adapters share the policy's base, whichever stage trains them.
#[test]
fn a_reward_model_is_refused_unless_its_adapters_have_the_base_of_the_policy() {
    let start = || described(Head::LanguageModel, None);
    let policy = made_by(Stage::Sft, start(), start(), 0);
    let reward = |from: ModelDescription| {
        let mut model = made_by(Stage::Reward, from.clone(), scorer(Some(all())), 0);
        model.adapter.as_mut().unwrap().base = from.base().to_owned();
        model
    };
    let layout = |reward| {
        let models = PpoModels {
            policy: policy.clone(),
            ..models(vec![reward], None)
        };
        RoleLayout::new(&config(Share::Adapter), models)
    };
    layout(reward(policy.clone())).unwrap();
    let error = layout(reward(start())).unwrap_err().to_string();
    let mend = "add [sft.lora], or set reward.from = \"runs/trial/sft/final\"";
    assert!(error.contains(mend), "{error}");
}

#[test]
fn the_last_token_is_read_if_a_scorer_starts_from_its_state() {
    let reads = |share, rewards, judge| {
        let layout = layout(share, models(rewards, judge));
        [PromptUse::Training, PromptUse::Evaluation]
            .map(|prompts| layout.last_token(prompts) == LastToken::Read)
    };
    let (trunk, adapter) = (Share::Trunk, Share::Adapter);
    assert_eq!(reads(trunk, vec![scorer(None)], None), [true; 2]);
    assert_eq!(reads(Share::None, vec![scorer(None)], None), [false; 2]);
    let top = Some(Top(1));
    let on_trunk = |layers| Some(to_be_trained(None, layers));
    assert_eq!(reads(trunk, vec![], on_trunk(1)), [false, true]);
    // This judge is trained below the boundary, so that it shares nothing.
    assert_eq!(reads(trunk, vec![], on_trunk(0)), [false; 2]);
    assert_eq!(reads(adapter, vec![scorer(top.clone())], None), [true; 2]);
    let judge = |layers| Some(to_be_trained(Some(layers), 0));
    let whole = || vec![scorer(None)];
    assert_eq!(reads(adapter, whole(), judge(Top(1))), [false, true]);
    assert_eq!(reads(adapter, vec![], judge(Top(2))), [false; 2]);
}

#[test]
fn evaluation_prompts_fit_the_context_of_the_judge() {
    let mut judge = scorer(None);
    judge.decoder.max_position_embeddings = 40;
    let mut config = config(Share::None);
    config.generation.max_new_tokens = 8;
    config.too_long = TooLong::Error;
    let layout = RoleLayout::new(&config, models(vec![scorer(None)], Some(judge))).unwrap();
    let limit = |prompts| layout.prompt_limit(&config, prompts);
    let context = layout.policy.decoder.max_position_embeddings;
    assert_eq!(limit(PromptUse::Training).tokens, context - 8);
    let evaluation = limit(PromptUse::Evaluation);
    assert_eq!(evaluation.tokens, 32);
    assert!(evaluation.words.starts_with("the judge's context holds 40"));
}

#[test]
fn models_that_cannot_play_their_roles_are_refused() {
    let refused = |share, models| {
        let mut config = config(share);
        config.critic.critic_from = Some(CriticFrom::RewardModel);
        RoleLayout::new(&config, models).unwrap_err().to_string()
    };
    let language_model = described(Head::LanguageModel, None);
    let error = refused(Share::None, models(vec![language_model], None));
    assert!(error.contains("a language model"), "{error}");
    let error = refused(Share::Adapter, models(vec![scorer(None)], None));
    assert!(error.contains("a whole reward model"), "{error}");
    let mut headless = scorer(Some(all()));
    headless.adapter.as_mut().unwrap().has_score = false;
    let error = refused(Share::Adapter, models(vec![headless], None));
    assert!(error.contains("without score.weight"), "{error}");
    let mut other = scorer(None);
    other.decoder.vocab_size += 1;
    let error = refused(Share::None, models(Vec::new(), Some(other)));
    assert!(error.starts_with("ppo.judge_model: "), "{error}");
    assert!(error.contains("has a vocabulary of"), "{error}");
    let mut adapted = models(Vec::new(), None);
    adapted.policy = described(Head::LanguageModel, Some(all()));
    let error = refused(Share::Adapter, adapted);
    let says = "[ppo.lora] continues the adapter in";
    assert!(
        error.starts_with(says) && error.contains("is [2] here, [0, 1, 2] there"),
        "{error}"
    );
}
