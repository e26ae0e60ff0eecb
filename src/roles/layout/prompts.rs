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
        let response = config.generation.max_new_tokens;
        let whole = self.sequence_limit(config, prompts);
        let limit = Limit {
            tokens: whole.tokens.saturating_sub(response),
            words: format!("{}, of which the response may take {response}", whole.words),
            mend: whole.mend,
        };
        limit.or_other_policy("ppo", config.too_long)
    }

    /// Checks that the longest response leaves room for a prompt.
    ///
    /// # Errors
    /// The context, or the forward pass, that `max_new_tokens` fills.
    pub fn check_room(&self, config: &Ppo) -> Result<(), String> {
        let response = config.generation.max_new_tokens;
        for prompts in [PromptUse::Training, PromptUse::Evaluation] {
            let Limit {
                tokens,
                words,
                mend,
            } = self.sequence_limit(config, prompts);
            if tokens <= response {
                return Err(format!(
                    "ppo.max_new_tokens = {response} leaves no room for a prompt: {words}; {mend}"
                ));
            }
        }
        Ok(())
    }

    /// The longest prompt and response together that the policy and the scorers hold, and one
    /// forward pass takes.
    fn sequence_limit(&self, config: &Ppo, prompts: PromptUse) -> Limit {
        let context = |role: &RoleModel| role.model.decoder.max_position_embeddings;
        let rewards = self.rewards.iter();
        let rewards = rewards.map(|model| ("the reward model's", context(model)));
        let judge = self.judge_in(prompts).into_iter();
        let judge = judge.map(|model| ("the judge's", context(model)));
        let policy = ("the policy's", context(&self.actor));
        // Of equal contexts, the first is named.
        let contexts = [policy].into_iter().chain(rewards).chain(judge);
        let (whose, context) = contexts.min_by_key(|(_, tokens)| *tokens).unwrap_or(policy);
        let pass = config.training.micro_batch_tokens;
        match pass < context {
            true => Limit {
                tokens: pass,
                words: format!("ppo.micro_batch_tokens is {pass}"),
                mend: "raise ppo.micro_batch_tokens, or lower ppo.max_new_tokens".to_owned(),
            },
            false => Limit {
                tokens: context,
                words: format!("{whose} context holds {context}"),
                mend: "lower ppo.max_new_tokens".to_owned(),
            },
        }
    }
}
