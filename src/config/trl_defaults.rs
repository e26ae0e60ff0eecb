//! Compares our defaults with TRL's, field by field: the default is the same (with a note where the
//! key acts differently), or it differs for a stated reason, or there is no such key for a stated
//! reason.
//!
//! TRL's defaults are in `tests/golden/trl_defaults.json`, made by `make_trl_defaults.py` from the
//! configuration classes of the version named there.

use serde::Serialize;
use serde_json::Value;

use super::check::Checker;
use super::{AdvantageEstimator, Dpo, Ppo, Reward, Sft};

mod groups;

/// Our counterpart of a field of TRL.
#[derive(Clone, Copy)]
enum Ours {
    /// A key with the same default.
    Same(&'static str),
    /// A key with the same default that acts differently, with the difference.
    Acts(&'static str, &'static str),
    /// A key with another default, with the reason.
    Differs(&'static str, &'static str),
    /// No such key, with the reason.
    Absent(&'static str),
}
use Ours::{Absent, Acts, Differs, Same};

/// A field, or all that begin as `begin_*`.
type Row = (&'static str, Ours);

/// Fields of all stages.
const SHARED: &[Row] = &[
    (
        "warmup_steps",
        Acts(
            "warmup_steps",
            "step s of w has s/(w + 1) of the peak; there it has (s − 1)/w, and the first step \
             changes nothing",
        ),
    ),
    ("weight_decay", Same("weight_decay")),
    ("adam_beta1", Same("adam_beta1")),
    (
        "adam_beta2",
        Differs(
            "adam_beta2",
            "0.95 is what language models are trained with (Brown et al. 2020, §B)",
        ),
    ),
    ("adam_epsilon", Same("adam_epsilon")),
    ("max_grad_norm", Same("max_grad_norm")),
    ("dataloader_drop_last", Same("dataloader_drop_last")),
    (
        "per_device_train_batch_size",
        Differs(
            "batch_size",
            "ours is the whole step's, however it is cut into micro-batches",
        ),
    ),
    (
        "max_steps",
        Differs("max_steps", "0 and −1 both mean that epochs say how long"),
    ),
    (
        "save_steps",
        Differs(
            "save_steps",
            "what a killed run loses is at most so many steps, and runs here are short",
        ),
    ),
    (
        "eval_steps",
        Differs(
            "eval_steps",
            "TRL evaluates nothing by itself; here held-out records are asked for to be looked at",
        ),
    ),
    (
        "logging_steps",
        Differs(
            "log_steps",
            "lines on the terminal are spaced by time as well; the file has every step",
        ),
    ),
    (
        "gradient_checkpointing",
        Differs(
            "recompute",
            "it costs a third of the speed, and memory is short in few runs on a CPU",
        ),
    ),
    (
        "dataset_num_proc",
        Absent("records are read on all threads"),
    ),
    (
        "shuffle_dataset",
        Absent("records are always shuffled, by the seed"),
    ),
    (
        "model_init_kwargs",
        Absent("a model's folder says what it is"),
    ),
    ("trust_remote_code", Absent("no model brings code")),
    (
        "router_aux_loss_coef",
        Absent("no family here is a mixture of experts"),
    ),
    (
        "chat_template_path",
        Absent("the tokenizer's folder has the template"),
    ),
    ("eos_token", Absent("the tokenizer's folder says it")),
    ("disable_dropout", Absent("there is no dropout")),
    (
        "padding_free",
        Absent("rows are always packed without padding"),
    ),
    (
        "pad_to_multiple_of",
        Absent("rows are always packed without padding"),
    ),
    (
        "activation_offloading",
        Absent("activations are where the weights are"),
    ),
];

const SUPERVISED: &[Row] = &[
    (
        "lr_scheduler_type",
        Differs(
            "lr_scheduler_type",
            "half a cosine falls to the same end, and stays high for longer",
        ),
    ),
    (
        "num_train_epochs",
        Absent(
            "without max_steps and max_epochs it is one: more over-fit (Ouyang et al. 2022, §3.5)",
        ),
    ),
];

const SFT: &[Row] = &[
    ("learning_rate", Same("learning_rate")),
    ("max_length", Same("max_length")),
    (
        "truncation_mode",
        Differs(
            "too_long",
            "the same under another word: an end is cut, and a prompt's start where that leaves an \
             answer no room",
        ),
    ),
    (
        "dataset_text_field",
        Absent("`columns` maps a column of any name to `text`"),
    ),
    ("dataset_kwargs", Absent("there are no others to pass on")),
    (
        "packing",
        Absent("rows are always packed, and see nothing of one another"),
    ),
    (
        "packing_strategy",
        Absent("rows are cut by micro_batch_tokens"),
    ),
    ("eval_packing", Absent("as packing")),
    (
        "completion_only_loss",
        Absent("the loss always counts answers only, as TRL's does where there is a prompt"),
    ),
    (
        "assistant_only_loss",
        Absent("of a conversation it is the assistant's turns that count"),
    ),
    ("loss_type", Absent("there is one: negative log-likelihood")),
];

const REWARD: &[Row] = &[
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
            "a longer pair is cut at its end; there it is left out, without a word of how many",
        ),
    ),
    (
        "center_rewards_coefficient",
        Differs("center_rewards_coefficient", "0 and None both mean off"),
    ),
];

/// Fields of the trainers that sample completions.
const ON_POLICY: &[Row] = &[
    (
        "lr_scheduler_type",
        Differs(
            "lr_scheduler_type",
            "a run goes on for as long as its judge rises, which is not known before",
        ),
    ),
    (
        "num_train_epochs",
        Absent("without max_steps and max_epochs it is one pass over the prompts"),
    ),
    (
        "ds3_gather_for_generation",
        Absent("generation reads the weights that are trained"),
    ),
];

const PPO: &[Row] = &[
    (
        "learning_rate",
        Differs(
            "learning_rate",
            "1e-6 is the actor's in OpenRLHF and verl; the critic has a rate of its own",
        ),
    ),
    ("num_mini_batches", Same("num_mini_batches")),
    (
        "max_grad_norm",
        Acts(
            "max_grad_norm",
            "gradients of actor and critic are clipped, each by its own norm, as OpenRLHF and verl \
             do; TRL's PPO has the field and its loop clips nothing",
        ),
    ),
    (
        "dataloader_drop_last",
        Acts(
            "dataloader_drop_last",
            "an iteration is always whole, and so it is there whatever the field says",
        ),
    ),
    (
        "total_episodes",
        Absent("max_steps or max_epochs says how long"),
    ),
    ("local_rollout_forward_batch_size", Same("rollout_batch")),
    (
        "num_sample_generations",
        Absent("samples.jsonl has the completions of each evaluation"),
    ),
    (
        "response_length",
        Differs(
            "max_new_tokens",
            "53 is the length of one data set's summaries",
        ),
    ),
    (
        "stop_token",
        Absent("a completion always ends at EOS; `stop` adds to it"),
    ),
    (
        "stop_token_id",
        Absent("a completion always ends at EOS; `stop_token_ids` adds to it"),
    ),
    (
        "temperature",
        Differs(
            "temperature",
            "at 1 what is sampled is the policy itself, as in Huang et al. 2024",
        ),
    ),
    ("missing_eos_penalty", Same("missing_eos_penalty")),
    (
        "sft_model_path",
        Absent("`from` is the model that [sft] leaves"),
    ),
    (
        "reward_model_path",
        Absent("`reward_model` is the one that [reward] leaves"),
    ),
    ("world_size", Absent("one process")),
    ("num_total_batches", Absent("derived from other fields")),
    ("micro_batch_size", Absent("derived from other fields")),
    ("local_batch_size", Absent("derived from other fields")),
    (
        "batch_size",
        Differs("batch_size", "TRL's is derived from other fields"),
    ),
    ("local_mini_batch_size", Absent("derived from other fields")),
    ("mini_batch_size", Absent("derived from other fields")),
    ("push_to_hub", Absent("nothing is uploaded")),
    ("model_adapter_name", Absent("adapters have no names")),
    ("ref_adapter_name", Absent("adapters have no names")),
    ("num_ppo_epochs", Same("num_ppo_epochs")),
    ("whiten_rewards", Same("whiten_rewards")),
    ("kl_coef", Same("kl_coef")),
    (
        "kl_estimator",
        Differs(
            "kl_estimator",
            "unset, which is k1 in the reward, as TRL has it, and k3 where kl_in puts it into the \
             loss",
        ),
    ),
    ("cliprange", Same("cliprange")),
    ("vf_coef", Same("vf_coef")),
    ("cliprange_value", Same("cliprange_value")),
    ("gamma", Same("gamma")),
    ("lam", Same("lam")),
];

const DPO: &[Row] = &[
    ("learning_rate", Same("learning_rate")),
    (
        "max_length",
        Acts(
            "max_length",
            "the end of an answer is cut in both; a pair whose prompt alone is as long is left out \
             there without a word",
        ),
    ),
    (
        "truncation_mode",
        Differs(
            "too_long",
            "the same under another word: the end of an answer is cut, and a prompt's start where \
             that leaves an answer no room",
        ),
    ),
    ("precompute_ref_log_probs", Absent("they always are")),
    (
        "precompute_ref_batch_size",
        Absent("micro_batch_tokens says it"),
    ),
    ("loss_type", Same("loss_type")),
    ("loss_weights", Absent("there is one loss at a time")),
    (
        "ld_alpha",
        Absent("length is handled by the losses by the token"),
    ),
    (
        "f_divergence_type",
        Absent("the KL, TRL's default, is the only one"),
    ),
    ("f_alpha_divergence_coef", Absent("as f_divergence_type")),
    // With `sigmoid` it has no effect in this version of TRL; here it makes cDPO of it.
    ("label_smoothing", Same("label_smoothing")),
    ("beta", Same("beta")),
    ("use_weighting", Absent("WPO is not here")),
    ("discopop_tau", Absent("DiscoPOP is not here")),
];

/// Fields of a reference that is updated.
const REFERENCE: &[Row] = &[
    (
        "sync_ref_model",
        Absent("the reference stays as it was, TRL's default"),
    ),
    ("ref_model_mixup_alpha", Absent("as sync_ref_model")),
    ("ref_model_sync_steps", Absent("as sync_ref_model")),
];

/// Fields of `CPOConfig`, which has SimPO.
const CPO: &[Row] = &[("beta", Same("beta")), ("simpo_gamma", Same("simpo_gamma"))];

/// Holds each field of TRL's class against its row.
fn check(class: &str, ours: &impl Serialize, rows: &[&[Row]]) {
    let golden = include_str!("../../tests/golden/trl_defaults.json");
    let golden: Value = serde_json::from_str(golden).unwrap();
    let (theirs, ours) = (&golden[class], serde_json::to_value(ours).unwrap());
    let rows: Vec<&Row> = rows.iter().flat_map(|rows| rows.iter()).collect();
    for (field, theirs) in theirs.as_object().expect("a class of TRL's") {
        let row = rows.iter().find(|(name, _)| is_named(name, field));
        let (_, row) = row.unwrap_or_else(|| panic!("{class}: nothing is said of TRL's {field}"));
        let default = |key: &str| {
            let found = ours.get(key);
            found.unwrap_or_else(|| {
                panic!("[{class}] has no {key}, which stands beside TRL's {field}")
            })
        };
        match row {
            Same(key) | Acts(key, _) => {
                let found = default(key);
                let words = match row {
                    Acts(_, words) => words,
                    _ => "nothing is said of a difference",
                };
                assert!(
                    is_same(found, theirs),
                    "[{class}] {key} is {found}, TRL's {field} {theirs} ({words})"
                );
            }
            Differs(key, reason) => {
                let found = default(key);
                assert!(
                    !is_same(found, theirs),
                    "[{class}] {key} no longer differs ({reason})"
                );
            }
            // A key of the same name would be compared.
            Absent(reason) => assert!(
                ours.get(field).is_none(),
                "[{class}] {field} is there after all ({reason})"
            ),
        }
    }
}

fn is_named(name: &str, field: &str) -> bool {
    match name.strip_suffix('*') {
        Some(start) => field.starts_with(start),
        None => name == field,
    }
}

/// `[ppo]` with one of its estimators and what unset keys then take.
fn with(estimator: AdvantageEstimator) -> Ppo {
    let mut ppo = Ppo::default();
    ppo.objective.advantage_estimator = estimator;
    ppo.fill(Some("reward/final".into()), None, &mut Checker::flags());
    ppo
}

/// Numbers by value; a list of one is what it holds, as TRL has `["sigmoid"]`.
fn is_same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (ours, Value::Array(items)) if items.len() == 1 => is_same(ours, &items[0]),
        (Value::Number(ours), Value::Number(theirs)) => ours.as_f64() == theirs.as_f64(),
        (ours, theirs) => ours == theirs,
    }
}

#[test]
fn every_default_of_trls_is_ours_or_differs_for_a_reason() {
    check("sft", &Sft::default(), &[SHARED, SUPERVISED, SFT]);
    check("reward", &Reward::default(), &[SHARED, SUPERVISED, REWARD]);
    // The first row that names a field is its own.
    check("ppo", &Ppo::default(), &[PPO, SHARED, ON_POLICY]);
    check(
        "dpo",
        &Dpo::default(),
        &[SHARED, SUPERVISED, DPO, REFERENCE],
    );
    let (shared, groups) = ([SHARED, ON_POLICY, REFERENCE].concat(), groups::BOTH);
    let grpo = with(AdvantageEstimator::Grpo);
    check("grpo", &grpo, &[groups::GRPO, groups, &shared]);
    let rloo = with(AdvantageEstimator::Rloo);
    check("rloo", &rloo, &[groups::RLOO, groups, &shared]);
    check("cpo", &Dpo::default(), &[CPO]);
}
