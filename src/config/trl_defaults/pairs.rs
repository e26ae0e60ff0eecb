//! TRL's fields of the trainers on preference pairs: `RewardConfig`, `DPOConfig`, `CPOConfig` and
//! `ORPOConfig`.

use super::Row;
use super::{Absent, Acts, Differs, Same};

/// Fields of `RewardConfig`.
pub(super) const REWARD: &[Row] = &[
    (
        "learning_rate",
        Differs(
            "learning_rate",
            "1e-4 is for adapters; whole models took 9e-6 (Ouyang et al. 2022) and 1.5e-5 \
             (Stiennon et al. 2020)",
        ),
    ),
    (
        "max_length",
        Acts(
            "max_length",
            "a longer pair is cut at its end; TRL leaves it out and does not count it",
        ),
    ),
    (
        "center_rewards_coefficient",
        Differs("center_rewards_coefficient", "0 and None both mean off"),
    ),
];

/// Fields of `DPOConfig`.
pub(super) const DPO: &[Row] = &[
    ("learning_rate", Same("learning_rate")),
    (
        "max_length",
        Acts(
            "max_length",
            "the end of an answer is cut in both; TRL also leaves out a pair whose prompt alone is \
             as long, and does not count it",
        ),
    ),
    (
        "truncation_mode",
        Differs(
            "too_long",
            "the same under another name: the end of an answer is cut, and the start of a prompt \
             that leaves the answer no room",
        ),
    ),
    (
        "precompute_ref_log_probs",
        Absent("they are always computed before training"),
    ),
    (
        "precompute_ref_batch_size",
        Absent("micro_batch_tokens limits every forward pass"),
    ),
    ("loss_type", Same("loss_type")),
    ("loss_weights", Absent("a run minimises one loss")),
    (
        "ld_alpha",
        Absent("the losses of ipo and simpo average over tokens instead"),
    ),
    (
        "f_divergence_type",
        Absent("the divergence is always the KL, TRL's default"),
    ),
    ("f_alpha_divergence_coef", Absent("see f_divergence_type")),
    // This version of TRL ignores it with `sigmoid`; here it makes the loss that of cDPO.
    ("label_smoothing", Same("label_smoothing")),
    ("beta", Same("beta")),
    ("use_weighting", Absent("WPO is not supported")),
    ("discopop_tau", Absent("DiscoPOP is not supported")),
];

/// Fields of a reference that is updated.
pub(super) const REFERENCE: &[Row] = &[
    (
        "sync_ref_model",
        Absent("the reference stays unchanged, TRL's default"),
    ),
    ("ref_model_mixup_alpha", Absent("see sync_ref_model")),
    ("ref_model_sync_steps", Absent("see sync_ref_model")),
];

/// Fields of `CPOConfig`, which has SimPO.
pub(super) const CPO: &[Row] = &[("beta", Same("beta")), ("simpo_gamma", Same("simpo_gamma"))];

/// Fields of `ORPOConfig`.
pub(super) const ORPO: &[Row] = &[
    ("learning_rate", Same("learning_rate")),
    (
        "max_length",
        Acts(
            "max_length",
            "an answer is cut so that prompt and answer have max_length tokens; TRL cuts both \
             answers to max_length minus the length of the longer one, whatever the prompt's \
             length",
        ),
    ),
    ("beta", Same("beta")),
    (
        "max_completion_length",
        Absent("it applies to encoder-decoders alone"),
    ),
    ("is_encoder_decoder", Absent("every model is a decoder")),
    (
        "padding_value",
        Absent("rows are always packed without padding"),
    ),
    (
        "generate_during_eval",
        Absent("evaluations report losses and rewards; `collimate generate` samples from final/"),
    ),
];
