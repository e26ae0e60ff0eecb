//! Pretraining: next-token prediction on plain text, from scratch or from a model folder.

use anyhow::{Context as _, Result, bail};

use super::architecture::{describe, describe_for};
use super::context::{Context, Finished};
use super::dataset::{Items, Records};
use super::language::{LanguageTask, RowSet};
use super::misfits::Misfits;
use super::stops::stop_where_answers_end;
use super::texts::Texts;
use crate::config::{Data, ModelStart, Pretrain, RecordKeys, Stage};
use crate::data::example::{Limit, documents, encode_documents};
use crate::data::packing::{Batch, Packed};
use crate::data::records::Record;
use crate::data::tokenizer::{BpeTraining, Tokenizer};
use crate::model::Decoder;
use crate::model::config::{DecoderConfig, Head};
use crate::model::hf_config::HfConfig;
use crate::ops::param::Training as Trained;
use crate::terminal::Phase;
use crate::train::memory::limit_bytes;
use crate::train::supervised::{Plan, train};

/// Numbers held for each parameter that is trained: itself, its gradient and AdamW's two moments.
const HELD: usize = 4;

const GIB: f64 = (1u64 << 30) as f64;

impl RowSet for Packed {
    fn len(&self) -> usize {
        self.len()
    }

    fn tokens(&self, index: usize) -> usize {
        self.window(index).map_or(0, |w| w.len() - 1)
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let windows: Option<Vec<&[u32]>> = indices.iter().map(|&i| self.window(i)).collect();
        Ok(Batch::from_windows(
            &windows.context("a window past the end of the text")?,
        )?)
    }
}

/// Runs the stage; `None` when a signal stopped it.
///
/// # Errors
/// If data, model or a file is wrong, or training diverges.
pub fn pretrain(context: &Context, config: &Pretrain) -> Result<Option<Finished>> {
    // 1. A shape that a model can have.
    check_shape(context)?;

    // 2. Text → tokenizer → rows of `context_length` tokens.
    let mut misfits = Misfits::default();
    let (name, keys) = (Stage::Pretrain.name(), &config.records);
    let records = read_documents(name, "data", &config.data, keys, &mut misfits)
        .context("[pretrain] data")?;
    let tokenizer = tokenizer(context, &records.all)?;
    let rows =
        Texts::pack(&tokenizer, &records, config.context_length).context("[pretrain] data")?;
    let held_out = if config.eval_data.is_empty() {
        Vec::new()
    } else {
        let held = read_documents(name, "eval_data", &config.eval_data, keys, &mut misfits)
            .context("[pretrain] eval_data")?;
        let held = pack(&tokenizer, &held.all, config.context_length);
        let most = if config.eval_batches == 0 {
            usize::MAX
        } else {
            config.eval_batches * config.training.batch_size
        };
        held.context("[pretrain] eval_data")?
            .batches(most, config.training.micro_batch_tokens)?
    };

    // 3. The model, fresh or from its folder.
    let mut model = model(context, &tokenizer, config.context_length)?;
    stop_where_answers_end(&mut model, &tokenizer)?;

    // 4. Train, and leave a Hugging Face folder.
    let (training, seed) = (&config.training, context.config.run.seed);
    let walk = rows.places().walk(Stage::Pretrain, training, seed)?;
    let steps = walk.steps(training);
    let task = LanguageTask {
        rows,
        walk,
        held_out,
        training,
    };
    let plan = Plan {
        stage: Stage::Pretrain.name(),
        steps,
        training,
        patience: 0,
        max_bad_steps: context.config.run.max_bad_steps,
        rate: &|_| 1.0,
        folder: context.folder,
        stop: context.stop,
    };
    let Some(report) = train(&task, &model, &plan)? else {
        return Ok(None);
    };
    context.write_final(&model, &tokenizer)?;
    let mut finished = Finished::supervised(plan.stage, &report, context.folder);
    misfits.add_to(&mut finished.table);
    Ok(Some(finished))
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
    misfits: &mut Misfits,
) -> Result<Items<Record>> {
    let texts = |records| documents(records, keys.bad_records);
    let records = Records::read(data, keys)?;
    let (items, misfit) = records.map_owned(format!("{stage}.{key}"), texts)?;
    misfits.add(stage, misfit.check(keys)?, &Limit::none());
    Ok(items)
}

