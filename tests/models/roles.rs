//! Tensors that PPO's loaded roles own, against what `plan` lists for the same folders.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use collimate::config::{Config, Document, LayersToTransform, Ppo};
use collimate::model::config::{Head, TensorSpec};
use collimate::model::hf_config::HfConfig;
use collimate::model::trunk::in_trunk;
use collimate::model::weights::SaveDtype;
use collimate::model::{Decoder, Holding};
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use collimate::roles::{ModelDescription, PpoModels, RoleLayout, RoleTensors, Roles};
use collimate::stages::preflight::plans;
use collimate::train::run_folder::Existing;
use tempfile::TempDir;

use crate::memory::{bytes, check, load, lora, names, own};
use crate::support::{Anyhow, LANGUAGE_MODELS, folder};

/// `[ppo]`'s keys for the adapters of [`lora`], on the top layer.
const ADAPTERS: &str = "share = \"adapter\"\nlora = { r = 3, lora_alpha = 4.0, \
                        target_modules = \"all-linear\", layers_to_transform = \"top:1\" }";

/// The folders that PPO starts from, and the keys of its sharing.
struct Case {
    policy: PathBuf,
    reward: TempDir,
    judge: TempDir,
    /// The keys of the sharing.
    keys: &'static str,
}

impl Case {
    /// The configuration. Evaluations read the reference and the judge; without evaluations and
    /// without a KL, neither is read.
    fn config(&self, critic_from: &str, evaluated: bool) -> Anyhow<Config> {
        let read = match evaluated {
            true => format!(
                "eval_prompts = \"held-out.jsonl\"\njudge_model = {:?}",
                self.judge.path()
            ),
            false => "kl_coef = 0.0".to_owned(),
        };
        let text = format!(
            "[run]\nname = \"trial\"\n[ppo]\nfrom = {:?}\nprompts = \"prompts.jsonl\"\n{read}\n\
             reward_model = {:?}\n\
             critic_from = \"{critic_from}\"\nmax_new_tokens = 4\n{}\n",
            self.policy,
            self.reward.path(),
            self.keys
        );
        let document = Document::parse(&text, Path::new("config.toml"))?;
        Ok(Config::resolve(&document)?)
    }

    /// Compares the loaded roles with the plan, for every start of the critic, with and without
    /// reference and judge; returns the names in the plan.
    fn check(&self) -> Anyhow<Vec<String>> {
        let without = self.check_with(false)?;
        let mut with = self.check_with(true)?;
        let all = with.clone();
        with.retain(|name| name != "reference" && name != "judge");
        assert_eq!(without, with);
        Ok(all)
    }

    fn check_with(&self, evaluated: bool) -> Anyhow<Vec<String>> {
        let mut found = Vec::new();
        for key in ["policy", "reward_model"] {
            let config = self.config(key, evaluated)?;
            let planned = plans(&config, &config.stages(), Existing::Continue)?
                .remove(0)
                .roles;
            let loaded = load_roles(config.ppo.as_ref().expect("ppo"))?;
            assert_eq!(loaded.reference.is_some(), evaluated);
            check_roles(&planned, &loaded);
            found = names(&planned).into_iter().map(str::to_owned).collect();
        }
        Ok(found)
    }
}

/// The roles as PPO loads them.
fn load_roles(config: &Ppo) -> Anyhow<Roles> {
    let models = PpoModels::describe(config, ModelDescription::read)?;
    let layout = RoleLayout::new(config, models)?;
    Ok(Roles::load(
        layout,
        &config.reward_components(),
        1,
        &Backend::CPU,
    )?)
}

