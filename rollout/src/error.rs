//! Errors of a generation.

use crate::filter::SamplingError;
use crate::sampling::SequenceId;

/// An error of [`crate::generate`]. All but the last four are found before any work is done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request without tokens: there is nothing to continue.
    #[error(
        "request {request} has an empty prompt; give it at least one token, such as the BOS token"
    )]
    EmptyPrompt {
        /// Index into the requests.
        request: usize,
    },
    /// A prompt token that the model has no embedding for.
    #[error(
        "request {request} holds token {token}, but the model's vocabulary ends at {}; \
         was it encoded with another tokenizer?",
        vocab_size.saturating_sub(1)
    )]
    UnknownToken {
        /// Index into the requests.
        request: usize,
        /// The token's id.
        token: u32,
        /// Number of ids that the model knows.
        vocab_size: usize,
    },
    /// A request longer than the model can read.
    #[error(
        "request {request} needs {prompt} + {max_new_tokens} positions (prompt + max_new_tokens), \
         but the model has {max_positions}; shorten the prompt or lower max_new_tokens"
    )]
    TooLong {
        /// Index into the requests.
        request: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// The request's limit of new tokens.
        max_new_tokens: usize,
        /// The model's limit.
        max_positions: usize,
    },
    /// A request that the whole cache could not hold.
    #[error(
        "request {request} needs {needed} tokens of cache (prompt and new tokens, in whole \
         blocks), but the budget gives {available}; raise the cache budget or lower max_new_tokens"
    )]
    CacheTooSmall {
        /// Index into the requests.
        request: usize,
        /// Tokens of cache that the request needs.
        needed: usize,
        /// Tokens of cache in the budget.
        available: usize,
    },
    /// A number outside its range.
    #[error("{name} is {found}; it must be {expected}")]
    Setting {
        /// The field's name.
        name: &'static str,
        /// The field's value.
        found: usize,
        /// The allowed range, in words.
        expected: &'static str,
    },
    /// A request whose fields contradict each other.
    #[error("request {request}: {name} is {found}; it must be {expected}")]
    Request {
        /// Index into the requests.
        request: usize,
        /// The field's name.
        name: &'static str,
        /// The field's value.
        found: usize,
        /// The allowed range, in words.
        expected: &'static str,
    },
    /// A sampling setting outside its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The model failed.
    #[error("the model could not {action} (step {step})")]
    Model {
        /// The action that failed, as a verb phrase.
        action: &'static str,
        /// The step in which it failed, from 0.
        step: usize,
        /// The model's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model returned a draw that violates the contract of [`crate::Model`].
    #[error(
        "the model drew {found} for request {}, sample {}; {expected}",
        sequence.request, sequence.sample
    )]
    Drawn {
        /// The sequence that the token was drawn for.
        sequence: SequenceId,
        /// The value that the model returned.
        found: String,
        /// The rule that it breaks.
        expected: &'static str,
    },
    /// The caller's flag was set.
    #[error("generation was cancelled")]
    Cancelled,
    /// No sequence could advance, though each fits the cache alone: a defect of the scheduler.
    #[error(
        "no sequence can advance: {running} run, {waiting} wait, {free} blocks are free; \
         this is a defect, please report it"
    )]
    Stalled {
        /// Sequences in the batch.
        running: usize,
        /// Sequences outside it.
        waiting: usize,
        /// Free blocks.
        free: usize,
    },
}
