//! The residual stream at the input of a layer, kept while sequences are generated.
//!
//! Below a boundary that no role trains, all roles compute the same states. The states that
//! generation computes there are reused for scoring and training (see
//! [`Decoder::forward_from`](super::Decoder::forward_from)).

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use rollout::SequenceId;

/// States of one sequence. Samples of one prompt share the prompt's states.
#[derive(Clone, Debug, PartialEq)]
pub struct States {
    /// The layer whose input the states are.
    pub layer: usize,
    /// Width of a state, `hidden`.
    pub width: usize,
    /// States of the prompt: `[tokens, hidden]`, row-major.
    pub prompt: Arc<[f32]>,
    /// States of the tokens after the prompt: `[tokens, hidden]`, row-major.
    pub generated: Arc<[f32]>,
}

impl States {
    /// States of the first `count` tokens: those of the prompt, then the others. `None` if there
    /// are fewer.
    pub fn first(&self, count: usize) -> Option<[&[f32]; 2]> {
        let numbers = count * self.width;
        let prompt = &self.prompt[..numbers.min(self.prompt.len())];
        Some([prompt, self.generated.get(..numbers - prompt.len())?])
    }
}

/// States of packed sequences at the input of a layer.
pub struct Boundary {
    /// The layer whose input the states are.
    pub layer: usize,
    /// States: `[rows, hidden]`.
    pub hidden: Tensor,
}

impl Boundary {
    /// Joins the first `count` states of each sequence; `None` if a sequence has no states.
    ///
    /// # Errors
    /// If the states belong to different layers, or a sequence has fewer than `count`.
    pub fn join<'s>(
        sequences: impl Iterator<Item = (Option<&'s States>, usize)>,
        device: &Device,
    ) -> Result<Option<Self>> {
        let (mut place, mut rows) = (None, Vec::new());
        for (states, count) in sequences {
            let Some(states) = states else {
                return Ok(None);
            };
            let own = (states.layer, states.width);
            if *place.get_or_insert(own) != own {
                bail!("the states of one pass belong to different layers");
            }
            match states.first(count) {
                Some(parts) => parts.map(|part| rows.extend_from_slice(part)),
                None => bail!("a sequence of {count} tokens has fewer states"),
            };
        }
        let Some((layer, width)) = place else {
            return Ok(None);
        };
        let count = rows.len() / width.max(1);
        let hidden = Tensor::from_vec(rows, (count, width), device)?;
        Ok(Some(Self { layer, hidden }))
    }
}

/// Collects the states of a generation.
pub struct Collector {
    layer: usize,
    width: usize,
    kept: HashMap<SequenceId, CollectedStates>,
    /// States of prompts, by request, once a sample was taken.
    prompts: HashMap<usize, Arc<[f32]>>,
}

/// States of the tokens that a sequence read itself: all of them, or those after the prompt if the
/// request's first sample read the prompt.
struct CollectedStates {
    from: usize,
    rows: Vec<f32>,
}

impl Collector {
    /// A collector of states of `width` columns at the input of `layer`.
    pub fn new(layer: usize, width: usize) -> Self {
        Self {
            layer,
            width,
            kept: HashMap::new(),
            prompts: HashMap::new(),
        }
    }

    /// The layer at whose input states are collected.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Adds the states of a sequence's tokens from `past` on. A preempted sequence reads its tokens
    /// again.
    pub fn add(&mut self, sequence: SequenceId, past: usize, rows: &[f32]) {
        let fresh = || CollectedStates {
            from: past,
            rows: Vec::new(),
        };
        let kept = self.kept.entry(sequence).or_insert_with(fresh);
        if past < kept.from {
            *kept = fresh();
        }
        kept.rows.truncate((past - kept.from) * self.width);
        grow(&mut kept.rows, rows.len());
        kept.rows.extend_from_slice(rows);
    }

