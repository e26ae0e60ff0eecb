//! The keys that stages with examples share (`[sft]`, `[dpo]`, `[orpo]`, `[reward]`,
//! `[judge]`): records, their lengths, and the weights that are trained.

use std::path::{Path, PathBuf};

use super::check::Keys;
use super::data::{Data, HeldOut};
use super::optim::Training;
use super::records::{RecordKeys, TooLong};
use super::trainable::Trainable;

/// The keys of a stage that learns from examples.
#[derive(Clone, Copy, Debug)]
pub struct ExampleKeys<'a> {
    /// Folder of the model to start from.
    pub from: &'a Path,
    /// Records to train on.
    pub data: &'a Data,
    /// Held-out records.
    pub held_out: &'a HeldOut,
    /// Largest number of tokens of a sequence.
    pub max_length: usize,
    /// Policy for longer sequences.
    pub too_long: TooLong,
    /// Columns and bad records.
    pub records: &'a RecordKeys,
    /// Weights that are trained.
    pub trainable: &'a Trainable,
    /// Number of evaluations without a new lowest loss after which training stops; 0 never stops
    /// early.
    pub early_stopping_patience: usize,
    /// The keys of every stage.
    pub training: &'a Training,
    /// Number of sequences of an example: 2 for a pair of answers, which share a forward pass.
    pub sequences: usize,
}

/// Mutable [`ExampleKeys`].
#[derive(Debug)]
pub struct ExampleKeysMut<'a> {
    /// Folder of the model to start from.
    pub from: &'a mut PathBuf,
    /// Records to train on.
    pub data: &'a mut Data,
    /// Held-out records.
    pub held_out: &'a mut HeldOut,
    /// Largest number of tokens of a sequence.
    pub max_length: usize,
    /// Policy for longer sequences.
    pub too_long: &'a mut TooLong,
    /// Columns and bad records.
    pub records: &'a mut RecordKeys,
    /// Number of evaluations without a new lowest loss after which training stops, if the stage can
    /// stop early.
    pub early_stopping_patience: Option<&'a mut usize>,
    /// The keys of every stage.
    pub training: &'a mut Training,
    /// Number of sequences of an example.
    pub sequences: usize,
}

/// The table of a stage that learns from examples.
pub trait ExampleTable: Default {
    /// Remedy with an example of the key `data`, for the error when it is missing.
    const DATA: &'static str;

    /// Smallest `max_length`, with the reason.
    const SHORTEST: (usize, &'static str);

    /// The shared keys.
    fn keys(&self) -> ExampleKeys<'_>;

    /// The shared keys, mutable.
    fn keys_mut(&mut self) -> ExampleKeysMut<'_>;

    /// Checks the other keys of the table.
    fn check_own(&self, keys: &mut Keys<'_, '_>);
}

/// The methods `keys` and `keys_mut` of an [`ExampleTable`] whose fields have the names of
/// [`ExampleKeys`]. `$sequences` is the number of sequences of an example; the second argument is
/// the field `early_stopping_patience`, if there is one.
macro_rules! example_keys {
    ($sequences:expr $(, $patience:ident)?) => {
        fn keys(&self) -> crate::config::ExampleKeys<'_> {
            crate::config::ExampleKeys {
                from: &self.from,
                data: &self.data,
                held_out: &self.held_out,
                max_length: self.max_length,
                too_long: self.too_long,
                records: &self.records,
                trainable: &self.trainable,
                early_stopping_patience: 0 $(+ self.$patience)?,
                training: &self.training,
                sequences: $sequences,
            }
        }

        fn keys_mut(&mut self) -> crate::config::ExampleKeysMut<'_> {
            crate::config::ExampleKeysMut {
                from: &mut self.from,
                data: &mut self.data,
                held_out: &mut self.held_out,
                max_length: self.max_length,
                too_long: &mut self.too_long,
                records: &mut self.records,
                early_stopping_patience: None $(.or(Some(&mut self.$patience)))?,
                training: &mut self.training,
                sequences: $sequences,
            }
        }
    };
}
pub(super) use example_keys;

impl<'a> ExampleKeys<'a> {
    /// The data files by key.
    pub(super) fn files(self) -> Vec<(&'static str, &'a Path)> {
        let data = self.data.paths().map(|path| ("data", path));
        let eval_data = self.held_out.eval_data.paths();
        data.chain(eval_data.map(|path| ("eval_data", path)))
            .collect()
    }

    pub(super) fn check<T: ExampleTable>(self, keys: &mut Keys<'_, '_>) {
        if self.data.is_empty() {
            keys.missing("data", T::DATA);
        }
        self.data.check("data", keys);
        self.held_out.check(keys);
        self.records.check(keys);
        let (least, why) = T::SHORTEST;
        keys.at_least("max_length", self.max_length, least, why);
        self.trainable.check(keys);
        let patience = self.early_stopping_patience;
        self.training.check_patience(patience, self.held_out, keys);
        let usual = T::default();
        self.training
            .check_with(self.held_out, usual.keys().training, keys);
        let (row, length) = match self.sequences {
            1 => ("max_length".to_owned(), self.max_length),
            many => (
                format!("{many} × max_length"),
                self.max_length.saturating_mul(many),
            ),
        };
        self.training.check_row(&row, length, keys);
    }
}
