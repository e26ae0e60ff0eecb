//! The weighted sum of reward components.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::rules::{ExactRule, JsonRule, LengthRule, NumericRule, PatternRule, RepetitionRule};
use super::{Classifier, Ensemble, Http, Program, RewardBatch, RewardError, RewardModel, Scorer};
use crate::config::{EnsembleReward, RewardComponent, RewardKind};
use crate::model::ModelError;
use crate::ops::backend::Backend;

/// Loads the reward model of a folder.
pub type LoadModel<'a> = &'a dyn Fn(&Path) -> Result<RewardModel, ModelError>;

/// The reward components of a run with their weights.
pub struct Rewards(Vec<Component>);

/// Scores of a batch of completions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompletionScores {
    /// The weighted sum of each completion.
    pub total: Vec<f32>,
    /// Name and unweighted scores of each component, in the configuration's order.
    pub components: Vec<(String, Vec<f32>)>,
}

impl CompletionScores {
    /// Appends the scores of another batch, by the same components.
    pub fn extend(&mut self, other: Self) {
        self.total.extend(other.total);
        if self.components.is_empty() {
            self.components = other.components;
            return;
        }
        for ((_, all), (_, more)) in self.components.iter_mut().zip(other.components) {
            all.extend(more);
        }
    }

    /// Name and unweighted score of each component for completion `index`.
    pub fn of(&self, index: usize) -> impl Iterator<Item = (String, f32)> + '_ {
        let components = self.components.iter();
        components.map(move |(name, scores)| (name.clone(), scores[index]))
    }

    /// The scores of the completions whose index is `chosen`.
    pub fn select(self, chosen: impl Fn(usize) -> bool) -> Self {
        let some = |all: Vec<f32>| {
            let all = all.into_iter().enumerate();
            all.filter(|&(i, _)| chosen(i)).map(|(_, s)| s).collect()
        };
        let components = self.components.into_iter();
        Self {
            total: some(self.total),
            components: components.map(|(name, all)| (name, some(all))).collect(),
        }
    }
}

struct Component {
    name: String,
    weight: f64,
    scorer: ComponentScorer,
}

/// Reward models are separate from the rest because other roles may share weights with them.
enum ComponentScorer {
    Model(PathBuf, Box<RewardModel>),
    Ensemble(Vec<PathBuf>, Ensemble),
    Other(Box<dyn Scorer>),
}

impl Rewards {
    /// Loads the models of each component and starts its programs. Reward models are loaded by
    /// `model`.
    ///
    /// # Errors
    /// If a component cannot be loaded or started; the error names it.
    pub fn load(components: &[RewardComponent], model: LoadModel) -> Result<Self, RewardError> {
        let load = |component: &RewardComponent| -> Result<Component, RewardError> {
            let scorer = scorer(component, model).map_err(in_component(&component.name))?;
            Ok(Component {
                name: component.name.clone(),
                weight: component.weight,
                scorer,
            })
        };
        Ok(Self(components.iter().map(load).collect::<Result<_, _>>()?))
    }

    /// The rules among `components`, which can be checked before any model is loaded or program
    /// started.
    ///
    /// # Errors
    /// The errors of [`Self::load`].
    pub fn rules(components: &[RewardComponent]) -> Result<Self, RewardError> {
        Self::load_some(components, RewardKind::is_rule)
    }

    /// The programs and endpoints among `components`, which can be tried before any model is
    /// loaded. Starts the programs.
    ///
    /// # Errors
    /// The errors of [`Self::load`].
    pub fn external(components: &[RewardComponent]) -> Result<Self, RewardError> {
        Self::load_some(components, RewardKind::is_external)
    }

    fn load_some(
        components: &[RewardComponent],
        chosen: impl Fn(&RewardKind) -> bool,
    ) -> Result<Self, RewardError> {
        let some = components.iter().filter(|c| chosen(&c.kind));
        let some: Vec<RewardComponent> = some.cloned().collect();
        Self::load(&some, &|folder| RewardModel::load(folder, &Backend::CPU))
    }

    /// Every reward model with its folder, models of ensembles included, in the configuration's
    /// order.
    pub fn models(&self) -> impl Iterator<Item = (&Path, &RewardModel)> {
        self.0.iter().flat_map(|component| {
            let (folders, models): (&[PathBuf], &[RewardModel]) = match &component.scorer {
                ComponentScorer::Model(folder, model) => (
                    std::slice::from_ref(folder),
                    std::slice::from_ref(model.as_ref()),
                ),
                ComponentScorer::Ensemble(folders, ensemble) => (folders, ensemble.models()),
                ComponentScorer::Other(_) => (&[], &[]),
            };
            folders.iter().map(PathBuf::as_path).zip(models)
        })
    }

    /// Checks that a prompt's record has the fields that every component needs.
    ///
    /// # Errors
    /// The missing field, and the component that needs it.
    pub fn check(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.0
            .iter()
            .try_for_each(|Component { name, scorer, .. }| {
                let check = scorer.reward().check(fields);
                check.map_err(|lacks| format!("reward `{name}`: {lacks}"))
            })
    }

