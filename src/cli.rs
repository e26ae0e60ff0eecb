//! The command line: what can be asked for, and the help that teaches it.
//!
//! Flags are only read here. What they mean is worked out by the configuration and the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Checker, ConfigError, Device, Generation, Override, Problems};
use crate::model::weights::SaveDtype;
use crate::train::run_folder::Existing;

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

    /// Train a language model on plain text, from scratch or from a folder
    ///
    /// Needs [pretrain] with `data`. Without a tokenizer a byte-level BPE is trained on that text
    /// first.
    #[command(
        after_help = "Example:\n  collimate pretrain configs/quickstart.toml --set pretrain.max_steps=100 --set run.name=trial"
    )]
    Pretrain(ConfigArgs),

    /// Fine-tune on answers: prompt and completion, or chats
    ///
    /// Needs [sft] with `data`. The loss counts answers only, and rows are packed without seeing
    /// one another.
    #[command(
        after_help = "Example:\n  collimate sft configs/quickstart.toml --set sft.learning_rate=5e-4 --fresh"
    )]
    Sft(ConfigArgs),

    /// Tune the policy on pairs of a better and a worse answer, without a reward model
    ///
    /// Needs [dpo] with `data`. Minimises DPO's loss, IPO's or SimPO's (`loss_type`); the log-probs
    /// of the reference, which is the start of the policy, are computed once and kept.
    #[command(
        after_help = "Example:\n  collimate dpo configs/dpo.toml --set dpo.loss_type=ipo --fresh"
    )]
    Dpo(ConfigArgs),

    /// Train the reward model on pairs of a better and a worse answer
    ///
    /// Needs [reward] with `data`. Reports accuracy, margin and calibration on held-out pairs.
    #[command(
        after_help = "Example:\n  collimate reward configs/quickstart.toml --set reward.max_steps=300 --fresh"
    )]
    Reward(ConfigArgs),

    /// Train the judge: a second reward model that PPO never sees
    ///
    /// Needs [judge], whose keys are those of [reward]. Give it other pairs: where reward rises and
    /// judge falls, the policy has learnt the reward model's weaknesses.
    #[command(after_help = "Example:\n  collimate judge configs/quickstart.toml")]
    Judge(ConfigArgs),

    /// Tune the policy on the reward model's scores by PPO
    ///
    /// Needs [ppo] with `prompts`, and a reward model (from [reward], or `reward_model`) or a
    /// weighted sum of other scores ([[ppo.rewards]]). A step is an iteration: sample, score, update.
    #[command(
        after_help = "Example:\n  collimate ppo configs/quickstart.toml --set ppo.kl_coef=0.1 --fresh"
    )]
    Ppo(ConfigArgs),

    /// List the memory that each stage of CONFIG will take
    ///
    /// Reads the configuration, each model's config.json and the prompts; never the weights. A table
    /// for each stage has the bytes of each role's weights, gradients and AdamW's moments, then
    /// what no role owns: cache, activations of one micro-batch, the log-prob chunk.
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
    /// Reads a JSON object a line: {"prompt": text}, {"messages": [...]} or {"prompt_ids": [...]},
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
    /// Reads a JSON object a line: {"ids": [...]}, {"prompt": text, "completion": text} or
    /// {"messages": [...]}. A reward model writes index and score; a language model index, ids,
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

/// Flags of the commands that read a configuration.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The TOML file that describes the run
    pub config: PathBuf,

    /// Override a key, for example ppo.kl_coef=0.1; may be given several times
    ///
    /// VALUE is TOML; bare words are strings.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<Override>,

    /// Set the old folder aside (NAME.old-1) and start over instead of continuing
    #[arg(long)]
    fresh: bool,

    /// Print where each stage's time went, by part and operation, when it ends
    #[arg(long)]
    pub profile: bool,
}

impl ConfigArgs {
    /// What happens to what a former run left.
    pub fn existing(&self) -> Existing {
        if self.fresh {
            Existing::SetAside
        } else {
            Existing::Continue
        }
    }
}

/// Flags of `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// The TOML file that describes the run
    pub config: PathBuf,

    /// Override a key, for example ppo.micro_batch_tokens=1024; may be given several times
    ///
    /// VALUE is TOML; bare words are strings.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<Override>,

    /// Try the stages too, and print peak memory and seconds a step beside the plan
    ///
    /// Programs and endpoints among ppo.rewards are asked as in training.
    #[arg(long)]
    probe: bool,
}

/// Whether `plan` tries what it plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trials {
    /// Sizes are enough.
    None,
    /// A step or two of each stage.
    Probe,
}

impl PlanArgs {
    /// Whether the stages are tried.
    pub fn trials(&self) -> Trials {
        match self.probe {
            true => Trials::Probe,
            false => Trials::None,
        }
    }
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// Drawn from the distribution that the sampling settings leave.
    Sample,
    /// The likeliest.
    Greedy,
}

