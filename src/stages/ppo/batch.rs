//! Prompts → the batch of an iteration: sequences with their raw scores, several of each prompt side by side.
//!
//! With dynamic sampling, prompts whose samples all score alike are replaced by the next ones of the walk, as often as the
//! configuration allows; what then is missing is filled with those that were to be replaced, so that batch and minibatches always have
//! their sizes. Which prompts an iteration takes is a function of the weights and of how far the walk has come, and that is part of
//! the state.

use anyhow::Result;

use super::Run;
use super::clock::Clock;
use super::rewards;
use crate::config::{AdvantageEstimator, Ppo};
use crate::data::example::Prompt;
use crate::ops::profile;
use crate::reward::Scores;
use crate::rlhf::advantage::dynamic_sampling::{choose, have_spread};
use crate::rlhf::stats::mean;
use crate::roles::Sequence;
use crate::train::metrics::{Metrics, names};

/// Sequences with the score of each, raw.
#[derive(Default)]
pub struct Sampled {
    /// Prompts with their responses.
    pub sequences: Vec<Sequence>,
    /// One score a sequence, and those of its components.
    pub scores: Scores,
}

/// An iteration's batch, and how it came about.
pub struct Gathered {
    /// The batch.
    pub batch: Sampled,
    /// The greedy completion of each prompt of the batch, where the estimator holds samples against it.
    pub baseline: Option<Sampled>,
    /// Tokens generated for the batch, those of dropped groups among them.
    pub tokens: usize,
    /// Prompts taken beyond those of one batch.
    replacements: u64,
    /// The place of the walk over the prompts that the next iteration goes on from.
    pub passed: u64,
    /// Rounds of generation.
    rounds: usize,
    /// Share of the batch's groups whose scores are all alike.
    no_spread: f64,
}

/// All that was drawn for a batch so far.
#[derive(Default)]
struct Pool<'a> {
    prompts: Vec<(u64, &'a Prompt)>,
    sampled: Sampled,
    /// Whether each prompt's scores differ.
    spread: Vec<bool>,
    rounds: usize,
}

impl<'a> Run<'a> {
    /// The batch of an iteration; `None` when a signal came.
    pub(super) fn gather(&self, iteration: u64, clock: &mut Clock) -> Result<Option<Gathered>> {
        let wanted = self.config.prompts_per_iteration();
        let mut passed = self.state.prompts_passed;
        let mut pool = Pool::default();
        for _ in 0..=self.config.rollout.dynamic_sampling {
            let missing = wanted - pool.with_spread().min(wanted);
            if missing == 0 {
                break;
            }
            pool.forget_states(self.config.num_samples_per_prompt);
            let prompts = self.walk.take(&mut passed, missing, &pool.places());
            let Some(sampled) = self.draw(&prompts, iteration, clock)? else {
                return Ok(None);
            };
            pool.add(prompts, sampled, self.config.num_samples_per_prompt)?;
        }
        let chosen = choose(&pool.spread, wanted);
        let prompts: Vec<_> = chosen.iter().map(|&group| pool.prompts[group]).collect();
        let mut gathered = pool.into_batch(&chosen, self.config.num_samples_per_prompt);
        gathered.passed = passed;
        if self.config.objective.advantage_estimator == AdvantageEstimator::Remax {
            let Some(baseline) = self.baseline(&prompts, clock)? else {
                return Ok(None);
            };
            gathered.baseline = Some(baseline);
        }
        Ok(Some(gathered))
    }

    /// The samples of each prompt, from the live weights of the actor, and their scores.
    fn draw(
        &self,
        prompts: &[(u64, &Prompt)],
        iteration: u64,
        clock: &mut Clock,
    ) -> Result<Option<Sampled>> {
        let drawn = {
            let _part = profile::part("rollout");
            self.sampler.sample(&self.roles.actor, prompts, iteration)?
        };
        clock.lap(names::TIME_ROLLOUT);
        let Some(sequences) = drawn else {
            return Ok(None);
        };
        let _part = profile::part("score");
        let scores = self.raw_scores(prompts, &sequences)?;
        clock.lap(names::TIME_SCORE);
        Ok(Some(Sampled { sequences, scores }))
    }

    /// What ReMax holds the samples of each prompt against.
    fn baseline(&self, prompts: &[(u64, &Prompt)], clock: &mut Clock) -> Result<Option<Sampled>> {
        let _part = profile::part("baseline");
        let Some(mut sequences) = self.sampler.greedy(&self.roles.actor, prompts)? else {
            return Ok(None);
        };
        let scores = self.raw_scores(prompts, &sequences)?;
        // Only scoring reads them.
        sequences.iter_mut().for_each(|s| s.states = None);
        clock.lap(names::TIME_BASELINE);
        Ok(Some(Sampled { sequences, scores }))
    }

    fn raw_scores(&self, prompts: &[(u64, &Prompt)], sequences: &[Sequence]) -> Result<Scores> {
        let (config, reward) = (self.config, &self.roles.reward);
        rewards::score(config, reward, &self.sampler, prompts, sequences)
    }
}

