//! Memory that `plan` lists, against what is really allocated.

use std::path::Path;
use std::sync::Arc;

use collimate::config::{
    Config, Document, LayersToTransform, LoraTable, Ppo, Share, Stage, TargetModules,
};
use collimate::model::config::{
    DecoderConfig, Family, Geometry, Head, TensorSpec, is_embedding, layer_of,
};
use collimate::model::hf_config::HfConfig;
use collimate::model::lora::Lora;
use collimate::model::{Decoder, Holding};
use collimate::ops::backend::Backend;
use collimate::ops::param::{Param, Trainability};
use collimate::roles::{
    AdapterDescription, ModelDescription, Origin, PpoModels, RoleLayout, RoleTensors,
};
use collimate::stages::preflight::plans;
use collimate::train::optimizer::{AdamW, AdamWConfig};
use collimate::train::run_folder::Existing;

use crate::support::{Anyhow, LANGUAGE_MODELS, folder};

/// Layers of each fixture.
const LAYERS: usize = 3;

pub fn bytes<'a>(params: impl Iterator<Item = &'a Arc<Param>>) -> usize {
    params.map(|p| p.bytes()).sum()
}

/// Asserts that a planned role has the bytes of the decoder that plays it.
#[track_caller]
pub fn check(role: &RoleTensors, model: &Decoder) {
    let name = &role.name;
    let params = model.params();
    assert_eq!(role.weights(), bytes(params.owned()), "{name}: weights");
    let arena = params
        .arena()
        .map_or(0, |a| a.elem_count() * size_of::<f32>());
    assert_eq!(role.gradients(), arena, "{name}: gradients");
    let config = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
    };
    let optimizer = AdamW::new(params, config).unwrap();
    let moments = optimizer.moments().unwrap();
    let moments: usize = moments.iter().map(|m| m.len() * size_of::<f32>()).sum();
    assert_eq!(role.moments(), moments, "{name}: moments");
}

pub fn load(name: &str, head: Head, holding: impl Fn(&TensorSpec) -> Holding) -> Anyhow<Decoder> {
    let folder = folder(name);
    Ok(Decoder::load_sharing(
        &folder,
        head,
        1,
        holding,
        &Backend::CPU,
    )?)
}

pub fn own(training: Trainability) -> impl Fn(&TensorSpec) -> Holding {
    move |_| Holding::Own(training)
}

fn decoder(name: &str) -> Anyhow<DecoderConfig> {
    Ok(HfConfig::read(&folder(name))?.decoder)
}

/// A policy with reward model and judge of its own sizes. The judge shares nothing.
fn models(name: &str) -> Anyhow<PpoModels> {
    Ok(all_of(&folder(name), decoder(name)?))
}

fn all_of(folder: &Path, policy: DecoderConfig) -> PpoModels {
    let described = |folder: &Path, head| ModelDescription {
        folder: folder.to_owned(),
        decoder: DecoderConfig {
            head,
            ..policy.clone()
        },
        adapter: None,
        tokenizer: None,
        origin: Origin::Stage {
            stage: Stage::Pretrain,
            from: None,
            frozen_layers: 0,
        },
    };
    let policy = described(folder, Head::LanguageModel);
    let mut reward = described(Path::new("reward"), Head::Score);
    reward.origin = above_a_trunk(&policy, Stage::Reward);
    PpoModels {
        policy,
        rewards: vec![reward],
        judge: Some(described(Path::new("judge"), Head::Score)),
    }
}

/// The origin of a model that is trained from `policy` in the layers above the lowest ones.
fn above_a_trunk(policy: &ModelDescription, stage: Stage) -> Origin {
    Origin::Stage {
        stage,
        from: Some(Box::new(policy.clone())),
        frozen_layers: policy.decoder.num_hidden_layers,
    }
}

/// The roles of `[ppo]` with what it shares.
fn roles(
    share: Share,
    trunk: Option<usize>,
    lora: Option<LoraTable>,
    models: &PpoModels,
) -> Anyhow<Vec<RoleTensors>> {
    let mut config = Ppo::default();
    config.sharing.share = share;
    config.sharing.trunk_layers = trunk;
    config.sharing.lora = lora;
    Ok(RoleLayout::new(&config, models.clone())?.tensors())
}

pub fn names(roles: &[RoleTensors]) -> Vec<&str> {
    roles.iter().map(|role| role.name.as_str()).collect()
}

#[test]
fn roles_that_share_nothing_hold_what_is_listed() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let roles = roles(Share::None, None, None, &models(name)?)?;
        assert_eq!(
            names(&roles),
            ["actor", "critic", "reference", "reward", "judge"]
        );
        let (trained, frozen) = (Trainability::Trained, Trainability::Frozen);
        let kinds = [
            (Head::LanguageModel, trained),
            (Head::Score, trained),
            (Head::LanguageModel, frozen),
            (Head::Score, frozen),
            (Head::Score, frozen),
        ];
        for (role, (head, training)) in roles.iter().zip(kinds) {
            check(role, &load(name, head, own(training))?);
        }
    }
    Ok(())
}

