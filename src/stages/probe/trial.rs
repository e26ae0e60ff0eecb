//! A stage's configuration and records for a trial, in a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::long::{pair, words};
use crate::config::{
    BadRecords, Config, Data, DataSource, ExampleKeysMut, HeldOut, Ppo, PpoObjective, RecordKeys,
    ScoreNormalization, Stage, StageTable, TooLong, Training, TrainingLength,
};
use crate::data::loader::split;
use crate::data::records::Record;
use crate::stages::dataset::{read_all, read_source};
use crate::stages::plan::models::RunModels;
use crate::stages::ppo::{batches as prompt_batches, longest_prompt};
use crate::train::batch_order::{batches, steps};
use crate::train::run_folder::Existing;

/// The run's name in the temporary folder.
const NAME: &str = "probe";

/// The sequences of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialLengths {
    /// The longest that the plan allows for, for which a step needs most memory.
    Longest,
    /// An even choice of the stage's own records, for which a step takes the usual time.
    OwnRecords,
}

/// One step of a trial, from its metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrialStep {
    /// The number of the step.
    pub number: u64,
    /// Wall-clock seconds of the step.
    pub seconds: f64,
    /// Epochs so far; `None` in PPO.
    pub epochs: Option<f64>,
    /// Bytes that were allocated on the GPU at once at most; without a GPU, those of the process.
    pub peak_bytes: Option<u64>,
}

/// A trial of a stage. Its temporary folder is removed with the value.
pub struct Trial {
    folder: TempDir,
    stage: Stage,
    lengths: TrialLengths,
    /// Steps of the whole stage, or epochs of data that cannot be counted beforehand.
    length: TrainingLength,
}

