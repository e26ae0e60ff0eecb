//! Models against golden numbers made with PyTorch and transformers
//! (`tests/golden/make_fixtures.py`), and the generator against the training forward pass.

#[path = "models/adapters.rs"]
mod adapters;
#[path = "models/composed.rs"]
mod composed;
#[path = "models/differences.rs"]
mod differences;
#[path = "models/folders.rs"]
mod folders;
#[path = "models/generation.rs"]
mod generation;
#[path = "models/golden.rs"]
mod golden;
#[path = "models/gradients.rs"]
mod gradients;
#[path = "models/memory.rs"]
mod memory;
#[path = "models/roles.rs"]
mod roles;
#[path = "models/rollouts.rs"]
mod rollouts;
#[path = "models/sharing.rs"]
mod sharing;
#[path = "models/support.rs"]
mod support;
#[path = "models/trunks.rs"]
mod trunks;