/// What stop tokens do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopTokens {
    /// They end a completion.
    End,
    /// They are tokens like others: completions run to the limit.
    Ignore,
}

/// Flags of `generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// The model: a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,

    /// An adapter on it: a PEFT folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,

    /// The prompts: a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,

    /// Where completions go: a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Completions of each prompt
    #[arg(long = "n", value_name = "N", default_value = "1", value_parser = positive)]
    pub num_samples: usize,

    /// Most tokens of a completion; a prompt's own "max_new_tokens" goes before it
    #[arg(long, value_name = "N", default_value = "64", value_parser = positive)]
    pub max_new_tokens: usize,

    /// Divides the logits: below 1 surer, above 1 more varied
    #[arg(
        long,
        value_name = "T",
        default_value = "1.0",
        value_parser = temperature,
        conflicts_with = "greedy"
    )]
    temperature: f64,

    /// Draw among the K likeliest tokens only; 0 does not cut
    #[arg(long, value_name = "K", default_value = "0", conflicts_with = "greedy")]
    top_k: usize,

    /// Draw among the likeliest tokens that together reach probability P; 1 does not cut
    #[arg(
        long,
        value_name = "P",
        default_value = "1.0",
        value_parser = top_p,
        conflicts_with = "greedy"
    )]
    top_p: f64,

    /// Draw among tokens at least P times as probable as the likeliest; 0 does not cut
    #[arg(
        long,
        value_name = "P",
        default_value = "0.0",
        value_parser = min_p,
        conflicts_with = "greedy"
    )]
    min_p: f64,

    /// A text that ends a completion; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    stop: Vec<String>,

    /// Take the likeliest token each time instead of drawing
    #[arg(long)]
    greedy: bool,

    /// Run to the limit whatever the model says
    #[arg(long)]
    ignore_eos: bool,

    /// Seed of the draws
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,

    /// Most sequences at once; the completions do not depend on it
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    pub batch: usize,

    /// What to compute on: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: Device,
}

impl GenerateArgs {
    /// The sampling settings.
    pub fn generation(&self) -> Generation {
        Generation {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            stop: self.stop.clone(),
            ..Generation::default()
        }
    }

    /// How the next token is chosen.
    pub fn decoding(&self) -> Decoding {
        if self.greedy {
            Decoding::Greedy
        } else {
            Decoding::Sample
        }
    }

    /// What stop tokens do.
    pub fn stop_tokens(&self) -> StopTokens {
        if self.ignore_eos {
            StopTokens::Ignore
        } else {
            StopTokens::End
        }
    }
}

/// Flags of `score`.
#[derive(Clone, Debug, Args)]
pub struct ScoreArgs {
    /// The model: a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,

    /// An adapter on it: a PEFT folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,

    /// The texts: a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,

    /// Where scores go: a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Sequences at once; the scores do not depend on it
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    pub batch: usize,

    /// What to compute on: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: Device,
}

/// Flags of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The model that the adapter was trained on: a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,

    /// The adapter: a PEFT folder
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,

    /// Where the merged model goes: a folder, made if need be
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Type of its weights: float32, bfloat16 or float16
    #[arg(long, value_name = "TYPE", default_value = "float32", value_parser = save_dtype)]
    pub dtype: SaveDtype,
}

fn save_dtype(text: &str) -> Result<SaveDtype, String> {
    SaveDtype::from_torch_name(text).ok_or_else(|| {
        let names = SaveDtype::ALL.map(SaveDtype::torch_name);
        format!("expected one of {}", names.join(", "))
    })
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(_) => Err("expected a whole number, 1 or larger".into()),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    let temperature = number(text)?;
    in_range(Generation {
        temperature,
        ..Generation::default()
    })?;
    Ok(temperature)
}

fn top_p(text: &str) -> Result<f64, String> {
    let top_p = number(text)?;
    in_range(Generation {
        top_p,
        ..Generation::default()
    })?;
    Ok(top_p)
}

fn min_p(text: &str) -> Result<f64, String> {
    let min_p = number(text)?;
    in_range(Generation {
        min_p,
        ..Generation::default()
    })?;
    Ok(min_p)
}

fn stop_text(text: &str) -> Result<String, String> {
    let stop = vec![text.to_owned()];
    in_range(Generation {
        stop,
        ..Generation::default()
    })?;
    Ok(text.to_owned())
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "expected a number".to_owned())
}

/// Flags have the ranges that the keys of their names have in a configuration.
fn in_range(generation: Generation) -> Result<(), String> {
    let mut checker = Checker::flags();
    generation.check(&mut checker.table("generate"));
    checker.finish().map_err(|error| match error {
        // The parser names the flag and its value.
        ConfigError::Invalid(Problems(problems)) => problems
            .into_iter()
            .map(|problem| problem.message)
            .collect::<Vec<_>>()
            .join("; "),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests;
