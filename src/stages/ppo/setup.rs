//! Setup of PPO: loads the roles, and the prompts that leave room for the response.

use std::path::Path;

use anyhow::{Context as _, Error, Result, bail, ensure};

use crate::config::{BadRecords, Data, KlIn, Ppo, Ptx, Share, keeps_one_of};
use crate::data::example::{Encoder, Prompt};
use crate::data::records::{File, LeftOut, Record};
use crate::data::tokenizer::Tokenizer;
use crate::data::{self, DataError};
use crate::roles::{ModelDescription, PpoModels, PromptUse, RoleLayout, Roles};
use crate::stages::context::Context;
use crate::stages::dataset::StageRecords;
use crate::stages::record_report::RecordReports;
use crate::terminal;
use crate::train::configured::rate_of_zero;

/// Loads the roles.
///
/// # Errors
/// The errors of [`layout`], and of loading a model or a scorer.
pub fn roles(context: &Context, config: &Ppo) -> Result<Roles> {
    let layout = layout(config, |folder| Ok(ModelDescription::read(folder)?))?;
    let (seed, rewards) = (context.config.run.seed, config.reward_components());
    let loaded = Roles::load(layout, &rewards, seed, context.backend);
    let mut roles = loaded.with_context(|| sharing_keys(config))?;
    let judge = roles.judge.take();
    let judge = judge
        .map(|judge| judge.read_at(config.score_at))
        .transpose();
    roles.judge = judge.context("ppo.judge_model")?;
    note_positions(&roles);
    Ok(roles)
}

/// The layout of the roles, whose model folders `describe` describes.
///
/// # Errors
/// The errors of `describe` and of [`RoleLayout::new`]; a scorer with another tokenizer than the
/// policy, a response that leaves no room for a prompt, a `top_p` that keeps one token, or a
/// `ptx_length` beyond the policy's context.
pub fn layout(
    config: &Ppo,
    describe: impl Fn(&Path) -> Result<ModelDescription>,
) -> Result<RoleLayout> {
    let keys = || sharing_keys(config);
    let models = PpoModels::describe(config, describe).with_context(keys)?;
    let layout = RoleLayout::new(config, models).with_context(keys)?;
    layout.check_tokenizers().with_context(keys)?;
    layout.check_room(config).map_err(Error::msg)?;
    let policy = &layout.policy.decoder;
    check_sampling(config, policy.vocab_size)?;
    check_length(&config.update.ptx, policy.max_position_embeddings)?;
    Ok(layout)
}

/// The keys that say what the roles share.
fn sharing_keys(config: &Ppo) -> &'static str {
    match config.sharing.share {
        Share::None => "[ppo]",
        Share::Trunk => "ppo.share = \"trunk\"",
        Share::Adapter => "ppo.share = \"adapter\"",
    }
}

/// Refuses a `top_p` that keeps one token of any distribution over the policy's vocabulary: there
/// would be nothing to learn.
fn check_sampling(config: &Ppo, vocabulary: usize) -> Result<()> {
    let top_p = config.generation.top_p;
    if keeps_one_of(vocabulary, top_p) {
        bail!(
            "ppo.top_p = {top_p} keeps one token of a vocabulary of {vocabulary}, whatever the \
             policy's weights, so that it cannot learn; raise it, or remove it to cut nothing"
        );
    }
    Ok(())
}

/// Refuses rows of PPO-ptx that are longer than the policy's context, in tokens.
fn check_length(ptx: &Ptx, context: usize) -> Result<()> {
    ensure!(
        !ptx.is_on() || ptx.ptx_length <= context,
        "ppo.ptx_length is {}, but the policy's context holds {context} tokens; lower it to \
         {context} or less",
        ptx.ptx_length
    );
    Ok(())
}

/// A note if the policy has a learning rate of 0.
pub fn frozen_policy(config: &Ppo) -> Option<String> {
    let critic =
        config.has_critic() && config.critic_learning_rate() > 0.0 && config.critic.vf_coef > 0.0;
    let words = match critic {
        true => "the critic alone learns, and the policy stays",
        false => "the policy stays",
    };
    rate_of_zero(&config.training, words)
}

