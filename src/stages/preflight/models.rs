//! Checks of the embedding of a stage's model, and of reward programs. The roles of PPO are checked
//! when their layout is planned.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::config::{Ppo, RewardKind, Stage};
use crate::data::tokenizer::Tokenizer;
use crate::stages::context;
use crate::stages::plan::models::RunModels;

/// Checks that the embedding of the model that `stage` starts from has a row for each token of the
/// tokenizer in `folder`.
///
/// # Errors
/// If the tokenizer has more tokens than the embedding has rows.
pub fn check_vocabulary(
    models: RunModels,
    stage: Stage,
    tokenizer: &Tokenizer,
    folder: &Path,
) -> Result<()> {
    let Some(from) = models.from(stage) else {
        return Ok(());
    };
    let rows = models.decoder(from)?.vocab_size;
    context::check_vocabulary(tokenizer, folder, rows, from)
}

/// Checks that the reward programs of `[ppo]` exist.
///
/// # Errors
/// A program that is neither a file nor in a folder of `PATH`.
pub fn check_programs(ppo: &Ppo) -> Result<()> {
    for component in &ppo.rewards {
        let RewardKind::Program(program) = &component.kind else {
            continue;
        };
        if let Some(program) = program.command.first() {
            ensure!(
                is_found(program),
                "reward `{}`: the program `{program}` is not there; check ppo.rewards command and \
                 PATH",
                component.name
            );
        }
    }
    Ok(())
}

/// True if a program is a file, or lies in a folder of `PATH`.
fn is_found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}
