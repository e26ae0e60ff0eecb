//! The command line: what can be asked for, and the help that teaches it.
//!
//! Flags are only read here. What they mean is worked out by the configuration and the commands.

mod configured;
mod generate;
mod models;
mod records;
mod stage;

use clap::{Parser, Subcommand};

pub use configured::{ConfigArgs, PlanArgs, Trials};
pub use generate::{Decoding, GenerateArgs, StopTokens};
pub use models::{ExportArgs, ScoreArgs};
pub use records::RecordArgs;
pub use stage::StageCommand;

/// Align language models: pretrain, sft, dpo, reward and ppo in one binary.
///
/// A run is one TOML file with a table for each stage. `collimate run` works through them; a run
/// that was interrupted goes on from its last checkpoint when the same command is given again, and
/// ends in the same bits.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  collimate run configs/quickstart.toml
  collimate ppo configs/quickstart.toml --set ppo.kl_coef=0.1 --fresh
  collimate generate --model runs/quickstart/ppo/final --prompts configs/data/prompts_eval.jsonl --out completions.jsonl

Exit codes: 0 done, 1 failed (the message says what to mend), 2 wrong usage, 130 stopped by a signal after saving.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all stages that CONFIG has, in order
    ///
    /// Finished stages are skipped and an interrupted one continues from its newest checkpoint.
    /// What each stage leaves lies in RUN/STAGE/: metrics.jsonl, samples.jsonl, checkpoints/ and
    /// final/, a Hugging Face folder.
    #[command(
        after_help = "Example:\n  collimate run configs/quickstart.toml --set run.seed=2 --set run.name=seed-2"
    )]
    Run(ConfigArgs),

    /// Run one stage of CONFIG
    #[command(flatten)]
    Stage(StageCommand),

    /// List the memory that each stage of CONFIG will take
    ///
    /// Reads the configuration, each model's config.json and the prompts, but no weights; only where
    /// PPO shares a trunk and has a judge, the policy's lowest layers, to see whether the judge stands
    /// on them. A table for each stage has the bytes of each role's weights, gradients and AdamW's
    /// moments, then what no role owns: cache, activations of one micro-batch, the log-prob chunk.
    ///
    /// With --probe each stage whose models and data are there is run for a step or two, in a
    /// process and a temporary folder of its own: will it fit, and how long will it take?
    #[command(
        after_help = "Examples:\n  collimate plan configs/quickstart.toml --set ppo.micro_batch_tokens=1024\n  \
                      collimate plan configs/quickstart.toml --probe"
    )]
    Plan(PlanArgs),

    /// Complete the prompts of a file
    ///
    /// Reads records: {"prompt": text}, {"messages": [...]} or {"prompt_ids": [...]},
    /// each with its own "max_new_tokens" if it likes. Writes one object per completion, in the
    /// order of the input: index, sample, prompt_ids, completion_ids, completion, logprobs and
    /// finish_reason (stop or length).
    #[command(
        after_help = "Example:\n  collimate generate --model runs/quickstart/ppo/final --prompts configs/data/prompts_eval.jsonl \\\n      \
                            --out completions.jsonl --n 4 --temperature 0.8 --top-p 0.95"
    )]
    Generate(GenerateArgs),

    /// Score the texts of a file with a reward model, or their tokens with a language model
    ///
    /// Reads records: {"ids": [...]}, {"prompt": text, "completion": text}, {"messages": [...]}
    /// or what else [sft] reads. A reward model writes index and score; a language model index, ids,
    /// logprobs (of each token given those before it) and entropy.
    #[command(
        after_help = "Example:\n  collimate score --model runs/quickstart/reward/final --data configs/data/sft_eval.jsonl --out scores.jsonl"
    )]
    Score(ScoreArgs),

    /// Merge an adapter into its model
    ///
    /// Reads a PEFT folder (adapter_config.json, adapter_model.safetensors), as [sft.lora] and
    /// [reward.lora] leave it, and the model that it was trained on. Writes a Hugging Face folder
    /// that needs neither, with the tokenizer.
    #[command(
        after_help = "Example:\n  collimate sft configs/quickstart.toml --fresh --set sft.lora={}\n  \
                      collimate export --model runs/quickstart/pretrain/final --adapter runs/quickstart/sft/final --out merged"
    )]
    Export(ExportArgs),
}

/// The most completions of one prompt.
const MOST_SAMPLES: usize = 100_000;
/// The most sequences at once.
const MOST_AT_ONCE: usize = 1_000_000;
/// The most tokens of a sequence.
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
