//! PPO-ptx: the language-modelling objective mixed into the actor's steps (Ouyang et al. 2022, eq. 2), so that tuning on a
//! reward does not cost what pretraining taught.
//!
//! The paper adds γ E[log π(x)] over pretraining text to what is maximised; here the expectation is a mean over tokens, as in
//! pretraining, so that γ does not depend on the rows' length. The text has a cursor of its own, the rows read so far, which
//! the checkpoint holds.

use anyhow::{Context as _, Result, bail};
use rollout::random::Purpose;

use super::Update;
use crate::config::Ppo;
use crate::data::loader::Order;
use crate::data::packing::{self, Batch, cut};
use crate::data::tokenizer::Tokenizer;
use crate::roles::Roles;
use crate::stages::language::{RowSet, log_prob_sum};
use crate::stages::misfits::Misfits;
use crate::stages::pretrain::{pack, read_documents};
use crate::train::configured::gradient;

/// Rows of pretraining text, in the order in which the actor meets them.
pub struct PretrainMix {
    rows: packing::Packed,
    order: Order,
}

impl PretrainMix {
    /// Reads the text; `None` when none is mixed in.
    ///
    /// # Errors
    /// If a file cannot be read or is too short, or a row does not fit the policy's context.
    pub fn load(
        config: &Ppo,
        tokenizer: &Tokenizer,
        roles: &Roles,
        seed: u64,
        misfits: &mut Misfits,
    ) -> Result<Option<Self>> {
        let ptx = &config.update.ptx;
        if !ptx.is_on() {
            return Ok(None);
        }
        let context = roles.actor.decoder_config().max_position_embeddings;
        if ptx.ptx_length > context {
            bail!(
                "ppo.ptx_length is {}, but the policy's context holds {context} tokens; lower it to {context} or less",
                ptx.ptx_length
            );
        }
        let keys = config.ptx_records();
        let text = read_documents("ppo", "ptx_data", &ptx.ptx_data, &keys, misfits)
            .context("ppo.ptx_data")?;
        let rows = pack(tokenizer, &text, ptx.ptx_length).context("ppo.ptx_data")?;
        let order = Order::new(rows.len(), seed, Purpose::Ptx)?;
        Ok(Some(Self { rows, order }))
    }

    /// `count` rows from place `from` on, in passes of at most `limit` tokens.
    fn passes(&self, from: u64, count: usize, limit: usize) -> Result<Vec<Batch>> {
        let places = from..from + count as u64;
        let indices = places.map(|place| self.order.index(place)).collect();
        let passes = cut(indices, |i| self.rows.tokens(i), limit);
        passes.iter().map(|pass| self.rows.batch(pass)).collect()
    }
}

impl Update<'_> {
    /// Adds the gradients of the next rows of text to the actor's; returns their mean loss, `None` when there is no text.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn ptx_gradients(&mut self) -> Result<Option<f64>> {
        let Some(mix) = self.mix else {
            return Ok(None);
        };
        let (ptx, training) = (&self.config.update.ptx, &self.config.training);
        let passes = mix.passes(self.state.ptx_rows, ptx.rows(), training.micro_batch_tokens)?;
        self.state.ptx_rows += ptx.rows() as u64;
        let tokens: usize = passes.iter().map(Batch::valid_count).sum();
        let mut sum = 0.0;
        for pass in &passes {
            let log_probs = log_prob_sum(&self.roles.actor, pass, gradient(training))?;
            let loss = (log_probs * (-1.0 / tokens as f64))?;
            sum += f64::from(loss.to_scalar::<f32>()?);
            (loss * ptx.ptx_coef)?.backward()?;
        }
        Ok(Some(sum))
    }
}