    /// Scores completions by every component, and sums the scores by weight.
    ///
    /// # Errors
    /// If a component fails; the error names it.
    pub fn score(&self, batch: &RewardBatch) -> Result<CompletionScores, RewardError> {
        let expected = batch.completions.len();
        let mut sums = vec![0.0; expected];
        let mut components = Vec::with_capacity(self.0.len());
        for component in &self.0 {
            let scores = component
                .scores(batch)
                .map_err(in_component(&component.name))?;
            for (sum, &score) in sums.iter_mut().zip(&scores) {
                *sum += component.weight * f64::from(score);
            }
            components.push((component.name.clone(), scores));
        }
        Ok(CompletionScores {
            total: sums.into_iter().map(|sum| sum as f32).collect(),
            components,
        })
    }

    /// Ends the programs, once all completions have been scored.
    ///
    /// # Errors
    /// If a program wrote more than was requested; the error names the component.
    pub fn finish(&self) -> Result<(), RewardError> {
        self.0.iter().try_for_each(|component| {
            let finished = component.scorer.reward().finish();
            finished.map_err(in_component(&component.name))
        })
    }
}

impl Component {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let scores = self.scorer.reward().scores(batch)?;
        let (found, expected) = (scores.len(), batch.completions.len());
        match found == expected {
            true => Ok(scores),
            false => Err(RewardError::Count { found, expected }),
        }
    }
}

impl ComponentScorer {
    fn reward(&self) -> &dyn Scorer {
        match self {
            Self::Model(_, model) => model.as_ref(),
            Self::Ensemble(_, ensemble) => ensemble,
            Self::Other(reward) => reward.as_ref(),
        }
    }
}

fn scorer(component: &RewardComponent, model: LoadModel) -> Result<ComponentScorer, RewardError> {
    let other: Box<dyn Scorer> = match &component.kind {
        RewardKind::Model(config) => {
            let model = model(&config.path)?.read_at(config.score_at)?;
            return Ok(ComponentScorer::Model(config.path.clone(), Box::new(model)));
        }
        RewardKind::Ensemble(config) => return ensemble(config, model),
        RewardKind::Classifier(config) => Box::new(Classifier::load(config)?),
        RewardKind::Exact(config) => Box::new(ExactRule::new(config)?),
        RewardKind::Numeric(config) => Box::new(NumericRule::new(config)?),
        RewardKind::Regex(config) => Box::new(PatternRule::new(config)?),
        RewardKind::Length(config) => Box::new(LengthRule::new(config)),
        RewardKind::Json(config) => Box::new(JsonRule::new(config)?),
        RewardKind::Repetition(config) => Box::new(RepetitionRule::new(config)),
        RewardKind::Program(config) => Box::new(Program::start(&component.name, config)?),
        RewardKind::Http(config) => Box::new(Http::new(config)?),
    };
    Ok(ComponentScorer::Other(other))
}

fn ensemble(config: &EnsembleReward, model: LoadModel) -> Result<ComponentScorer, RewardError> {
    let load = |folder: &PathBuf| Ok(model(folder)?.read_at(config.score_at)?);
    let models = config.paths.iter().map(load);
    let models = models.collect::<Result<_, RewardError>>()?;
    let ensemble = Ensemble::new(models, config.combine, config.deviations());
    Ok(ComponentScorer::Ensemble(config.paths.clone(), ensemble))
}

fn in_component(name: &str) -> impl FnOnce(RewardError) -> RewardError {
    |source| RewardError::Component {
        name: name.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{ExactReward, LengthReward, TextUnit};
    use crate::reward::RewardInput;

    fn component(name: &str, weight: f64, kind: RewardKind) -> RewardComponent {
        RewardComponent {
            name: name.to_owned(),
            weight,
            ..RewardComponent::new(kind)
        }
    }

    fn rewards() -> Rewards {
        let exact = RewardKind::Exact(ExactReward::default());
        let length = RewardKind::Length(LengthReward {
            unit: TextUnit::Words,
            max: Some(1),
            ..LengthReward::default()
        });
        let components = [
            component("right", 2.0, exact),
            component("short", -0.5, length),
        ];
        Rewards::load(&components, &|folder| {
            RewardModel::load(folder, &Backend::CPU)
        })
        .unwrap()
    }

    #[test]
    fn the_total_is_the_weighted_sum_and_components_stay_raw() {
        let fields = json!({"answer": "four"});
        let fields = fields.as_object().unwrap();
        let completions = ["four", "it is four", "five"].map(|text| RewardInput {
            prompt: "2+2",
            text,
            ids: &[],
            states: None,
            response: Vec::new(),
            fields,
        });
        let batch = RewardBatch {
            completions: &completions,
            pass_tokens: 64,
        };
        let scores = rewards().score(&batch).unwrap();
        assert_eq!(scores.total, [1.5, 0.0, -0.5]);
        let expected = [
            ("right", vec![1.0, 0.0, 0.0]),
            ("short", vec![1.0, 0.0, 1.0]),
        ];
        assert_eq!(
            scores.components,
            expected.map(|(name, scores)| (name.to_owned(), scores))
        );
    }

    #[test]
    fn a_record_without_an_answer_is_refused_by_name() {
        let lacks = rewards().check(&Map::new()).unwrap_err();
        assert!(lacks.contains("reward `right`"), "{lacks}");
        assert!(lacks.contains("no field `answer`"), "{lacks}");
    }
}
