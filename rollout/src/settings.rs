//! Requests and settings of a generation, and their checks, which happen before any work.

use std::sync::atomic::AtomicBool;

use kernels::random::Key;

use crate::error::Error;
use crate::model::{BLOCK_TOKENS, CacheSpec};
use crate::sampling::Decoding;

/// A prompt to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the prompt in the key of its draws. Equal prompts with equal keys get equal
    /// completions.
    pub key: u64,
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, a stop token included; 0 gives an empty completion.
    pub max_new_tokens: usize,
    /// Until so many are generated, stop ids cannot be drawn and stop texts do not count. At most
    /// `max_new_tokens`.
    pub min_new_tokens: usize,
    /// Completions to draw, 1 or more. They share the prompt's cache blocks.
    pub samples: usize,
}

/// How much cache a generation may use. It never reserves more than it could need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheBudget {
    /// Bytes of keys and values.
    Bytes(usize),
    /// Tokens, over all sequences.
    Tokens(usize),
    /// No limit: the cache grows to what the batch needs.
    Unlimited,
}

/// Says whether the tokens generated so far end in a stop text. It must be a function of those
/// tokens alone.
pub type StopText<'a> = &'a dyn Fn(&[u32]) -> bool;

/// Whether the model reads the last token of a completion. No other token depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastToken {
    /// The last token is not read, because no token follows.
    #[default]
    Unread,
    /// The last token is read, for a model that keeps a state of each token: in a chunk of a
    /// sequence that has ended ([`Next::Ended`](crate::Next::Ended)), for which the model computes
    /// that and nothing else.
    Read,
}

/// Purpose of the draws of the default settings.
const SAMPLING: u64 = 4;

/// Settings of a generation. `GenerationSettings::default()` gives the rest of a struct expression.
#[derive(Clone, Copy)]
pub struct GenerationSettings<'a> {
    /// How tokens are chosen.
    pub decoding: Decoding,
    /// Key of the draws: of a seed and a purpose, so that training and evaluation draw different
    /// tokens.
    pub key: Key,
    /// Changes the draws from one use of the same prompts to the next.
    pub iteration: u64,
    /// Most sequences that advance in one step.
    pub max_batch: usize,
    /// Budget of the cache; when it is short, sequences wait.
    pub cache: CacheBudget,
    /// Most prompt tokens read in one step; longer prompts are read in pieces.
    pub prefill_tokens: usize,
    /// Tokens that end a completion.
    pub stop_ids: &'a [u32],
    /// Ends a completion by its text.
    pub stop_text: Option<StopText<'a>>,
    /// Whether the model reads the last token of a completion.
    pub last_token: LastToken,
    /// Whether the entropy of each token's distribution is recorded.
    pub entropies: bool,
    /// Generation stops with [`Error::Cancelled`] before the next step once this is set.
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for GenerationSettings<'_> {
    /// Samples from the model's own distribution, 32 sequences at once, seed 0, no stops.
    fn default() -> Self {
        Self {
            decoding: Decoding::Sample(Default::default()),
            key: Key::new(0, SAMPLING),
            iteration: 0,
            max_batch: 32,
            cache: CacheBudget::Unlimited,
            prefill_tokens: 2048,
            stop_ids: &[],
            stop_text: None,
            last_token: LastToken::Unread,
            entropies: false,
            cancel: None,
        }
    }
}

/// Blocks that hold so many tokens.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Checks settings and requests, and returns how many cache blocks to reserve.
pub fn check(
    requests: &[Request],
    settings: &GenerationSettings<'_>,
    spec: &CacheSpec,
) -> Result<u32, Error> {
    if let Decoding::Sample(sampling) = &settings.decoding {
        sampling.check()?;
    }
    positive("max_batch", settings.max_batch)?;
    positive("prefill_tokens", settings.prefill_tokens)?;
    for (index, request) in requests.iter().enumerate() {
        check_request(index, request, spec)?;
    }
    let blocks = useful_blocks(requests, settings).min(budget_blocks(settings.cache, spec));
    for (index, request) in requests.iter().enumerate() {
        let needed = request.blocks(settings.last_token);
        if needed > blocks {
            return Err(Error::CacheTooSmall {
                request: index,
                needed: needed * BLOCK_TOKENS,
                available: blocks * BLOCK_TOKENS,
            });
        }
    }
    // The minimum with what is useful keeps this exact for any memory that exists.
    Ok(u32::try_from(blocks).unwrap_or(u32::MAX))
}

