//! Pretraining: next-token prediction on plain text, from scratch or from a model folder.

use anyhow::{Context as _, Result, bail};

use super::adapters::Trainee;
use super::architecture::describe_for;
use super::context::{Context, Finished};
use super::dataset::{ExamplesByFile, StageRecords};
use super::definition::{CommandHelp, StageDefinition};
use super::examples::Examples;
use super::first_records::{RecordReader, check_data, check_documents};
use super::language::NextTokenLoss;
use super::plan::machine::{self, MemoryBound};
use super::plan::models::RunModels;
use super::plan::{self, StagePlan};
use super::record_report::RecordReports;
use super::stops::stop_where_answers_end;
use super::supervised::{PreparedStage, train_and_write};
use super::tokenizer::train_tokenizer;
use crate::config::{Data, ModelStart, Pretrain, RecordKeys, Stage};
use crate::data::example::{Limit, documents, encode_documents};
use crate::data::packing::{TextRow, text_rows};
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::model::config::Head;
use crate::model::hf_config::HfConfig;
use crate::ops::param::Trainability;
use crate::ops::work::{self, DeviceWork};
use crate::train::run_folder::Existing;

impl StageDefinition for Pretrain {
    fn help(_stage: Stage) -> CommandHelp {
        CommandHelp {
            about: "Train a language model on plain text, from scratch or from a folder",
            details: "Needs [pretrain] with `data`. Without a tokenizer a byte-level BPE is \
                      trained on that text first.",
            example: "collimate pretrain configs/quickstart.toml --set pretrain.max_steps=100 \
                      --set run.name=trial",
        }
    }

    fn run(&self, context: &Context) -> Result<Option<Finished>> {
        // 1. Sizes that a model can have and that fit in memory.
        self.check_sizes(context)?;

        // 2. Text → tokenizer → rows of `context_length` tokens.
        let mut reports = RecordReports::default();
        let data = read_key("data", &self.data, &self.records, &mut reports)?;
        let tokenizer = tokenizer(context, &data.all)?;
        let training = rows(&tokenizer, &data, self.context_length).context("[pretrain] data")?;
        let held_out = self.held_out(&tokenizer, &mut reports)?;

        // 3. The model, fresh or from its folder.
        let work = work::begin(DeviceWork::Loading("model"));
        let mut model = model(context, &tokenizer, self.context_length)?;
        drop(work);
        stop_where_answers_end(&mut model, &tokenizer)?;

        // 4. Train, and write a model folder.
        let order = training.order(context.stage, &self.training, context.config.run.seed)?;
        train_and_write(
            context,
            PreparedStage {
                objective: NextTokenLoss::new(&model, 1.0),
                trainee: Trainee::whole(model),
                tokenizer,
                examples: Examples {
                    training,
                    held_out,
                    reports,
                },
                order,
                training: &self.training,
                patience: 0,
            },
        )
    }

    fn plan(&self, models: RunModels, _stage: Stage) -> Result<StagePlan> {
        plan::supervised::pretrain(models, self)
    }

    fn check_models(&self, _models: RunModels, _stage: Stage) -> Result<()> {
        Ok(())
    }

    fn check_records(&self, reader: &RecordReader) -> Result<()> {
        let files = [&self.data, &self.eval_data];
        check_data(reader.stage, files, &self.records, check_documents)
    }
}

impl Pretrain {
    /// Refuses, before the text is read, sizes that no model can have or that do not fit in memory.
    /// The vocabulary is taken to be of the size that `[tokenizer]` requests.
    fn check_sizes(&self, context: &Context) -> Result<()> {
        let config = context.config;
        match config.model.start {
            Some(ModelStart::Scratch(_)) => {
                let plan = self.plan(RunModels(config, Existing::Continue), context.stage)?;
                machine::check_memory(config, &plan, MemoryBound::Certain)
            }
            _ => Ok(()),
        }
    }

