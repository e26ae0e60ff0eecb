//! Input of the commands: a model folder, and records that become token ids.
//!
//! Text is encoded as in training ([`crate::data::example`]). A record that gives ids needs no
//! tokenizer; the folder may then have none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::flags::with_flags;
use crate::cli::RecordArgs;
use crate::config::{TooLong, model_below};
use crate::data::example::cut_start;
use crate::data::records::shapes::{RecordTask, Style};
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

/// A Hugging Face folder: its configuration, and its tokenizer if it has one; perhaps with a PEFT
/// folder on it.
pub(super) struct ModelFolder {
    path: PathBuf,
    adapter: Option<PathBuf>,
    config: HfConfig,
    tokenizer: Option<Tokenizer>,
}

/// Tokenizer and encoder of the records' text.
pub(super) struct TextEncoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Encoder of records, without a limit on length, which depends on the command.
    pub records: Encoder<'a>,
}

/// A record with its tokens.
pub(super) struct Input {
    /// Index among the records of its file, from 0.
    pub index: usize,
    /// The record as it was read.
    pub record: Record,
    /// Token ids of the record.
    pub ids: Vec<u32>,
}

/// A file of records, and how bad and long records are treated.
pub(super) struct RecordFile<'a> {
    /// The command, for messages.
    pub command: &'static str,
    /// The file.
    pub file: &'a Path,
    /// The field that gives tokens without a tokenizer.
    pub ids_field: &'a str,
    /// Name of the part of a record that may be too long, for messages.
    pub part: &'static str,
    /// Limit of its length, for messages.
    pub limit: Limit,
    /// Flags for reading records.
    pub flags: &'a RecordArgs,
    /// The end that `--too-long truncate` cuts.
    pub cut: CutEnd<'a>,
    /// Task that a record of text is read for.
    pub task: fn(&Record) -> RecordTask,
    /// Further fields that the command reads.
    pub settings: &'a [&'a str],
}

/// End at which a long record is cut.
pub(super) enum CutEnd<'a> {
    /// Cut the start, after this prefix of the tokenizer.
    Start(&'a [u32]),
    /// Cut the end.
    End,
}

impl CutEnd<'_> {
    fn apply(&self, ids: &mut Vec<u32>, room: usize, counts: &mut TooLongCounts) {
        match self {
            CutEnd::Start(prefix) => {
                cut_start(ids, prefix, room);
                counts.prompts_truncated += 1;
            }
            CutEnd::End => {
                ids.truncate(room);
                counts.truncated += 1;
            }
        }
    }
}

/// Limit on the tokens of a record.
pub(super) struct Room {
    /// Largest number of tokens.
    pub tokens: usize,
    /// The limit in words, with its remedy.
    pub limit: Limit,
}

impl RecordFile<'_> {
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
    /// Reads all but the weights; a model of the hub is fetched first. If `path` is a PEFT folder,
    /// its base is read with that adapter.
    ///
    /// # Errors
    /// A folder without `config.json`, a file that cannot be understood, a model that cannot be
    /// fetched, or two adapters.
    pub fn open(path: &Path, adapter: Option<&Path>) -> anyhow::Result<Self> {
        let local = hub::local(path).with_context(|| format!("--model {}", path.display()))?;
        ensure!(local.exists(), "--model {}: no such folder", path.display());
        if let Some(inner) = model_below(&local) {
            bail!(
                "--model {} holds no model; did you mean {}?",
                path.display(),
                inner.display()
            );
        }
        if let Some(adapter) = adapter {
            ensure!(
                adapter.exists(),
                "--adapter {}: no such folder",
                adapter.display()
            );
        }
        let (path, adapter) = base_and_adapter(local, adapter)?;
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

    /// Contents of `config.json` and `generation_config.json`, the tokenizer's end tokens among the
    /// stop ids.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The tokenizer, if there is one.
    pub fn into_tokenizer(self) -> Option<Tokenizer> {
        self.tokenizer
    }

    /// Path of the folder, for messages.
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

    /// Token ids of each record of a file, within its room: from the field `ids_field`, or encoded
    /// from its text. Bad and long records are treated as the flags say, with a note on those left
    /// out.
    ///
    /// # Errors
    /// A record without ids and text, text without a tokenizer, an empty record, an id outside the
    /// vocabulary, or more ids than there is room; each names the record. Or more bad records than
    /// the flags allow.
    pub fn inputs(
        &self,
        source: &RecordFile<'_>,
        encode: impl Fn(&TextEncoder<'_>, &Record) -> Result<Vec<u32>>,
        room: impl Fn(&Record) -> Result<Room>,
    ) -> anyhow::Result<Vec<Input>> {
        let keys = source.flags.keys()?;
        let entries = records::entries(source.file, keys.columns.as_ref()).map_err(with_flags)?;
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
                Err(error) => found.bad.leave_out(with_flags(error), keys.bad_records)?,
            }
        }
        found.unused = unused.into_iter().collect();
        let mut report = RecordReport::new(file.clone(), records, LeftOut::default());
        let inputs = report.take(&file, found);
        if !inputs.is_empty() {
            report = report.check_share(keys.max_bad_share, "--max-bad-share")?;
        }
        RecordReports::default().add(source.command, report, &source.limit);
        ensure!(
            !inputs.is_empty(),
            "{file}: none of its {records} records can be used"
        );
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

    /// The encoder of text; `record` is the first that needs it.
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
            let message = "the record has no tokens; give at least one, such as BOS";
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

/// The folders of a model and of its adapter: `adapter`, or `path` itself if it is a PEFT folder.
fn base_and_adapter(
    path: PathBuf,
    adapter: Option<&Path>,
) -> anyhow::Result<(PathBuf, Option<PathBuf>)> {
    let own = AdapterConfig::find(&path)?;
    match (own, adapter) {
        (None, adapter) => Ok((path, adapter.map(Path::to_path_buf))),
        (Some(own), None) => Ok((own.base_folder(&path)?, Some(path))),
        (Some(_), Some(_)) => bail!(
            "--model {} is an adapter, and --adapter names another; set --model to the base model",
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
