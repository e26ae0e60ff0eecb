//! Reward models and the judge on the common ground: whether they were trained on it, and what of it they share.

use std::path::Path;

use super::{Ground, Result, Sharing, lowest_adapter};
use crate::model::config::{Head, SCORE, weight};
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::model::lora::folder::{ADAPTER_WEIGHTS, AdapterFolder};
use crate::model::{Decoder, ModelError};
use crate::ops::param::Trainability;
use crate::reward::RewardModel;

impl Ground<'_> {
    /// A frozen reward model. One without adapters stands alone where the others are adapters.
    ///
    /// # Errors
    /// As [`Ground::critic`].
    pub fn reward_model(&self, folder: &Path) -> Result<RewardModel> {
        let whole = || Ok::<_, ModelError>(AdapterConfig::find(folder)?.is_none());
        match self.sharing {
            Sharing::None => RewardModel::load(folder, self.backend),
            Sharing::Adapter(_) if whole()? => RewardModel::load(folder, self.backend),
            _ => Ok(RewardModel::sharing(
                self.scorer(folder, Trainability::Frozen)?,
            )),
        }
    }

    /// A frozen reward model that only evaluations use. It shares what it can: trained on other ground, as judges often are, it stands
    /// alone. It starts from the states at the roles' `boundary` unless it has adapters below that.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn judge(&self, folder: &Path, boundary: Option<usize>) -> Result<RewardModel> {
        let shared = match self.sharing {
            Sharing::None => None,
            _ => unless_foreign(self.scorer(folder, Trainability::Frozen))?,
        };
        let Some(judge) = shared else {
            return RewardModel::load(folder, self.backend);
        };
        let from_states = boundary.is_some_and(|layer| match self.sharing {
            Sharing::Adapter(_) => lowest_adapter(&judge) >= layer,
            _ => true,
        });
        Ok(match from_states {
            true => RewardModel::sharing(judge),
            false => RewardModel::new(judge),
        })
    }

    /// A reward model's own weights on what it shares.
    pub(super) fn scorer(&self, folder: &Path, training: Trainability) -> Result<Decoder> {
        self.check(folder)?;
        let head = Head::Score;
        match self.sharing {
            Sharing::Trunk { layers } => {
                Decoder::load_on_trunk(self.base()?, *layers, folder, head, 0, training)
            }
            _ => Decoder::load_adapter(self.base()?, folder, head, self.seed, training),
        }
    }

    /// Makes sure that a reward model was trained on this ground; of each folder once.
    fn check(&self, folder: &Path) -> Result<()> {
        if self.known.borrow().contains(folder) {
            return Ok(());
        }
        if HfConfig::read(folder)?.decoder.head != Head::Score {
            let needed = "a reward model (...ForSequenceClassification with one label)";
            return refuse(folder, "a language model", needed);
        }
        match self.sharing {
            Sharing::Trunk { layers } => self.base()?.trunk(*layers)?.check(folder)?,
            _ => self.check_adapter(folder)?,
        }
        self.known.borrow_mut().insert(folder.to_owned());
        Ok(())
    }

    /// An adapter with a head. Whether its base is this one is seen when it is loaded, if it says which it was; PEFT notes that by the
    /// base's folder alone.
    fn check_adapter(&self, folder: &Path) -> Result<()> {
        check_has_adapter(folder)?;
        let adapter = AdapterFolder::open(folder, self.base()?.decoder_config())?;
        if !adapter.has(&weight(SCORE)) {
            let needed = "one with the scalar head that it was trained with (PEFT: modules_to_save = [\"score\"])";
            return refuse(folder, "an adapter without score.weight", needed);
        }
        if adapter.has_note() {
            return Ok(());
        }
        self.check_base(folder, &adapter.config.base_folder(folder)?)
    }

    fn check_base(&self, folder: &Path, base: &Path) -> Result<()> {
        let layers = self.base()?.decoder_config().num_hidden_layers;
        let as_base = |error| match error {
            ModelError::OtherTrunk {
                expected, found, ..
            } => ModelError::OtherBase {
                file: folder.join(ADAPTER_WEIGHTS),
                expected: found,
                found: expected,
            },
            other => other,
        };
        self.base()?.trunk(layers)?.check(base).map_err(as_base)
    }
}

