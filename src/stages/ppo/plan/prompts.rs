//! The longest prompt of PPO, and the number of prompts.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::config::{BadRecords, Data, Ppo, TooLong};
use crate::data::example::{Encoder, Limit};
use crate::data::records::Record;
use crate::roles::{PromptUse, RoleLayout};
use crate::stages::dataset::read_all;
use crate::stages::plan::models::RunModels;

/// The lengths and numbers of prompts that a plan assumes.
pub(super) struct PlannedPrompts {
    /// Tokens of the longest prompt.
    pub tokens: usize,
    /// The number of prompts to train on; `usize::MAX` if unknown.
    pub training: usize,
    /// The number of prompts to evaluate on; `usize::MAX` if unknown.
    pub evaluation: usize,
    /// The source of the length, in words for the plan.
    pub note: String,
}

impl PlannedPrompts {
    /// Measures the prompts if their files and the tokenizer exist, else takes the longest that
    /// fit.
    ///
    /// # Errors
    /// If a file or the tokenizer cannot be read, or a prompt does not fit and is not left out.
    pub fn read(models: RunModels, config: &Ppo, layout: &RoleLayout) -> Result<Self> {
        let Some(files) = PromptKey::measure_all(models, config)? else {
            return Ok(Self::longest_that_fit(config, layout));
        };
        let (mut longest, mut counts) = (0, [0; 2]);
        for (file, count) in files.iter().zip(&mut counts) {
            let limit = layout.prompt_limit(config, file.prompts);
            let tokens = file.tokens_within(&limit, config.too_long);
            longest = longest.max(tokens.with_context(|| format!("ppo.{}", file.key))?);
            *count = file.count;
        }
        let [training, evaluation] = counts;
        Ok(Self {
            tokens: longest,
            training,
            evaluation,
            note: format!("the longest prompt has {longest} tokens"),
        })
    }

    fn longest_that_fit(config: &Ppo, layout: &RoleLayout) -> Self {
        let Limit { tokens, words, .. } = layout.prompt_limit(config, PromptUse::Training);
        Self {
            tokens,
            training: usize::MAX,
            evaluation: usize::MAX,
            note: format!(
                "the prompts or their tokenizer do not exist yet: prompts of {tokens} tokens are \
                 assumed, the longest that fit ({words})"
            ),
        }
    }
}

/// The prompts of one key.
struct PromptKey {
    /// The key in `[ppo]`.
    key: &'static str,
    prompts: PromptUse,
    count: usize,
    /// The record of the longest prompt, with its tokens.
    longest: Option<(Record, usize)>,
}

impl PromptKey {
    /// Measures the files of `prompts` and `eval_prompts`; `None` if a file or the tokenizer is
    /// missing.
    fn measure_all(models: RunModels, config: &Ppo) -> Result<Option<Vec<Self>>> {
        let training = ("prompts", PromptUse::Training, &config.prompts);
        let data = &config.eval_prompts;
        let evaluation = ("eval_prompts", PromptUse::Evaluation, data);
        let evaluation = config.evaluates().then_some(evaluation);
        let files: Vec<_> = [training].into_iter().chain(evaluation).collect();
        if !files
            .iter()
            .all(|(.., data)| data.paths().all(Path::exists))
        {
            return Ok(None);
        }
        let Some(tokenizer) = models.tokenizer(&config.from)? else {
            return Ok(None);
        };
        let encoder = Encoder::new(&tokenizer, Limit::none(), TooLong::Error)?;
        let measure = |(key, prompts, data)| Self::measure(key, prompts, data, config, &encoder);
        let measured: Result<_> = files.into_iter().map(measure).collect();
        measured.map(Some)
    }

    fn measure(
        key: &'static str,
        prompts: PromptUse,
        data: &Data,
        config: &Ppo,
        encoder: &Encoder,
    ) -> Result<Self> {
        let keys = &config.records;
        let records = read_all(data, keys)?;
        let found = measured(encoder, records, keys.bad_records)?;
        Ok(Self {
            key,
            prompts,
            count: found.len(),
            longest: found.into_iter().max_by_key(|(_, tokens)| *tokens),
        })
    }

    /// Tokens of the longest prompt after those beyond the limit were cut or left out.
    fn tokens_within(&self, limit: &Limit, too_long: TooLong) -> Result<usize> {
        let Some((record, tokens)) = &self.longest else {
            return Ok(0);
        };
        match too_long == TooLong::Error && *tokens > limit.tokens {
            true => Err(limit.refuse_prompt(record, *tokens).into()),
            false => Ok(limit.tokens.min(*tokens)),
        }
    }
}

/// The record of the longest prompt to train or evaluate on; `None` if a file or the tokenizer is
/// missing.
///
/// # Errors
/// If a file or the tokenizer cannot be read, or a record is no prompt.
pub fn longest_prompt(models: RunModels, config: &Ppo) -> Result<Option<Record>> {
    let files = PromptKey::measure_all(models, config)?;
    let longest = files.into_iter().flatten().filter_map(|file| file.longest);
    let longest = longest.reduce(|a, b| if a.1 > b.1 { a } else { b });
    Ok(longest.map(|(record, _)| record))
}

/// Records with the tokens of their prompts, without bad ones if these are left out.
fn measured(
    encoder: &Encoder,
    records: Vec<Record>,
    bad: BadRecords,
) -> Result<Vec<(Record, usize)>> {
    let all = encoder.prompts(&records);
    if all.is_ok() || bad == BadRecords::Error {
        let lengths = all?.items.into_iter().map(|prompt| prompt.ids.len());
        return Ok(records.into_iter().zip(lengths).collect());
    }
    let length = |record: Record| {
        let found = encoder.prompts(std::slice::from_ref(&record)).ok()?;
        let tokens = found.items.first()?.ids.len();
        Some((record, tokens))
    };
    Ok(records.into_iter().filter_map(length).collect())
}
