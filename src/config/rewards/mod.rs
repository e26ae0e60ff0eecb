//! `[[ppo.rewards]]`: components whose weighted sum scores completions.
//!
//! Each table has a `type`, a `name`, a `weight` and the keys of its type ([`kinds`]). Without the
//! array, the score is that of one reward model, `ppo.reward_model`.

mod checks;
mod kinds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::check::Checker;
use super::document::Document;
use super::error::ConfigError;
use super::names;
use super::written::{key_names, to_table};
pub use kinds::{
    ClassifierInput, ClassifierOutput, ClassifierReward, EnsembleReward, ExactReward, HttpReward,
    JsonReward, LONGEST_BACKOFF, Label, LengthReward, ModelReward, NumericReward, ProgramReward,
    RegexReward, RepetitionReward, RewardKind, TextUnit,
};

/// The array's key in `[ppo]`.
const KEY: &str = "rewards";

/// Component of the weighted sum that scores completions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RewardComponent {
    /// The scorer, with the keys of its `type`.
    #[serde(flatten)]
    pub kind: RewardKind,
    /// Name of the component in the metric `reward/NAME` and in `samples.jsonl`, unique among the
    /// tables.
    #[schemars(extend("x-default" = "its `type`"))]
    pub name: String,
    /// Factor of the component's score in the sum; 0 only logs it.
    pub weight: f64,
}

impl RewardComponent {
    /// A component with the defaults of its type.
    pub fn new(kind: RewardKind) -> Self {
        Self {
            name: String::new(),
            weight: 1.0,
            kind,
        }
    }

    /// Model folders of the component.
    pub fn folders(&self) -> Vec<&Path> {
        match &self.kind {
            RewardKind::Model(model) => vec![&model.path],
            RewardKind::Ensemble(ensemble) => ensemble.paths.iter().map(PathBuf::as_path).collect(),
            RewardKind::Classifier(classifier) => vec![&classifier.path],
            _ => Vec::new(),
        }
    }

    fn folders_mut(&mut self) -> Vec<&mut PathBuf> {
        match &mut self.kind {
            RewardKind::Model(model) => vec![&mut model.path],
            RewardKind::Ensemble(ensemble) => ensemble.paths.iter_mut().collect(),
            RewardKind::Classifier(classifier) => vec![&mut classifier.path],
            _ => Vec::new(),
        }
    }
}

/// The model folders of all components.
pub(super) fn folders_mut(
    components: &mut [RewardComponent],
) -> impl Iterator<Item = &mut PathBuf> {
    components.iter_mut().flat_map(RewardComponent::folders_mut)
}

/// Reads the tables; problems are reported to `checker`.
///
/// # Errors
/// If a default cannot be written as TOML.
pub(super) fn lower(
    document: &Document,
    checker: &mut Checker<'_>,
) -> Result<Vec<RewardComponent>, ConfigError> {
    let mut components = Vec::new();
    for (name, table) in document.items("ppo", KEY, checker) {
        let Some(kind) = kind(&name, table.get("type"), checker) else {
            continue;
        };
        let default = RewardComponent::new(kind);
        let (known, values) = (key_names(&default)?, to_table(&default)?);
        let component: RewardComponent = document.overlay(&name, values, &known, table, checker)?;
        components.push(component);
    }
    Ok(components)
}

/// The kind that `type` names, with its defaults.
fn kind(table: &str, word: Option<&Value>, checker: &mut Checker<'_>) -> Option<RewardKind> {
    let mut keys = checker.table(table);
    let words = RewardKind::words();
    let Some(word) = word else {
        keys.missing("type", &format!("one of {}", words.join(", ")));
        return None;
    };
    let kind = word.as_str().and_then(RewardKind::named);
    if kind.is_none() {
        let near = word.as_str().and_then(|word| names::nearest(word, words));
        let message = match near {
            Some(near) => format!("unknown type; did you mean \"{near}\"?"),
            None => format!("unknown type; known are {}", words.join(", ")),
        };
        keys.wrong("type", word, message);
    }
    kind
}

/// Fills unset names, and unset paths with the model that `[reward]` trains.
pub(super) fn fill(
    components: &mut [RewardComponent],
    trained: Option<&Path>,
    checker: &mut Checker<'_>,
) {
    for (index, component) in components.iter_mut().enumerate() {
        if component.name.is_empty() {
            component.name = component.kind.word().to_owned();
        }
        let RewardKind::Model(model) = &mut component.kind else {
            continue;
        };
        match (model.path.as_os_str().is_empty(), trained) {
            (false, _) => {}
            (true, Some(folder)) => model.path = folder.to_owned(),
            (true, None) => {
                let mend = "name a reward model's folder, or add a [reward] table that trains one";
                checker.table(&item(index)).missing("path", mend);
            }
        }
    }
}

/// Checks every component, and that their names differ.
pub(super) fn check(components: &[RewardComponent], checker: &mut Checker<'_>) {
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, component) in components.iter().enumerate() {
        let table = item(index);
        let mut keys = checker.table(&table);
        let name = component.name.as_str();
        if let Some(before) = named.insert(name, index) {
            let message = format!(
                "is also the name of {}; give each its own name",
                item(before)
            );
            keys.wrong("name", format!("\"{name}\""), message);
        }
        if !name.chars().all(is_of_a_name) {
            let message =
                "may have only letters, digits, '_', '-' and '.', because it names a metric";
            keys.wrong("name", format!("\"{name}\""), message);
        }
        if !(component.weight as f32).is_finite() {
            keys.wrong("weight", component.weight, "must be finite; 1.0 is usual");
        }
        component.kind.check(&mut keys);
    }
    if !components.is_empty() && components.iter().all(|component| component.weight == 0.0) {
        let mend = "every weight is 0, so that all completions score alike; set one to another \
                    value";
        checker.table("ppo").misplaced(KEY, mend);
    }
}

fn item(index: usize) -> String {
    format!("ppo.{KEY}[{index}]")
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

#[cfg(test)]
mod tests;