/// A shape that no model can have ends the stage before its text is read. The size that `[tokenizer]` asks for stands in for
/// the vocabulary to come.
fn check_shape(context: &Context) -> Result<()> {
    if let Some(ModelStart::Scratch(sizes)) = &context.config.model.start {
        let model = describe(sizes, context.config.tokenizer.vocab_size)?;
        check_memory(&model)?;
    }
    Ok(())
}

/// Weights, gradients and two moments that the machine cannot hold would end the process without a word.
fn check_memory(model: &DecoderConfig) -> Result<()> {
    let numbers = model.tensors().into_iter().map(|spec| {
        let sizes = spec.shape.iter().map(|&size| size as f64);
        sizes.product::<f64>()
    });
    let parameters: f64 = numbers.sum();
    let bytes = parameters * HELD as f64 * size_of::<f32>() as f64;
    if let Some(most) = limit_bytes().filter(|most| bytes > *most as f64) {
        bail!(
            "[model] describes {parameters:.3e} parameters, which take {:.0} GiB to train (weights, gradients, two moments); this process \
             may have {:.0} GiB: lower hidden_size, intermediate_size, num_hidden_layers or vocab_size",
            bytes / GIB,
            most as f64 / GIB
        );
    }
    Ok(())
}

/// The tokenizer that the configuration names, or a byte-level BPE trained on the text.
fn tokenizer(context: &Context, records: &[Record]) -> Result<Tokenizer> {
    let config = &context.config.tokenizer;
    let folder = context
        .config
        .model
        .start
        .as_ref()
        .and_then(ModelStart::folder);
    if let Some(place) = config.from.as_deref().or(folder) {
        return Ok(Tokenizer::load(place)?);
    }
    let texts = records
        .iter()
        .map(Record::text)
        .collect::<Result<Vec<_>, _>>()?;
    let _phase = Phase::begin(format!("training a tokenizer on {} texts", texts.len()));
    Ok(Tokenizer::train_bpe(&texts, &bpe_training(config))?)
}

/// The first special token ends a text, the second fills; the configuration has at least two.
pub(super) fn bpe_training(config: &crate::config::Tokenizer) -> BpeTraining {
    let mut training = BpeTraining::new(config.vocab_size);
    if let [eos, pad, ..] = config.special_tokens.as_slice() {
        training.eos_token.clone_from(eos);
        training.pad_token.clone_from(pad);
        training.special_tokens.clone_from(&config.special_tokens);
    }
    training
}

/// Documents → rows of `context` tokens, the model's end of text between them.
///
/// # Errors
/// If a record has no text, or all of it does not fill a row.
pub fn pack(tokenizer: &Tokenizer, records: &[Record], context: usize) -> Result<Packed> {
    let documents = encode_documents(tokenizer, records)?;
    Ok(Packed::new(&documents, tokenizer.eos_id()?, context)?)
}

fn model(context: &Context, tokenizer: &Tokenizer, context_length: usize) -> Result<Decoder> {
    let seed = context.config.run.seed;
    let all = |_: &_| Trained::Trained;
    let model = match &context.config.model.start {
        Some(ModelStart::Folder(folder)) => {
            Decoder::load(folder, Head::LanguageModel, seed, all, context.device)?
        }
        Some(ModelStart::Scratch(sizes)) => Decoder::fresh(
            HfConfig::new(describe_for(sizes, tokenizer)?),
            seed,
            all,
            context.device,
        )?,
        None => bail!("[model] says neither `from` nor sizes; pretraining needs one of them"),
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
            "pretrain.context_length is {context_length}; the model holds {} (model.max_position_embeddings)",
            decoder.max_position_embeddings
        );
    }
    Ok(model)
}
