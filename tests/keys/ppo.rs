//! The keys of `[ppo]`, without those of scores.

use crate::bench::Bench;
use crate::row::{Row, row};
use crate::training;

/// Why evaluation keys change no weights.
const MEASURES: &str = "evaluations draw from keys of their own and move nothing";

/// A reward that shares nothing with the policy.
const RULE: &str = "rule.toml";

/// Keys of where the roles start, and keys that every stage has.
pub fn start() -> Vec<Row> {
    let mut rows = training::rows("ppo", ["0.2", "0.5"], "32");
    rows.extend(training::records(
        "ppo",
        "prompts=named_prompts.jsonl",
        "prompt",
    ));
    let adapters = "ppo.share=adapter ppo.lora.r=4 ppo.lora.lora_alpha=8.0";
    let adapted = training::adapters("ppo", adapters).into_iter();
    rows.extend(adapted.map(|row| row.of(RULE)));
    let watched = |key: &str, value: &str| row(&format!("ppo.{key}"), value).of("watched.toml");
    rows.extend([
        row("ppo.from", "models/pretrain"),
        row("ppo.reward_model", "runs/other/reward/final"),
        row("ppo.score_at", "eos")
            .under("ppo.reward_model=models/padded ppo.score_at=last_non_pad"),
        watched("judge_model", "runs/other/reward/final").logs("eval/judge_score", MEASURES),
        row("ppo.prompts", "other_prompts.jsonl"),
        row("ppo.too_long", "skip")
            .under("ppo.too_long=truncate ppo.micro_batch_tokens=16 ppo.max_new_tokens=10"),
        watched("eval_prompts", "other_prompts_eval.jsonl").logs("eval/kl", MEASURES),
        watched("eval_samples", "4").logs("eval/kl", MEASURES),
        watched("eval_seed", "4").logs("eval/kl", MEASURES),
        watched("lexicon", "other_lexicon.tsv").logs("eval/valence_sum", MEASURES),
        watched("eval_steps", "1").stays(),
        row("ppo.share", "adapter").of(RULE),
        row("ppo.trunk_layers", "2")
            .under("ppo.share=trunk ppo.trunk_layers=1")
            .of(RULE),
    ]);
    rows
}

/// Keys of the objective and of the update.
pub fn objective() -> Vec<Row> {
    let row = |key: &str, value: &str| row(&format!("ppo.{key}"), value);
    let adaptive = "ppo.kl_controller=adaptive ppo.kl_target=0.01 ppo.kl_horizon=50.0 \
                    ppo.max_steps=4 ppo.learning_rate=1e-3";
    let fast = "ppo.learning_rate=1e-2";
    let text = "ppo.ptx_coef=0.5 ppo.ptx_data=text.jsonl ppo.ptx_length=24 ppo.ptx_batch_size=3";
    vec![
        row("num_samples_per_prompt", "2"),
        row("num_mini_batches", "4"),
        row("num_ppo_epochs", "1"),
        row("advantage_estimator", "rloo").under("ppo.num_samples_per_prompt=4"),
        row("gamma", "0.9"),
        row("whiten_rewards", "true"),
        row("whiten_advantages", "false"),
        row("kl_coef", "0.2"),
        row("kl_estimator", "k2"),
        row("kl_controller", "adaptive"),
        row("kl_target", "50.0").under(adaptive),
        row("kl_horizon", "500.0").under(adaptive),
        row("cliprange", "0.001"),
        row("cliprange_high", "0.001"),
        row("critic_from", "policy"),
        row("critic_learning_rate", "1e-4"),
        row("lam", "0.5"),
        row("vf_coef", "10.0"),
        row("vf_coef", "0.2")
            .under("ppo.max_grad_norm=0.0 ppo.adam_epsilon=1e-30")
            .idles("Adam's step does not grow with the gradient: a clip or an epsilon must act"),
        row("critic_warmup", "1"),
        row("cliprange_value", "0.001"),
        row("loss_aggregation", "sequence"),
        row("dual_clip", "1.001").under(fast),
        row("entropy_coef", "0.1"),
        row("kl_in", "loss"),
        row("target_kl", "1e-6"),
        row("rollback_kl_factor", "1.0").under("ppo.target_kl=1e-6"),
        row("ptx_coef", "2.0").under(text),
        row("ptx_data", "other_text.jsonl").under(text),
        row("ptx_batch_size", "5").under(text),
        row("ptx_length", "16").under(text),
    ]
}

/// Keys of sampling and of the processing of scores.
pub fn rollout() -> Vec<Row> {
    let row = |key: &str, value: &str| row(&format!("ppo.{key}"), value);
    let alike = "ppo.num_samples_per_prompt=2 ppo.top_k=2 ppo.temperature=0.5 ppo.max_new_tokens=3";
    vec![
        row("score_normalization", "running"),
        row("score_normalization", "reference"),
        row("score_clip", "0.1"),
        row("missing_eos_penalty", "5.0"),
        row("overlong_buffer", "8"),
        row("overlong_penalty", "3.0").under("ppo.overlong_buffer=8"),
        row("dynamic_sampling", "2").under(alike),
        row("rollout_batch", "3").stays(),
        row("cache_bytes", "65536").stays(),
        row("cache_tokens", "64").stays(),
        row("rescore", "true").stays(),
        row("max_new_tokens", "6"),
        row("min_new_tokens", "10"),
        row("temperature", "0.5"),
        row("top_k", "5"),
        row("top_p", "0.5"),
        row("min_p", "0.2"),
        row("stop", "[\"dog\",\"boat\"]"),
        row("stop_token_ids", "[270,271,272,273,274,275,276,277]"),
    ]
}

#[test]
fn keys_of_ppo_s_roles_and_evaluations_arrive() {
    let bench = Bench::new();
    bench.make("other", "reward", "reward.max_steps=3 run.seed=4");
    bench.add_rewards(
        RULE,
        "[[ppo.rewards]]\ntype = \"length\"\nmax = 5\nmargin = 4\n",
    );
    bench.try_all(start());
}

#[test]
fn keys_of_ppo_s_objective_arrive() {
    Bench::new().try_all(objective());
}

#[test]
fn keys_of_ppo_s_rollouts_and_scores_arrive() {
    Bench::new().try_all(rollout());
}
