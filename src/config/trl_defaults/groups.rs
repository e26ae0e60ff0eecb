//! TRL's fields of `GRPOConfig` and `RLOOConfig` beside `[ppo]` with these estimators.

use super::Row;
use super::{Absent, Acts, Differs, Same};

const SERVER: &str = "generation is the engine's own, on the weights that are trained";
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
            "unset it is gae's 1, which estimators that compare samples refuse",
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
            "512 is for answers that reason at length, which a CPU takes long over",
        ),
    ),
    (
        "generation_batch_size",
        Absent("what an iteration trains on is generated in it: batch_size"),
    ),
    ("steps_per_generation", Absent("num_mini_batches says it")),
    ("temperature", Same("temperature")),
    ("top_p", Same("top_p")),
    ("top_k", Same("top_k")),
    ("min_p", Differs("min_p", "0 and None both mean off")),
    (
        "generation_kwargs",
        Absent("there are no others to pass on"),
    ),
    (
        "chat_template_kwargs",
        Absent("the field of this name in a record says them"),
    ),
    (
        "repetition_penalty",
        Absent("what is sampled is the policy itself, as with 1, TRL's default"),
    ),
    ("cache_implementation", Absent("there is one, in blocks")),
    ("use_vllm", Absent(SERVER)),
    ("vllm_*", Absent(SERVER)),
    (
        "use_transformers_continuous_batching",
        Absent("batching is always continuous"),
    ),
    (
        "transformers_continuous_batching_config",
        Absent("rollout_batch, cache_bytes and cache_tokens say it"),
    ),
    (
        "num_iterations",
        Differs(
            "num_ppo_epochs",
            "a completion costs several times a pass over it, and the clip bounds what later \
             passes do",
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
            "the value that None stands for is written down",
        ),
    ),
    (
        "reward_weights",
        Absent("each of [[ppo.rewards]] has its weight, by default 1 as here"),
    ),
    (
        "mask_truncated_completions",
        Absent("missing_eos_penalty and overlong_penalty count them in instead"),
    ),
    ("log_*", Absent(SAMPLES)),
    ("num_completions_to_print", Absent(SAMPLES)),
];

pub(super) const GRPO: &[Row] = &[
    ("cast_lm_head_to_fp32", Absent("all is computed in f32")),
    (
        "beta",
        Differs(
            "kl_coef",
            "0 holds the policy to nothing; Shao et al. 2024 have 0.04, and 0.05 is TRL's for PPO \
             and RLOO",
        ),
    ),
    ("delta", Same("dual_clip")),
    ("sapo_*", Absent("SAPO is not here")),
    ("vespo_*", Absent("VESPO is not here")),
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
            "the estimator says it: grpo divides by the group's deviation plus 1e-6, TRL by the \
             deviation plus 1e-4",
        ),
    ),
    (
        "loss_type",
        Differs(
            "loss_aggregation",
            "the same under another word: `dapo` is the mean over the tokens of an optimizer step. \
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
        Absent("the weight of the entropy stays, TRL's default"),
    ),
    ("entropy_coef_*", Absent("as use_adaptive_entropy")),
    ("entropy_target", Absent("as use_adaptive_entropy")),
    ("max_tool_calling_iterations", Absent("there are no tools")),
    (
        "off_policy_mask_threshold",
        Absent(
            "nothing is off policy before the first step: sampler and training agree to the bit",
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
             completion, which a long one leaves soon, and the paper none, for it takes one step a \
             batch",
        ),
    ),
    ("normalize_advantages", Same("whiten_advantages")),
    ("reward_clip_range", Same("score_clip")),
];
