use std::path::Path;

use super::*;
use crate::config::Share;
use crate::roles::{ModelDescription, PpoModels, RoleWeights};

/// 2 samples each of 2 prompts, of up to 12 + 8 tokens.
fn small() -> Ppo {
    let mut config = Ppo::default();
    config.training.batch_size = 4;
    config.rollout.rollout_batch = 3;
    config.num_samples_per_prompt = 2;
    config.generation.max_new_tokens = 8;
    config.sharing.share = Share::Trunk;
    config.sharing.trunk_layers = Some(1);
    config
}

/// The boundary buffer, in tokens; with a judge on the trunk where there is `judge` one.
fn tokens(config: &Ppo, judge: bool) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama");
    let policy = ModelDescription::read(&folder).unwrap();
    let models = PpoModels {
        policy: policy.clone(),
        rewards: Vec::new(),
        judge: None,
    };
    let mut layout = RoleLayout::new(config, models).unwrap();
    let width = policy.decoder.hidden_size;
    layout.judge = judge.then(|| RoleModel {
        weights: RoleWeights::Branch { trunk_layers: 1 },
        ..layout.actor.clone()
    });
    let buffers = PpoBuffers {
        config,
        layout: &layout,
        roles: &layout.tensors(),
        prompts: &PlannedPrompts {
            tokens: 12,
            training: 9,
            evaluation: 5,
            note: String::new(),
        },
        kernel: ProductKernel::Chains,
        device: Device::Cpu,
    };
    buffers.boundary().unwrap().bytes / width / size_of::<f32>()
}

/// By hand. A batch has 2 prompts of 12 tokens and 4 completions, of 7 tokens that are read, or 8
/// if a judge reads the last.
#[test]
fn the_largest_of_the_states_held_at_once_counts() {
    let held = |change: &dyn Fn(&mut Ppo), judge| {
        let mut config = small();
        change(&mut config);
        tokens(&config, judge)
    };
    let evaluated = |config: &mut Ppo| config.eval_prompts = "held-out.jsonl".into();
    let batch = 2 * 12 + 4 * 7;
    assert_eq!(held(&|_| {}, false), batch);
    // Evaluation holds 4 of 5 prompts at once; all of them if 64 sequences run at once; and 3 if it
    // samples 3.
    assert_eq!(held(&evaluated, false), 4 * (12 + 7));
    assert_eq!(held(&evaluated, true), 4 * (12 + 8));
    let wide = |config: &mut Ppo| {
        evaluated(config);
        config.rollout.rollout_batch = 64;
    };
    assert_eq!(held(&wide, false), 5 * (12 + 7));
    let few = |config: &mut Ppo| {
        wide(config);
        config.evaluation.eval_samples = 3;
    };
    assert_eq!(held(&few, false), 3 * (12 + 7));
    // The reference answers all 9 prompts to train on.
    let reference = |config: &mut Ppo| {
        few(config);
        config.scores.score_normalization = ScoreNormalization::Reference;
    };
    assert_eq!(held(&reference, false), 9 * (12 + 7));
    let remax = |config: &mut Ppo| {
        config.objective.advantage_estimator = AdvantageEstimator::Remax;
    };
    assert_eq!(held(&remax, false), batch + 2 * (12 + 7));
}
