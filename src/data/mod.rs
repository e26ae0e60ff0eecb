//! Text and records → token ids.
//!
//! A file becomes [`Record`]s ([`records`]); a record becomes token ids through the [`Tokenizer`]
//! and, for chats, the model's [`ChatTemplate`] ([`example`]); ids become rows without padding
//! ([`packing`]); [`loader`] and [`batches`] give the rows that a step reads, as a function of the
//! step. For generation, [`closing`] gives the tokens at which a completion ends, and [`ends`] the
//! stop texts.
//!
//! Not included: downloads, streaming of files larger than memory, and tensors.

pub mod batches;
pub mod closing;
pub mod ends;
pub mod error;
pub mod example;
pub mod guard;
pub mod loader;
pub mod packing;
pub mod records;
pub mod template;
pub mod tokenizer;

pub use ends::Ends;
pub use error::{DataError, Result};
pub use example::{
    Encoded, Encoder, Example, Limit, Pair, Prompt, TooLongCounts, encode_documents,
};
pub use loader::{Mixture, Order, split};
pub use packing::{PackedBatch, TextRow};
pub use records::{Message, Record, RecordPlace, RecordSource, Turns, read};
pub use template::{ChatTemplate, GenerationPrompt, TemplateSpan, Variables};
pub use tokenizer::{BpeTraining, Tokenizer};
