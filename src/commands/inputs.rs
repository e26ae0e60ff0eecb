//! What the commands read: a model folder, and records that become token ids.
//!
//! Text is encoded as in training ([`crate::data::example`]). A record that gives ids needs no
//! tokenizer; the folder may then have none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use crate::cli::RecordArgs;
use crate::config::TooLong;
use crate::data::example::cut_start;
use crate::data::records::shapes::{Style, Task};
use crate::data::records::{self, LeftOut};
use crate::data::{DataError, Encoded, Encoder, Limit, Record, Result, Tokenizer, TooLongCounts};
use crate::model::Decoder;
use crate::model::config::Head;
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::model::hub;
use crate::ops::backend::Backend;
use crate::ops::param::Trainability;
use crate::stages::record_report::{RecordReport, RecordReports};

/// A Hugging Face folder: its configuration, and its tokenizer if it has one; perhaps with a PEFT folder on it.
pub(super) struct ModelFolder {
    path: PathBuf,
    adapter: Option<PathBuf>,
    config: HfConfig,
    tokenizer: Option<Tokenizer>,
}

/// What turns text into ids.
pub(super) struct TextEncoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The rules for records. It limits no length: what fits depends on the command.
    pub records: Encoder<'a>,
}

/// A record that became tokens.
pub(super) struct Input {
    /// Its place among the records of its file, from 0.
    pub index: usize,
    /// The record.
    pub record: Record,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// A file of records, and how to treat those that do not fit.
pub(super) struct Records<'a> {
    /// The command, for messages.
    pub command: &'static str,
    /// The file.
    pub file: &'a Path,
    /// The field that gives tokens without a tokenizer.
    pub ids_field: &'a str,
    /// Part of a record that may be too long, for messages.
    pub part: &'static str,
    /// Limit of its length, for messages.
    pub limit: Limit,
    /// Flags for reading records, and for those that are wrong or too long.
    pub flags: &'a RecordArgs,
    /// The end that `--too-long truncate` cuts.
    pub cut: Cut<'a>,
    /// Task that a record of text is read for.
    pub task: fn(&Record) -> Task,
    /// Fields that the command reads beside the text or the ids.
    pub settings: &'a [&'a str],
}

/// The end of a record that is cut where it is too long.
pub(super) enum Cut<'a> {
    /// The start, but for this prefix, which the tokenizer puts before a text.
    Start(&'a [u32]),
    /// The end.
    End,
}

impl Cut<'_> {
    fn apply(&self, ids: &mut Vec<u32>, room: usize, counts: &mut TooLongCounts) {
        match self {
            Cut::Start(prefix) => {
                cut_start(ids, prefix, room);
                counts.prompts_truncated += 1;
            }
            Cut::End => {
                ids.truncate(room);
                counts.truncated += 1;
            }
        }
    }
}

/// Most tokens of a record, and why.
pub(super) struct Room {
    /// Most tokens.
    pub tokens: usize,
    /// The limit, with the key that sets it and the way to move it.
    pub limit: Limit,
}

impl Records<'_> {
    /// The input cut to its room; `None` if it is left out.
    fn fit(
        &self,
        mut input: Input,
        room: Room,
        counts: &mut TooLongCounts,
    ) -> Result<Option<Input>> {
        match self.flags.too_long {
            TooLong::Skip => {
                counts.skipped += 1;
                Ok(None)
            }
            TooLong::Truncate if room.tokens > 0 => {
                self.cut.apply(&mut input.ids, room.tokens, counts);
                Ok(Some(input))
            }
            TooLong::Truncate | TooLong::Error => Err(DataError::TooLong {
                at: input.record.source.clone(),
                what: self.part,
                found: input.ids.len(),
                limit: room.limit.words,
                mend: format!("{}, or give --too-long skip or truncate", room.limit.mend),
            }),
        }
    }

    /// Fields of the record that are not read.
    fn unused<'r>(&self, record: &'r Record, style: Style) -> Vec<&'r str> {
        let mut unused = match record.fields.contains_key(self.ids_field) {
            true => record
                .names()
                .filter(|name| *name != self.ids_field)
                .collect(),
            false => record.unread((self.task)(record), style),
        };
        unused.retain(|name| !self.settings.contains(name));
        unused
    }
}

