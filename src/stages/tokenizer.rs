//! `[tokenizer]` → the tokenizer of pretraining.

use anyhow::{Context as _, Result};

use crate::config::TokenizerTable;
use crate::data::records::Record;
use crate::data::tokenizer::{BpeTraining, Tokenizer};
use crate::files::regular;
use crate::terminal::{self, Phase};

/// Trains a byte-level BPE on the text of `records`.
///
/// # Errors
/// A record without text, text that no tokenizer can be trained on, or a chat template that cannot
/// be read.
pub fn train_tokenizer(table: &TokenizerTable, records: &[Record]) -> Result<Tokenizer> {
    let texts = records
        .iter()
        .map(Record::text)
        .collect::<Result<Vec<_>, _>>()?;
    let _phase = Phase::begin(format!("training a tokenizer on {} texts", texts.len()));
    let tokenizer = with_sound_template(Tokenizer::train_bpe(&texts, &bpe_training(table)?)?)?;
    if tokenizer.vocab_size() < table.vocab_size {
        terminal::note_once(format!(
            "tokenizer.vocab_size = {}, but the text has pairs for only {} entries: the vocabulary \
             is that size",
            table.vocab_size,
            tokenizer.vocab_size()
        ));
    }
    Ok(tokenizer)
}

/// A tokenizer with one token for each byte, in place of the one that pretraining will train: it
/// refuses the same records.
///
/// # Errors
/// The errors of [`Tokenizer::train_bpe`], or a chat template that cannot be read.
pub fn byte_tokenizer(table: &TokenizerTable) -> Result<Tokenizer> {
    let mut training = bpe_training(table)?;
    training.vocab_size = 256 + training.special_tokens.len();
    with_sound_template(Tokenizer::train_bpe(&["a"], &training)?)
}

/// `tokenizer`, if its chat template compiles.
fn with_sound_template(tokenizer: Tokenizer) -> Result<Tokenizer> {
    let compiled = tokenizer.compiled_template().map(drop);
    compiled.context("tokenizer.chat_template")?;
    Ok(tokenizer)
}

/// The first special token ends a text, the second fills; the configuration has at least two.
fn bpe_training(table: &TokenizerTable) -> Result<BpeTraining> {
    let mut training = BpeTraining::new(table.vocab_size);
    if let [eos, pad, ..] = table.special_tokens.as_slice() {
        training.eos_token.clone_from(eos);
        training.pad_token.clone_from(pad);
        training.special_tokens.clone_from(&table.special_tokens);
    }
    if let Some(file) = &table.chat_template {
        let text = regular::read_text(file);
        let named = || format!("tokenizer.chat_template = \"{}\"", file.display());
        training.chat_template = Some(text.with_context(named)?);
        training.template_file = Some(file.clone());
    }
    Ok(training)
}
