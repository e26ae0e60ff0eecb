//! Supervised fine-tuning: the loss counts the answers' tokens only.

use anyhow::Result;

use super::adapters::{Start, Trainee};
use super::context::{Context, Finished};
use super::examples::{Examples, Source};
use super::language::{LanguageTask, RowSet};
use super::stops::stop_where_answers_end;
use crate::config::{Sft, Stage};
use crate::data::example::{Encoder, Example};
use crate::data::packing::Batch;
use crate::model::config::{Head, is_embedding, layer_of};
use crate::ops::param::Param;
use crate::terminal;
use crate::train::summary::Summary;
use crate::train::supervised::{Plan, train};

impl RowSet for Vec<Example> {
    fn len(&self) -> usize {
        self.len()
    }

    fn tokens(&self, index: usize) -> usize {
        self[index].ids.len() - 1
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let examples: Vec<&Example> = indices.iter().map(|&i| &self[i]).collect();
        Ok(Batch::from_examples(&examples)?)
    }
}

/// Runs the stage; `None` when a signal stopped it.
///
/// # Errors
/// If data, model or a file is wrong, or training diverges.
pub fn sft(context: &Context, config: &Sft) -> Result<Option<Finished>> {
    // 1. The model, with the layers that are to stay as they are, or with adapters.
    let tokenizer = context.tokenizer_of(&config.from)?;
    let seed = context.config.run.seed;
    let start = Start {
        table: Stage::Sft.name(),
        from: &config.from,
        head: Head::LanguageModel,
        seed,
        device: context.device,
    };
    let mut trainee = Trainee::load(&start, &config.trainable)?;
    stop_where_answers_end(&mut trainee.model, &tokenizer)?;
    let model = &trainee.model;

    // 2. Records → examples, some of them held out.
    let source = Source {
        stage: Stage::Sft,
        data: &config.data,
        held_out: &config.held_out,
        records: &config.records,
        max_length: config.max_length,
        too_long: config.too_long,
    };
    let encoder = source.encoder(&tokenizer, model)?.learning(config.learn);
    let examples = Examples::read(&source, seed, &encoder, Encoder::examples)?;
    let conversations = Conversations::of(&examples);
    conversations.note();
    let examples = examples.flatten();
    let walk = examples.training.walk(Stage::Sft, &config.training, seed)?;
    let limit = config.training.micro_batch_tokens;
    let held_out = examples.held_out.batches(usize::MAX, limit)?;

    // 3. Train, and leave a Hugging Face folder.
    let layers = model.decoder_config().num_hidden_layers;
    let rate = |param: &Param| layer_rate(param.name(), layers, config.layerwise_lr_decay);
    let plan = Plan {
        stage: Stage::Sft.name(),
        steps: walk.steps(&config.training),
        training: &config.training,
        patience: config.early_stopping_patience,
        max_bad_steps: context.config.run.max_bad_steps,
        rate: &rate,
        folder: context.folder,
        stop: context.stop,
    };
    let task = LanguageTask {
        rows: examples.training.all,
        walk,
        held_out,
        training: &config.training,
    };
    let Some(report) = train(&task, model, &plan)? else {
        return Ok(None);
    };
    trainee.write_final(context, &tokenizer)?;
    let mut finished = Finished::supervised(plan.stage, &report, context.folder);
    examples.misfits.add_to(&mut finished.table);
    conversations.add_to(&mut finished.table);
    Ok(Some(finished))
}

/// Conversations that became several examples, since the chat template rewrites earlier turns.
struct Conversations {
    cut: usize,
    records: usize,
    examples: usize,
}

impl Conversations {
    fn of(examples: &Examples<Vec<Example>>) -> Self {
        let records = || examples.training.all.iter().chain(&examples.held_out);
        Self {
            cut: records().filter(|record| record.len() > 1).count(),
            records: records().count(),
            examples: records().map(Vec::len).sum(),
        }
    }

    fn note(&self) {
        let Self {
            cut,
            records,
            examples,
        } = self;
        if *cut > 0 {
            terminal::note(format_args!(
                "sft: the chat template renders earlier turns otherwise once later ones are there, so each answer of {cut} of \
                 {records} records is an example of its own, {examples} in all; to learn the last answers alone, set sft.learn to \
                 \"last\""
            ));
        }
    }

    fn add_to(&self, table: &mut Summary) {
        if self.cut > 0 {
            let share = format!(
                "{} of {}, {} examples",
                self.cut, self.records, self.examples
            );
            table.text("records cut into one example an answer", "", &share);
        }
    }
}

/// Layer-wise decay (Howard and Ruder 2018, §3.1): the top layer, the final norm and the head learn at the full rate, each layer
/// below at `decay` times the one above, the embeddings below the lowest.
fn layer_rate(name: &str, layers: usize, decay: f64) -> f64 {
    let depth = match layer_of(name) {
        Some(layer) => layers - 1 - layer,
        None if is_embedding(name) => layers,
        None => 0,
    };
    decay.powi(depth as i32)
}