/// Asserts that each role owns what is listed for it, and that all of them together hold no other
/// tensor.
#[track_caller]
fn check_roles(planned: &[RoleTensors], roles: &Roles) {
    let critic = roles.critic.as_ref().expect("a critic");
    let reward = roles.reward.models().next().expect("a reward model").1;
    let reference = roles.reference.as_ref().map(|model| ("reference", model));
    let judge = roles.judge.as_ref();
    let judge = judge.map(|judge| ("judge", judge.decoder()));
    let always = [
        ("actor", &roles.actor),
        ("critic", critic),
        ("reward", reward.decoder()),
    ];
    let decoders: Vec<_> = always.into_iter().chain(reference).chain(judge).collect();
    let listed = |name: &str| planned.iter().find(|role| role.name == name);
    for &(name, decoder) in &decoders {
        match (listed(name), name) {
            // The reference is the initial policy, including what other roles share with it.
            (Some(role), "reference") if listed("trunk").is_some() => {
                let trunk = bytes(roles.actor.params().shared());
                let owned = bytes(decoder.params().owned());
                assert_eq!(role.weights() + trunk, owned, "{name}");
                assert_eq!(listed("trunk").map(RoleTensors::weights), Some(trunk));
            }
            (Some(role), _) => check(role, decoder),
            (None, _) => {
                assert_eq!(name, "reference");
                check(listed("base").expect("a base"), decoder);
            }
        }
    }
    let params = decoders
        .iter()
        .flat_map(|(_, decoder)| decoder.params().iter());
    let each: HashMap<_, _> = params.map(|p| (Arc::as_ptr(p), p.bytes())).collect();
    let listed: usize = planned.iter().map(RoleTensors::weights).sum();
    assert_eq!(each.values().sum::<usize>(), listed);
}

/// A reward model whose lowest `layers` layers are those of `policy`.
fn branch(policy: &Path, layers: usize) -> Anyhow<TempDir> {
    let holding = |spec: &TensorSpec| match layers > 0 && in_trunk(&spec.name, layers) {
        true => Holding::Own(Trainability::Frozen),
        false => Holding::Own(Trainability::Trained),
    };
    let saved = tempfile::tempdir()?;
    Decoder::load_sharing(policy, Head::Score, 3, holding, &Backend::CPU)?
        .save(saved.path(), SaveDtype::Float32)?;
    Ok(saved)
}

/// A reward model that has the sizes of `policy` and none of its weights.
fn stranger(policy: &Path) -> Anyhow<TempDir> {
    let mut config = HfConfig::read(policy)?;
    config.decoder.head = Head::Score;
    let saved = tempfile::tempdir()?;
    Decoder::fresh(config, 5, |_| Trainability::Frozen, &Backend::CPU)?
        .save(saved.path(), SaveDtype::Float32)?;
    Ok(saved)
}

/// A folder of adapters for the top layer of a fixture.
fn adapter(name: &str, head: Head) -> Anyhow<TempDir> {
    let base = load(name, Head::LanguageModel, own(Trainability::Frozen))?;
    let saved = tempfile::tempdir()?;
    Decoder::adapt(
        &base,
        &lora(Some(LayersToTransform::Top(1))),
        head,
        2,
        Trainability::Trained,
    )?
    .save_adapter(saved.path(), &folder(name), SaveDtype::Float32)?;
    Ok(saved)
}

#[test]
fn roles_that_share_nothing_own_what_is_planned() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let policy = folder(name);
        let case = Case {
            reward: branch(&policy, 0)?,
            judge: stranger(&policy)?,
            policy,
            keys: "",
        };
        let names = ["actor", "critic", "reference", "reward", "judge"];
        assert_eq!(case.check()?, names, "{name}");
    }
    Ok(())
}

#[test]
fn roles_on_a_trunk_own_what_is_planned() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let policy = folder(name);
        for judge in [branch(&policy, 2)?, stranger(&policy)?] {
            let case = Case {
                policy: policy.clone(),
                reward: branch(&policy, 2)?,
                judge,
                keys: "share = \"trunk\"\ntrunk_layers = 2",
            };
            let names = ["trunk", "actor", "critic", "reference", "reward", "judge"];
            assert_eq!(case.check()?, names, "{name}");
        }
    }
    Ok(())
}

#[test]
fn roles_of_adapters_own_what_is_planned() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let policy = folder(name);
        for judge in [adapter(name, Head::Score)?, stranger(&policy)?] {
            let case = Case {
                policy: policy.clone(),
                reward: adapter(name, Head::Score)?,
                judge,
                keys: ADAPTERS,
            };
            let names = ["base", "actor", "critic", "reward", "judge"];
            assert_eq!(case.check()?, names, "{name}");
        }
        // A policy that starts with adapters leaves a frozen copy of them to the reference.
        let tuned = adapter(name, Head::LanguageModel)?;
        let case = Case {
            policy: tuned.path().to_owned(),
            reward: adapter(name, Head::Score)?,
            judge: adapter(name, Head::Score)?,
            keys: "share = \"adapter\"",
        };
        let names = ["base", "actor", "critic", "reference", "reward", "judge"];
        assert_eq!(case.check()?, names, "{name}");
    }
    Ok(())
}