impl ModelFolder {
    /// Reads all but the weights; a model of the hub is fetched first. A `path` that is a PEFT folder itself stands for its base
    /// with that adapter.
    ///
    /// # Errors
    /// A folder without `config.json`, a file that cannot be understood, a model that cannot be fetched, or two adapters.
    pub fn open(path: &Path, adapter: Option<&Path>) -> anyhow::Result<Self> {
        let (path, adapter) = base_and_adapter(hub::local(path)?, adapter)?;
        let mut config = match &adapter {
            Some(adapter) => config_with(&path, adapter)?,
            None => HfConfig::read(&path)?,
        };
        // An adapter's own tokenizer is the one that it was trained with.
        let has_one = |folder: &&PathBuf| folder.join("tokenizer.json").exists();
        let place = adapter.iter().chain([&path]).find(has_one);
        let tokenizer = place.map(Tokenizer::load).transpose()?;
        config.stop_also(tokenizer.iter().flat_map(Tokenizer::end_ids));
        Ok(Self {
            path,
            adapter,
            config,
            tokenizer,
        })
    }

    /// The contents of `config.json` and `generation_config.json`. The tokenizer's ends are among the stop ids.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The tokenizer, if there is one; what else was read is let go.
    pub fn into_tokenizer(self) -> Option<Tokenizer> {
        self.tokenizer
    }

    /// Where it lies, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the weights; none is trained.
    ///
    /// # Errors
    /// A missing or damaged file, or a tensor of another shape.
    pub fn decoder(&self, head: Head, backend: &Backend) -> anyhow::Result<Decoder> {
        let frozen = |_: &_| Trainability::Frozen;
        let Some(adapter) = &self.adapter else {
            return Ok(Decoder::load(&self.path, head, 0, frozen, backend)?);
        };
        let found = HfConfig::read(&self.path)?.decoder.head;
        let base = Decoder::load(&self.path, found, 0, frozen, backend)?;
        let frozen = Trainability::Frozen;
        let mut decoder = Decoder::load_adapter(&base, adapter, head, 0, frozen)?;
        *decoder.config_mut() = self.config.clone();
        Ok(decoder)
    }

