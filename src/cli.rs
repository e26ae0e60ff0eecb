//! The command line: commands, flags, and the help that teaches them.
//!
//! Flags are only read here. The configuration and the commands work out what they mean.

mod configured;
mod generate;
mod key_flags;
mod models;
mod records;
mod stage;

use clap::{Parser, Subcommand};

pub use configured::{ConfigArgs, KeyArgs, PlanArgs, Trials};
pub use generate::{DecodingKind, GenerateArgs, StopTokens};
pub use models::{ExportArgs, ScoreArgs};
pub use records::RecordArgs;
pub use stage::StageCommand;

/// Train language models from human preferences: pretrain, sft, dpo, orpo, reward, judge and ppo.
///
/// A run is one TOML file with a table for each stage. `collimate run` runs the stages in order.
/// The same command continues an interrupted run from its last checkpoint, and ends with the same
/// weights to the bit.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// Print results and errors only, without notes and progress.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the arguments of this process.
    ///
    /// # Errors
    /// Wrong usage, or a request for help. A flag that is a key of the configuration is answered
    /// with the `--set` that sets it.
    pub fn read() -> Result<Self, clap::Error> {
        let arguments: Vec<String> = std::env::args_os()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        Self::try_parse().map_err(|error| key_flags::explained(error, &arguments))
    }
}

const EXAMPLES: &str = "\
Examples:
  collimate run configs/quickstart.toml
  collimate ppo configs/quickstart.toml --set ppo.kl_coef=0.1 --fresh
  collimate config ppo.kl_coef
  collimate generate --model runs/quickstart/ppo/final --prompts configs/data/prompts_eval.jsonl \
--out completions.jsonl

Exit codes: 0 done, 1 failed (the message says what to do), 2 wrong usage, 130 stopped by a signal \
after saving.";

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all stages of CONFIG in order
    ///
    /// Finished stages are skipped, and an interrupted stage continues from its newest checkpoint.
    /// Each stage writes to RUN/STAGE/: metrics.jsonl, samples.jsonl, checkpoints/ and final/, a
    /// Hugging Face folder.
    #[command(after_help = "\
Example:
  collimate run configs/quickstart.toml --set run.seed=2 --set run.name=seed-2")]
    Run(ConfigArgs),

    /// Run one stage of CONFIG
    #[command(flatten)]
    Stage(StageCommand),

    /// List the memory that each stage of CONFIG will take
    ///
    /// Reads the configuration, each model's config.json and the prompts, but no weights; only
    /// where PPO shares a trunk or a base with a reward model or judge that exists, it compares the
    /// weights that they should share, unless both name one folder. A table for each stage lists
    /// the bytes of each role's weights, gradients and AdamW moments, then what the roles have in
    /// common: cache, activations of one micro-batch, and the chunk of log-probs.
    ///
    /// With --probe, each stage whose models and data exist runs for a step or two, in a process
    /// and a temporary folder of its own, to measure peak memory and seconds per step.
    #[command(after_help = "\
Examples:
  collimate plan configs/quickstart.toml --set ppo.micro_batch_tokens=1024
  collimate plan configs/quickstart.toml --probe")]
    Plan(PlanArgs),

    /// Explain the keys of the configuration
    ///
    /// Prints type, default, bounds and meaning of a key (ppo.kl_coef), or the keys of a table
    /// (ppo). Without an argument, lists the tables.
    #[command(after_help = "\
Examples:
  collimate config ppo.kl_coef
  collimate config sft")]
    Config(KeyArgs),

    /// Complete the prompts of a file
    ///
    /// Reads records of {"prompt": text}, {"messages": [...]} or {"prompt_ids": [...]}, optionally
    /// with a "max_new_tokens" of their own. Writes one object per completion, in the order of the
    /// input: index, sample, prompt_ids, completion_ids, completion, logprobs and finish_reason
    /// (stop or length).
    #[command(after_help = "\
Example:
  collimate generate --model runs/quickstart/ppo/final --prompts configs/data/prompts_eval.jsonl \\
      --out completions.jsonl --n 4 --temperature 0.8 --top-p 0.95")]
    Generate(GenerateArgs),

    /// Score the texts of a file with a reward model, or their tokens with a language model
    ///
    /// Reads records of {"ids": [...]}, {"prompt": text, "completion": text}, {"messages": [...]},
    /// or any other form that `sft` reads. A reward model writes index and score; a language model
    /// writes index, ids, logprobs (of each token given the tokens before it) and entropy.
    #[command(after_help = "\
Example:
  collimate score --model runs/quickstart/reward/final --data configs/data/sft_eval.jsonl \
--out scores.jsonl")]
    Score(ScoreArgs),

    /// Merge an adapter into its model
    ///
    /// Reads a PEFT folder (adapter_config.json, adapter_model.safetensors), as [sft.lora] and
    /// [reward.lora] write it, and the model that it was trained on. Writes the merged model as a
    /// Hugging Face folder, with the tokenizer.
    #[command(after_help = "\
Example:
  collimate sft configs/quickstart.toml --fresh --set sft.lora={}
  collimate export --model runs/quickstart/pretrain/final --adapter runs/quickstart/sft/final \
--out merged")]
    Export(ExportArgs),
}

/// Largest number of completions of one prompt.
const MOST_SAMPLES: usize = 100_000;
/// Largest number of sequences at the same time.
const MOST_AT_ONCE: usize = 1_000_000;
/// Largest number of tokens of a sequence.
const MOST_TOKENS: usize = 1 << 24;

/// A whole number from 1 to `MOST`.
fn up_to<const MOST: usize>(text: &str) -> Result<usize, String> {
    match text.parse::<u128>() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(number) if number > MOST as u128 => Err(format!("must be at most {MOST}")),
        Ok(number) => Ok(number as usize),
        Err(_) => Err(format!("expected a whole number from 1 to {MOST}")),
    }
}

#[cfg(test)]
mod tests;