    /// Takes all states of a sequence, whose prompt has `prompt` tokens, in the order of its
    /// tokens.
    pub fn take(&mut self, sequence: SequenceId, prompt: usize) -> Option<States> {
        let shared = self.prompt(sequence.request, prompt)?;
        let CollectedStates { from, rows } = self.kept.remove(&sequence)?;
        let own = rows.get(prompt.checked_sub(from)? * self.width..)?;
        Some(States {
            layer: self.layer,
            width: self.width,
            prompt: shared,
            generated: own.into(),
        })
    }

    /// States of a request's prompt, which its first sample has read for all samples.
    fn prompt(&mut self, request: usize, tokens: usize) -> Option<Arc<[f32]>> {
        if let Some(known) = self.prompts.get(&request) {
            return Some(known.clone());
        }
        let first = self.kept.get(&SequenceId { request, sample: 0 })?;
        let rows: Arc<[f32]> = first.rows.get(..tokens * self.width)?.into();
        self.prompts.insert(request, rows.clone());
        Some(rows)
    }
}

/// Reserves room for `more` numbers, and at least an eighth more than there are. States take most
/// of a generation's memory, so doubling the capacity would cost too much.
fn grow(rows: &mut Vec<f32>, more: usize) {
    if rows.capacity() - rows.len() < more {
        rows.reserve_exact(more.max(rows.len() / 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sample: usize) -> SequenceId {
        SequenceId { request: 3, sample }
    }

    #[test]
    fn samples_share_the_states_of_their_prompt() {
        let mut collector = Collector::new(2, 1);
        collector.add(id(0), 0, &[1.0, 2.0]);
        collector.add(id(0), 2, &[3.0]);
        collector.add(id(1), 2, &[4.0]);
        collector.add(id(1), 3, &[5.0]);
        assert_eq!(collector.take(id(2), 2), None);
        let [first, second] = [0, 1].map(|sample| collector.take(id(sample), 2).unwrap());
        assert_eq!(first.first(3), Some([&[1.0, 2.0][..], &[3.0]]));
        assert_eq!(second.first(4), Some([&[1.0, 2.0][..], &[4.0, 5.0]]));
        assert_eq!(second.first(1), Some([&[1.0][..], &[]]));
        assert_eq!(second.first(5), None);
        assert!(Arc::ptr_eq(&first.prompt, &second.prompt));
    }

    #[test]
    fn a_sequence_that_gave_way_reads_again() {
        let mut collector = Collector::new(2, 1);
        collector.add(id(0), 0, &[1.0, 2.0]);
        collector.add(id(1), 2, &[4.0]);
        collector.add(id(1), 0, &[1.0, 2.0, 4.0, 5.0]);
        collector.add(id(1), 4, &[6.0]);
        let [first, second] = [0, 1].map(|sample| collector.take(id(sample), 2).unwrap());
        assert_eq!(second.generated[..], [4.0, 5.0, 6.0]);
        assert!(Arc::ptr_eq(&first.prompt, &second.prompt));
    }

    #[test]
    fn states_are_joined_if_all_are_there() {
        let states = |rows: &[f32]| States {
            layer: 1,
            width: 2,
            prompt: rows[..2].into(),
            generated: rows[2..].into(),
        };
        let (a, b) = (states(&[1.0, 2.0, 3.0, 4.0]), states(&[5.0, 6.0]));
        let join =
            |all: &[(Option<&States>, usize)]| Boundary::join(all.iter().copied(), &Device::Cpu);
        let joined = join(&[(Some(&a), 1), (Some(&b), 1)]).unwrap().unwrap();
        assert_eq!(
            joined.hidden.to_vec2::<f32>().unwrap(),
            [[1.0, 2.0], [5.0, 6.0]]
        );
        assert!(join(&[(Some(&a), 2), (None, 1)]).unwrap().is_none());
        assert!(join(&[(Some(&b), 2)]).is_err());
    }
}