    /// The token ids of each record of a file: those in its field `ids_field`, else what `encode` makes of its text; each within
    /// its room. Records that are wrong or too long are treated as the flags say, and what was left out is said.
    ///
    /// # Errors
    /// A record without either, text without a tokenizer, no ids at all, an id that the model does not know, or more ids than
    /// there is room, where the flags make an error of it; each names the record. Or more bad records than the flags allow.
    pub fn inputs(
        &self,
        source: &Records<'_>,
        encode: impl Fn(&TextEncoder<'_>, &Record) -> Result<Vec<u32>>,
        room: impl Fn(&Record) -> Result<Room>,
    ) -> anyhow::Result<Vec<Input>> {
        let keys = source.flags.keys()?;
        let entries = records::entries(source.file, keys.columns.as_ref())?;
        let (records, file) = (entries.len(), source.file.display().to_string());
        let mut encoder: Option<TextEncoder<'_>> = None;
        let mut unused = BTreeSet::new();
        let mut found = Encoded {
            items: Vec::with_capacity(records),
            too_long: TooLongCounts::default(),
            bad: LeftOut::default(),
            unused: Vec::new(),
        };
        for (index, entry) in entries.into_iter().enumerate() {
            let input = entry.and_then(|record| {
                let ids = self.ids_of(&record, source.ids_field, &encode, &mut encoder)?;
                let style = encoder
                    .as_ref()
                    .map_or(Style::Plain, |text| text.records.style());
                let names = source.unused(&record, style);
                unused.extend(names.into_iter().map(str::to_owned));
                Ok((room(&record)?, Input { index, record, ids }))
            });
            match input {
                Ok((room, input)) if input.ids.len() <= room.tokens => found.items.push(input),
                Ok((room, input)) => {
                    let fitted = source.fit(input, room, &mut found.too_long)?;
                    found.items.extend(fitted);
                }
                Err(error) => found.bad.leave_out(error, keys.bad_records)?,
            }
        }
        found.unused = unused.into_iter().collect();
        let mut report = RecordReport::new(file.clone(), records, LeftOut::default());
        let inputs = report.take(&file, found);
        if !inputs.is_empty() {
            report = report.check_share(keys.max_bad_share, "--max-bad-share")?;
        }
        RecordReports::default().add(source.command, report, &source.limit);
        ensure!(!inputs.is_empty(), "{file}: no record is left of {records}");
        Ok(inputs)
    }

    fn ids_of<'f>(
        &'f self,
        record: &Record,
        ids_field: &str,
        encode: impl Fn(&TextEncoder<'f>, &Record) -> Result<Vec<u32>>,
        encoder: &mut Option<TextEncoder<'f>>,
    ) -> Result<Vec<u32>> {
        let ids = match encoder {
            _ if record.fields.contains_key(ids_field) => record.token_ids(ids_field)?,
            Some(encoder) => encode(encoder, record)?,
            none => encode(none.insert(self.encoder(record, ids_field)?), record)?,
        };
        self.check_ids(record, &ids)?;
        Ok(ids)
    }

    /// An encoder for `record`, the first that is text.
    fn encoder(&self, record: &Record, ids_field: &str) -> Result<TextEncoder<'_>> {
        let Some(tokenizer) = &self.tokenizer else {
            let message = format!(
                "the record has no `{ids_field}`, and text needs a tokenizer, but {} has no \
                 tokenizer.json; add it, or give token ids in `{ids_field}`",
                self.path.display()
            );
            return Err(wrong(record, message));
        };
        let records = Encoder::new(tokenizer, Limit::none(), TooLong::Error)?;
        Ok(TextEncoder { tokenizer, records })
    }

    fn check_ids(&self, record: &Record, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            let message = "there is no token; give at least one, such as the BOS token";
            return Err(wrong(record, message.to_owned()));
        }
        let vocab_size = self.config.decoder.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(wrong(
                record,
                format!(
                    "token id {id} lies outside the model's vocabulary of {vocab_size}; \
                     was the text encoded with another model's tokenizer?"
                ),
            )),
        }
    }
}

/// A model folder and an adapter on it: the one given, or the folder itself if it is a PEFT one.
fn base_and_adapter(
    path: PathBuf,
    adapter: Option<&Path>,
) -> anyhow::Result<(PathBuf, Option<PathBuf>)> {
    let own = AdapterConfig::find(&path)?;
    match (own, adapter) {
        (None, adapter) => Ok((path, adapter.map(Path::to_path_buf))),
        (Some(own), None) => Ok((own.base_folder(&path)?, Some(path))),
        (Some(_), Some(_)) => bail!(
            "--model {} is an adapter itself, and --adapter asks for another; name the base model",
            path.display()
        ),
    }
}

/// The configuration of a model under an adapter.
fn config_with(path: &Path, adapter: &Path) -> anyhow::Result<HfConfig> {
    let Some(found) = AdapterConfig::read(adapter)? else {
        bail!(
            "{}: no adapter_config.json here; --adapter names a PEFT folder",
            adapter.display()
        )
    };
    Ok(HfConfig::read_adapted(path, adapter, found.head)?)
}

/// An error about a record, naming file and line.
pub(super) fn wrong(record: &Record, message: String) -> DataError {
    DataError::Record {
        at: record.source.clone(),
        message,
    }
}
