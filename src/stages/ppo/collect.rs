//! Collects the experience of an iteration: sampled and scored sequences, the samples of a prompt
//! side by side.
//!
//! With dynamic sampling, prompts whose samples all have the same score are replaced by the next
//! prompts, as many times as the configuration allows. If too few prompts with spread are found,
//! the batch is filled up with the replaced ones, so that batch and minibatches always have their
//! sizes. Which prompts an iteration takes depends on the weights and on the number of prompts
//! passed, which is part of the checkpoint.

use anyhow::Result;

use super::PpoRun;
use super::clock::IterationClock;
use super::scoring;
use crate::config::{AdvantageEstimator, Ppo};
use crate::data::example::Prompt;
use crate::ops::profile;
use crate::reward::CompletionScores;
use crate::rlhf::advantage::dynamic_sampling::{choose, have_spread};
use crate::rlhf::stats::mean;
use crate::roles::{Experience, Sequence};
use crate::train::metrics::{Metrics, names};

/// The experience of an iteration as rolled out and scored, and statistics of how it was sampled.
pub struct Collected {
    /// The batch.
    pub experience: Experience,
    /// The scored greedy completion of each prompt, for ReMax.
    pub baseline: Option<Experience>,
    /// Prompts passed so far: the position that the next iteration continues from.
    pub prompts_passed: u64,
    /// Tokens generated for the batch, including those of dropped groups.
    pub tokens: usize,
    /// Groups that were drawn but are not part of the batch.
    dropped: u64,
    /// Rounds of generation.
    rounds: usize,
    /// Share of the batch's groups whose scores are all equal.
    no_spread: f64,
}

/// Everything that was drawn for a batch so far.
#[derive(Default)]
struct Pool<'a> {
    prompts: Vec<(u64, &'a Prompt)>,
    sequences: Vec<Sequence>,
    scores: CompletionScores,
    /// Whether the scores of each prompt's samples differ.
    spread: Vec<bool>,
    rounds: usize,
}

impl<'a> PpoRun<'a> {
    /// The experience of an iteration; `None` when a signal requested a stop.
    ///
    /// # Errors
    /// If sampling or scoring fails.
    pub(super) fn collect(
        &self,
        iteration: u64,
        clock: &mut IterationClock,
    ) -> Result<Option<Collected>> {
        let wanted = self.config.prompts_per_iteration();
        let samples = self.config.num_samples_per_prompt;
        let mut passed = self.state.prompts_passed;
        let mut pool = Pool::default();
        for _ in 0..=self.config.rollout.dynamic_sampling {
            let missing = wanted - pool.with_spread().min(wanted);
            if missing == 0 {
                break;
            }
            pool.drop_states(samples);
            let prompts = self.order.take(&mut passed, missing, &pool.places());
            let Some((sequences, scores)) = self.sample(&prompts, iteration, clock)? else {
                return Ok(None);
            };
            pool.add(prompts, sequences, scores, samples)?;
        }
        let chosen = choose(&pool.spread, wanted);
        let prompts = pool.prompts_of(&chosen);
        let mut collected = pool.into_batch(&chosen, samples)?;
        collected.prompts_passed = passed;
        if self.config.objective.advantage_estimator == AdvantageEstimator::Remax {
            let Some(baseline) = self.baseline(&prompts, clock)? else {
                return Ok(None);
            };
            collected.baseline = Some(baseline);
        }
        Ok(Some(collected))
    }

    /// Samples of each prompt from the actor's current weights, and their scores.
    fn sample(
        &self,
        prompts: &[(u64, &Prompt)],
        iteration: u64,
        clock: &mut IterationClock,
    ) -> Result<Option<(Vec<Sequence>, CompletionScores)>> {
        let drawn = {
            let _part = profile::part("rollout");
            self.sampler.sample(&self.roles.actor, prompts, iteration)?
        };
        clock.lap(names::TIME_ROLLOUT);
        let Some(sequences) = drawn else {
            return Ok(None);
        };
        let _part = profile::part("score");
        let scores = self.score(prompts, &sequences)?;
        clock.lap(names::TIME_SCORE);
        Ok(Some((sequences, scores)))
    }

