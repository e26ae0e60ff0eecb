//! The prompts of each iteration.
//!
//! Every iteration has `batch_size` sequences and so the same number of prompts. As in TRL and
//! verl, prompts that do not fill the last batch of an epoch are left out of that epoch, and each
//! epoch is shuffled again. If there are fewer prompts than an iteration takes (TRL and verl refuse
//! or hang), an iteration takes each of them several times.

use crate::random::Purpose;
use anyhow::Result;

use crate::config::Ppo;
use crate::data::batches::Batches;
use crate::data::example::Prompt;
use crate::data::loader::Order;

/// The batches of an epoch over `prompts` prompts.
///
/// # Errors
/// If there are no prompts.
pub fn batches(config: &Ppo, prompts: usize) -> Result<Batches> {
    Ok(Batches::full(prompts, config.prompts_per_iteration())?)
}

/// The prompts in shuffled order, epoch after epoch.
pub struct PromptOrder<'a> {
    prompts: &'a [Prompt],
    order: Order,
    batches: Batches,
    /// Number of prompts of an iteration.
    wanted: usize,
}

impl<'a> PromptOrder<'a> {
    /// The order of prompts for this seed.
    ///
    /// # Errors
    /// If there are no prompts.
    pub fn new(prompts: &'a [Prompt], config: &Ppo, seed: u64) -> Result<Self> {
        Ok(Self {
            order: Order::new(prompts.len(), seed, Purpose::Shuffle)?,
            batches: batches(config, prompts.len())?,
            wanted: config.prompts_per_iteration(),
            prompts,
        })
    }

