//! The residual stream at the input of a layer, kept while sequences are generated.
//!
//! Below a boundary that no role trains, every role computes the same: what generation computed there once serves scoring and
//! training too (see [`Decoder::forward_from`](super::Decoder::forward_from)).

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use rollout::SequenceId;

/// The states of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct States {
    /// The layer that they are the input of.
    pub layer: usize,
    /// Their width, `hidden`.
    pub width: usize,
    /// `[tokens, hidden]`, row-major.
    pub rows: Arc<[f32]>,
}

/// Sequences' states end to end: `[rows, hidden]` at the input of a layer.
pub struct Boundary {
    /// The layer.
    pub layer: usize,
    /// `[rows, hidden]`
    pub hidden: Tensor,
}

impl Boundary {
    /// Joins the first `count` rows of each sequence's states; `None` where a sequence has none.
    ///
    /// # Errors
    /// If states are of different layers, or too few.
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
                bail!("states at the inputs of different layers in one pass");
            }
            match states.rows.get(..count * states.width) {
                Some(some) => rows.extend_from_slice(some),
                None => bail!("a sequence of {count} tokens has states of fewer"),
            }
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
    kept: HashMap<SequenceId, Kept>,
}

/// What a sequence read itself: all, or all behind the prompt that its request's first sample read for it.
struct Kept {
    from: usize,
    rows: Vec<f32>,
}

impl Collector {
    /// For states of `width` at the input of `layer`.
    pub fn new(layer: usize, width: usize) -> Self {
        Self {
            layer,
            width,
            kept: HashMap::new(),
        }
    }

    /// The layer.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Notes the states of a sequence's tokens from `past` on. A sequence that gave way reads its tokens again.
    pub fn add(&mut self, sequence: SequenceId, past: usize, rows: &[f32]) {
        let fresh = || Kept {
            from: past,
            rows: Vec::new(),
        };
        let kept = self.kept.entry(sequence).or_insert_with(fresh);
        if past < kept.from {
            *kept = fresh();
        }
        kept.rows.truncate((past - kept.from) * self.width);
        kept.rows.extend_from_slice(rows);
    }

    /// Gives away all states of a sequence, in the order of its tokens. The first sample of a request must be asked for last: it has
    /// those of the prompt.
    pub fn take(&mut self, sequence: SequenceId) -> Option<States> {
        let Kept { from, mut rows } = self.kept.remove(&sequence)?;
        if from > 0 {
            let first = SequenceId {
                sample: 0,
                ..sequence
            };
            let shared = self.kept.get(&first)?.rows.get(..from * self.width)?;
            rows = [shared, &rows].concat();
        }
        Some(States {
            layer: self.layer,
            width: self.width,
            rows: rows.into(),
        })
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
        let mut rows = |sample| {
            collector
                .take(id(sample))
                .map(|states| states.rows.to_vec())
        };
        assert_eq!(rows(2), None);
        assert_eq!(rows(1).unwrap(), [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(rows(0).unwrap(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_sequence_that_gave_way_reads_again() {
        let mut collector = Collector::new(2, 1);
        collector.add(id(0), 0, &[1.0, 2.0]);
        collector.add(id(1), 2, &[4.0]);
        collector.add(id(1), 0, &[1.0, 2.0, 4.0, 5.0]);
        collector.add(id(1), 4, &[6.0]);
        let rows = collector.take(id(1)).unwrap().rows;
        assert_eq!(rows[..], [1.0, 2.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn states_are_joined_if_all_are_there() {
        let states = |rows: &[f32]| States {
            layer: 1,
            width: 2,
            rows: rows.into(),
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
