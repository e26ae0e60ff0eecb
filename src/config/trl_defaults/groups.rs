//! TRL's fields of `GRPOConfig` and `RLOOConfig`, compared with `[ppo]` under these estimators.

use super::Row;
use super::{Absent, Acts, Differs, Same};

const SERVER: &str = "generation is built in and reads the weights that are trained";
const SAMPLES: &str = "samples.jsonl has the completions of each evaluation";

/// Fields of both trainers.
pub(super) const BOTH: &[Row] = &[
    ("learning_rate", Same("learning_rate")),
    (
        "remove_unused_columns",
        Absent("records keep their fields, which rewards may read"),
    ),
    (
        "num_generations",
        Differs(
            "num_samples_per_prompt",
            "the default is 1, for gae; estimators that compare samples refuse it",
        ),
    ),
    (
        "num_generations_eval",
        Absent("an evaluation has one completion of each prompt"),
    ),
    (
        "max_completion_length",
        Differs(
            "max_new_tokens",
            "512 is for long reasoning, which is slow on a CPU",
        ),
    ),
    (
        "generation_batch_size",
        Absent("an iteration generates the completions that it trains on: batch_size"),
    ),
    ("steps_per_generation", Absent("num_mini_batches sets it")),
    ("temperature", Same("temperature")),
    ("top_p", Same("top_p")),
    ("top_k", Same("top_k")),
    ("min_p", Differs("min_p", "0 and None both mean off")),
    (
        "generation_kwargs",
        Absent("all settings of sampling are keys"),
    ),
    (
        "chat_template_kwargs",
        Absent("a record's field of this name has them"),
    ),
    (
        "repetition_penalty",
        Absent("samples are always drawn from the policy itself, as with 1, TRL's default"),
    ),
    (
        "cache_implementation",
        Absent("the cache is always paged in blocks"),
    ),
    ("use_vllm", Absent(SERVER)),
    ("vllm_*", Absent(SERVER)),
    (
        "use_transformers_continuous_batching",
        Absent("batching is always continuous"),
    ),
    (
        "transformers_continuous_batching_config",
        Absent("rollout_batch, cache_bytes and cache_tokens set it"),
    ),
    (
        "num_iterations",
        Differs(
            "num_ppo_epochs",
            "generating a completion costs several passes over it, and the clip bounds the later \
             passes",
        ),
    ),
    ("epsilon", Same("cliprange")),
    (
        "dataloader_drop_last",
        Acts(
            "dataloader_drop_last",
            "an iteration is always whole, and so it is there whatever the field says",
        ),
    ),
    (
        "epsilon_high",
        Differs(
            "cliprange_high",
            "the default is written out: None stands for epsilon",
        ),
    ),
    (
        "reward_weights",
        Absent("each of [[ppo.rewards]] has its weight, by default 1 as here"),
    ),
    (
        "mask_truncated_completions",
        Absent("missing_eos_penalty and overlong_penalty penalise them instead"),
    ),
    ("log_*", Absent(SAMPLES)),
    ("num_completions_to_print", Absent(SAMPLES)),
];

pub(super) const GRPO: &[Row] = &[
    ("cast_lm_head_to_fp32", Absent("training is in f32")),
    (
        "beta",
        Differs(
            "kl_coef",
            "0 leaves out the KL; Shao et al. 2024 have 0.04, and TRL's PPO and RLOO 0.05",
        ),
    ),
    ("delta", Same("dual_clip")),
    ("sapo_*", Absent("SAPO is not supported")),
    ("vespo_*", Absent("VESPO is not supported")),
    (
        "importance_sampling_level",
        Absent("each token has its ratio, TRL's default"),
    ),
    (
        "multi_objective_aggregation",
        Absent("components are summed first, TRL's default"),
    ),
    (
        "scale_rewards",
        Absent(
            "the estimator decides: grpo divides by the group's deviation plus 1e-6, TRL by the \
             deviation plus 1e-4",
        ),
    ),
    (
        "loss_type",
        Differs(
            "loss_aggregation",
            "the same under another name: `dapo` is the mean over the tokens of an optimizer step. \
             The paper's is `grpo`, our `sequence`, in which a token of a long completion counts \
             for less (Yu et al. 2025, section 3.3)",
        ),
    ),
    (
        "top_entropy_quantile",
        Absent("all tokens count, TRL's default"),
    ),
    ("entropy_coef", Same("entropy_coef")),
    (
        "use_adaptive_entropy",
        Absent("the weight of the entropy is constant, TRL's default"),
    ),
    ("entropy_coef_*", Absent("see use_adaptive_entropy")),
    ("entropy_target", Absent("see use_adaptive_entropy")),
    (
        "max_tool_calling_iterations",
        Absent("tools are not supported"),
    ),
    (
        "off_policy_mask_threshold",
        Absent(
            "sampler and training agree to the bit, so no sample is off policy before the first \
             step",
        ),
    ),
    (
        "use_bias_correction_kl",
        Absent("the KL of the loss is that of Shao et al. 2024, eq. 4, without the ratio"),
    ),
];

pub(super) const RLOO: &[Row] = &[
    ("beta", Same("kl_coef")),
    (
        "epsilon",
        Acts(
            "cliprange",
            "each token's ratio is clipped, as in PPO; TRL clips the ratio of the whole \
             completion, which long ones soon leave; the paper clips none, because it takes one \
             step per batch",
        ),
    ),
    ("normalize_advantages", Same("whiten_advantages")),
    ("reward_clip_range", Same("score_clip")),
];