#[test]
fn roles_on_a_trunk_hold_it_once() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let planned = roles(Share::Trunk, Some(1), None, &models(name)?)?;
        assert_eq!(
            names(&planned),
            ["trunk", "actor", "critic", "reference", "reward", "judge"]
        );
        let reference = load(name, Head::LanguageModel, own(Trainability::Frozen))?;
        let below =
            |spec: &TensorSpec| layer_of(&spec.name).map_or(is_embedding(&spec.name), |l| l < 1);
        let shared = |spec: &TensorSpec| reference.params().find(&spec.name).expect("shared");
        let on_trunk = |training| {
            let (below, shared) = (&below, &shared);
            move |spec: &TensorSpec| match below(spec) {
                true => Holding::Shared(shared(spec)),
                false => Holding::Own(training),
            }
        };
        let actor = load(name, Head::LanguageModel, on_trunk(Trainability::Trained))?;
        check(&planned[1], &actor);
        check(
            &planned[2],
            &load(name, Head::Score, on_trunk(Trainability::Trained))?,
        );
        check(
            &planned[4],
            &load(name, Head::Score, on_trunk(Trainability::Frozen))?,
        );
        assert_eq!(
            planned[0].weights(),
            bytes(actor.params().shared()),
            "{name}"
        );
        let whole = bytes(reference.params().owned());
        assert_eq!(planned[0].weights() + planned[3].weights(), whole, "{name}");
        assert_eq!((planned[0].gradients(), planned[3].gradients()), (0, 0));
        assert_eq!(planned[1].graph_begins(LAYERS), 1, "{name}");
        // A judge on the shared trunk owns as much as a reward model; any other judge is a whole
        // model.
        assert_eq!(planned[5].weights(), whole_judge(name)?, "{name}");
        let mut sharing = models(name)?;
        let judge = sharing.judge.as_mut().expect("a judge");
        judge.origin = above_a_trunk(&sharing.policy, Stage::Judge);
        let shared = roles(Share::Trunk, Some(1), None, &sharing)?;
        assert_eq!(shared[5].tensors, planned[4].tensors, "{name}");
    }
    Ok(())
}

fn whole_judge(name: &str) -> Anyhow<usize> {
    let judge = load(name, Head::Score, own(Trainability::Frozen))?;
    Ok(bytes(judge.params().owned()))
}

pub fn lora(layers_to_transform: Option<LayersToTransform>) -> LoraTable {
    LoraTable {
        r: Some(3),
        lora_alpha: Some(4.0),
        target_modules: Some(TargetModules::AllLinear),
        layers_to_transform,
        ..LoraTable::default()
    }
}

#[test]
fn roles_of_adapters_hold_the_base_once() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let lora = lora(Some(LayersToTransform::Top(1)));
        let mut models = models(name)?;
        let resolved = Lora::new(&lora, &models.policy.decoder)?;
        let adapter = AdapterDescription {
            lora: resolved.clone(),
            base: folder(name),
            has_score: true,
        };
        models.rewards[0].adapter = Some(adapter.clone());
        models.judge = Some(models.rewards[0].clone());
        let planned = roles(Share::Adapter, None, Some(lora.clone()), &models)?;
        assert_eq!(
            names(&planned),
            ["base", "actor", "critic", "reward", "judge"]
        );
        let base = load(name, Head::LanguageModel, own(Trainability::Frozen))?;
        let adapt = |head, training| Decoder::adapt(&base, &lora, head, 1, training);
        check(&planned[0], &base);
        check(
            &planned[1],
            &adapt(Head::LanguageModel, Trainability::Trained)?,
        );
        check(&planned[2], &adapt(Head::Score, Trainability::Trained)?);
        check(&planned[3], &adapt(Head::Score, Trainability::Frozen)?);
        check(&planned[4], &adapt(Head::Score, Trainability::Frozen)?);
        assert_eq!(planned[1].graph_begins(LAYERS), LAYERS - 1, "{name}");

        let trainee = RoleTensors::adapted(&models.policy.decoder, Head::Score, &resolved);
        check(&trainee[0], &base);
        check(&trainee[1], &adapt(Head::Score, Trainability::Trained)?);

        // The policy's folder holds adapters: they are trained further, and the reference keeps a
        // copy of the initial ones. No other settings are given.
        models.policy.adapter = Some(adapter);
        let further = roles(Share::Adapter, None, None, &models)?;
        assert_eq!(
            names(&further),
            ["base", "actor", "critic", "reference", "reward", "judge"]
        );
        check(
            &further[1],
            &adapt(Head::LanguageModel, Trainability::Trained)?,
        );
        check(
            &further[3],
            &adapt(Head::LanguageModel, Trainability::Frozen)?,
        );
    }
    Ok(())
}

