//! The stages as a user runs them: the binary on tiny models of a small language, judged by
//! metrics, weights, messages and exit codes. Killed and continued runs are in the binary `resume`.

#[path = "stages/adapters.rs"]
mod adapters;
#[path = "stages/arithmetic.rs"]
mod arithmetic;
#[cfg(feature = "emulate")]
#[path = "stages/device_memory.rs"]
mod device_memory;
#[path = "stages/dynamic_sampling.rs"]
mod dynamic_sampling;
#[path = "stages/endings.rs"]
mod endings;
#[path = "stages/epochs.rs"]
mod epochs;
#[path = "stages/estimators.rs"]
mod estimators;
#[path = "stages/fine_tuning.rs"]
mod fine_tuning;
#[cfg(any(feature = "emulate", feature = "cuda"))]
#[path = "stages/gpu.rs"]
mod gpu;
#[path = "stages/independence.rs"]
mod independence;
#[path = "stages/invariance.rs"]
mod invariance;
#[path = "stages/kl.rs"]
mod kl;
#[path = "stages/learning_rates.rs"]
mod learning_rates;
#[path = "stages/limits.rs"]
mod limits;
#[path = "stages/mistakes.rs"]
mod mistakes;
#[path = "stages/objective.rs"]
mod objective;
#[path = "stages/on_policy.rs"]
mod on_policy;
#[path = "stages/orpo.rs"]
mod orpo;
#[path = "stages/orpo_table.rs"]
mod orpo_table;
#[path = "stages/overfitting.rs"]
mod overfitting;
#[path = "stages/pipeline.rs"]
mod pipeline;
#[path = "stages/ppo_update.rs"]
mod ppo_update;
#[path = "stages/preference.rs"]
mod preference;
#[path = "stages/preference_sharing.rs"]
mod preference_sharing;
#[path = "stages/preflight.rs"]
mod preflight;
#[path = "stages/processors.rs"]
mod processors;
#[path = "stages/programs.rs"]
mod programs;
#[path = "stages/ptx.rs"]
mod ptx;
#[path = "stages/records.rs"]
mod records;
#[path = "stages/refusal.rs"]
mod refusal;
#[path = "stages/rewards.rs"]
mod rewards;
#[path = "stages/sharing.rs"]
mod sharing;
#[path = "stages/sharing_crossed.rs"]
mod sharing_crossed;
#[path = "stages/support.rs"]
mod support;
#[path = "stages/watching.rs"]
mod watching;
