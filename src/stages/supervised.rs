//! The script of the stages that train one model on examples: load the model, read the records,
//! train, and write a model folder.

use anyhow::Result;
use serde_json::{Map, Value};

use super::adapters::{StartingModel, Trainee};
use super::context::{Context, Finished};
use super::definition::{CommandHelp, StageDefinition};
use super::examples::{Examples, encoder};
use super::first_records::{RecordReader, check_data};
use super::freezing::Frozen;
use super::plan::models::RunModels;
use super::plan::{self, StagePlan};
use super::stops::stop_where_answers_end;
use crate::config::{ExampleTable, Stage, Training};
use crate::data;
use crate::data::example::{Encoded, Encoder};
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::model::config::Head;
use crate::train::batch_order::BatchOrder;
use crate::train::objective::Objective;
use crate::train::run_folder::{StageFolder, StageOutcome};
use crate::train::summary::Summary;
use crate::train::supervised::{TrainingJob, TrainingReport, train};

/// A stage that learns from examples in records, defined for the keys of its table.
pub trait ExampleStage: ExampleTable {
    /// The encoded form of a record.
    type Record;
    /// The training objective.
    type Objective: Objective;

    /// The head of the model that is trained.
    const HEAD: Head = Head::LanguageModel;

    /// The help of the stage's command.
    fn help(stage: Stage) -> CommandHelp;

    /// Encodes records.
    ///
    /// # Errors
    /// A record that is wrong, or too long, where such are errors.
    fn encode(&self, encoder: &Encoder, records: &[Record]) -> data::Result<Encoded<Self::Record>>;

    /// The examples of encoded records.
    fn split(&self, records: Examples<Self::Record>) -> Examples<ExampleOf<Self>>;

    /// The training objective of `model`. It may add to each example, such as the log-probs of a
    /// reference. `None` when a signal requested a stop.
    ///
    /// # Errors
    /// If a computation or a file fails.
    fn objective(
        &self,
        context: &Context,
        model: &Decoder,
        examples: &mut Examples<ExampleOf<Self>>,
    ) -> Result<Option<Self::Objective>>;

    /// An encoder with the settings of the table.
    fn configure<'t>(&self, encoder: Encoder<'t>) -> Encoder<'t> {
        encoder
    }

    /// Prepares model and tokenizer for training: by default, adds the tokens that end answers in
    /// the training data to the model's stop tokens.
    ///
    /// # Errors
    /// If the tokenizer lacks a token that the stage needs, or a file cannot be read.
    fn prepare(&self, model: &mut Decoder, tokenizer: Tokenizer) -> Result<Tokenizer> {
        stop_where_answers_end(model, &tokenizer)?;
        Ok(tokenizer)
    }

    /// The seed of the stage's draws in a run of seed `run`.
    fn seed(_stage: Stage, run: u64) -> u64 {
        run
    }
}

/// The examples that a stage's objective takes.
pub type ExampleOf<S> = <<S as ExampleStage>::Objective as Objective>::Example;

impl<S: ExampleStage> StageDefinition for S {
    fn help(stage: Stage) -> CommandHelp {
        S::help(stage)
    }

    fn run(&self, context: &Context) -> Result<Option<Finished>> {
        let keys = self.keys();
        // 1. The model, with frozen layers or adapters.
        let tokenizer = context.tokenizer_of(keys.from)?;
        let seed = S::seed(context.stage, context.config.run.seed);
        let start = StartingModel {
            table: context.stage.name(),
            from: keys.from,
            head: S::HEAD,
            seed,
            backend: context.backend,
        };
        let mut trainee = Trainee::load(&start, keys.trainable)?;
        let tokenizer = self.prepare(&mut trainee.model, tokenizer)?;

        // 2. Records → examples, some of them held out, and the order of training.
        let encoder = encoder(context.stage, &keys, &tokenizer, &trainee.model)?;
        let encoder = self.configure(encoder);
        let records = Examples::read(context.stage, &keys, seed, &encoder, |encoder, records| {
            self.encode(encoder, records)
        })?;
        let mut examples = self.split(records);
        let order = examples
            .training
            .order(context.stage, keys.training, seed)?;

        // 3. Train, and write a model folder.
        let Some(objective) = self.objective(context, &trainee.model, &mut examples)? else {
            return Ok(None);
        };
        train_and_write(
            context,
            PreparedStage {
                trainee,
                tokenizer,
                objective,
                examples,
                order,
                training: keys.training,
                patience: keys.early_stopping_patience,
            },
        )
    }

    fn plan(&self, models: RunModels, stage: Stage) -> Result<StagePlan> {
        plan::supervised::examples(models, stage, &self.keys(), S::HEAD)
    }

    fn check_models(&self, models: RunModels, stage: Stage) -> Result<()> {
        let keys = self.keys();
        let layers = models.decoder(keys.from)?.num_hidden_layers;
        Frozen::from(keys.trainable).check(stage.name(), keys.from, layers)
    }

    fn check_records(&self, reader: &RecordReader) -> Result<()> {
        let keys = self.keys();
        let encoder = self.configure(reader.encoder(&keys)?);
        let files = [keys.data, &keys.held_out.eval_data];
        check_data(reader.stage, files, keys.records, |records, _| {
            self.encode(&encoder, records).map(drop)
        })
    }
}

/// A stage that is ready to train.
pub struct PreparedStage<'a, O: Objective> {
    /// The model, or the adapters on it.
    pub trainee: Trainee,
    /// Tokenizer of the model.
    pub tokenizer: Tokenizer,
    /// The training objective.
    pub objective: O,
    /// Examples to train on and to measure on.
    pub examples: Examples<O::Example>,
    /// The examples of each step.
    pub order: BatchOrder,
    /// The keys that every stage has.
    pub training: &'a Training,
    /// Evaluations without a new best loss after which training ends; 0 for never.
    pub patience: usize,
}

/// Trains, and writes `final/`; `None` when a signal stopped the stage.
///
/// # Errors
/// If training diverges or a file cannot be written.
pub fn train_and_write<O: Objective>(
    context: &Context,
    prepared: PreparedStage<O>,
) -> Result<Option<Finished>> {
    let (Trainee { model, base }, examples) = (&prepared.trainee, &prepared.examples);
    let job = TrainingJob {
        stage: context.stage.name(),
        objective: &prepared.objective,
        examples: &examples.training.all,
        held_out: &examples.held_out,
        order: &prepared.order,
        training: prepared.training,
        patience: prepared.patience,
        max_bad_steps: context.config.run.max_bad_steps,
        folder: context.folder,
        stop: context.stop,
    };
    let Some(report) = train(&job, model)? else {
        return Ok(None);
    };
    context.write_final(model, base.as_deref(), &prepared.tokenizer)?;
    let mut finished = finished(job.stage, &report, context.folder);
    examples.reports.add_to(&mut finished.table);
    Ok(Some(finished))
}

/// The closing table of a supervised stage: metrics before and after training, and the path of the
/// model.
fn finished(stage: &str, report: &TrainingReport, folder: &StageFolder) -> Finished {
    let mut table = Summary::new(stage);
    for (name, &after) in &report.after {
        match report.before.get(name) {
            Some(&before) => table.row(name, before, after),
            None => table.result(name, after),
        };
    }
    table
        .result("training loss of the last step", report.last_loss)
        .text("steps", "", &report.steps.to_string())
        .text("tokens", "", &report.tokens.to_string())
        .path("model", &folder.final_model());
    let summary: Map<String, Value> = report
        .after
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(*value)))
        .collect();
    Finished {
        done: StageOutcome {
            steps: report.planned,
            summary,
        },
        table,
    }
}
