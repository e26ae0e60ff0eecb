//! Fields of transformers' `TrainingArguments` and of TRL's scripts, which are not among TRL's own
//! defaults.

use super::Row;
use super::{Absent, Same};

const LORA: &str = "a table `lora`, such as [sft.lora], has PEFT's keys";
const PRECISION: &str = "training is in float32";
const LOG: &str = "metrics.jsonl has the metrics of every step";

/// Fields of all trainers.
pub(super) const ROWS: &[Row] = &[
    (
        "model_name_or_path",
        Absent("model.from, or the stage's `from`, names the model"),
    ),
    ("dataset_name", Absent("the stage's `data` names its files")),
    (
        "output_dir",
        Absent("run.dir and run.name name the run's folder"),
    ),
    ("seed", Absent("run.seed sets it")),
    (
        "pad_token",
        Absent("rows are packed without padding, and a reward model's token is chosen by a rule"),
    ),
    (
        "gradient_accumulation_steps",
        Absent(
            "batch_size is that of the whole step, and micro_batch_tokens limits a forward pass",
        ),
    ),
    (
        "per_device_eval_batch_size",
        Absent("micro_batch_tokens limits every forward pass"),
    ),
    (
        "warmup_ratio",
        Absent("warmup_steps is the length of the warm-up, in steps"),
    ),
    ("optim", Absent("the optimizer is AdamW")),
    (
        "eval_strategy",
        Absent("held-out records are always evaluated, every eval_steps"),
    ),
    ("save_strategy", Absent("save_steps sets it")),
    ("save_total_limit", Same("keep_last")),
    (
        "resume_from_checkpoint",
        Absent("the same command continues a run"),
    ),
    ("use_peft", Absent(LORA)),
    ("peft_config", Absent(LORA)),
    ("lora_*", Absent(LORA)),
    ("bf16", Absent(PRECISION)),
    ("fp16", Absent(PRECISION)),
    ("dtype", Absent(PRECISION)),
    ("torch_dtype", Absent(PRECISION)),
    ("report_to", Absent(LOG)),
    ("logging_dir", Absent(LOG)),
    ("attn_implementation", Absent("attention is built in")),
    (
        "dataloader_num_workers",
        Absent("records are read on all threads"),
    ),
    ("reward_funcs", Absent("[[ppo.rewards]] lists the rewards")),
];
