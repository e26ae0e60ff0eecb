//! The keys that every stage has.

use crate::row::{Row, row};

/// The rows of a stage. `epochs` are two lengths of it in epochs; `pass` is a number of tokens that
/// cuts its batch into several passes.
pub fn rows(stage: &str, epochs: [&str; 2], pass: &str) -> Vec<Row> {
    let row = |key: &str, value: &str| row(&format!("{stage}.{key}"), value);
    let under = |key: &str| format!("{stage}.{key}");
    let length = under(&format!("max_epochs={}", epochs[0]));
    let falling = under("lr_scheduler_type=linear");
    vec![
        row("max_steps", "1"),
        row("max_epochs", epochs[1])
            .under(&under("max_steps=0"))
            .under(&length),
        row("learning_rate", "2e-3"),
        row("lr_scheduler_type", "linear").under(&under("max_steps=4")),
        row("warmup_steps", "2"),
        row("min_lr_ratio", "0.5").under(&falling),
        row("batch_size", "4"),
        passes(stage, row("micro_batch_tokens", pass)),
        remainder(stage, row("dataloader_drop_last", "true")),
        row("weight_decay", "0.5"),
        row("adam_beta1", "0.5"),
        row("adam_beta2", "0.5"),
        row("adam_epsilon", "1e-3"),
        row("max_grad_norm", "0.01"),
        row("save_steps", "1").stays(),
        row("keep_last", "1").under(&under("save_steps=1")).stays(),
        row("keep_every", "1").under(&under("save_steps=1")).stays(),
        row("recompute", "block").stays(),
        row("log_steps", "2").stays(),
    ]
}

/// The rows of the keys of records. `data` is the key that names a file; `field` is a field that
/// each record also has under another name.
pub fn records(stage: &str, data: &str, field: &str) -> Vec<Row> {
    let row = |key: &str, value: &str| row(&format!("{stage}.{key}"), value);
    let columns = |column: &str| format!("{{{field}=\"{column}\"}}");
    let first = format!("{stage}.{data} {stage}.columns={}", columns("first"));
    vec![
        row("columns", &columns("second")).under(&first),
        row("bad_records", "skip").stays(),
        row("max_bad_share", "0.5")
            .under(&format!("{stage}.bad_records=skip"))
            .stays(),
    ]
}

/// Why another pass size changes the weights: sums run in another order.
fn passes(stage: &str, row: Row) -> Row {
    let chain =
        "a gradient that has one source is one chain over the batch, where chains compute it";
    match stage {
        // An untied head is not part of the embedding, whose gradient then has one source instead
        // of two.
        "reward" | "judge" => row.shows("train/loss", chain),
        _ => row,
    }
}

/// The rows of `dataloader_drop_last`; no stage has a multiple of a hundred records, so the last
/// batch of an epoch is short.
fn remainder(stage: &str, row: Row) -> Row {
    match stage {
        "ppo" => row.refused("an iteration always has batch_size sequences"),
        _ => row.under(&format!("{stage}.batch_size=100")),
    }
}

/// The rows of a stage's adapters; `on` is the setting that turns adapters on.
pub fn adapters(stage: &str, on: &str) -> Vec<Row> {
    let row = |key: &str, value: &str| row(&format!("{stage}.lora.{key}"), value).under(on);
    vec![
        row("r", "2"),
        row("lora_alpha", "32.0"),
        row("lora_dropout", "0.1").refused("lora_dropout must be 0"),
        row("target_modules", "all-linear"),
        row("layers_to_transform", "top:1"),
        row("use_rslora", "true"),
    ]
}

/// The rows of the keys that choose which weights are trained.
pub fn trainable(stage: &str) -> Vec<Row> {
    let own = |key: &str, value: &str| row(&format!("{stage}.{key}"), value);
    let on = format!("{stage}.lora.r=4 {stage}.lora.lora_alpha=8.0");
    let mut rows = adapters(stage, &on);
    rows.extend([own("freeze_layers", "1"), own("freeze_embeddings", "true")]);
    rows
}
