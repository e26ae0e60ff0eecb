//! Flags of `generate`.

use std::path::PathBuf;

use clap::Args;

use super::{MOST_AT_ONCE, MOST_SAMPLES, MOST_TOKENS, RecordArgs, up_to};
use crate::config::{Arithmetic, Checker, ConfigError, Device, Generation, Problems};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodingKind {
    /// Drawn from the distribution that the sampling settings leave.
    Sample,
    /// The likeliest token.
    Greedy,
}

/// Whether stop tokens end a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopTokens {
    /// They end a completion.
    End,
    /// They do not: completions run to the limit.
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

    /// The prompts: JSON Lines, CSV or Parquet
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,

    /// File for the completions: JSON Lines; replaces an existing file at the end
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Flags for reading records.
    #[command(flatten)]
    pub records: RecordArgs,

    /// Number of completions of each prompt
    #[arg(long = "n", value_name = "N", default_value = "1", value_parser = up_to::<MOST_SAMPLES>)]
    pub num_samples: usize,

    /// Largest number of tokens of a completion; a record's own "max_new_tokens" takes precedence
    #[arg(long, value_name = "N", default_value = "64", value_parser = up_to::<MOST_TOKENS>)]
    pub max_new_tokens: usize,

    /// Sampling temperature: the logits are divided by it
    #[arg(
        long,
        value_name = "T",
        default_value = "1.0",
        value_parser = temperature,
        conflicts_with = "greedy"
    )]
    temperature: f64,

    /// Sample from the K likeliest tokens; 0 does not cut
    #[arg(long, value_name = "K", default_value = "0", conflicts_with = "greedy")]
    top_k: usize,

    /// Sample from the smallest set of likeliest tokens with total probability P; 1 does not cut
    #[arg(
        long,
        value_name = "P",
        default_value = "1.0",
        value_parser = top_p,
        conflicts_with = "greedy"
    )]
    top_p: f64,

    /// Sample from tokens at least P times as probable as the likeliest; 0 does not cut
    #[arg(
        long,
        value_name = "P",
        default_value = "0.0",
        value_parser = min_p,
        conflicts_with = "greedy"
    )]
    min_p: f64,

    /// A text that ends a completion; can be repeated
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    stop: Vec<String>,

    /// Take the likeliest token each time instead of sampling
    #[arg(long)]
    greedy: bool,

    /// Generate up to the limit of tokens: stop tokens do not end a completion
    #[arg(long)]
    ignore_eos: bool,

    /// Seed of the samples
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,

    /// Largest number of sequences generated at the same time; results do not depend on it
    #[arg(long, value_name = "N", default_value = "32", value_parser = up_to::<MOST_AT_ONCE>)]
    pub batch: usize,

    /// Device to compute on: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: Device,

    /// How the CPU computes matrix products; training uses fast unless run.arithmetic says
    /// otherwise
    #[arg(long, value_name = "NAME", default_value = "portable", value_enum)]
    pub arithmetic: Arithmetic,
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
    pub fn decoding(&self) -> DecodingKind {
        if self.greedy {
            DecodingKind::Greedy
        } else {
            DecodingKind::Sample
        }
    }

    /// Whether stop tokens end a completion.
    pub fn stop_tokens(&self) -> StopTokens {
        if self.ignore_eos {
            StopTokens::Ignore
        } else {
            StopTokens::End
        }
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
