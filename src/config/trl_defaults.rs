//! Our counterpart of each field of TRL's configurations: a key with the same default (with a note
//! where the key acts differently), a key whose default differs for a stated reason, or no key, for
//! a stated reason. A message on an unknown key reads it; the tests compare the defaults.
//!
//! TRL's defaults are in `tests/golden/trl_defaults.json`, made by `make_trl_defaults.py` from the
//! configuration classes of the version named there.

mod groups;
mod pairs;
#[cfg(test)]
mod tests;
mod trainer;

/// Our counterpart of a field of TRL.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "a message on an unknown key has no use for reasons of defaults"
    )
)]
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

/// What the field `name` of TRL is in our `table`, in words; `None` if TRL has no such field, or
/// both have the name.
pub(super) fn counterpart(table: &str, name: &str) -> Option<String> {
    let mut rows = rows(table).into_iter().flatten();
    let (_, ours) = rows.find(|(field, _)| is_named(field, name))?;
    match ours {
        Same(key) | Acts(key, _) | Differs(key, _) if *key == name => None,
        Same(key) | Acts(key, _) | Differs(key, _) => {
            Some(format!("TRL's `{name}` is `{key}` here"))
        }
        Absent(reason) => Some(format!("TRL's `{name}` is no key here: {reason}")),
    }
}

/// The rows of the trainers whose counterpart is `table`; the first row that names a field counts.
fn rows(table: &str) -> Vec<&'static [Row]> {
    let own: &[&[Row]] = match table {
        "sft" => &[SUPERVISED, SFT],
        "reward" | "judge" => &[SUPERVISED, pairs::REFERENCE, pairs::REWARD],
        "dpo" => &[SUPERVISED, pairs::REFERENCE, pairs::DPO, pairs::CPO],
        "orpo" => &[SUPERVISED, pairs::REFERENCE, pairs::ORPO],
        "ppo" => &[
            PPO,
            groups::BOTH,
            groups::GRPO,
            groups::RLOO,
            ON_POLICY,
            pairs::REFERENCE,
        ],
        _ => &[],
    };
    [own, &[SHARED, trainer::ROWS]].concat()
}

fn is_named(name: &str, field: &str) -> bool {
    match name.strip_suffix('*') {
        Some(start) => field.starts_with(start),
        None => name == field,
    }
}

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
            "ours counts the examples of a whole optimizer step, on one process",
        ),
    ),
    (
        "max_steps",
        Differs(
            "max_steps",
            "0 here and −1 there both train for a number of epochs",
        ),
    ),
    (
        "save_steps",
        Differs(
            "save_steps",
            "a killed run loses at most this many steps, and runs here are short",
        ),
    ),
    (
        "eval_steps",
        Differs(
            "eval_steps",
            "TRL evaluates only if eval_strategy is set; here held-out records are always \
             evaluated",
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
        Absent("the model's folder has all settings"),
    ),
    ("trust_remote_code", Absent("models contain no code")),
    (
        "router_aux_loss_coef",
        Absent("no family here is a mixture of experts"),
    ),
    (
        "chat_template_path",
        Absent(
            "the tokenizer's folder has the template; `tokenizer.chat_template` is for a trained \
             tokenizer",
        ),
    ),
    ("eos_token", Absent("the tokenizer's folder has it")),
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
        Absent("activations are in the same memory as the weights"),
    ),
];

const SUPERVISED: &[Row] = &[
    (
        "lr_scheduler_type",
        Differs(
            "lr_scheduler_type",
            "half a cosine ends at the same rate and stays high for longer",
        ),
    ),
    (
        "num_train_epochs",
        Absent(
            "without max_steps, max_epochs is 1: more epochs over-fit (Ouyang et al. 2022, §3.5)",
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
            "the same under another name: the end of an answer is cut, and the start of a prompt \
             that leaves the answer no room",
        ),
    ),
    (
        "dataset_text_field",
        Absent("`columns` maps a column of any name to `text`"),
    ),
    (
        "dataset_kwargs",
        Absent("all settings of the data are keys"),
    ),
    (
        "packing",
        Absent("rows are always packed, and examples do not attend to each other"),
    ),
    (
        "packing_strategy",
        Absent("micro_batch_tokens limits the rows of a forward pass"),
    ),
    ("eval_packing", Absent("see packing")),
    (
        "completion_only_loss",
        Absent("the loss always counts answers only, as in TRL when there is a prompt"),
    ),
    (
        "assistant_only_loss",
        Absent("in a conversation the loss always counts the assistant's turns only"),
    ),
    (
        "loss_type",
        Absent("the loss is always the negative log-likelihood"),
    ),
];

/// Fields of the trainers that sample completions.
const ON_POLICY: &[Row] = &[
    (
        "lr_scheduler_type",
        Differs(
            "lr_scheduler_type",
            "a run continues while the judge's score rises, and its length is not known before",
        ),
    ),
    (
        "num_train_epochs",
        Absent("without max_steps, max_epochs is 1: one pass over the prompts"),
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
            "iterations are always whole, in TRL too, whatever the field's value",
        ),
    ),
    (
        "total_episodes",
        Absent("max_steps or max_epochs is the length of the run"),
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
            "a temperature of 1 samples from the policy itself, as in Huang et al. 2024",
        ),
    ),
    ("missing_eos_penalty", Same("missing_eos_penalty")),
    (
        "sft_model_path",
        Absent("it is `from`, by default the model that [sft] trains"),
    ),
    (
        "reward_model_path",
        Absent("it is `reward_model`, by default the one that [reward] trains"),
    ),
    ("world_size", Absent("a run is one process")),
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
            "unset, which is k1 in the reward, as in TRL, and k3 in the loss (`kl_in`)",
        ),
    ),
    ("cliprange", Same("cliprange")),
    ("vf_coef", Same("vf_coef")),
    ("cliprange_value", Same("cliprange_value")),
    ("gamma", Same("gamma")),
    ("lam", Same("lam")),
];