impl Trial {
    /// Writes the configuration and the records of the trial.
    ///
    /// # Errors
    /// If the records cannot be read, or the folder cannot be written.
    pub fn new(config: &Config, stage: Stage, lengths: TrialLengths) -> Result<Self> {
        let folder = temporary(&config.run.dir)?;
        let mut trial = Self {
            folder,
            stage,
            lengths,
            length: TrainingLength::Steps(0),
        };
        let config = trial.of(config)?;
        let file = trial.config();
        fs::write(&file, config.to_toml()?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(trial)
    }

    /// The stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// The file of the process's standard error.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The metrics file that the process writes.
    pub fn metrics(&self) -> PathBuf {
        let stage = self.folder.path().join(NAME).join(self.stage.name());
        stage.join("metrics.jsonl")
    }

    /// The step at which the trial ends. The first step is slow, as the system provides its memory,
    /// and is not timed.
    pub fn last(&self) -> u64 {
        match self.lengths {
            TrialLengths::Longest => 1,
            TrialLengths::OwnRecords => 2,
        }
    }

    /// Steps of the whole stage, given the last step of the trial.
    ///
    /// # Errors
    /// If the log does not say how far a step goes.
    pub fn steps(&self, last: &TrialStep) -> Result<u64> {
        match self.length {
            TrainingLength::Steps(steps) => Ok(steps as u64),
            TrainingLength::Epochs(epochs) => {
                let read = last.epochs.context("the log says nothing of epochs")?;
                // An epoch has a whole number of steps.
                let per_epoch = (last.number as f64 / read).round();
                Ok(((epochs * per_epoch).ceil() as u64).max(1))
            }
        }
    }

    /// `config` with this stage alone, in the temporary folder, without evaluations and
    /// checkpoints.
    fn of(&mut self, config: &Config) -> Result<Config> {
        let mut trial = config.clone();
        trial.run.dir = self.folder.path().to_owned();
        trial.run.name = NAME.to_owned();
        for stage in Stage::ALL.into_iter().filter(|stage| *stage != self.stage) {
            trial.remove(stage);
        }
        let seed = config.run.seed;
        if let Some(pretrain) = &mut trial.pretrain {
            pretrain.eval_data = Data::default();
            // All windows have the same length; their number is known once the text is tokenized.
            self.length = pretrain.training.length();
            quiet(&mut pretrain.training);
        }
        for stage in config.stages() {
            if let Some(keys) = trial.table_mut(stage).and_then(StageTable::examples_mut) {
                self.examples(keys, seed)?;
            }
        }
        if let Some(ppo) = &mut trial.ppo {
            self.ppo(ppo, RunModels(config, Existing::Continue))?;
        }
        Ok(trial)
    }

    fn examples(&mut self, keys: ExampleKeysMut, seed: u64) -> Result<()> {
        if let Some(patience) = keys.early_stopping_patience {
            *patience = 0;
        }
        if self.lengths == TrialLengths::Longest {
            *keys.too_long = TooLong::Truncate;
        }
        let answer: fn(&str) -> Value = |text| json!({"prompt": "a", "completion": text});
        let long = if keys.sequences == 1 { answer } else { pair };
        let data = (keys.data, keys.held_out, keys.records);
        self.records(data, keys.training, seed, keys.max_length, long)
    }

    /// Replaces the records of a stage by those of the trial. `long` makes a record of a text of
    /// `tokens` words, each of which is at least one token.
    fn records(
        &mut self,
        (data, held_out, keys): (&mut Data, &mut HeldOut, &mut RecordKeys),
        training: &mut Training,
        seed: u64,
        tokens: usize,
        long: impl Fn(&str) -> Value,
    ) -> Result<()> {
        let files: Vec<(Vec<Record>, Option<f64>)> = data
            .sources
            .iter()
            .map(|source| Ok((read_source(source, keys)?.records, source.weight)))
            .collect::<Result<_>>()?;
        let count: usize = files.iter().map(|(records, _)| records.len()).sum();
        let held = match held_out.eval_data.is_empty() {
            true => held_out.eval_fraction,
            false => 0.0,
        };
        let own = split(count, held, seed)?.0.len();
        let found = batches(training, own)?;
        let steps = steps(training, &found);
        self.set_length(training, steps);
        // A batch holds at most one epoch of records, as the stage's own full batches do.
        training.batch_size = training.batch_size.min(own);
        *held_out = HeldOut::default();
        adjust_keys(keys);
        data.sources = match self.lengths {
            TrialLengths::Longest => {
                let text = words(files.iter().flat_map(|(records, _)| records), tokens);
                let records = vec![long(&text); training.batch_size];
                vec![self.source(0, &records, None)?]
            }
            TrialLengths::OwnRecords => {
                let wanted = self.last() as usize * training.batch_size;
                let (every, times) = ((count / wanted).max(1), wanted.div_ceil(count));
                let chosen = |records: &[Record]| -> Vec<Value> {
                    let chosen = (0..times).flat_map(|_| records.iter().step_by(every));
                    chosen.map(|r| Value::from(r.fields.clone())).collect()
                };
                let files = files.iter().enumerate();
                files
                    .map(|(i, (records, weight))| self.source(i, &chosen(records), *weight))
                    .collect::<Result<_>>()?
            }
        };
        Ok(())
    }

    fn ppo(&mut self, ppo: &mut Ppo, models: RunModels) -> Result<()> {
        let keys = &ppo.records;
        let prompts = read_all(&ppo.prompts, keys)?;
        let found = prompt_batches(ppo, prompts.len())?;
        let steps = steps(&ppo.training, &found);
        self.set_length(&mut ppo.training, steps);
        // While the critic warms up, the actor does not move.
        ppo.critic.critic_warmup = 0;
        let reads_reference = ppo.reads_reference();
        let longest = longest_prompt(models, ppo)?.context("ppo.prompts")?;
        let longest = Value::from(longest.fields);
        for source in &mut ppo.prompts.sources {
            source.columns = source.columns.take().or(ppo.records.columns.clone());
        }
        adjust_keys(&mut ppo.records);
        let evaluated = match self.lengths {
            TrialLengths::OwnRecords => 1,
            TrialLengths::Longest => {
                let new_tokens = ppo.generation.max_new_tokens;
                ppo.generation.min_new_tokens = new_tokens;
                ppo.generation.stop = Vec::new();
                if ppo.too_long == TooLong::Skip {
                    ppo.too_long = TooLong::Truncate;
                }
                ppo.prompts = self.file("prompts", std::slice::from_ref(&longest))?.into();
                // Answers that are all cut may all score alike, and then have no scale.
                if ppo.scores.score_normalization == ScoreNormalization::Reference {
                    ppo.scores.score_normalization = ScoreNormalization::Running;
                }
                ppo.rollout.rollout_batch.min(ppo.evaluation.eval_samples)
            }
        };
        // Judge and reference are loaded, however few prompts there are.
        if ppo.evaluates() {
            ppo.eval_prompts = self.file("eval_prompts", &vec![longest; evaluated])?.into();
        }
        if reads_reference && !ppo.reads_reference() {
            ppo.objective.kl_coef = PpoObjective::default().kl_coef;
        }
        Ok(())
    }

    /// Records the number of steps of the stage, and makes the trial long enough.
    fn set_length(&mut self, training: &mut Training, steps: u64) {
        let steps = steps as usize;
        self.length = TrainingLength::Steps(steps);
        training.max_steps = steps.max(self.last() as usize);
        training.max_epochs = None;
        quiet(training);
    }

    fn source(&self, index: usize, records: &[Value], weight: Option<f64>) -> Result<DataSource> {
        let path = self.file(&format!("data-{index}"), records)?;
        Ok(DataSource {
            path,
            weight,
            columns: None,
        })
    }

    fn file(&self, name: &str, records: &[Value]) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("{name}.jsonl"));
        let lines: String = records.iter().map(|r| format!("{r}\n")).collect();
        fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// A temporary folder on the disk that the run will write to.
fn temporary(runs: &Path) -> Result<TempDir> {
    let existing = runs.ancestors().find(|folder| folder.is_dir());
    let parent = existing.unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new()
        .prefix(".probe-")
        .tempdir_in(parent);
    folder.with_context(|| format!("cannot make a temporary folder in {}", parent.display()))
}

/// Records that were read have the default field names, and any share of a few may be bad.
fn adjust_keys(keys: &mut RecordKeys) {
    keys.columns = None;
    if keys.bad_records == BadRecords::Skip {
        keys.max_bad_share = 1.0;
    }
}

/// Switches off evaluations, checkpoints and warm-up.
fn quiet(training: &mut Training) {
    training.warmup_steps = 0;
    (training.eval_steps, training.save_steps) = (0, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;
    use crate::data::records::read;

    /// A folder with ten records, three words each, and a configuration that trains on them.
    fn run(table: &str) -> (TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let records =
            |i: usize| format!("{{\"prompt\": \"p{i}\", \"completion\": \"c{i} d{i}\"}}\n");
        let data = folder.path().join("data.jsonl");
        fs::write(&data, (0..10).map(records).collect::<String>()).unwrap();
        let text = format!(
            "[run]\nname = \"trial\"\ndir = {:?}\n[model]\nfrom = \"model\"\n{table}\n\
             data = {data:?}\nmax_length = 6\n",
            folder.path()
        );
        let document = Document::parse(&text, Path::new("trial.toml")).unwrap();
        let config = Config::resolve(&document).unwrap();
        (folder, config)
    }

    /// The trial's configuration as its process reads it, and its records.
    fn read_back(trial: &Trial) -> (Config, Vec<Record>) {
        let config = Config::load(&trial.config(), &[]).unwrap();
        let records = read(trial.folder.path().join("data-0.jsonl")).unwrap();
        (config, records)
    }

    fn text<'r>(record: &'r Record, key: &str) -> &'r str {
        record.fields[key].as_str().unwrap()
    }

