//! The mathematics of alignment as pure functions: ratios, KL, rewards, advantages, losses.
//!
//! Plain slices and structs go in, named structs come out. Nothing here chooses a device, reads a
//! configuration, runs a model or writes a log, and nothing here imports another module of the
//! engine.
//!
//! Quantities without a gradient are computed on the host in `f64` from `f32` or `f64` slices
//! ([`Real`]): a batch has a few thousand response tokens, so precision is free. A loss takes the
//! differentiable tensor as an argument and returns a scalar tensor to call `backward` on; its
//! value and gradient are computed on the host too (see [`differentiable`]).
//!
//! Layout: the response tokens of all sequences stand end to end without padding, and
//! [`RaggedRows`] says where each sequence starts. Only tokens that count are in these slices, so
//! no mask exists here: the caller leaves out prompt tokens, and a sequence with several generated
//! spans contributes them joined.

pub mod actor_loss;
pub mod advantage;
pub mod aggregation;
pub mod differentiable;
pub mod ensemble;
mod error;
pub mod kl;
pub mod kl_controller;
pub mod policy_loss;
pub mod preference;
pub mod ragged_rows;
pub mod ratio;
pub mod reward;
pub mod score;
pub mod stats;
pub mod value_loss;

pub use actor_loss::{ActorLoss, ActorTokens, KlTerm, actor_loss};
pub use aggregation::{LossAggregation, Totals};
pub use error::{Result, RlhfError};
pub use kl::KlEstimator;
pub use kl_controller::{AdaptiveKl, FixedKl, KlController};
pub use policy_loss::{PolicyLoss, PolicyLossConfig, PolicyStats, policy_loss};
pub use ragged_rows::RaggedRows;
pub use ratio::RatioStats;
pub use score::{RunningMoments, ScoreNormalizer};
pub use stats::{Mean, Real};
pub use value_loss::{ValueLoss, ValueLossConfig, ValueStats, value_loss};
