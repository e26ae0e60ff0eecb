//! DPO (Rafailov et al. 2023), cDPO, IPO and SimPO: the policy learns from pairs of a better and a worse answer, without a reward
//! model and without sampling. Formulas stand in `rlhf::preference`.
//!
//! The reference is the policy as it starts, so its log-probs are computed before the first step with the policy's own weights,
//! once, and kept in the stage's folder: no second model is ever in memory. That holds for whatever is trained. Adapters that are new
//! change nothing yet, so that the reference is the base without them; those of a PEFT folder that are trained further are the reference
//! as they stand there, of which TRL keeps a second, frozen copy in the model. Frozen layers are the reference's too.
//!
//! States at the upper end of frozen layers are not kept for later passes as PPO keeps them: most runs see a pair once after the
//! reference did, and those of a whole data set, `4 · hidden_size` bytes a token, would fill the memory that freezing spares.

mod answers;
mod reference;

use anyhow::Result;

use super::adapters::{Start, Trainee};
use super::context::{Context, Finished};
use super::dataset::Walk;
use super::examples::{Examples, Source};
use super::stops::stop_where_answers_end;
use crate::config::{Dpo, Stage, Training};
use crate::data::example::{Encoder, Pair};
use crate::data::packing::cut;
use crate::model::config::Head;
use crate::model::{Decoder, Gradient};
use crate::rlhf::preference::{
    DirectPreferenceConfig, DirectPreferenceLoss, DirectStats, direct_preference,
};
use crate::terminal::Phase;
use crate::train::metrics::names;
use crate::train::supervised::{Plan, train};
use crate::train::task::{Evaluation, Share, Task};
use answers::{Answers, tokens};
use reference::{Pairs, References};

/// Runs the stage; `None` when a signal stopped it.
///
/// # Errors
/// If data, model or a file is wrong, or training diverges.
pub fn dpo(context: &Context, config: &Dpo) -> Result<Option<Finished>> {
    // 1. The policy, which as it starts is the reference too.
    let tokenizer = context.tokenizer_of(&config.from)?;
    let seed = context.config.run.seed;
    let start = Start {
        table: Stage::Dpo.name(),
        from: &config.from,
        head: Head::LanguageModel,
        seed,
        device: context.device,
    };
    let mut trainee = Trainee::load(&start, &config.trainable)?;
    stop_where_answers_end(&mut trainee.model, &tokenizer)?;
    let model = &trainee.model;

    // 2. Records → pairs, some of them held out.
    let source = Source {
        stage: Stage::Dpo,
        data: &config.data,
        held_out: &config.held_out,
        records: &config.records,
        max_length: config.max_length,
        too_long: config.too_long,
    };
    let encoder = source.encoder(&tokenizer, model)?;
    let examples = Examples::read(&source, seed, &encoder, Encoder::direct_pairs)?;
    let walk = examples.training.walk(Stage::Dpo, &config.training, seed)?;

    // 3. What the reference says of them.
    let preference = preference(config);
    let pairs = Pairs {
        training: &examples.training.all,
        held_out: &examples.held_out,
    };
    let references = match preference.loss_type.has_reference() {
        true => References::read_or_compute(context, &pairs, model, &config.training)?,
        false => Some(References::default()),
    };
    let Some(references) = references else {
        return Ok(None);
    };

    // 4. Train, and leave a Hugging Face folder.
    let plan = Plan {
        stage: Stage::Dpo.name(),
        steps: walk.steps(&config.training),
        training: &config.training,
        patience: config.early_stopping_patience,
        max_bad_steps: context.config.run.max_bad_steps,
        rate: &|_| 1.0,
        folder: context.folder,
        stop: context.stop,
    };
    let task = DirectTask {
        pairs,
        references: &references,
        walk,
        preference,
        training: &config.training,
    };
    let Some(report) = train(&task, model, &plan)? else {
        return Ok(None);
    };
    trainee.write_final(context, &tokenizer)?;
    let mut finished = Finished::supervised(plan.stage, &report, context.folder);
    examples.misfits.add_to(&mut finished.table);
    Ok(Some(finished))
}

fn preference(config: &Dpo) -> DirectPreferenceConfig {
    DirectPreferenceConfig {
        loss_type: config.loss_type,
        beta: config.beta,
        label_smoothing: config.label_smoothing,
        simpo_gamma: config.simpo_gamma,
    }
}

