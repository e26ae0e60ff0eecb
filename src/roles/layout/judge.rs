//! Whether a judge was trained on the tensors that the roles share.
//!
//! For a judge that a stage is yet to train, the stage's table decides. For an existing one, the
//! weights decide; a layout reads weights only here. A judge's scores do not depend on the tensors
//! that it shares.

use std::path::Path;

use super::SharedTensors;
use crate::model::ModelError;
use crate::model::lora::AdaptedFolder;
use crate::model::trunk::Trunk;
use crate::roles::description::{ModelDescription, Origin};

/// True if the judge was, or will be, trained on the tensors that the roles share.
///
/// # Errors
/// If a configuration cannot be read.
pub(super) fn shares(
    judge: &ModelDescription,
    policy: &ModelDescription,
    shared: SharedTensors,
) -> Result<bool, ModelError> {
    match shared {
        SharedTensors::None => Ok(false),
        SharedTensors::Trunk { layers } => is_on_trunk(judge, policy, layers),
        SharedTensors::Base => is_on_base(judge, policy),
    }
}

fn is_on_trunk(
    judge: &ModelDescription,
    policy: &ModelDescription,
    layers: usize,
) -> Result<bool, ModelError> {
    match (&judge.origin, &policy.origin) {
        (
            Origin::Stage {
                from,
                frozen_layers,
            },
            _,
        ) => Ok(from.as_deref() == Some(&policy.folder) && *frozen_layers >= layers),
        (Origin::Files, Origin::Files) => have_one_trunk(&policy.folder, &judge.folder, layers),
        (Origin::Files, Origin::Stage { .. }) => Ok(false),
    }
}

fn is_on_base(judge: &ModelDescription, policy: &ModelDescription) -> Result<bool, ModelError> {
    let adapter = judge.adapter.as_ref().filter(|adapter| adapter.has_score);
    let Some(adapter) = adapter else {
        return Ok(false);
    };
    let base = policy.base();
    if is_same_folder(&adapter.base, base) {
        return Ok(true);
    }
    if judge.origin != Origin::Files || policy.origin != Origin::Files {
        return Ok(false);
    }
    // The base may be a copy. PEFT records no checksum of the base, the engine does.
    let trained_on = AdaptedFolder::open(&judge.folder, base);
    let layers = policy.decoder.num_hidden_layers;
    match trained_on.map(|adapted| adapted.has_note()) {
        Ok(false) => have_one_trunk(base, &adapter.base, layers),
        noted => unless_different(noted),
    }
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    let canonical = |folder: &Path| folder.canonicalize().ok();
    a == b || canonical(a).is_some_and(|a| Some(a) == canonical(b))
}

/// True if two models have the same lowest layers, by their checksums.
fn have_one_trunk(a: &Path, b: &Path, layers: usize) -> Result<bool, ModelError> {
    let checked = Trunk::in_folder(a, layers).and_then(|trunk| trunk.check(b));
    unless_different(checked.map(|()| true))
}

/// Turns the errors of models that differ, and of weights that do not exist yet, into `false`.
fn unless_different(same: Result<bool, ModelError>) -> Result<bool, ModelError> {
    match same {
        Err(
            ModelError::OtherTrunk { .. }
            | ModelError::OtherLayers { .. }
            | ModelError::OtherBase { .. }
            | ModelError::Lora(_)
            | ModelError::Weights(_),
        ) => Ok(false),
        same => same,
    }
}
