//! The tables that all stages share, and the stages that learn from data.

use crate::bench::Bench;
use crate::row::{Row, row};
use crate::training;

/// Why the data keys of an evaluation change only its loss: it reads other records.
const MEASURES: &str = "what is measured is never trained on";

/// The keys of `[run]`, `[model]` and `[tokenizer]`.
pub fn shared() -> Vec<Row> {
    let gpu = "needs a GPU; operations agree on the two in tests/models/composed.rs";
    let unit =
        "a processor without a matrix unit has one arithmetic; kernels/src/host/product/tests.rs";
    let window = "model.family=mistral";
    vec![
        row("run.name", "other").stays(),
        row("run.dir", "elsewhere").stays(),
        row("run.seed", "4"),
        row("run.device", "cuda:0").elsewhere(gpu),
        row("run.threads", "2").stays(),
        row("run.arithmetic", "portable").elsewhere(unit),
        row("run.max_bad_steps", "3").stays(),
        row("model.from", "models/sft").of("from.toml"),
        row("model.save_dtype", "bfloat16"),
        row("model.family", "qwen2"),
        row("model.hidden_size", "64"),
        row("model.intermediate_size", "96"),
        row("model.num_hidden_layers", "1"),
        row("model.num_attention_heads", "2"),
        row("model.num_key_value_heads", "4"),
        row("model.head_dim", "16"),
        row("model.vocab_size", "400"),
        row("model.max_position_embeddings", "128")
            .writes("config.json", "a limit, and no factor of anything"),
        row("model.rope_theta", "100.0"),
        row("model.rms_norm_eps", "1e-3"),
        row("model.tie_word_embeddings", "false"),
        row("model.sliding_window", "4").under(window),
        row("model.initializer_range", "0.1"),
        row("tokenizer.from", "runs/words/pretrain/final"),
        row("tokenizer.vocab_size", "300"),
        row("tokenizer.special_tokens", "[\"<a>\",\"<b>\",\"<c>\"]"),
        row("tokenizer.chat_template", "chat.jinja")
            .writes("tokenizer_config.json", "pretraining text is not rendered"),
    ]
}

/// The keys of `[pretrain]`.
pub fn pretrain() -> Vec<Row> {
    let mut rows = training::rows("pretrain", ["0.1", "0.2"], "64");
    let two = |weight: &str| {
        format!(
            "[{{path=\"text.jsonl\",weight=1.0}},{{path=\"other_text.jsonl\",weight={weight}}}]"
        )
    };
    rows.extend(training::records(
        "pretrain",
        "data=named_text.jsonl pretrain.eval_data= pretrain.eval_steps=0",
        "text",
    ));
    rows.extend([
        row("pretrain.data", "other_text.jsonl"),
        row("pretrain.data", &two("3.0")).under(&format!("pretrain.data={}", two("1.0"))),
        row("pretrain.eval_data", "other_text.jsonl").logs("eval/loss", MEASURES),
        row("pretrain.eval_batches", "1")
            .under("pretrain.micro_batch_tokens=256")
            .logs("eval/loss", MEASURES),
        row("pretrain.eval_steps", "1").stays(),
        row("pretrain.context_length", "24"),
    ]);
    rows
}

/// The keys of held-out records.
fn held_out(stage: &str, file: &str) -> Vec<Row> {
    let row = |key: &str, value: &str| row(&format!("{stage}.{key}"), value);
    let own = format!("{stage}.eval_fraction=0.0 {stage}.eval_data={file}");
    let two = |weight: &str| {
        format!("[{{path=\"{file}\",weight=1.0}},{{path=\"other_{file}\",weight={weight}}}]")
    };
    vec![
        row("data", &format!("other_{file}")),
        row("data", &two("3.0")).under(&format!("{stage}.data={}", two("1.0"))),
        row("eval_data", &format!("other_{file}"))
            .under(&own)
            .logs("eval/loss", MEASURES),
        row("eval_fraction", "0.3"),
        row("eval_steps", "1").stays(),
    ]
}

/// The keys of early stopping. Steps of one record each do not all lower the held-out loss.
fn early_stopping(stage: &str) -> Vec<Row> {
    let row = |key: &str, value: &str| row(&format!("{stage}.{key}"), value);
    let fast = format!(
        "{stage}.learning_rate=2e-2 {stage}.batch_size=1 {stage}.max_steps=8 \
         {stage}.lr_scheduler_type=constant"
    );
    let patient = format!("{fast} {stage}.early_stopping_patience=1 {stage}.eval_steps=1");
    vec![
        row("early_stopping_patience", "1").under(&format!("{fast} {stage}.eval_steps=1")),
        row("eval_steps", "4").under(&patient),
    ]
}

