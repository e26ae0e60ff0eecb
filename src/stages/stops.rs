//! The tokens at which a stage's model stops when it generates: those that its answers end in.

use anyhow::Result;

use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;

/// Adds the tokenizer's ends to the model's: its EOS, and the token with which its chat template
/// closes an assistant's turn. Both are what answers are trained to end with, and
/// `generation_config.json` is written with them.
///
/// # Errors
/// If the tokenizer names no EOS.
pub fn stop_where_answers_end(model: &mut Decoder, tokenizer: &Tokenizer) -> Result<()> {
    tokenizer.eos_id()?;
    model.config_mut().stop_also(tokenizer.end_ids());
    Ok(())
}