/// Checks that a folder holds adapters rather than a whole model.
///
/// # Errors
/// If it does not.
pub fn check_has_adapter(folder: &Path) -> Result<()> {
    if AdapterConfig::find(folder)?.is_some() {
        return Ok(());
    }
    let needed =
        "an adapter on the policy's base ([reward.lora]), or ppo.critic_from = \"policy\",";
    refuse(folder, "a whole reward model", needed)
}

/// What was loaded; `None` where it turned out to be no model of this ground.
fn unless_foreign(loaded: Result<Decoder>) -> Result<Option<Decoder>> {
    match loaded {
        Ok(decoder) => Ok(Some(decoder)),
        Err(
            ModelError::OtherTrunk { .. }
            | ModelError::OtherLayers { .. }
            | ModelError::OtherBase { .. }
            | ModelError::Kind { .. }
            | ModelError::Lora(_),
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

fn refuse(folder: &Path, found: &'static str, needed: &'static str) -> Result<()> {
    Err(ModelError::Kind {
        folder: folder.to_owned(),
        found,
        needed,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Device;

    use super::super::CriticStart;
    use super::*;
    use crate::model::config::TensorSpec;
    use crate::model::hf_config::adapter::ADAPTER_CONFIG;
    use crate::model::lora::{Layers, LoraConfig};
    use crate::model::trunk::in_trunk;
    use crate::model::weights::SaveDtype;
    use crate::ops::backend::Backend;
    use crate::reward::TrunkUse;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name)
    }

    /// An adapter that peft wrote has no fingerprint: the model that it names is held against the policy.
    #[expect(clippy::disallowed_methods, reason = "the file is to lack something")]
    #[test]
    fn an_adapter_of_another_base_or_without_a_head_is_no_reward_model() {
        let (policy, reward) = (golden("models/llama"), golden("adapters/llama_reward"));
        let sharing = Sharing::Adapter(None);
        let load = |policy: &Path, reward: &Path| {
            let ground = Ground::load(policy, &sharing, 0, &Backend::CPU).unwrap();
            ground.reward_model(reward).map(|model| model.trunk_use())
        };
        assert_eq!(load(&policy, &reward).unwrap(), TrunkUse::Shared);

        let folder = tempfile::tempdir().unwrap();
        let config = HfConfig::read(&policy).unwrap();
        let other = Decoder::fresh(config, 5, |_| Trainability::Frozen, &Backend::CPU).unwrap();
        other.save(folder.path(), SaveDtype::Float32).unwrap();
        let error = load(folder.path(), &reward).unwrap_err().to_string();
        assert!(
            error.contains("trained on a base with fingerprint"),
            "{error}"
        );

        let headless = tempfile::tempdir().unwrap();
        let tensors = candle_core::safetensors::load(reward.join(ADAPTER_WEIGHTS), &Device::Cpu);
        let mut tensors = tensors.unwrap();
        tensors.retain(|name, _| !name.contains("score"));
        candle_core::safetensors::save(&tensors, headless.path().join(ADAPTER_WEIGHTS)).unwrap();
        let text = std::fs::read_to_string(reward.join(ADAPTER_CONFIG)).unwrap();
        let mut keys: serde_json::Value = serde_json::from_str(&text).unwrap();
        keys["base_model_name_or_path"] = policy.display().to_string().into();
        std::fs::write(headless.path().join(ADAPTER_CONFIG), keys.to_string()).unwrap();
        let error = load(&policy, headless.path()).unwrap_err().to_string();
        assert!(error.contains("without score.weight"), "{error}");
    }

    /// Tensors that a judge shares, and what it starts from.
    fn found(judge: &RewardModel) -> (usize, TrunkUse) {
        (judge.decoder().params().shared().count(), judge.trunk_use())
    }

    #[test]
    fn a_judge_shares_the_trunk_that_it_was_trained_on() {
        let (policy, folder) = (golden("models/llama"), tempfile::tempdir().unwrap());
        let training = |spec: &TensorSpec| match in_trunk(&spec.name, 1) {
            true => Trainability::Frozen,
            false => Trainability::Trained,
        };
        let branch = Decoder::load(&policy, Head::Score, 3, training, &Backend::CPU).unwrap();
        let shift = |values: &mut [f32]| values.iter_mut().for_each(|x| *x += 0.01);
        let trained = branch.params().trained();
        trained.for_each(|param| param.update(shift).unwrap());
        branch.save(folder.path(), SaveDtype::Float32).unwrap();
        let judge = |sharing: Sharing, folder: &Path, boundary| {
            let ground = Ground::load(&policy, &sharing, 0, &Backend::CPU).unwrap();
            ground.judge(folder, boundary).map(|judge| found(&judge))
        };
        let (trunk, branch) = (|layers| Sharing::Trunk { layers }, folder.path());
        let tensors = branch_tensors(&policy, 1);
        let shared = judge(trunk(1), branch, Some(1)).unwrap();
        assert_eq!(shared, (tensors, TrunkUse::Shared));
        // What it shares ends below the layers that it was trained in.
        let alone = (0, TrunkUse::None);
        assert_eq!(judge(trunk(2), branch, Some(2)).unwrap(), alone);
        assert_eq!(judge(Sharing::None, branch, None).unwrap(), alone);
        assert_eq!(
            judge(Sharing::Adapter(None), branch, Some(1)).unwrap(),
            alone
        );
        // A critic and a reward model of one folder are held against the trunk once: by the second time it has another.
        let sharing = trunk(1);
        let ground = Ground::load(&policy, &sharing, 0, &Backend::CPU).unwrap();
        ground.reward_model(branch).unwrap();
        let all = Decoder::load(
            branch,
            Head::Score,
            3,
            |_| Trainability::Trained,
            &Backend::CPU,
        );
        let all = all.unwrap();
        let mut all_trained = all.params().trained();
        all_trained
            .try_for_each(|param| param.update(shift))
            .unwrap();
        all.save(branch, SaveDtype::Float32).unwrap();
        let critic = || CriticStart::RewardModel(branch);
        assert!(ground.critic(critic()).is_ok());
        let again = Ground::load(&policy, &sharing, 0, &Backend::CPU).unwrap();
        assert!(again.critic(critic()).is_err());

        let other = golden("models/llama_reward");
        assert_eq!(judge(trunk(1), &other, Some(1)).unwrap(), alone);
        let error = judge(trunk(1), &policy, Some(1)).unwrap_err().to_string();
        assert!(error.contains("a language model"), "{error}");
    }

    fn branch_tensors(policy: &Path, layers: usize) -> usize {
        let tensors = HfConfig::read(policy).unwrap().decoder.tensors();
        let in_trunk = |spec: &&TensorSpec| in_trunk(&spec.name, layers);
        tensors.iter().filter(in_trunk).count()
    }

    /// The judge's adapters do not lower the boundary: it reads ids if they reach below it.
    #[test]
    fn a_judge_of_adapters_shares_their_base() {
        let (policy, folder) = (golden("models/llama"), tempfile::tempdir().unwrap());
        let frozen = |_: &_| Trainability::Frozen;
        let head = Head::LanguageModel;
        let base = Decoder::load(&policy, head, 0, frozen, &Backend::CPU).unwrap();
        let lora = LoraConfig {
            layers_to_transform: Layers::Top(2),
            ..LoraConfig::default()
        };
        let adapted = Decoder::adapt(&base, &lora, Head::Score, 3, Trainability::Trained).unwrap();
        let saved = adapted.save_adapter(folder.path(), &policy, SaveDtype::Float32);
        saved.unwrap();
        let judge = |policy: &Path, boundary| {
            let sharing = Sharing::Adapter(None);
            let ground = Ground::load(policy, &sharing, 0, &Backend::CPU).unwrap();
            let judge = ground.judge(folder.path(), boundary);
            judge.map(|judge| found(&judge)).unwrap()
        };
        let all = base.params().iter().count();
        let score_has_no_lm_head = all - usize::from(!base.decoder_config().tie_word_embeddings);
        for (boundary, standing) in [
            (Some(1), TrunkUse::Shared),
            (Some(2), TrunkUse::None),
            (None, TrunkUse::None),
        ] {
            assert_eq!(judge(&policy, boundary), (score_has_no_lm_head, standing));
        }
        // On another base it is merged into its own.
        let other = tempfile::tempdir().unwrap();
        let config = HfConfig::read(&policy).unwrap();
        let fresh = Decoder::fresh(config, 5, frozen, &Backend::CPU).unwrap();
        fresh.save(other.path(), SaveDtype::Float32).unwrap();
        assert_eq!(judge(other.path(), Some(1)), (0, TrunkUse::None));
    }
}
