//! The stop tokens of a stage's model: the tokens that end its answers.

use anyhow::Result;

use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;

/// Adds the tokenizer's EOS, and the token with which its chat template closes an assistant's turn,
/// to the model's stop tokens. Training ends answers with these tokens, and
/// `generation_config.json` lists them.
///
/// # Errors
/// If the tokenizer has no EOS.
pub fn stop_where_answers_end(model: &mut Decoder, tokenizer: &Tokenizer) -> Result<()> {
    tokenizer.eos_id()?;
    model.config_mut().stop_also(tokenizer.end_ids());
    Ok(())
}
