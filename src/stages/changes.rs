//! Changes of the configuration since the stages of a run began: which are refused, and the
//! commands that continue nevertheless.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};

use crate::config::diff::{Change, Effect, diff};
use crate::config::{Config, LrScheduler, Stage};
use crate::terminal;
use crate::train::run_folder::{Existing, RunFolder};

/// Number of changed keys that an error lists.
const LISTED: usize = 10;

/// A changed key and the stages that began with its old value.
struct ChangedKey {
    change: Change,
    stages: Vec<Stage>,
}

/// Refuses a configuration that would change the result of a stage that has begun, if the result of
/// `stages` depends on that stage: one of `stages` that is continued, or one whose model they read.
/// Other changes are noted on the terminal.
///
/// # Errors
/// The keys that differ, or a configuration of a stage that cannot be read.
pub fn check_config(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
) -> Result<()> {
    let all = with_makers(config, stages);
    let mut changed: BTreeMap<String, ChangedKey> = BTreeMap::new();
    for &stage in &all {
        if existing == Existing::SetAside && stages.contains(&stage) {
            continue;
        }
        for change in changes_since(config, folder, stage)? {
            let stages = Vec::new();
            let entry = changed.entry(change.to_string());
            entry
                .or_insert(ChangedKey { change, stages })
                .stages
                .push(stage);
        }
    }
    let changed = changed.into_values();
    let (refused, harmless): (Vec<_>, Vec<_>) =
        changed.partition(|key| key.change.effect == Effect::ChangesResult);
    if refused.is_empty() {
        harmless.iter().for_each(|key| {
            terminal::note(format_args!("changed since the run began: {}", key.change));
        });
        return Ok(());
    }
    let fresh = start_over(config, folder, stages, existing, &refused);
    bail!(
        "{} belongs to another configuration; in brackets, the stages that began with the old \
         value:\n{}{}",
        folder.path().display(),
        listed(&refused),
        match lengthened(&refused, folder)? {
            Some(stage) => format!("{}, or {fresh}", train_on(config, stage)),
            None => format!("Put the old values back, choose another run.name, or {fresh}"),
        }
    )
}

/// The differences to the configuration with which `stage` began that concern it; none if it has
/// not begun.
fn changes_since(config: &Config, folder: &RunFolder, stage: Stage) -> Result<Vec<Change>> {
    let files = folder.existing_stage(stage);
    if !files.has_begun() {
        return Ok(Vec::new());
    }
    let old = Config::load(&files.config(), &[]).with_context(|| {
        format!(
            "the configuration that {stage} was started with; start the stage over: {}",
            fresh(stage)
        )
    })?;
    let mut changes = diff(&old, config)?;
    changes.retain(|change| change.concerns(stage));
    Ok(changes)
}

/// `stages` and the stages whose models they read, directly or through further stages.
fn with_makers(config: &Config, stages: &[Stage]) -> BTreeSet<Stage> {
    let mut found: BTreeSet<Stage> = stages.iter().copied().collect();
    // A stage reads models of earlier stages alone.
    for stage in Stage::ALL.into_iter().rev() {
        if found.contains(&stage) {
            found.extend(makers(config, stage));
        }
    }
    found
}

/// The stages of the run whose models `stage` reads.
fn makers(config: &Config, stage: Stage) -> Vec<Stage> {
    let read = config.models_read(stage);
    let makes = |maker: &Stage| {
        let made = config.run.final_model(*maker);
        *maker < stage && read.iter().any(|(_, folder)| **folder == made)
    };
    Stage::ALL.into_iter().filter(makes).collect()
}

/// A line for each of the first keys, and one with the number of the others.
fn listed(keys: &[ChangedKey]) -> String {
    let line = |key: &ChangedKey| {
        let stages: Vec<&str> = key.stages.iter().map(|stage| stage.name()).collect();
        format!("  {} [{}]\n", key.change, stages.join(", "))
    };
    let lines = keys.iter().take(LISTED).map(line);
    let others = keys.len().saturating_sub(LISTED);
    let more = (others > 0).then(|| format!("  and {others} more\n"));
    lines.chain(more).collect()
}

/// The commands that start over the stages that began with other values, and the begun stages that
/// read their models, for a command that runs `stages`.
fn start_over(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
    refused: &[ChangedKey],
) -> String {
    let mut stale: BTreeSet<Stage> = refused.iter().flat_map(|key| key.stages.clone()).collect();
    for stage in with_makers(config, stages) {
        if makers(config, stage)
            .iter()
            .any(|maker| stale.contains(maker))
        {
            stale.insert(stage);
        }
    }
    let begun = |stage: &Stage| folder.existing_stage(*stage).has_begun();
    let fresh_now = |stage: &Stage| existing == Existing::SetAside && stages.contains(stage);
    stale.retain(|stage| begun(stage) || fresh_now(stage));
    // `--fresh` sets all begun stages of the command aside, and no others.
    let own: BTreeSet<Stage> = stages.iter().copied().filter(begun).collect();
    if existing == Existing::Continue && own == stale {
        return "start over with --fresh".to_owned();
    }
    let commands: Vec<String> = stale.into_iter().map(fresh).collect();
    format!("start over: {}", commands.join(", then "))
}

fn fresh(stage: Stage) -> String {
    format!("collimate {stage} … --fresh")
}

/// The finished stage that would be lengthened if `refused` is a longer length alone.
fn lengthened(refused: &[ChangedKey], folder: &RunFolder) -> Result<Option<Stage>> {
    let [ChangedKey { change, stages }] = refused else {
        return Ok(None);
    };
    let is_length = |stage: &Stage| {
        ["max_steps", "max_epochs"]
            .map(|key| format!("{stage}.{key}"))
            .contains(&change.key)
    };
    let number = |value: &Option<String>| value.as_ref()?.parse::<f64>().ok();
    // A length of 0 stands for the other unit.
    let grew = matches!((number(&change.old), number(&change.new)),
        (Some(old), Some(new)) if 0.0 < old && old < new);
    let Some(&stage) = stages.iter().find(|stage| grew && is_length(stage)) else {
        return Ok(None);
    };
    let done = folder.existing_stage(stage).done()?;
    Ok(done.map(|_| stage))
}

/// Advice on training further when a finished stage cannot be lengthened.
fn train_on(config: &Config, stage: Stage) -> String {
    let what = match config.training(stage).map(|keys| keys.lr_scheduler_type) {
        Some(LrScheduler::Cosine) => "A finished cosine schedule cannot be lengthened.",
        Some(LrScheduler::Linear) => "A finished linear schedule cannot be lengthened.",
        _ => "A finished stage whose length is in epochs cannot be lengthened.",
    };
    let table = match stage {
        Stage::Pretrain => "model",
        _ => stage.name(),
    };
    format!(
        "{what} To train on, set {table}.from to {} under a new run.name",
        config.run.final_model(stage).display()
    )
}
