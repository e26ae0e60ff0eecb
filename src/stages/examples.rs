//! Records → examples to train on and others held out, for the stages that learn from answers:
//! `sft`, `dpo`, `reward` and `judge`.
//!
//! Records that are too long or bad are treated by the stage's policies ([`super::misfits`]).

use anyhow::{Context as _, Result};

use super::dataset::{Items, Records};
use super::misfits::{Misfit, Misfits};
use crate::config::{Data, HeldOut, RecordKeys, Stage, TooLong};
use crate::data;
use crate::data::example::{Encoded, Encoder, Limit};
use crate::data::loader::split;
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::terminal;

/// The keys of a stage that say where its records come from and what happens to those that do not fit.
pub struct Source<'a> {
    /// The stage.
    pub stage: Stage,
    /// Records to train on.
    pub data: &'a Data,
    /// Held-out records.
    pub held_out: &'a HeldOut,
    /// Columns, and bad records.
    pub records: &'a RecordKeys,
    /// Most tokens of an example.
    pub max_length: usize,
    /// Policy for a longer one.
    pub too_long: TooLong,
}

/// What a stage trains on, and what it is measured on.
pub struct Examples<T> {
    /// To train on.
    pub training: Items<T>,
    /// To measure on; never trained on.
    pub held_out: Vec<T>,
    /// Records that were cut or left out.
    pub misfits: Misfits,
}

impl<T> Examples<T> {
    /// Reads `data`, and holds out `eval_data` or, without it, a share of `data`. Says on the
    /// terminal what was too long.
    ///
    /// # Errors
    /// A file that cannot be read, a record that is wrong, or nothing left to train on; each with
    /// its key.
    pub fn read<'t>(
        source: &Source,
        seed: u64,
        encoder: &Encoder<'t>,
        encode: impl Fn(&Encoder<'t>, &[Record]) -> data::Result<Encoded<T>>,
    ) -> Result<Self> {
        let encode = |records: &[Record]| encode(encoder, records);
        let Source {
            stage, held_out, ..
        } = *source;
        let (mut training, first) = read_key(source, "data", source.data, encode)?;
        let (held_out, second) = if held_out.eval_data.is_empty() {
            let (_, held) = split(training.all.len(), held_out.eval_fraction, seed)
                .with_context(|| format!("[{stage}] eval_fraction"))?;
            (training.hold_out(&held), None)
        } else {
            let (items, misfit) = read_key(source, "eval_data", &held_out.eval_data, encode)?;
            (items.all, Some(misfit))
        };
        let mut misfits = Misfits::default();
        for misfit in [first].into_iter().chain(second) {
            misfits.add(stage.name(), misfit, encoder.limit());
        }
        note_lost_reasoning(stage, encoder.lost_reasoning());
        Ok(Self {
            training,
            held_out,
            misfits,
        })
    }
}

fn note_lost_reasoning(stage: Stage, answers: usize) {
    if answers > 0 {
        terminal::note(format_args!(
            "{stage}: the chat template leaves the reasoning of {answers} answers (`reasoning_content`, or <think> in the content) out of \
             what is learned; to learn it, use a template that renders it, or give the records as text"
        ));
    }
}

impl<T> Examples<Vec<T>> {
    /// The examples of all records. They are held out by record: no two of one record come apart.
    pub fn flatten(self) -> Examples<T> {
        Examples {
            training: self.training.flatten(),
            held_out: self.held_out.into_iter().flatten().collect(),
            misfits: self.misfits,
        }
    }
}

fn read_key<T>(
    source: &Source,
    key: &str,
    data: &Data,
    encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
) -> Result<(Items<T>, Misfit)> {
    let (stage, keys) = (source.stage, source.records);
    let read = || {
        let records = Records::read(data, keys)?;
        let (items, misfit) = records.map(format!("{stage}.{key}"), encode)?;
        anyhow::Ok((items, misfit.check(keys)?))
    };
    read().with_context(|| format!("[{stage}] {key}"))
}

impl Source<'_> {
    /// An encoder within the limits of the stage and of the model, with the stage's policies.
    ///
    /// # Errors
    /// The errors of [`Encoder::new`].
    pub fn encoder<'t>(&self, tokenizer: &'t Tokenizer, model: &Decoder) -> Result<Encoder<'t>> {
        let context = model.decoder_config().max_position_embeddings;
        let limit = limit(self.stage, self.max_length, context)
            .or_other_policy(self.stage.name(), self.too_long);
        let encoder = Encoder::new(tokenizer, limit, self.too_long)?;
        Ok(encoder.with_bad_records(self.records.bad_records))
    }
}

/// Most tokens of an example: the stage's `max_length`, or the model's context where that is less.
pub fn limit(stage: Stage, max_length: usize, context: usize) -> Limit {
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