/// The planned roles of a stage on a fixture's model, with these keys in its table.
fn planned(stage: &str, name: &str, keys: &str) -> Anyhow<Vec<RoleTensors>> {
    let text = format!(
        "[run]\nname = \"trial\"\n[{stage}]\nfrom = {:?}\ndata = \"records.jsonl\"\n{keys}\n",
        folder(name)
    );
    let document = Document::parse(&text, Path::new("config.toml"))?;
    let config = Config::resolve(&document)?;
    Ok(plans(&config, &config.stages(), Existing::Continue)?
        .remove(0)
        .roles)
}

/// The plan of a stage that trains one model, for each choice of what is trained.
#[test]
fn a_stage_holds_what_is_planned_for_it() -> Anyhow {
    let lora = lora(Some(LayersToTransform::Top(1)));
    let table = "lora = { r = 3, lora_alpha = 4.0, target_modules = \"all-linear\", \
                 layers_to_transform = \"top:1\" }";
    let stages = [
        ("sft", Head::LanguageModel),
        ("dpo", Head::LanguageModel),
        ("reward", Head::Score),
    ];
    // The lowest trained layer, and whether the embeddings are trained.
    let choices = [
        ("", 0, true),
        ("freeze_embeddings = true", 0, false),
        ("freeze_layers = 1", 1, false),
    ];
    for name in LANGUAGE_MODELS {
        let base = load(name, Head::LanguageModel, own(Trainability::Frozen))?;
        for (stage, head) in stages {
            for (keys, lowest, embeddings) in choices {
                let holding = |spec: &TensorSpec| match layer_of(&spec.name) {
                    Some(layer) if layer < lowest => Holding::Own(Trainability::Frozen),
                    None if is_embedding(&spec.name) && !embeddings => {
                        Holding::Own(Trainability::Frozen)
                    }
                    _ => Holding::Own(Trainability::Trained),
                };
                let planned = planned(stage, name, keys)?;
                assert_eq!(names(&planned), ["model"]);
                check(&planned[0], &load(name, head, holding)?);
            }
            let planned = planned(stage, name, table)?;
            assert_eq!(names(&planned), ["base", "adapters"]);
            check(&planned[0], &base);
            let adapted = Decoder::adapt(&base, &lora, head, 1, Trainability::Trained)?;
            check(&planned[1], &adapted);
        }
    }
    Ok(())
}

/// The four roles of SmolLM2-135M, against the size of one model.
#[test]
fn four_roles_cost_little_more_than_one_model() -> Anyhow {
    let sizes = Geometry {
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: None,
        vocab_size: 49152,
        max_position_embeddings: 8192,
    };
    let mut policy = DecoderConfig::from_scratch(Family::Llama, &sizes)?;
    policy.tie_word_embeddings = true;
    let lora = LoraTable {
        target_modules: Some(TargetModules::AllLinear),
        ..LoraTable::default()
    };
    assert_eq!(lora.r(), 16);
    let mut models = all_of(Path::new("policy"), policy.clone());
    models.judge = None;
    models.rewards[0].adapter = Some(AdapterDescription {
        lora: Lora::new(&lora, &policy)?,
        base: "policy".into(),
        has_score: true,
    });
    let weights = |share, trunk, lora| -> Anyhow<usize> {
        let roles = roles(share, trunk, lora, &models)?;
        Ok(roles.iter().map(RoleTensors::weights).sum())
    };
    let one = policy
        .tensors()
        .iter()
        .map(TensorSpec::numel)
        .sum::<usize>()
        * size_of::<f32>();
    let trunk = weights(Share::Trunk, Some(24), None)? as f64 / one as f64;
    let adapter = weights(Share::Adapter, None, Some(lora))? as f64 / one as f64;
    assert!(trunk > 1.0 && trunk <= 1.50, "{trunk}");
    assert!(adapter > 1.0 && adapter <= 1.12, "{adapter}");
    Ok(())
}

/// A base that is a reward model has a head of its own beside the trained one.
#[test]
fn a_reward_model_as_a_base_keeps_its_head() -> Anyhow {
    let (name, lora) = ("llama_reward", lora(None));
    let decoder = decoder(name)?;
    let roles = RoleTensors::adapted(&decoder, Head::Score, &Lora::new(&lora, &decoder)?);
    let base = load(name, Head::Score, own(Trainability::Frozen))?;
    check(&roles[0], &base);
    let model = Decoder::adapt(&base, &lora, Head::Score, 1, Trainability::Trained)?;
    check(&roles[1], &model);
    Ok(())
}
