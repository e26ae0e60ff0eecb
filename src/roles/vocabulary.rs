//! Checks that policy and scorers have the same tokens.

use std::path::Path;

use super::{ModelDescription, RoleLayout, RolesError};
use crate::data::{DataError, Tokenizer};

/// Checks that a scorer has as many tokens as the policy.
///
/// # Errors
/// If the numbers differ.
pub(super) fn check_vocabulary(
    policy: &ModelDescription,
    scorer: &ModelDescription,
) -> Result<(), RolesError> {
    let [expected, found] = [policy, scorer].map(|model| model.decoder.vocab_size);
    match expected == found {
        true => Ok(()),
        false => Err(RolesError::Vocabulary {
            scorer: scorer.folder.display().to_string(),
            found,
            expected,
        }),
    }
}

impl RoleLayout {
    /// Checks that each id is the same token in the policy and in each scorer, because tokenizers
    /// of the same size may differ. A folder without a tokenizer, whose data is ids, cannot be
    /// checked.
    ///
    /// # Errors
    /// If a token differs, or a tokenizer cannot be read.
    pub fn check_tokenizers(&self) -> Result<(), RolesError> {
        let Some(policy) = tokenizer_of(&self.policy)? else {
            return Ok(());
        };
        for scorer in self.rewards.iter().chain(&self.judge) {
            let Some(tokenizer) = tokenizer_of(&scorer.model)? else {
                continue;
            };
            if let Some((id, expected, found)) = policy.first_difference(&tokenizer) {
                return Err(RolesError::Tokens {
                    scorer: scorer.model.folder.display().to_string(),
                    id,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }
}

fn tokenizer_of(model: &ModelDescription) -> Result<Option<Tokenizer>, DataError> {
    let folder = model.tokenizer.as_deref();
    let folder = folder.filter(|folder: &&Path| folder.join("tokenizer.json").exists());
    folder.map(Tokenizer::load).transpose()
}
