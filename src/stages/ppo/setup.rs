//! What PPO works with: the roles on their common ground, and prompts that leave room for the response.

use crate::terminal;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rollout::random::Independent;

use crate::config::{BadRecords, CriticFrom, KlIn, Ppo, Share, keeps_one_of};
use crate::data::example::{Encoder, Limit, Prompt};
use crate::data::records::{File, read_file};
use crate::data::tokenizer::Tokenizer;
use crate::data::{self, DataError};
use crate::model::Decoder;
use crate::reward::RewardModel;
use crate::roles::{CriticStart, Ground, Reference, Roles, Sharing};
use crate::stages::Context;
use crate::stages::adapters::asked;
use crate::stages::record_report::{RecordReport, RecordReports};

/// Loads the roles.
///
/// # Errors
/// If a model or what scores cannot be read, or they do not go together.
pub fn roles(context: &Context, config: &Ppo) -> Result<Roles> {
    let (seed, sharing) = (context.config.run.seed, sharing(config));
    let ground = Ground::load(&config.from, &sharing, seed, context.backend)?;
    let scorer = config.first_reward_model();
    let critic = critic_start(config, scorer.as_deref(), Independent::Critic.seed(seed));
    let rewards = config.reward_components();
    let judge = config.judge_model.as_deref();
    let judge = judge.filter(|_| config.eval_prompts.is_some());
    let policy = &config.from;
    let reference = reference(config);
    let loaded = Roles::load(ground, &sharing, policy, critic, reference, &rewards, judge);
    let loaded = loaded.with_context(|| match config.sharing.share {
        Share::None => "[ppo]",
        Share::Trunk => "ppo.share = \"trunk\"",
        Share::Adapter => "ppo.share = \"adapter\", ppo.lora",
    });
    let mut roles = loaded?;
    check_sampling(config, roles.actor.decoder_config().vocab_size)?;
    let judge_read = roles
        .judge
        .take()
        .map(|judge| judge.read_at(config.score_at));
    roles.judge = judge_read.transpose().context("ppo.judge_model")?;
    say_positions(&roles, judge);
    Ok(roles)
}

/// Use of the reference by this configuration.
pub fn reference(config: &Ppo) -> Reference {
    match config.reads_reference() {
        true => Reference::Read,
        false => Reference::Unread,
    }
}

/// A `top_p` that keeps one token of any distribution over the policy's vocabulary leaves nothing to learn.
///
/// # Errors
/// If it is so low.
pub fn check_sampling(config: &Ppo, vocabulary: usize) -> Result<()> {
    let top_p = config.generation.top_p;
    if keeps_one_of(vocabulary, top_p) {
        bail!(
            "ppo.top_p = {top_p} keeps one token of a vocabulary of {vocabulary}, whatever the policy's weights, so that it cannot learn; \
             raise it, or remove it to cut nothing"
        );
    }
    Ok(())
}

/// Words on a KL penalty that cannot pull back all that it measures. The policy's ratio is that of the kept tokens, so a reward changes
/// their shares and not the mass of the whole set; as a term of the loss the KL changes both.
pub fn loose_penalty(config: &Ppo) -> Option<String> {
    let cuts = config.generation.cuts();
    (cuts && config.weighs_kl() && config.kl_in() == KlIn::Reward).then(|| {
        "top_k, top_p or min_p cut the sampling and the rewards carry the KL: the penalty cannot pull back probability that leaves the kept \
         tokens as a whole; to hold the policy, set ppo.kl_in = \"loss\""
            .to_owned()
    })
}

/// Says where each reward model and the judge are read.
fn say_positions(roles: &Roles, judge: Option<&Path>) {
    let models = roles
        .reward
        .models()
        .map(|(folder, model)| ("reward model", folder, model));
    let judge = judge.zip(roles.judge.as_ref());
    let judge = judge.map(|(folder, model)| ("judge", folder, model));
    for (what, folder, model) in models.chain(judge) {
        let position = model.position().in_words();
        terminal::note_once(format!("{what} {}: scores {position}", folder.display()));
    }
}

/// What the roles hold in common.
pub fn sharing(config: &Ppo) -> Sharing {
    let keys = &config.sharing;
    match keys.share {
        Share::None => Sharing::None,
        Share::Trunk => Sharing::Trunk {
            layers: keys.trunk_layers.unwrap_or_default(),
        },
        Share::Adapter => Sharing::Adapter(keys.lora.as_ref().map(asked)),
    }
}