    /// The scored greedy completion of each prompt, ReMax's baseline.
    fn baseline(
        &self,
        prompts: &[(u64, &Prompt)],
        clock: &mut IterationClock,
    ) -> Result<Option<Experience>> {
        let _part = profile::part("baseline");
        let Some(mut sequences) = self.sampler.greedy(&self.roles.actor, prompts)? else {
            return Ok(None);
        };
        let scores = self.score(prompts, &sequences)?;
        // Only scoring reads them.
        sequences.iter_mut().for_each(|s| s.states = None);
        clock.lap(names::TIME_BASELINE);
        Ok(Some(Experience::new(sequences, scores)?))
    }

    fn score(
        &self,
        prompts: &[(u64, &Prompt)],
        sequences: &[Sequence],
    ) -> Result<CompletionScores> {
        let (config, reward) = (self.config, &self.roles.reward);
        scoring::score(config, reward, &self.sampler, prompts, sequences)
    }
}

impl<'a> Pool<'a> {
    fn with_spread(&self) -> usize {
        self.spread.iter().filter(|&&spread| spread).count()
    }

    fn places(&self) -> Vec<u64> {
        self.prompts.iter().map(|&(place, _)| place).collect()
    }

    /// Place and prompt of each of these groups.
    fn prompts_of(&self, groups: &[usize]) -> Vec<(u64, &'a Prompt)> {
        groups.iter().map(|&group| self.prompts[group]).collect()
    }

