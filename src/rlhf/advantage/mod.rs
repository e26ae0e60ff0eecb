//! Advantages, by one pure function per estimator.
//!
//! | estimator | needs | whole batch whitened |
//! |---|---|---|
//! | [`gae::gae`] | critic values | afterwards, by the caller ([`whiten`](super::stats::whiten)) |
//! | [`group::grpo`], [`group::dr_grpo`], [`group::rloo`] | several samples a prompt | no |
//! | [`reinforce::reinforce_plus_plus`] | nothing | inside |
//! | [`remax::remax`] | the score of each prompt's greedy completion | no |
//!
//! Group estimators and ReMax give one advantage a sequence;
//! [`RaggedRows::spread`](super::RaggedRows::spread) repeats it for each token.
//! [`dynamic_sampling`] finds the groups that are worth an update.

pub mod dynamic_sampling;
pub mod gae;
pub mod group;
pub mod reinforce;
pub mod remax;