    /// All prompts, in the order of their file.
    pub fn prompts(&self) -> &'a [Prompt] {
        self.prompts
    }

    /// Batches of an epoch, one an iteration.
    pub fn batches(&self) -> &Batches {
        &self.batches
    }

    /// The next `count` prompts from position `passed` on, each with its position; moves `passed`
    /// past them. `taken` are the positions that the iteration already has. The first prompts of an
    /// iteration come from one epoch. Replacements may come from the next epoch; prompts that the
    /// iteration already has are then skipped as long as there are others.
    pub fn take(&self, passed: &mut u64, count: usize, taken: &[u64]) -> Vec<(u64, &'a Prompt)> {
        if taken.is_empty() {
            *passed = self.batches.whole_from(*passed);
        }
        let mut held = vec![false; self.prompts.len()];
        for &place in taken {
            held[self.order.index(place)] = true;
        }
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let (place, index) = (*passed, self.order.index(*passed));
            *passed += 1;
            let is_new = !std::mem::replace(&mut held[index], true);
            if taken.is_empty() || is_new {
                found.push((place, &self.prompts[index]));
            } else if held.iter().all(|&held| held) {
                held.fill(false);
                held[index] = true;
                found.push((place, &self.prompts[index]));
            }
        }
        found
    }

    /// A note if `iterations` iterations leave prompts out of an epoch or take prompts several
    /// times.
    pub fn note(&self, iterations: u64) -> Option<String> {
        let (prompts, wanted) = (self.prompts.len(), self.wanted);
        if wanted > prompts {
            let (least, most) = (wanted / prompts, wanted.div_ceil(prompts));
            let times = match least == most {
                true => format!("{least} times"),
                false => format!("{least} or {most} times"),
            };
            return Some(format!(
                "an iteration takes {wanted} prompts and there are {prompts}: it takes each of \
                 them {times}"
            ));
        }
        let left_out = self.batches.left_out();
        let ends = iterations >= self.batches.per_epoch();
        (ends && left_out > 0).then(|| {
            format!(
                "an iteration takes {wanted} prompts: each pass over the {prompts} prompts leaves \
                 out {left_out}, different ones each time"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(count: u32) -> Vec<Prompt> {
        let prompt = |id| Prompt {
            text: String::new(),
            question: String::new(),
            ids: vec![id],
            fields: serde_json::Map::new(),
        };
        (0..count).map(prompt).collect()
    }

    fn config(batch_size: usize) -> Ppo {
        let mut config = Ppo::default();
        config.training.batch_size = batch_size;
        config
    }

    fn ids(taken: &[(u64, &Prompt)]) -> Vec<u32> {
        taken.iter().map(|(_, prompt)| prompt.ids[0]).collect()
    }

    fn distinct(mut ids: Vec<u32>) -> usize {
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    #[test]
    fn an_iteration_never_crosses_the_end_of_a_pass() {
        let prompts = prompts(10);
        let order = PromptOrder::new(&prompts, &config(4), 1).unwrap();
        let mut passed = 0;
        let mut starts = Vec::new();
        for _ in 0..4 {
            let taken = order.take(&mut passed, 4, &[]);
            assert_eq!(distinct(ids(&taken)), 4);
            starts.push(taken[0].0);
        }
        assert_eq!(starts, [0, 4, 10, 14]);
        let note = order.note(4).unwrap();
        assert!(note.contains("leaves out 2"), "{note}");
        assert!(
            order.note(2).is_some(),
            "a run of one pass leaves some out too"
        );
        assert_eq!(order.note(1), None, "no pass ends before the run");
    }

    #[test]
    fn a_batch_larger_than_the_prompts_takes_each_as_often_and_says_so() {
        let prompts = prompts(3);
        let order = PromptOrder::new(&prompts, &config(8), 1).unwrap();
        let mut passed = 0;
        for start in [0, 9, 18] {
            let taken = order.take(&mut passed, 8, &[]);
            assert_eq!(taken[0].0, start);
            let found = ids(&taken);
            for id in 0..3 {
                let times = found.iter().filter(|&&found| found == id).count();
                assert!((2..=3).contains(&times), "{found:?}");
            }
        }
        let note = order.note(1).unwrap();
        assert!(
            note.contains("there are 3") && note.contains("2 or 3 times"),
            "{note}"
        );
    }

    #[test]
    fn replacements_step_over_what_the_iteration_has_as_long_as_there_are_others() {
        let prompts = prompts(6);
        let order = PromptOrder::new(&prompts, &config(4), 1).unwrap();
        let mut passed = 0;
        let first = order.take(&mut passed, 4, &[]);
        let mut places: Vec<u64> = first.iter().map(|&(place, _)| place).collect();
        let second = order.take(&mut passed, 2, &places);
        assert_eq!(distinct([ids(&first), ids(&second)].concat()), 6);
        assert_eq!(passed, 6);
        places.extend(second.iter().map(|&(place, _)| place));
        // All are there: now they come again, each once.
        let third = order.take(&mut passed, 4, &places);
        assert_eq!((distinct(ids(&third)), passed), (4, 10));
        // The next iteration begins where a whole batch fits.
        assert_eq!(order.take(&mut passed, 4, &[])[0].0, 12);

        let mut passed = 4;
        let first = order.take(&mut passed, 4, &[]);
        assert_eq!(first[0].0, 6);
        let places: Vec<u64> = first.iter().map(|&(place, _)| place).collect();
        passed = 12;
        let second = order.take(&mut passed, 2, &places);
        assert_eq!(
            distinct([ids(&first), ids(&second)].concat()),
            6,
            "across passes"
        );
    }

    /// Once the iteration has every prompt, each comes again once before any comes a third time,
    /// also where the round of repeats runs over the end of a pass.
    #[test]
    fn repeats_of_an_iteration_come_in_whole_rounds() {
        let prompts = prompts(3);
        for seed in 0..20 {
            let order = PromptOrder::new(&prompts, &config(3), seed).unwrap();
            let mut passed = 0;
            let mut places: Vec<u64> = order
                .take(&mut passed, 3, &[])
                .iter()
                .map(|t| t.0)
                .collect();
            passed = 4;
            let again = order.take(&mut passed, 3, &places);
            assert_eq!(distinct(ids(&again)), 3, "seed {seed}");
            places.extend(again.iter().map(|t| t.0));
            assert_eq!(distinct(ids(&order.take(&mut passed, 3, &places))), 3);
        }
    }
}