fn positive(name: &'static str, found: usize) -> Result<(), Error> {
    let expected = "1 or more";
    (found > 0).then_some(()).ok_or(Error::Setting {
        name,
        found,
        expected,
    })
}

fn check_request(index: usize, request: &Request, spec: &CacheSpec) -> Result<(), Error> {
    let rule = |holds: bool, name, found, expected| {
        holds.then_some(()).ok_or(Error::Request {
            request: index,
            name,
            found,
            expected,
        })
    };
    if request.prompt.is_empty() {
        return Err(Error::EmptyPrompt { request: index });
    }
    if let Some(&token) = request
        .prompt
        .iter()
        .find(|&&t| t as usize >= spec.vocab_size)
    {
        return Err(Error::UnknownToken {
            request: index,
            token,
            vocab_size: spec.vocab_size,
        });
    }
    rule(request.samples > 0, "samples", request.samples, "1 or more")?;
    let ordered = request.min_new_tokens <= request.max_new_tokens;
    rule(
        ordered,
        "min_new_tokens",
        request.min_new_tokens,
        "at most max_new_tokens",
    )?;
    if request.prompt.len().saturating_add(request.max_new_tokens) > spec.max_positions {
        return Err(Error::TooLong {
            request: index,
            prompt: request.prompt.len(),
            max_new_tokens: request.max_new_tokens,
            max_positions: spec.max_positions,
        });
    }
    Ok(())
}

impl Request {
    /// Tokens that the cache holds of one sample that runs to the limit. A last token that is not
    /// read takes no place.
    pub(crate) fn read_to(&self, last: LastToken) -> usize {
        let end = self.prompt.len() + self.max_new_tokens;
        match last {
            LastToken::Unread => end.saturating_sub(1),
            LastToken::Read => end,
        }
    }

    /// Cache blocks of one sample that runs to the limit.
    fn blocks(&self, last: LastToken) -> usize {
        match self.max_new_tokens {
            0 => 0,
            _ => blocks_for(self.read_to(last)),
        }
    }
}

fn budget_blocks(cache: CacheBudget, spec: &CacheSpec) -> usize {
    match cache {
        CacheBudget::Bytes(bytes) => bytes / spec.block_bytes.max(1),
        CacheBudget::Tokens(tokens) => tokens / BLOCK_TOKENS,
        CacheBudget::Unlimited => usize::MAX,
    }
}

/// More than this many blocks are never held: `max_batch` sequences of their own, and the shared
/// prompts of samples that wait for a place (a new request is admitted only when no sample of an
/// older one waits, so these are at most `max_batch` requests).
fn useful_blocks(requests: &[Request], settings: &GenerationSettings<'_>) -> usize {
    let (max_batch, last) = (settings.max_batch, settings.last_token);
    let copies = |r: &Request| std::iter::repeat_n(r.blocks(last), r.samples.min(max_batch));
    let sequences: Vec<usize> = requests.iter().flat_map(copies).collect();
    let prompts = requests
        .iter()
        .filter(|r| r.samples > 1 && r.max_new_tokens > 0)
        .map(|r| blocks_for(r.prompt.len()))
        .collect();
    largest(sequences, max_batch) + largest(prompts, max_batch)
}

/// The sum of the `count` largest numbers.
fn largest(mut numbers: Vec<usize>, count: usize) -> usize {
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers.iter().take(count).sum()
}
