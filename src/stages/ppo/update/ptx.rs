//! PPO-ptx: the language-modelling objective mixed into the actor's steps (Ouyang et al. 2022, eq.
//! 2), so that the policy keeps what it learned in pretraining.
//!
//! The paper adds γ E[log π(x)] over pretraining text to the objective; here the expectation is a
//! mean over tokens, as in pretraining, so that γ does not depend on the rows' length. The position
//! in the shuffled rows is part of the checkpoint. Every step takes a whole batch of rows from one
//! epoch of the text.

use crate::random::Purpose;
use anyhow::{Context as _, Result};

use super::ActorCriticUpdate;
use crate::config::{Ppo, Ptx};
use crate::data::batches::Batches;
use crate::data::loader::Order;
use crate::data::packing::{PackedBatch, TextRow, cut};
use crate::data::tokenizer::Tokenizer;
use crate::ops::work::{self, DeviceWork};
use crate::stages::language::log_probs;
use crate::stages::pretrain::{pack, read_documents};
use crate::stages::record_report::RecordReports;
use crate::train::configured::gradient;

/// Rows of pretraining text in their shuffled order.
pub struct PretrainMix {
    rows: Vec<TextRow>,
    order: Order,
    batches: Batches,
}

impl PretrainMix {
    /// Reads the text; `None` without PPO-ptx.
    ///
    /// # Errors
    /// If a file cannot be read or is too short.
    pub fn load(
        config: &Ppo,
        tokenizer: &Tokenizer,
        seed: u64,
        reports: &mut RecordReports,
    ) -> Result<Option<Self>> {
        let ptx = &config.update.ptx;
        if !ptx.is_on() {
            return Ok(None);
        }
        let keys = config.ptx_records();
        let text = read_documents("ppo", "ptx_data", &ptx.ptx_data, &keys, reports)
            .context("ppo.ptx_data")?;
        let rows = pack(tokenizer, &text.all, ptx.ptx_length).context("ppo.ptx_data")?;
        let order = Order::new(rows.len(), seed, Purpose::Ptx)?;
        let batches = Batches::full(rows.len(), ptx.rows())?;
        Ok(Some(Self {
            rows,
            order,
            batches,
        }))
    }

    /// A note if the text has fewer rows than an optimizer step takes.
    pub fn note(&self, ptx: &Ptx) -> Option<String> {
        let (rows, wanted) = (self.rows.len(), ptx.rows());
        (wanted > rows).then(|| {
            format!(
                "ppo.ptx_batch_size is {wanted} rows, but ppo.ptx_data has only {rows}: each step \
                 repeats rows"
            )
        })
    }

    /// The next `count` rows from `cursor` on, in passes of at most `limit` tokens; moves `cursor`
    /// past them.
    fn passes(&self, cursor: &mut u64, count: usize, limit: usize) -> Result<Vec<PackedBatch>> {
        let from = self.batches.whole_from(*cursor);
        *cursor = from + count as u64;
        let indices = (from..*cursor)
            .map(|place| self.order.index(place))
            .collect();
        let passes = cut(indices, |i| self.rows[i].ids().len() - 1, limit);
        let batch = |pass: &Vec<usize>| {
            let rows: Vec<&TextRow> = pass.iter().map(|&i| &self.rows[i]).collect();
            Ok(PackedBatch::from_rows(&rows)?)
        };
        passes.iter().map(batch).collect()
    }
}

impl ActorCriticUpdate<'_> {
    /// Adds the gradients of the next rows of text to the actor's parameters; returns the mean loss
    /// of a token, `None` without PPO-ptx.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn ptx_gradients(&mut self) -> Result<Option<f64>> {
        let Some(mix) = self.mix else {
            return Ok(None);
        };
        let (ptx, training) = (&self.config.update.ptx, &self.config.training);
        let (cursor, limit) = (&mut self.state.ptx_rows, training.micro_batch_tokens);
        let passes = mix.passes(cursor, ptx.rows(), limit)?;
        let tokens: usize = passes.iter().map(|pass| pass.targets.len()).sum();
        let mut sum = 0.0;
        let _work = work::begin(DeviceWork::Training("actor"));
        for pass in &passes {
            let log_probs = log_probs(&self.roles.actor, pass, gradient(training))?.sum_all()?;
            let loss = (log_probs * (-1.0 / tokens as f64))?;
            sum += f64::from(loss.to_scalar::<f32>()?);
            (loss * ptx.ptx_coef)?.backward()?;
        }
        Ok(Some(sum))
    }
}