/// A warning about a KL penalty in the rewards under cut sampling. The policy's ratio is that of
/// the kept tokens, so a reward changes the shares of these and not the mass of the whole set; a KL
/// in the loss changes both.
pub fn loose_penalty(config: &Ppo) -> Option<String> {
    let cuts = config.generation.cuts();
    (cuts && config.weighs_kl() && config.kl_in() == KlIn::Reward).then(|| {
        "top_k, top_p or min_p cut the sampling and the rewards carry the KL: the penalty cannot \
         pull back probability that leaves the kept tokens as a whole; to hold the policy, set \
         ppo.kl_in = \"loss\""
            .to_owned()
    })
}

/// Notes the token at which each reward model and the judge are read.
fn note_positions(roles: &Roles) {
    let rewards = roles.reward.models();
    let rewards = rewards.map(|(folder, model)| ("reward model", folder, model));
    let judge = roles.layout.judge.as_ref().zip(roles.judge.as_ref());
    let judge = judge.map(|(layout, model)| ("judge", layout.model.folder.as_path(), model));
    for (role, folder, model) in rewards.chain(judge) {
        let position = model.position().in_words();
        terminal::note_once(format!("{role} {}: scores {position}", folder.display()));
    }
}

/// Refuses a warm-up of the critic that lasts the whole run.
///
/// # Errors
/// If no iteration is left for the policy.
pub fn check_warmup(config: &Ppo, iterations: u64) -> Result<()> {
    let warmup = config.critic.critic_warmup as u64;
    if config.has_critic() && warmup > 0 && warmup >= iterations {
        bail!(
            "ppo.critic_warmup = {warmup} leaves the policy none of the run's {iterations} \
             iterations; lower it, or make the run longer"
        );
    }
    Ok(())
}

/// Reads the prompts of `data`, the value of `ppo.key`. Each leaves room for the response in every
/// context of its use.
///
/// # Errors
/// If a record that is not left out is wrong, too long, or lacks a field that a scorer needs.
pub fn prompts(
    tokenizer: &Tokenizer,
    config: &Ppo,
    roles: &Roles,
    prompts: PromptUse,
    (data, key): (&Data, &str),
    reports: &mut RecordReports,
) -> Result<Vec<Prompt>> {
    let keys = &config.records;
    let limit = roles.layout.prompt_limit(config, prompts);
    let encoder = Encoder::new(tokenizer, limit, config.too_long)?;
    let encoder = encoder.with_bad_records(keys.bad_records);
    let encode = |records: Vec<Record>| {
        let bad = LeftOut::default();
        let mut file = File { records, bad };
        if keys.bad_records == BadRecords::Skip {
            leave_out_lacking(&mut file, roles, keys.bad_records)?;
        }
        let mut encoded = encoder.prompts(&file.records)?;
        leave_out_lacking(&mut file, roles, keys.bad_records)?;
        file.bad += encoded.bad;
        encoded.bad = file.bad;
        Ok(encoded)
    };
    let read = || {
        let records = StageRecords::read(data, keys)?;
        let (prompts, report) = records.map(format!("ppo.{key}"), encode)?;
        anyhow::Ok((prompts.all, report.check(keys)?))
    };
    let (prompts, report) = read().with_context(|| format!("ppo.{key}"))?;
    reports.add("ppo", report, encoder.limit());
    Ok(prompts)
}

/// Leaves out the records that lack a field that a scorer needs.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_text_may_be_as_long_as_the_context() {
        let ptx = |ptx_coef, ptx_length| Ptx {
            ptx_coef,
            ptx_length,
            ..Ptx::default()
        };
        assert!(check_length(&ptx(1.0, 64), 64).is_ok());
        let refused = check_length(&ptx(1.0, 65), 64).unwrap_err().to_string();
        assert!(
            refused.contains("65") && refused.contains("64"),
            "{refused}"
        );
        assert!(check_length(&ptx(0.0, 65), 64).is_ok());
    }
}
