//! Records → examples to train on and others held out.
//!
//! The policies of the stage decide on records that are too long or bad
//! ([`super::record_report`]).

use anyhow::{Context as _, Result};

use super::dataset::{ExamplesByFile, StageRecords};
use super::record_report::{RecordReport, RecordReports};
use crate::config::{Data, ExampleKeys, Stage};
use crate::data;
use crate::data::example::{Encoded, Encoder, Limit};
use crate::data::loader::split;
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::terminal;

/// The examples of a stage.
pub struct Examples<T> {
    /// Examples to train on.
    pub training: ExamplesByFile<T>,
    /// Examples to measure on; never trained on.
    pub held_out: Vec<T>,
    /// Records that were cut or left out.
    pub reports: RecordReports,
}

impl<T> Examples<T> {
    /// Reads `data`, and holds out `eval_data` or, without it, a share of `data`. Says on the
    /// terminal which records were too long or bad.
    ///
    /// # Errors
    /// A file that cannot be read, a record that is wrong, or nothing left to train on; each with
    /// its key.
    pub fn read<'t>(
        stage: Stage,
        keys: &ExampleKeys,
        seed: u64,
        encoder: &Encoder<'t>,
        encode: impl Fn(&Encoder<'t>, &[Record]) -> data::Result<Encoded<T>>,
    ) -> Result<Self> {
        let encode = |records: &[Record]| encode(encoder, records);
        let held_out = keys.held_out;
        let (mut training, first) = read_key(stage, keys, ("data", keys.data), encode)?;
        let (held_out, second) = if held_out.eval_data.is_empty() {
            let (_, held) = split(training.all.len(), held_out.eval_fraction, seed)
                .with_context(|| format!("[{stage}] eval_fraction"))?;
            (training.hold_out(&held), None)
        } else {
            let key = ("eval_data", &held_out.eval_data);
            let (items, report) = read_key(stage, keys, key, encode)?;
            (items.all, Some(report))
        };
        let mut reports = RecordReports::default();
        for report in [first].into_iter().chain(second) {
            reports.add(stage.name(), report, encoder.limit());
        }
        note_lost_reasoning(stage, encoder.lost_reasoning());
        note_equal_answers(stage, encoder.equal_answers());
        Ok(Self {
            training,
            held_out,
            reports,
        })
    }

    /// The examples with `make` applied to each.
    pub fn map<U>(self, make: impl Fn(T) -> U) -> Examples<U> {
        Examples {
            training: self.training.map(&make),
            held_out: self.held_out.into_iter().map(make).collect(),
            reports: self.reports,
        }
    }
}

fn note_lost_reasoning(stage: Stage, answers: usize) {
    if answers > 0 {
        terminal::note(format_args!(
            "{stage}: the chat template leaves the reasoning of {answers} answers \
             (`reasoning_content`, or <think> in the content) out of the training text; to train \
             on it, use a template that renders it, or give the records as text"
        ));
    }
}

fn note_equal_answers(stage: Stage, pairs: usize) {
    if pairs > 0 {
        terminal::note(format_args!(
            "{stage}: pairs whose two answers are equal, which teach no preference: {pairs}"
        ));
    }
}

impl<T> Examples<Vec<T>> {
    /// The examples of all records. They are held out by record: those of one record stay together.
    pub fn flatten(self) -> Examples<T> {
        Examples {
            training: self.training.flatten(),
            held_out: self.held_out.into_iter().flatten().collect(),
            reports: self.reports,
        }
    }
}

fn read_key<T>(
    stage: Stage,
    keys: &ExampleKeys,
    (key, data): (&str, &Data),
    encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
) -> Result<(ExamplesByFile<T>, RecordReport)> {
    let read = || {
        let records = StageRecords::read(data, keys.records)?;
        let (items, report) = records.map(format!("{stage}.{key}"), |records| encode(&records))?;
        anyhow::Ok((items, report.check(keys.records)?))
    };
    read().with_context(|| format!("[{stage}] {key}"))
}

/// An encoder within the limits of the stage and of the model, with the stage's policies.
///
/// # Errors
/// The errors of [`Encoder::new`].
pub fn encoder<'t>(
    stage: Stage,
    keys: &ExampleKeys,
    tokenizer: &'t Tokenizer,
    model: &Decoder,
) -> Result<Encoder<'t>> {
    let context = model.decoder_config().max_position_embeddings;
    let limit = limit(stage, keys.max_length, context).or_other_policy(stage.name(), keys.too_long);
    let encoder = Encoder::new(tokenizer, limit, keys.too_long)?;
    Ok(encoder.with_bad_records(keys.records.bad_records))
}

/// Most tokens of an example: the stage's `max_length`, or the model's context where that is less.
pub fn limit(stage: Stage, max_length: usize, context: usize) -> Limit {
    if context <= max_length {
        let above = match context == max_length {
            true => String::new(),
            false => format!("{stage}.max_length is {max_length} and "),
        };
        return Limit {
            tokens: context,
            words: format!("{above}the model's context holds {context}"),
            mend: "start from a model of a larger context".to_owned(),
        };
    }
    Limit {
        tokens: max_length,
        words: format!("{stage}.max_length is {max_length}"),
        mend: format!("raise {stage}.max_length"),
    }
}
