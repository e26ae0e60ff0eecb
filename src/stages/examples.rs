//! Records → examples to train on and others held out, for the stages that learn from answers:
//! `sft`, `dpo`, `reward` and `judge`.
//!
//! A record that is too long is cut or left out. How many were is said when the stage starts, with
//! the key that changes it, and again in the closing table.

use anyhow::{Context as _, Result};

use super::dataset::{Items, Records};
use crate::config::{Data, HeldOut, Stage};
use crate::data;
use crate::data::example::{Encoded, Encoder, Limit, TooLongCounts};
use crate::data::loader::split;
use crate::data::records::Record;
use crate::model::Decoder;
use crate::train::summary::Summary;

/// What a stage trains on, and what it is measured on.
pub struct Examples<T> {
    /// To train on.
    pub training: Items<T>,
    /// To measure on; never trained on.
    pub held_out: Vec<T>,
    /// What became of records that were too long.
    pub misfits: Misfits,
}

/// The records that were too long, key by key.
pub struct Misfits(Vec<Misfit>);

/// What happened to how many of a key's records.
struct Misfit {
    key: String,
    records: usize,
    count: usize,
    fate: &'static str,
}

impl<T> Examples<T> {
    /// Reads `data`, and holds out `eval_data` or, without it, a share of `data`. Says on the
    /// terminal what was too long.
    ///
    /// # Errors
    /// A file that cannot be read, a record that is wrong, or nothing left to train on; each with
    /// its key.
    pub fn read<'t>(
        stage: Stage,
        data: &Data,
        held_out: &HeldOut,
        seed: u64,
        encoder: &Encoder<'t>,
        encode: impl Fn(&Encoder<'t>, &[Record]) -> data::Result<Encoded<T>>,
    ) -> Result<Self> {
        let encode = |records: &[Record]| encode(encoder, records);
        let (mut training, mut misfits) = read_key(stage, "data", data, encode)?;
        let held_out = if held_out.eval_data.is_empty() {
            let (_, held) = split(training.all.len(), held_out.eval_fraction, seed)
                .with_context(|| format!("[{stage}] eval_fraction"))?;
            training.hold_out(&held)
        } else {
            let (items, more) = read_key(stage, "eval_data", &held_out.eval_data, encode)?;
            misfits.0.extend(more.0);
            items.all
        };
        misfits.note(stage, encoder.limit());
        Ok(Self {
            training,
            held_out,
            misfits,
        })
    }
}

fn read_key<T>(
    stage: Stage,
    key: &str,
    data: &Data,
    encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
) -> Result<(Items<T>, Misfits)> {
    let read = || {
        let records = Records::read(data)?;
        let (items, too_long) = records.map(encode)?;
        let misfits = Misfits::of(format!("{stage}.{key}"), records.all.len(), too_long);
        anyhow::Ok((items, misfits))
    };
    read().with_context(|| format!("[{stage}] {key}"))
}

impl Misfits {
    fn of(key: String, records: usize, too_long: TooLongCounts) -> Self {
        let fates = [
            (too_long.truncated, "cut at the end"),
            (too_long.skipped, "left out"),
        ];
        let some = fates.into_iter().filter(|(count, _)| *count > 0);
        let misfit = |(count, fate)| Misfit {
            key: key.clone(),
            records,
            count,
            fate,
        };
        Self(some.map(misfit).collect())
    }

    fn note(&self, stage: Stage, limit: &Limit) {
        let Limit { words, mend, .. } = limit;
        for misfit in &self.0 {
            let (Misfit { key, fate, .. }, share) = (misfit, misfit.share());
            eprintln!(
                "{stage}: {share} records of {key} are too long and were {fate}: {words}; to change that, {mend}"
            );
        }
    }

    /// Adds a row for each.
    pub fn add_to(&self, table: &mut Summary) {
        for misfit in &self.0 {
            let name = format!("records of {} {}", misfit.key, misfit.fate);
            table.text(&name, "", &misfit.share());
        }
    }
}

impl Misfit {
    fn share(&self) -> String {
        format!("{} of {}", self.count, self.records)
    }
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
