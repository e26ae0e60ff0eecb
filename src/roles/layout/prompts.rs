//! Requirements of the roles on prompts: room in every context, and whether generation reads the
//! last token of a completion.

use rollout::LastToken;

use super::{RoleLayout, RoleModel};
use crate::config::Ppo;
use crate::data::example::Limit;

/// Use of prompts: in iterations, or in evaluations, in which the judge scores completions too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptUse {
    /// Prompts of iterations, scored by the reward models.
    Training,
    /// Held-out prompts, scored by the reward models and the judge.
    Evaluation,
}

impl RoleLayout {
    fn judge_in(&self, prompts: PromptUse) -> Option<&RoleModel> {
        let judge = self.judge.as_ref();
        judge.filter(|_| prompts == PromptUse::Evaluation)
    }

    /// Whether generation reads the last token of a completion: only a scorer that starts from the
    /// states at the boundary needs that token's state; actor, critic and reference do not.
    pub fn last_token(&self, prompts: PromptUse) -> LastToken {
        let mut scorers = self.rewards.iter().chain(self.judge_in(prompts));
        match scorers.any(|scorer| self.starts_at_boundary(scorer)) {
            true => LastToken::Read,
            false => LastToken::Unread,
        }
    }

    /// The longest prompt, in tokens, that leaves room for the response in the contexts of the
    /// policy and the scorers, and in one forward pass.
    pub fn prompt_limit(&self, config: &Ppo, prompts: PromptUse) -> Limit {
        let context = |role: &RoleModel| role.model.decoder.max_position_embeddings;
        let rewards = self.rewards.iter();
        let rewards = rewards.map(|model| ("the reward model's", context(model)));
        let judge = self.judge_in(prompts).into_iter();
        let judge = judge.map(|model| ("the judge's", context(model)));
        let policy = ("the policy's", context(&self.actor));
        // Of equal contexts, the first is named.
        let contexts = [policy].into_iter().chain(rewards).chain(judge);
        let (whose, context) = contexts.min_by_key(|(_, tokens)| *tokens).unwrap_or(policy);
        let response = config.generation.max_new_tokens;
        let pass = config.training.micro_batch_tokens;
        let limit = match pass < context {
            true => Limit {
                tokens: pass.saturating_sub(response),
                words: format!(
                    "ppo.micro_batch_tokens is {pass}, of which the response may take {response}"
                ),
                mend: "raise ppo.micro_batch_tokens, or lower ppo.max_new_tokens".to_owned(),
            },
            false => Limit {
                tokens: context.saturating_sub(response),
                words: format!(
                    "{whose} context holds {context}, of which the response may take {response}"
                ),
                mend: "lower ppo.max_new_tokens".to_owned(),
            },
        };
        limit.or_other_policy("ppo", config.too_long)
    }
}