    fn add(
        &mut self,
        prompts: Vec<(u64, &'a Prompt)>,
        sequences: Vec<Sequence>,
        scores: CompletionScores,
        samples: usize,
    ) -> Result<()> {
        self.spread.extend(have_spread(&scores.total, samples)?);
        self.prompts.extend(prompts);
        self.sequences.extend(sequences);
        self.scores.extend(scores);
        self.rounds += 1;
        Ok(())
    }

    /// Drops the recorded states of groups without spread, so that their replacements take no
    /// further memory. If such a group fills up the batch after all, its states are computed again
    /// from its tokens, to the same bits.
    fn drop_states(&mut self, samples: usize) {
        let groups = self.sequences.chunks_mut(samples);
        let flat = groups.zip(&self.spread).filter(|(_, spread)| !**spread);
        flat.flat_map(|(group, _)| group)
            .for_each(|sequence| sequence.states = None);
    }

    /// The chosen groups, ascending, of `samples` sequences each.
    fn into_batch(self, chosen: &[usize], samples: usize) -> Result<Collected> {
        let tokens = self.sequences.iter().map(|s| s.log_probs.len()).sum();
        let flat = chosen.iter().filter(|&&group| !self.spread[group]).count();
        let is_chosen = |i: usize| chosen.binary_search(&(i / samples)).is_ok();
        let drawn = self.sequences.into_iter().enumerate();
        let sequences = drawn.filter(|&(i, _)| is_chosen(i)).map(|(_, s)| s);
        let scores = self.scores.select(is_chosen);
        Ok(Collected {
            experience: Experience::new(sequences.collect(), scores)?,
            baseline: None,
            prompts_passed: 0,
            tokens,
            dropped: (self.spread.len() - chosen.len()) as u64,
            rounds: self.rounds,
            no_spread: flat as f64 / chosen.len() as f64,
        })
    }
}

impl Collected {
    /// Sets the metrics of reward components, groups and baseline.
    pub fn write(&self, config: &Ppo, metrics: &mut Metrics) {
        for (name, scores) in &self.experience.scores().components {
            metrics.set(&format!("{}{name}", names::REWARD), mean(scores));
        }
        if config.num_samples_per_prompt > 1 {
            metrics.set(names::ROLLOUT_NO_SPREAD_FRACTION, self.no_spread);
        }
        if config.rollout.dynamic_sampling > 0 {
            metrics
                .set(names::ROLLOUT_ROUNDS, self.rounds as f64)
                .set(names::ROLLOUT_GROUPS_DROPPED, self.dropped as f64);
        }
        if let Some(baseline) = &self.baseline {
            let scores = &baseline.scores().total;
            metrics.set(names::ROLLOUT_BASELINE_SCORE, mean(scores));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::boundary::States;

    fn sequence(key: u64, sample: usize) -> Sequence {
        Sequence {
            key,
            sample,
            ids: vec![1; 3],
            generated: std::iter::once(1..3).collect(),
            log_probs: vec![0.0; 2],
            whole_log_probs: Vec::new(),
            entropies: Vec::new(),
            kept: vec![None; 2],
            finished: true,
            states: None,
        }
    }

    /// Two samples of each prompt from `first` on, with these scores.
    fn round(first: u64, scores: &[f32]) -> (Vec<Sequence>, CompletionScores) {
        let keys = (0..scores.len()).map(|i| (first + i as u64 / 2, i % 2));
        let half = scores.iter().map(|s| s / 2.0).collect();
        let scores = CompletionScores {
            total: scores.to_vec(),
            components: vec![("half".to_owned(), half)],
        };
        let sequences = keys.map(|(key, sample)| sequence(key, sample)).collect();
        (sequences, scores)
    }

    fn keys(collected: &Collected) -> Vec<(u64, usize)> {
        let sequences = collected.experience.sequences().iter();
        sequences.map(|s| (s.key, s.sample)).collect()
    }

    #[test]
    fn groups_without_spread_make_room_for_later_ones() {
        let prompt = Prompt {
            text: String::new(),
            question: String::new(),
            ids: vec![1],
            fields: serde_json::Map::new(),
        };
        let mut pool = Pool::default();
        let mut add = |keys: std::ops::Range<u64>, scores: &[f32]| {
            let (sequences, scores) = round(keys.start, scores);
            let prompts = keys.map(|key| (key, &prompt)).collect();
            pool.add(prompts, sequences, scores, 2).unwrap();
            pool.with_spread()
        };
        assert_eq!(add(7..10, &[1.0, 1.0, 0.0, 1.0, 0.5, 0.5]), 1);
        assert_eq!(add(10..12, &[2.0, 0.0, 0.0, 0.0]), 2);
        assert_eq!(pool.rounds, 2);
        let chosen = choose(&pool.spread, 3);
        let prompts = pool.prompts_of(&chosen);
        let collected = pool.into_batch(&chosen, 2).unwrap();
        // 8 and 10 have spread; of the others the first fills up.
        assert_eq!(
            keys(&collected),
            [(7, 0), (7, 1), (8, 0), (8, 1), (10, 0), (10, 1)]
        );
        let places: Vec<u64> = prompts.iter().map(|&(place, _)| place).collect();
        assert_eq!(places, [7, 8, 10]);
        let scores = &collected.experience.scores().total;
        assert_eq!(scores, &[1.0, 1.0, 0.0, 1.0, 2.0, 0.0]);
        assert_eq!((collected.dropped, collected.tokens), (2, 20));
        assert_eq!(collected.no_spread, 1.0 / 3.0);
    }

    #[test]
    fn metrics_are_written_where_they_say_something() {
        let (sequences, scores) = round(7, &[1.0, 0.0, 2.0, 2.0]);
        let mut collected = Collected {
            experience: Experience::new(sequences, scores).unwrap(),
            baseline: None,
            prompts_passed: 0,
            tokens: 8,
            dropped: 4,
            rounds: 3,
            no_spread: 0.5,
        };
        let written = |collected: &Collected, config: &Ppo| {
            let mut metrics = Metrics::new(1);
            collected.write(config, &mut metrics);
            let all = metrics
                .iter()
                .map(|(name, value)| format!("{name} {value}"));
            all.collect::<Vec<_>>().join(", ")
        };
        let mut config = Ppo::default();
        assert_eq!(written(&collected, &config), "reward/half 0.625");
        config.num_samples_per_prompt = 2;
        config.rollout.dynamic_sampling = 2;
        let (sequences, scores) = round(7, &[3.0, 1.0]);
        collected.baseline = Some(Experience::new(sequences, scores).unwrap());
        assert_eq!(
            written(&collected, &config),
            "reward/half 0.625, rollout/no_spread_fraction 0.5, rollout/rounds 3, \
             rollout/groups_dropped 4, rollout/baseline_score 2"
        );
    }

    #[test]
    fn only_groups_with_spread_keep_their_states() {
        let (mut sequences, scores) = round(0, &[1.0, 1.0, 0.0, 1.0]);
        for sequence in &mut sequences {
            sequence.states = Some(States {
                layer: 0,
                width: 1,
                prompt: [].into(),
                generated: [].into(),
            });
        }
        let mut pool = Pool::default();
        pool.add(Vec::new(), sequences, scores, 2).unwrap();
        pool.drop_states(2);
        let kept = pool.sequences.iter().map(|s| s.states.is_some());
        assert_eq!(kept.collect::<Vec<_>>(), [false, false, true, true]);
    }
}