impl<'a> Pool<'a> {
    fn with_spread(&self) -> usize {
        self.spread.iter().filter(|&&spread| spread).count()
    }

    fn places(&self) -> Vec<u64> {
        self.prompts.iter().map(|&(place, _)| place).collect()
    }

    fn add(
        &mut self,
        prompts: Vec<(u64, &'a Prompt)>,
        sampled: Sampled,
        samples: usize,
    ) -> Result<()> {
        self.spread
            .extend(have_spread(&sampled.scores.total, samples)?);
        self.prompts.extend(prompts);
        self.sampled.sequences.extend(sampled.sequences);
        self.sampled.scores.extend(sampled.scores);
        self.rounds += 1;
        Ok(())
    }

    /// Lets go what generation kept of groups without spread, so that those that are drawn in their place take no more memory. Should
    /// they fill up the batch, it is computed once more from their tokens, to the same bits.
    fn forget_states(&mut self, samples: usize) {
        let groups = self.sampled.sequences.chunks_mut(samples);
        let flat = groups.zip(&self.spread).filter(|(_, spread)| !**spread);
        flat.flat_map(|(group, _)| group)
            .for_each(|sequence| sequence.states = None);
    }

    /// The chosen groups, ascending, of `samples` sequences each.
    fn into_batch(self, chosen: &[usize], samples: usize) -> Gathered {
        let tokens = self.sampled.sequences.iter().map(|s| s.log_probs.len());
        let tokens = tokens.sum();
        let flat = chosen.iter().filter(|&&group| !self.spread[group]).count();
        let is_chosen = |i: usize| chosen.binary_search(&(i / samples)).is_ok();
        let drawn = self.sampled.sequences.into_iter().enumerate();
        let sequences = drawn.filter(|&(i, _)| is_chosen(i)).map(|(_, s)| s);
        Gathered {
            batch: Sampled {
                sequences: sequences.collect(),
                scores: self.sampled.scores.select(is_chosen),
            },
            baseline: None,
            tokens,
            replacements: (self.spread.len() - chosen.len()) as u64,
            passed: 0,
            rounds: self.rounds,
            no_spread: flat as f64 / chosen.len() as f64,
        }
    }
}

impl Gathered {
    /// Sets what there is to say of groups and of the baseline.
    pub fn write(&self, config: &Ppo, metrics: &mut Metrics) {
        for (name, scores) in &self.batch.scores.components {
            metrics.set(&format!("{}{name}", names::REWARD), mean(scores));
        }
        if config.num_samples_per_prompt > 1 {
            metrics.set(names::ROLLOUT_NO_SPREAD_FRACTION, self.no_spread);
        }
        if config.rollout.dynamic_sampling > 0 {
            metrics
                .set(names::ROLLOUT_ROUNDS, self.rounds as f64)
                .set(names::ROLLOUT_GROUPS_DROPPED, self.replacements as f64);
        }
        if let Some(baseline) = &self.baseline {
            metrics.set(names::ROLLOUT_BASELINE_SCORE, mean(&baseline.scores.total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn round(first: u64, scores: &[f32]) -> Sampled {
        let keys = (0..scores.len()).map(|i| (first + i as u64 / 2, i % 2));
        Sampled {
            sequences: keys.map(|(key, sample)| sequence(key, sample)).collect(),
            scores: Scores {
                total: scores.to_vec(),
                components: vec![("half".to_owned(), scores.iter().map(|s| s / 2.0).collect())],
            },
        }
    }

    fn keys(gathered: &Gathered) -> Vec<(u64, usize)> {
        let sequences = gathered.batch.sequences.iter();
        sequences.map(|s| (s.key, s.sample)).collect()
    }

    #[test]
    fn groups_without_spread_make_room_for_later_ones() {
        let prompt = Prompt {
            text: String::new(),
            ids: vec![1],
            fields: serde_json::Map::new(),
        };
        let prompts = |keys: std::ops::Range<u64>| keys.map(|key| (key, &prompt)).collect();
        let mut pool = Pool::default();
        let first = round(7, &[1.0, 1.0, 0.0, 1.0, 0.5, 0.5]);
        pool.add(prompts(7..10), first, 2).unwrap();
        assert_eq!(pool.with_spread(), 1);
        pool.add(prompts(10..12), round(10, &[2.0, 0.0, 0.0, 0.0]), 2)
            .unwrap();
        assert_eq!((pool.with_spread(), pool.rounds), (2, 2));
        let chosen = choose(&pool.spread, 3);
        let gathered = pool.into_batch(&chosen, 2);
        // 8 and 10 have spread; of the others the first fills up.
        assert_eq!(
            keys(&gathered),
            [(7, 0), (7, 1), (8, 0), (8, 1), (10, 0), (10, 1)]
        );
        assert_eq!(gathered.batch.scores.total, [1.0, 1.0, 0.0, 1.0, 2.0, 0.0]);
        assert_eq!((gathered.replacements, gathered.tokens), (2, 20));
        assert_eq!(gathered.no_spread, 1.0 / 3.0);
    }
}