/// Where the critic starts from, `scorer` being the first reward model; `None` where the estimator has no critic.
fn critic_start<'a>(
    config: &'a Ppo,
    scorer: Option<&'a Path>,
    seed: u64,
) -> Option<CriticStart<'a>> {
    let policy = CriticStart::Policy {
        folder: &config.from,
        seed,
    };
    let start = match (config.critic.critic_from, scorer) {
        (Some(CriticFrom::RewardModel), Some(folder)) => CriticStart::RewardModel(folder),
        _ => policy,
    };
    config.has_critic().then_some(start)
}

/// A warm-up of the critic as long as the run would leave the policy as it is.
///
/// # Errors
/// If it is.
pub fn check_warmup(config: &Ppo, iterations: u64) -> Result<()> {
    let warmup = config.critic.critic_warmup as u64;
    if config.has_critic() && warmup > 0 && warmup >= iterations {
        bail!(
            "ppo.critic_warmup = {warmup} leaves the policy none of the run's {iterations} iterations; lower it, or make the run longer"
        );
    }
    Ok(())
}

/// Reads the prompts of `file`, which `ppo.key` names, and leaves room for the response.
///
/// # Errors
/// If a record is wrong or does not fit and is not left out, or what scores lacks a field in it.
pub fn prompts(
    tokenizer: &Tokenizer,
    config: &Ppo,
    roles: &Roles,
    judge: Option<&RewardModel>,
    (file, key): (&Path, &str),
    reports: &mut RecordReports,
) -> Result<Vec<Prompt>> {
    let keys = &config.records;
    let room = room(config, roles, judge);
    let encoder = Encoder::new(tokenizer, room, config.too_long)?;
    let encoder = encoder.with_bad_records(keys.bad_records);
    let read = || {
        let mut records = read_file(file, keys.columns.as_ref(), keys.bad_records)?;
        let count = records.records.len() + records.bad.count;
        if keys.bad_records == BadRecords::Skip {
            leave_out_lacking(&mut records, roles, keys.bad_records)?;
        }
        let encoded = encoder.prompts(&records.records)?;
        leave_out_lacking(&mut records, roles, keys.bad_records)?;
        let mut report = RecordReport::new(format!("ppo.{key}"), count, records.bad);
        let prompts = report.take(&file.display().to_string(), encoded);
        anyhow::Ok((prompts, report.check(keys)?))
    };
    let (prompts, report) = read().with_context(|| format!("ppo.{key}"))?;
    reports.add("ppo", report, encoder.limit());
    Ok(prompts)
}

/// Leaves out the records that lack a field of what scores.
fn leave_out_lacking(file: &mut File, roles: &Roles, bad: BadRecords) -> data::Result<()> {
    let mut kept = Vec::with_capacity(file.records.len());
    for record in std::mem::take(&mut file.records) {
        match roles.reward.check(&record.fields) {
            Ok(()) => kept.push(record),
            Err(message) => {
                let at = record.source;
                file.bad.leave_out(DataError::Record { at, message }, bad)?;
            }
        }
    }
    file.records = kept;
    Ok(())
}

/// Room for prompts in the contexts of the loaded roles.
fn room(config: &Ppo, roles: &Roles, judge: Option<&RewardModel>) -> Limit {
    let context = |model: &Decoder| model.decoder_config().max_position_embeddings;
    let scorers = roles.reward.models();
    let scorers = scorers.map(|(_, model)| ("the reward model's", context(model.decoder())));
    let judge = judge.map(|model| ("the judge's", context(model.decoder())));
    room_in(config, context(&roles.actor), scorers.chain(judge))
}

/// Tokens that the response leaves for a prompt in the contexts of policy and scorers, and in a pass: a sequence is never cut.
pub fn room_in(
    config: &Ppo,
    policy: usize,
    scorers: impl Iterator<Item = (&'static str, usize)>,
) -> Limit {
    let actor = ("the policy's", policy);
    let least = |a: (&'static str, usize), b: (&'static str, usize)| if b.1 < a.1 { b } else { a };
    let (whose, context) = scorers.fold(actor, least);
    let response = config.generation.max_new_tokens;
    let pass = config.training.micro_batch_tokens;
    let limit = match pass < context {
        true => Limit {
            tokens: pass.saturating_sub(response),
            words: format!(
                "ppo.micro_batch_tokens is {pass}, of which the response may take {response}"
            ),
            mend: "raise ppo.micro_batch_tokens, or lower ppo.max_new_tokens".to_owned(),
        },
        false => Limit {
            tokens: context.saturating_sub(response),
            words: format!(
                "{whose} context holds {context}, of which the response may take {response}"
            ),
            mend: "lower ppo.max_new_tokens".to_owned(),
        },
    };
    limit.or_other_policy("ppo", config.too_long)
}