/// The keys of `[sft]`.
pub fn sft() -> Vec<Row> {
    let mut rows = training::rows("sft", ["0.2", "0.4"], "48");
    rows.extend(training::trainable("sft"));
    rows.extend(held_out("sft", "sft.jsonl"));
    rows.extend(early_stopping("sft"));
    rows.extend(training::records("sft", "data=named_sft.jsonl", "prompt"));
    rows.extend([
        row("sft.from", "models/sft"),
        row("sft.max_length", "14"),
        row("sft.too_long", "skip").under("sft.max_length=14"),
        row("sft.layerwise_lr_decay", "0.5"),
        row("sft.learn", "last").under("sft.from=models/chat sft.data=chats.jsonl"),
    ]);
    rows
}

/// The keys of `[dpo]`.
pub fn dpo() -> Vec<Row> {
    let mut rows = training::rows("dpo", ["0.2", "0.4"], "96");
    rows.extend(training::trainable("dpo"));
    rows.extend(held_out("dpo", "pairs.jsonl"));
    rows.extend(early_stopping("dpo"));
    rows.extend(training::records("dpo", "data=named_pairs.jsonl", "prompt"));
    rows.extend([
        row("dpo.from", "models/pretrain"),
        row("dpo.loss_type", "ipo"),
        row("dpo.loss_type", "simpo"),
        row("dpo.beta", "0.5"),
        row("dpo.label_smoothing", "0.2"),
        row("dpo.simpo_gamma", "1.5").under("dpo.loss_type=simpo"),
        row("dpo.max_length", "14"),
        row("dpo.too_long", "skip").under("dpo.max_length=14"),
    ]);
    rows
}

/// The keys of `[orpo]`.
pub fn orpo() -> Vec<Row> {
    let mut rows = training::rows("orpo", ["0.2", "0.4"], "96");
    rows.extend(training::trainable("orpo"));
    rows.extend(held_out("orpo", "pairs.jsonl"));
    rows.extend(early_stopping("orpo"));
    rows.extend(training::records(
        "orpo",
        "data=named_pairs.jsonl",
        "prompt",
    ));
    rows.extend([
        row("orpo.from", "models/pretrain"),
        row("orpo.beta", "0.5"),
        row("orpo.max_length", "14"),
        row("orpo.too_long", "skip").under("orpo.max_length=14"),
    ]);
    rows
}

/// The keys of `[reward]` or `[judge]`.
pub fn reward(stage: &'static str) -> Vec<Row> {
    let mut rows = training::rows(stage, ["0.2", "0.4"], "96");
    rows.extend(training::trainable(stage));
    rows.extend(held_out(stage, "pairs.jsonl"));
    rows.extend(training::records(stage, "data=named_pairs.jsonl", "prompt"));
    let row = |key: &str, value: &str| row(&format!("{stage}.{key}"), value);
    rows.extend([
        row("from", "models/pretrain"),
        row("center_rewards_coefficient", "0.1"),
        row("max_length", "14"),
        row("too_long", "skip").under(&format!("{stage}.max_length=14")),
    ]);
    rows
}

#[test]
fn keys_of_the_run_the_model_and_the_tokenizer_arrive() {
    let bench = Bench::new();
    bench.make(
        "words",
        "pretrain",
        "pretrain.max_steps=1 tokenizer.vocab_size=290",
    );
    bench.try_all(shared());
}

#[test]
fn keys_of_pretraining_arrive() {
    Bench::new().try_all(pretrain());
}

#[test]
fn keys_of_fine_tuning_arrive() {
    Bench::new().try_all(sft());
}

#[test]
fn keys_of_preference_tuning_arrive() {
    Bench::new().try_all(dpo());
}

#[test]
fn keys_of_preference_tuning_without_a_reference_arrive() {
    Bench::new().try_all(orpo());
}

#[test]
fn keys_of_the_reward_model_arrive() {
    Bench::new().try_all(reward("reward"));
}

#[test]
fn keys_of_the_judge_arrive() {
    Bench::new().try_all(reward("judge"));
}
