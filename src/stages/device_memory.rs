//! The error of a stage for which a GPU has too little memory.

use anyhow::{Error, anyhow};
use kernels::device::KernelError;

use crate::config::{Config, Recompute, Share, Stage, StageTable, Training};
use crate::ops::work::{DeviceWork, WorkError};

/// The name that the driver gives this error, where candle allocates.
const DRIVERS_NAME: &str = "CUDA_ERROR_OUT_OF_MEMORY";

/// The error of a stage; where a GPU's memory was too small, one that says for what, and which keys
/// to change.
pub fn explain(error: Error, config: &Config, stage: Stage) -> Error {
    let found = error.chain().find_map(|cause| cause.downcast_ref());
    let (work, found) = match found {
        Some(
            found @ WorkError {
                work,
                error: KernelError::OutOfMemory { .. },
            },
        ) => (*work, found.to_string()),
        None if is_drivers(&error) => (
            DeviceWork::Other,
            "the GPU has too little memory".to_owned(),
        ),
        _ => return error,
    };
    anyhow!(
        "{found}; {}. Checkpoints stay: the same command continues from the newest",
        mend(config, stage, work)
    )
}

fn is_drivers(error: &Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| cause.to_string().contains(DRIVERS_NAME))
}

/// The changes that help.
fn mend(config: &Config, stage: Stage, work: DeviceWork) -> String {
    let training = config.training(stage);
    let mut changes = match work {
        DeviceWork::Cache | DeviceWork::Generation => generation(config, stage),
        DeviceWork::Forward(_) => passes(stage, training).into_iter().collect(),
        DeviceWork::Training(_) | DeviceWork::Other => {
            let recompute = training.filter(|training| training.recompute == Recompute::None);
            let recompute = recompute.map(|_| format!("set {stage}.recompute = \"block\""));
            passes(stage, training)
                .into_iter()
                .chain(recompute)
                .collect()
        }
        DeviceWork::Loading(_) | DeviceWork::Optimizer => Vec::new(),
    };
    changes.extend(weights(config, stage));
    match changes.pop() {
        None => "use a smaller model, or a GPU with more memory".to_owned(),
        Some(last) if changes.is_empty() => last,
        Some(last) => format!("{}, or {last}", changes.join(", ")),
    }
}

/// Keys of generation.
fn generation(config: &Config, stage: Stage) -> Vec<String> {
    let rollout = config.ppo.as_ref().filter(|_| stage == Stage::Ppo);
    let Some(rollout) = rollout.map(|ppo| &ppo.rollout) else {
        return Vec::new();
    };
    let cache = match (rollout.cache_bytes, rollout.cache_tokens) {
        (Some(bytes), _) => format!("lower ppo.cache_bytes (now {bytes})"),
        (_, Some(tokens)) => format!("lower ppo.cache_tokens (now {tokens})"),
        (None, None) => "set ppo.cache_tokens".to_owned(),
    };
    let batch = rollout.rollout_batch;
    let batch = (batch > 1).then(|| format!("lower ppo.rollout_batch (now {batch})"));
    batch.into_iter().chain([cache]).collect()
}

/// The key of the size of a pass.
fn passes(stage: Stage, training: Option<&Training>) -> Option<String> {
    let tokens = training?.micro_batch_tokens;
    Some(format!("lower {stage}.micro_batch_tokens (now {tokens})"))
}

/// The change that leaves fewer weights, gradients and moments.
fn weights(config: &Config, stage: Stage) -> Option<String> {
    let shares = |share| format!("share weights (ppo.share = \"{share}\")");
    match stage {
        Stage::Pretrain => Some("make the model smaller (model.hidden_size)".to_owned()),
        Stage::Ppo => match config.ppo.as_ref()?.sharing.share {
            Share::None => Some(shares("adapter")),
            Share::Trunk => Some("raise ppo.trunk_layers".to_owned()),
            Share::Adapter => None,
        },
        _ => {
            let table = config.table(stage).and_then(StageTable::lora);
            table
                .is_none()
                .then(|| format!("train adapters (a [{stage}.lora] table)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Override;

    fn config(overrides: &[&str]) -> Config {
        let text = "[run]\nname = \"t\"\n[sft]\nfrom = \"m\"\ndata = \"d\"\nmax_steps = 1\n\
                    [ppo]\nfrom = \"m\"\nprompts = \"d\"\nreward_model = \"r\"\nmax_steps = 1\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let overrides: Vec<Override> = overrides.iter().map(|key| key.parse().unwrap()).collect();
        Config::load(file.path(), &overrides).unwrap()
    }

    #[test]
    fn only_keys_that_the_stage_has_and_that_can_help_are_named() {
        let mends = |overrides: &[&str], stage, work| mend(&config(overrides), stage, work);
        let training = mends(
            &["sft.micro_batch_tokens=4096"],
            Stage::Sft,
            DeviceWork::Training("model"),
        );
        assert_eq!(
            training,
            "lower sft.micro_batch_tokens (now 4096), set sft.recompute = \"block\", or train \
             adapters (a [sft.lora] table)"
        );
        let recomputed = ["sft.recompute=block", "sft.lora.r=4"];
        let recomputed = mends(&recomputed, Stage::Sft, DeviceWork::Training("model"));
        assert!(!recomputed.contains("recompute") && !recomputed.contains("lora"));
        assert_eq!(
            mends(&["ppo.cache_tokens=99"], Stage::Ppo, DeviceWork::Cache),
            "lower ppo.rollout_batch (now 64), lower ppo.cache_tokens (now 99), or share weights \
             (ppo.share = \"adapter\")"
        );
        let shared = ["ppo.share=adapter", "ppo.lora.r=4"];
        assert_eq!(
            mends(&shared, Stage::Ppo, DeviceWork::Loading("critic")),
            "use a smaller model, or a GPU with more memory"
        );
    }

    #[test]
    fn other_errors_stay() {
        let error = explain(anyhow!("a file is missing"), &config(&[]), Stage::Sft);
        assert_eq!(error.to_string(), "a file is missing");
        let error = anyhow!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        let text = explain(error, &config(&[]), Stage::Sft).to_string();
        assert!(text.contains("sft.micro_batch_tokens"), "{text}");
    }
}