    #[test]
    fn the_longest_records_fill_what_the_plan_allows() {
        let (folder, config) =
            run("[sft]\nbatch_size = 3\ntoo_long = \"error\"\neval_fraction = 0.2");
        let trial = Trial::new(&config, Stage::Sft, TrialLengths::Longest).unwrap();
        let (found, records) = read_back(&trial);
        let sft = found.sft.unwrap();
        assert_eq!(
            (sft.too_long, sft.training.batch_size),
            (TooLong::Truncate, 3)
        );
        assert!(sft.held_out.is_empty() && found.run.dir.starts_with(folder.path()));
        let lengths = records
            .iter()
            .map(|r| text(r, "completion").split(' ').count());
        assert_eq!(lengths.collect::<Vec<_>>(), [6; 3]);
        // Eight records are trained on, three a step.
        assert_eq!((trial.last(), trial.length), (1, TrainingLength::Steps(3)));

        let (_folder, config) = run("[dpo]\nbatch_size = 2");
        let trial = Trial::new(&config, Stage::Dpo, TrialLengths::Longest).unwrap();
        let (_, records) = read_back(&trial);
        assert_eq!(records.len(), 2);
        let answers = ["chosen", "rejected"].map(|key| text(&records[0], key));
        assert!(answers.iter().all(|answer| answer.split(' ').count() > 6));
        assert_ne!(answers[0], answers[1]);
    }

    #[test]
    fn a_stages_own_records_are_chosen_evenly() {
        let (_folder, config) = run("[sft]\nbatch_size = 2\nmax_epochs = 3.0");
        let trial = Trial::new(&config, Stage::Sft, TrialLengths::OwnRecords).unwrap();
        let (found, records) = read_back(&trial);
        let prompts: Vec<&str> = records.iter().map(|r| text(r, "prompt")).collect();
        assert_eq!(prompts, ["p0", "p2", "p4", "p6", "p8"]);
        let sft = found.sft.unwrap();
        assert_eq!(
            (sft.training.max_steps, sft.training.max_epochs),
            (15, None)
        );
        assert_eq!((trial.last(), trial.length), (2, TrainingLength::Steps(15)));
    }

    #[test]
    fn a_folder_goes_with_its_trial() {
        let (folder, config) = run("[sft]");
        let trial = Trial::new(&config, Stage::Sft, TrialLengths::Longest).unwrap();
        let count = || fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count(), 2);
        drop(trial);
        assert_eq!(count(), 1);
    }
}
