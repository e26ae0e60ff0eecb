//! A fake model of twenty words. Its logits are a hash of the whole history, which it reads from
//! its cache blocks alone: a wrong block, copy or position changes the next logits.

use std::collections::{HashMap, HashSet};

use kernels::random::Key;
use kernels::random::rand::Rng;
use kernels::random::rand_distr::StandardNormal;
use rollout::{
    BLOCK_TOKENS, CacheSpec, Completion, Decoding, Draw, Drawn, Finish, GenerationSettings, Model,
    ModelResult, ModelStep, Next, Request, SequenceId, draw_row,
};

pub const VOCAB: usize = 20;

/// The stop token, drawn once in twenty draws.
pub const STOP: u32 = 0;

#[derive(Default)]
pub struct Parrot {
    cache: Vec<[Option<u32>; BLOCK_TOKENS]>,
    pub copies: usize,
    /// Number of chunks in each step.
    pub batches: Vec<usize>,
    pub released: Vec<SequenceId>,
    /// Number of tokens read for each sequence.
    pub read: HashMap<SequenceId, usize>,
    /// Number of tokens read after their sequence had ended.
    pub after_the_end: usize,
}

/// The logits that follow a history.
pub fn logits(history: &[u32]) -> Vec<f32> {
    let key = history
        .iter()
        .fold(Key::new(0, 1u64), |key, &token| key.child(token.into(), 0));
    let draws = key.stream(1, 0).sample_iter(StandardNormal);
    draws.take(VOCAB).collect()
}

impl Model for Parrot {
    type Logits = Vec<Vec<f32>>;

    fn cache_spec(&self) -> CacheSpec {
        CacheSpec {
            block_bytes: 1024,
            max_positions: 120,
            vocab_size: VOCAB,
        }
    }

    fn reserve(&mut self, blocks: usize) -> ModelResult<()> {
        self.cache = vec![[None; BLOCK_TOKENS]; blocks];
        Ok(())
    }

    fn forward(&mut self, step: &ModelStep<'_>) -> ModelResult<Self::Logits> {
        // In reverse: the order of copies must not matter.
        for &(from, to) in step.copies.iter().rev() {
            self.cache[to as usize] = self.cache[from as usize];
        }
        self.copies += step.copies.len();
        self.batches.push(step.chunks.len());
        assert_fair(step);
        for chunk in step.chunks {
            let end = chunk.past + chunk.tokens.len();
            self.read.insert(chunk.sequence, end);
            // A sequence that has ended leaves its cache positions unwritten.
            let continues = chunk.next == Next::Continues;
            for (position, &token) in (chunk.past..).zip(chunk.tokens) {
                let block = chunk.blocks[position / BLOCK_TOKENS] as usize;
                self.cache[block][position % BLOCK_TOKENS] = continues.then_some(token);
                self.after_the_end += usize::from(!continues);
            }
        }
        let history = |blocks: &[u32], len| -> Vec<u32> {
            let places = blocks.iter().flat_map(|&block| self.cache[block as usize]);
            places
                .take(len)
                .map(|token| token.expect("a place that was never written"))
                .collect()
        };
        Ok(step
            .chunks
            .iter()
            .filter(|c| c.next == Next::Continues)
            .map(|c| logits(&history(c.blocks, c.past + c.tokens.len())))
            .collect())
    }

