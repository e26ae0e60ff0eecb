//! `[pretrain]`: next-token training on plain text.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{Checker, Keys};
use super::data::Data;
use super::optim::Training;
use super::records::RecordKeys;
use super::stage::StageTable;

/// Next-token training on plain text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pretrain {
    /// Text to train on: `.txt` files, or records with `text`.
    #[schemars(extend("x-default" = "required"))]
    pub data: Data,
    /// Text to evaluate on; unset evaluates nothing.
    #[schemars(extend("x-default" = "unset"))]
    pub eval_data: Data,
    /// Columns and bad records.
    #[serde(flatten)]
    pub records: RecordKeys,
    /// Number of tokens of a training row.
    pub context_length: usize,
    /// Number of batches of one evaluation; 0 takes all of `eval_data`.
    pub eval_batches: usize,
    /// The keys of every stage. `batch_size` counts rows of `context_length` tokens.
    #[serde(flatten)]
    pub training: Training,
}

impl Default for Pretrain {
    fn default() -> Self {
        Self {
            data: Data::default(),
            eval_data: Data::default(),
            records: RecordKeys::default(),
            context_length: 128,
            eval_batches: 0,
            training: Training {
                learning_rate: 3e-4,
                min_lr_ratio: 0.1,
                weight_decay: 0.1,
                ..Training::default()
            },
        }
    }
}

impl StageTable for Pretrain {
    fn training(&self) -> &Training {
        &self.training
    }

    fn check(&self, table: &'static str, checker: &mut Checker<'_>) {
        let mut keys = checker.table(table);
        if self.data.is_empty() {
            keys.missing(
                "data",
                "name the text to train on, for example data = \"train.txt\"",
            );
        }
        self.data.check("data", &mut keys);
        self.eval_data.check_unweighted("eval_data", &mut keys);
        self.records.check(&mut keys);
        keys.at_least(
            "context_length",
            self.context_length,
            2,
            "a row needs a token and the next one",
        );
        let usual = &Self::default().training;
        self.training.check(usual, &mut keys);
        if self.eval_data.is_empty() {
            self.refuse_evaluation_keys(usual, &mut keys);
        }
        self.training
            .check_row("context_length", self.context_length, &mut keys);
    }

    fn data_files(&self) -> Vec<(&'static str, &Path)> {
        let (data, eval_data) = (self.data.paths(), self.eval_data.paths());
        let data = data.map(|path| ("data", path));
        data.chain(eval_data.map(|path| ("eval_data", path)))
            .collect()
    }
}

impl Pretrain {
    /// Reports keys of evaluations that are set without `eval_data`.
    fn refuse_evaluation_keys(&self, usual: &Training, keys: &mut Keys<'_, '_>) {
        self.training.refuse_eval_steps(usual, "eval_data", keys);
        if self.eval_batches > 0 {
            let message =
                "has no effect without held-out records; set eval_data, or remove this key";
            keys.wrong("eval_batches", self.eval_batches, message);
        }
    }
}
