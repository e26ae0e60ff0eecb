//! Warns of over-optimisation of the reward model (Gao et al. 2023, "Scaling Laws for Reward Model
//! Overoptimization"): its score still rises while the score of a judge, which training never sees,
//! falls.
//!
//! Each evaluation is compared with the one whose judge's mean was highest. There is a warning if
//! since then the reward's mean has risen and the judge's has fallen, both by more than z combined
//! standard errors √(s₁² + s₂²) of the two evaluations, with z = 2 √(1 + ln k) at the k-th
//! evaluation after the first. The highest of k means is partly high by chance, hence the
//! logarithm: among runs whose judge's mean only fluctuates, about one in twenty ever warns,
//! however long the run. Evaluations answer the same prompts, so means fluctuate less than their
//! standard errors say, and the share is lower still.

use serde::{Deserialize, Serialize};

use super::results::EvalResults;
use crate::train::metrics::names;
use crate::train::summary::Estimate;

/// Combined standard errors of a warning at the first comparison.
const STANDARD_ERRORS: f64 = 2.0;

/// Advice that follows the numbers in the first warning of a run.
const ADVICE: &str = " The policy may be exploiting the reward's weaknesses: look at the samples, \
                      and use an earlier checkpoint, fewer iterations, a larger ppo.kl_coef or a \
                      better reward.";

/// The best evaluation by the judge so far, and the warnings of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardWatch {
    evaluations: u64,
    warnings: u64,
    first_warning: u64,
    best: Option<WatchedScores>,
}

/// Mean scores of reward and judge at one evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct WatchedScores {
    iteration: u64,
    reward: Estimate,
    judge: Estimate,
}

/// Result of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No sign of over-optimisation.
    Sound,
    /// The judge's mean fell while the reward's rose; the warning's text.
    Hacked(String),
}

impl RewardWatch {
    /// Compares an evaluation with the best one; `None` without a judge.
    pub fn observe(&mut self, iteration: u64, results: &EvalResults) -> Option<Verdict> {
        let now = WatchedScores {
            iteration,
            reward: results.number(names::EVAL_SCORE)?,
            judge: results.number(names::EVAL_JUDGE_SCORE)?,
        };
        let bound = STANDARD_ERRORS * (1.0 + (self.evaluations.max(1) as f64).ln()).sqrt();
        let hacked = self.best.filter(|best| {
            best.reward.is_below(now.reward, bound) && now.judge.is_below(best.judge, bound)
        });
        self.evaluations += 1;
        // NaN is above nothing, and is replaced as the best.
        let above =
            |best: WatchedScores| now.judge.mean > best.judge.mean || best.judge.mean.is_nan();
        if self.best.is_none_or(above) {
            self.best = Some(now);
        }
        let Some(best) = hacked else {
            return Some(Verdict::Sound);
        };
        let mut words = now.warning(&best);
        if self.warnings == 0 {
            self.first_warning = iteration;
            words += ADVICE;
        }
        self.warnings += 1;
        Some(Verdict::Hacked(words))
    }

    /// The number of warnings, for the closing table; `None` if there was none.
    pub fn in_words(&self) -> Option<String> {
        let Self {
            evaluations,
            warnings,
            first_warning,
            ..
        } = self;
        (*warnings > 0).then(|| {
            format!("{warnings} of {evaluations} evaluations, from iteration {first_warning} on")
        })
    }
}