    fn draw(&mut self, logits: &Self::Logits, draws: &[Draw<'_>]) -> ModelResult<Vec<Drawn>> {
        draws
            .iter()
            .map(|draw| Ok(draw_row(&logits[draw.row], draw)?))
            .collect()
    }

    fn release(&mut self, sequence: SequenceId) {
        self.released.push(sequence);
    }
}

/// Asserts the other guarantees of a step: exact block lists, copies in any order, no writes to
/// another sequence's block.
fn assert_fair(step: &ModelStep<'_>) {
    let sources: HashSet<u32> = step.copies.iter().map(|copy| copy.0).collect();
    let targets: HashSet<u32> = step.copies.iter().map(|copy| copy.1).collect();
    assert!(targets.len() == step.copies.len() && sources.is_disjoint(&targets));
    let owners: HashSet<SequenceId> = step.chunks.iter().map(|chunk| chunk.sequence).collect();
    assert_eq!(owners.len(), step.chunks.len());
    for chunk in step.chunks {
        assert!(!chunk.tokens.is_empty());
        assert_eq!(
            chunk.blocks.len(),
            (chunk.past + chunk.tokens.len()).div_ceil(BLOCK_TOKENS)
        );
        let written = &chunk.blocks[chunk.past / BLOCK_TOKENS..];
        for other in step
            .chunks
            .iter()
            .filter(|other| other.sequence != chunk.sequence)
        {
            assert!(!written.iter().any(|block| other.blocks.contains(block)));
        }
    }
}

/// The same completions without cache, batch or scheduler: one sequence at a time, from its whole
/// history.
pub fn one_by_one(requests: &[Request], settings: &GenerationSettings<'_>) -> Vec<Completion> {
    let samples = |(index, request)| {
        (0..Request::clone(request).samples)
            .map(move |sample| alone(index, request, sample, settings))
    };
    requests.iter().enumerate().flat_map(samples).collect()
}

fn alone(
    index: usize,
    request: &Request,
    sample: usize,
    settings: &GenerationSettings<'_>,
) -> Completion {
    let (mut tokens, mut log_probs, mut kept): (Vec<u32>, Vec<f32>, Vec<_>) = Default::default();
    let (mut whole, mut entropies, mut finish) = (Vec::new(), Vec::new(), Finish::Length);
    let key = settings.key.child(settings.iteration, request.key);
    for position in 0..request.max_new_tokens {
        let forbidden = if position < request.min_new_tokens {
            settings.stop_ids
        } else {
            &[]
        };
        let draw = Draw {
            row: 0,
            sequence: SequenceId {
                request: index,
                sample,
            },
            position,
            decoding: settings.decoding,
            forbidden,
            uniform: key.uniform(sample as u64, position as u64),
            entropy: settings.entropies,
        };
        let drawn = draw_row(&logits(&[&request.prompt[..], &tokens].concat()), &draw).unwrap();
        tokens.push(drawn.token);
        log_probs.push(drawn.log_prob);
        whole.push(drawn.whole_log_prob);
        entropies.extend(drawn.entropy);
        kept.push(drawn.kept.map(Into::into));
        let ends_text = position + 1 >= request.min_new_tokens
            && settings.stop_text.is_some_and(|ends| ends(&tokens));
        if settings.stop_ids.contains(&drawn.token) || ends_text {
            finish = Finish::Stop;
            break;
        }
    }
    let any_cut = kept.iter().any(Option::is_some);
    Completion {
        request: index,
        sample,
        tokens,
        log_probs,
        whole_log_probs: if any_cut { whole } else { Vec::new() },
        entropies,
        kept,
        finish,
    }
}

/// A request with a default prompt: its key is its length, its tokens count up from there.
pub fn request(prompt_len: usize, max_new_tokens: usize, samples: usize) -> Request {
    Request {
        key: prompt_len as u64,
        prompt: (0..prompt_len as u32)
            .map(|i| (i + prompt_len as u32) % VOCAB as u32)
            .collect(),
        max_new_tokens,
        min_new_tokens: 0,
        samples,
    }
}

/// Requests of all shapes: prompts around the block size, one or several samples, short and long
/// answers.
pub fn ragged() -> Vec<Request> {
    let lengths = [1, 15, 16, 17, 40, 3, 31, 32, 33, 64, 7, 48];
    lengths
        .iter()
        .zip([1, 4, 2, 3].iter().cycle())
        .enumerate()
        .map(|(i, (&len, &n))| request(len, 5 + 4 * i, n))
        .collect()
}

pub fn greedy<'a>() -> GenerationSettings<'a> {
    GenerationSettings {
        decoding: Decoding::Greedy,
        ..GenerationSettings::default()
    }
}

/// A row of normal logits with standard deviation `scale`.
pub fn normal_row(seed: u64, len: usize, scale: f64) -> Vec<f32> {
    let draws = Key::new(seed, 1u64).stream(0, 0);
    let draws = draws.sample_iter::<f64, _>(StandardNormal).take(len);
    draws.map(|x| (x * scale) as f32).collect()
}