    /// The held-out rows of one evaluation.
    fn held_out(&self, tokenizer: &Tokenizer, reports: &mut RecordReports) -> Result<Vec<TextRow>> {
        if self.eval_data.is_empty() {
            return Ok(Vec::new());
        }
        let held = read_key("eval_data", &self.eval_data, &self.records, reports)?;
        let rows = pack(tokenizer, &held.all, self.context_length);
        let mut rows = rows.context("[pretrain] eval_data")?;
        if self.eval_batches > 0 {
            rows.truncate(self.eval_batches * self.training.batch_size);
        }
        Ok(rows)
    }
}

fn read_key(
    key: &str,
    data: &Data,
    keys: &RecordKeys,
    reports: &mut RecordReports,
) -> Result<ExamplesByFile<Record>> {
    let read = read_documents(Stage::Pretrain.name(), key, data, keys, reports);
    read.with_context(|| format!("[pretrain] {key}"))
}

/// Reads the documents of `stage.key`, and says which records were left out.
///
/// # Errors
/// If a file cannot be read, or a record is bad and is not left out.
pub fn read_documents(
    stage: &str,
    key: &str,
    data: &Data,
    keys: &RecordKeys,
    reports: &mut RecordReports,
) -> Result<ExamplesByFile<Record>> {
    let texts = |records| documents(records, keys.bad_records);
    let records = StageRecords::read(data, keys)?;
    let (items, report) = records.map(format!("{stage}.{key}"), texts)?;
    reports.add(stage, report.check(keys)?, &Limit::none());
    Ok(items)
}

/// The tokenizer that the configuration names, or a byte-level BPE trained on the text.
fn tokenizer(context: &Context, records: &[Record]) -> Result<Tokenizer> {
    let config = context.config;
    let folder = config.model.start.as_ref().and_then(ModelStart::folder);
    match config.tokenizer.from.as_deref().or(folder) {
        Some(place) => Ok(Tokenizer::load(place)?),
        None => train_tokenizer(&config.tokenizer, records),
    }
}

/// Documents → rows of `context` tokens, the model's end of text between them.
///
/// # Errors
/// If a record has no text, or the whole text does not fill a row.
pub fn pack(tokenizer: &Tokenizer, records: &[Record], context: usize) -> Result<Vec<TextRow>> {
    let documents = encode_documents(tokenizer, records)?;
    Ok(text_rows(&documents, tokenizer.eos_id()?, context)?)
}

/// Rows of all files as one stream, or of each file by itself if the files have weights.
fn rows(
    tokenizer: &Tokenizer,
    records: &ExamplesByFile<Record>,
    context: usize,
) -> Result<ExamplesByFile<TextRow>> {
    let weighted = records.by_file().any(|(_, weight)| weight.is_some());
    if !weighted {
        let rows = pack(tokenizer, &records.all, context)?;
        let count = rows.len();
        return Ok(ExamplesByFile::new(rows, vec![(count, None)]));
    }
    let (mut all, mut files) = (Vec::new(), Vec::new());
    for (file, weight) in records.by_file() {
        let rows = pack(tokenizer, file, context)?;
        files.push((rows.len(), weight));
        all.extend(rows);
    }
    Ok(ExamplesByFile::new(all, files))
}

fn model(context: &Context, tokenizer: &Tokenizer, context_length: usize) -> Result<Decoder> {
    let seed = context.config.run.seed;
    let all = |_: &_| Trainability::Trained;
    let model = match &context.config.model.start {
        Some(ModelStart::Folder(folder)) => {
            Decoder::load(folder, Head::LanguageModel, seed, all, context.backend)?
        }
        Some(ModelStart::Scratch(sizes)) => Decoder::fresh(
            HfConfig::new(describe_for(sizes, tokenizer)?),
            seed,
            all,
            context.backend,
        )?,
        None => bail!("[model] has neither `from` nor sizes; pretraining needs one of them"),
    };
    let decoder = model.decoder_config();
    if tokenizer.vocab_size() > decoder.vocab_size {
        bail!(
            "the tokenizer has {} tokens and the model's embedding {} rows (vocab_size)",
            tokenizer.vocab_size(),
            decoder.vocab_size
        );
    }
    if context_length > decoder.max_position_embeddings {
        bail!(
            "pretrain.context_length is {context_length}; the model's context holds {} \
             (model.max_position_embeddings)",
            decoder.max_position_embeddings
        );
    }
    Ok(model)
}
