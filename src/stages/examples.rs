//! Records → examples to train on and others held out, for the stages that learn from answers:
//! `sft`, `reward` and `judge`.

use anyhow::{Context as _, Result};

use super::dataset::{Items, Records};
use crate::config::{Data, HeldOut, Stage};
use crate::data;
use crate::data::example::{Encoded, Limit};
use crate::data::loader::split;
use crate::data::records::Record;
use crate::model::Decoder;

/// What a stage trains on, and what it is measured on.
pub struct Examples<T> {
    /// To train on.
    pub training: Items<T>,
    /// To measure on; never trained on.
    pub held_out: Vec<T>,
}

impl<T> Examples<T> {
    /// Reads `data`, and holds out `eval_data` or, without it, a share of `data`.
    ///
    /// # Errors
    /// A file that cannot be read, a record that is wrong, or nothing left to train on; each with
    /// its key.
    pub fn read(
        stage: Stage,
        data: &Data,
        held_out: &HeldOut,
        seed: u64,
        encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
    ) -> Result<Self> {
        let mut training = read_key(stage, "data", data, &encode)?;
        let held_out = if held_out.eval_data.is_empty() {
            let (_, held) = split(training.all.len(), held_out.eval_fraction, seed)
                .with_context(|| format!("[{stage}] eval_fraction"))?;
            training.hold_out(&held)
        } else {
            read_key(stage, "eval_data", &held_out.eval_data, &encode)?.all
        };
        Ok(Self { training, held_out })
    }
}

fn read_key<T>(
    stage: Stage,
    key: &str,
    data: &Data,
    encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
) -> Result<Items<T>> {
    let items = Records::read(data).and_then(|records| records.map(|file| Ok(encode(file)?.items)));
    items.with_context(|| format!("[{stage}] {key}"))
}

/// Most tokens of an example: the stage's `max_length`, or the model's context where that is less.
pub fn limit(stage: Stage, max_length: usize, model: &Decoder) -> Limit {
    let context = model.decoder_config().max_position_embeddings;
    if context <= max_length {
        return Limit {
            tokens: context,
            words: format!("the model's context holds {context}"),
            mend: "start from a model of a larger context".to_owned(),
        };
    }
    Limit {
        tokens: max_length,
        words: format!("{stage}.max_length is {max_length}"),
        mend: format!("raise {stage}.max_length"),
    }
}