struct DirectTask<'a> {
    pairs: Pairs<'a>,
    references: &'a References,
    walk: Walk,
    preference: DirectPreferenceConfig,
    training: &'a Training,
}

/// Some pairs, and what the reference says of their answers.
struct Micro {
    answers: Answers,
    /// Each answer's log-prob as a whole; empty where the loss has no reference.
    reference: Vec<f64>,
}

impl Micro {
    fn new(pairs: &[Pair], references: &[[f64; 2]], run: &[usize]) -> Self {
        Self {
            answers: Answers::new(run.iter().map(|&i| &pairs[i])),
            reference: run
                .iter()
                .filter_map(|&i| references.get(i))
                .flatten()
                .copied()
                .collect(),
        }
    }

    fn preference(
        &self,
        model: &Decoder,
        config: &DirectPreferenceConfig,
        pairs: usize,
        gradient: Gradient,
    ) -> Result<DirectPreferenceLoss> {
        let log_probs = self.answers.log_probs(model, gradient)?;
        let (rows, reference) = (self.answers.rows()?, &self.reference);
        Ok(direct_preference(
            &log_probs, rows, reference, config, pairs,
        )?)
    }
}

impl Task for DirectTask<'_> {
    type Micro = Micro;

    fn micro_batches(&self, step: u64) -> Result<Vec<Micro>> {
        let (pairs, indices) = (self.pairs.training, self.walk.step(step));
        let runs = cut(
            indices,
            |i| tokens(&pairs[i]),
            self.training.micro_batch_tokens,
        );
        let micro = |run: &Vec<usize>| Micro::new(pairs, &self.references.training, run);
        Ok(runs.iter().map(micro).collect())
    }

    fn tokens(&self, micro: &Micro) -> usize {
        micro.answers.tokens()
    }

    fn count(&self, micro: &Micro) -> f64 {
        micro.answers.pairs() as f64
    }

    fn loss(
        &self,
        model: &Decoder,
        micro: &Micro,
        total: f64,
        gradient: Gradient,
    ) -> Result<Share> {
        let found = micro.preference(model, &self.preference, total as usize, gradient)?;
        Ok(Share {
            loss: found.loss,
            measures: measures(&found.stats, total).into(),
        })
    }

    fn evaluate(&self, model: &Decoder) -> Result<Option<Evaluation>> {
        let (pairs, limit) = (self.pairs.held_out, self.training.micro_batch_tokens);
        if pairs.is_empty() {
            return Ok(None);
        }
        let total = pairs.len();
        let mut evaluation = Evaluation::new();
        let phase = Phase::counted("pairs", pairs.len());
        for run in cut((0..total).collect(), |i| tokens(&pairs[i]), limit) {
            let micro = Micro::new(pairs, &self.references.held_out, &run);
            let found = micro.preference(model, &self.preference, total, Gradient::Skip)?;
            phase.add(run.len());
            let shares =
                measures(&found.stats, total as f64).map(|(name, share)| (eval(name), share));
            for (name, share) in shares
                .into_iter()
                .chain([(names::EVAL_LOSS.to_owned(), found.value)])
            {
                *evaluation.entry(name).or_default() += share;
            }
        }
        Ok(Some(evaluation))
    }

    fn epochs(&self, step: u64) -> f64 {
        self.walk.epochs(step)
    }
}

/// The parts that some pairs have in means over `total` pairs.
fn measures(stats: &DirectStats, total: f64) -> [(&'static str, f64); 6] {
    let rewards = &stats.rewards;
    [
        (names::REWARDS_CHOSEN, rewards.chosen_sum),
        (names::REWARDS_REJECTED, rewards.rejected_sum),
        (names::REWARDS_ACCURACIES, rewards.correct as f64),
        (
            names::REWARDS_MARGINS,
            rewards.chosen_sum - rewards.rejected_sum,
        ),
        (names::LOGPS_CHOSEN, stats.chosen_log_probs),
        (names::LOGPS_REJECTED, stats.rejected_log_probs),
    ]
    .map(|(name, sum)| (name, sum / total))
}

/// The name of a measure of training on held-out pairs.
fn eval(name: &str) -> String {
    format!("eval/{name}")
}