impl WatchedScores {
    fn warning(&self, best: &Self) -> String {
        format!(
            "warning: since iteration {since} the judge's score fell from {} to {} while the \
             reward's rose from {} to {}.",
            best.judge,
            self.judge,
            best.reward,
            self.reward,
            since = best.iteration,
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::random::Purpose;
    use kernels::random::Key;
    use kernels::random::rand::Rng;
    use kernels::random::rand_distr::StandardNormal;

    use super::*;

    fn number(mean: f64, standard_error: f64) -> Estimate {
        Estimate {
            mean,
            standard_error: Some(standard_error),
        }
    }

    fn measured(reward: Estimate, judge: Option<Estimate>) -> EvalResults {
        let mut measured = EvalResults::default();
        measured.set(names::EVAL_SCORE, reward);
        if let Some(judge) = judge {
            measured.set(names::EVAL_JUDGE_SCORE, judge);
        }
        measured
    }

    /// Iterations (the place in the list) at which a run with these means warns; every standard
    /// error is 0.1.
    fn warnings(means: &[(f64, f64)]) -> Vec<usize> {
        let mut watch = RewardWatch::default();
        let observed = means.iter().enumerate().map(|(i, &(reward, judge))| {
            let measured = measured(number(reward, 0.1), Some(number(judge, 0.1)));
            watch.observe(i as u64, &measured).expect("a judge")
        });
        let verdicts: Vec<Verdict> = observed.collect();
        let hacked = |i: &usize| verdicts[*i] != Verdict::Sound;
        (0..means.len()).filter(hacked).collect()
    }

    #[test]
    fn the_bound_is_two_combined_standard_errors_at_first_and_grows() {
        // Combined standard error: 0.1 √2 = 0.1414. First comparison: 2 × that = 0.2828.
        assert_eq!(warnings(&[(0.0, 1.0), (0.29, 0.71)]), [1]);
        assert!(warnings(&[(0.0, 1.0), (0.28, 0.71)]).is_empty());
        assert!(warnings(&[(0.0, 1.0), (0.29, 0.72)]).is_empty());
        // Third comparison: 2 √(1 + ln 3) = 2.8973 × 0.1414 = 0.4097.
        let quiet = (0.0, 1.0);
        assert_eq!(warnings(&[quiet, quiet, quiet, (0.41, 0.59)]), [3]);
        assert!(warnings(&[quiet, quiet, quiet, (0.41, 0.60)]).is_empty());
    }

    #[test]
    fn a_judge_that_rises_first_is_held_against_its_best() {
        let rise_and_fall = [(0.0, 0.0), (1.0, 1.0), (2.0, 1.2), (3.0, 1.0), (4.0, 0.4)];
        assert_eq!(warnings(&rise_and_fall), [4]);
        // Both fall, both rise, or the reward alone rises: nothing to warn of.
        assert!(warnings(&[(2.0, 1.0), (1.0, 0.0)]).is_empty());
        assert!(warnings(&[(0.0, 0.0), (1.0, 1.0)]).is_empty());
        assert!(warnings(&[(0.0, 1.0), (3.0, 1.0)]).is_empty());
        assert!(warnings(&[(0.0, 1.0), (f64::NAN, f64::NAN), (0.0, 1.0)]).is_empty());
        assert_eq!(
            warnings(&[(f64::NAN, f64::NAN), (0.0, 1.0), (3.0, 0.0)]),
            [2]
        );
    }

    #[test]
    fn noise_alone_seldom_warns() {
        let (runs, evaluations) = (400, 40);
        let key = Key::new(5, Purpose::Evaluation);
        let noisy = |run: u64| -> Vec<(f64, f64)> {
            let mut stream = key.stream(run, 0);
            let mut judge = || 0.1 * stream.sample::<f64, _>(StandardNormal);
            (0..evaluations).map(|i| (f64::from(i), judge())).collect()
        };
        let warned = (0..runs).filter(|&run| !warnings(&noisy(run)).is_empty());
        let share = warned.count() as f64 / runs as f64;
        assert!(share < 0.1, "{share} of runs warn");
    }

    #[test]
    fn the_warning_says_what_moved_and_the_table_how_often() {
        let mut watch = RewardWatch::default();
        assert_eq!(watch.in_words(), None);
        for (iteration, reward, judge) in [(0, 0.0, 1.0), (10, 1.0, 0.25), (20, 1.25, 0.25)] {
            let measured = measured(number(reward, 0.1), Some(number(judge, 0.1)));
            let verdict = watch.observe(iteration, &measured);
            if iteration == 20 {
                let says = "warning: since iteration 0 the judge's score fell from 1.000 ± 0.100 \
                            to 0.250 ± 0.100 while the reward's rose from 0.000 ± 0.100 to 1.250 ± \
                            0.100.";
                assert_eq!(verdict, Some(Verdict::Hacked(says.to_owned())));
            } else if iteration == 10 {
                let Some(Verdict::Hacked(text)) = verdict else {
                    panic!("{verdict:?}")
                };
                assert!(text.ends_with(ADVICE), "{text}");
                let says = "since iteration 0 the judge's score fell from 1.000 ± 0.100 to 0.250 ± \
                            0.100 while the reward's rose from 0.000 ± 0.100 to 1.000 ± 0.100.";
                assert!(text.contains(says), "{text}");
            }
            // The watch works the same after a checkpoint.
            let kept = serde_json::to_string(&watch).unwrap();
            watch = serde_json::from_str(&kept).unwrap();
        }
        let words = watch.in_words().unwrap();
        assert_eq!(words, "2 of 3 evaluations, from iteration 10 on");
    }

    #[test]
    fn without_a_judge_or_a_second_prompt_there_is_nothing_to_say() {
        let mut watch = RewardWatch::default();
        assert_eq!(watch.observe(1, &measured(number(1.0, 0.1), None)), None);
        let single = |mean| Estimate {
            mean,
            standard_error: None,
        };
        for (reward, judge) in [(0.0, 9.0), (9.0, 0.0)] {
            let found = watch.observe(1, &measured(single(reward), Some(single(judge))));
            assert_eq!(found, Some(Verdict::Sound));
        }
    }
}
