//! Whether a scorer was, or will be, trained on the tensors that the roles share. A judge that was
//! not is loaded whole, a reward model is refused.
//!
//! For a model that a stage is yet to train, the tables of the stages decide. Existing models are
//! compared by the checksums of their weights, unless they are one folder; a layout reads weights
//! only here. A scorer's scores do not depend on the tensors that it shares.

use std::path::Path;

use crate::model::ModelError;
use crate::model::lora::AdaptedFolder;
use crate::model::lora::folder::ADAPTER_WEIGHTS;
use crate::model::trunk::Trunk;
use crate::roles::RolesError;
use crate::roles::description::{AdapterDescription, ModelDescription, Origin, is_model};

/// Checks that a scorer has the policy's trunk of `layers` layers.
///
/// # Errors
/// If it has another trunk, or a model cannot be read.
pub(super) fn check_trunk(
    scorer: &ModelDescription,
    policy: &ModelDescription,
    layers: usize,
) -> Result<(), RolesError> {
    let [own, expected] = [scorer, policy].map(|model| model.trunk_origin(layers));
    if is_same_folder(&own.folder, &expected.folder) {
        return Ok(());
    }
    match (&own.origin, &expected.origin) {
        (Origin::Files, Origin::Files) => {
            Ok(Trunk::in_folder(&expected.folder, layers)?.check(&own.folder)?)
        }
        _ => Err(other_trunk(scorer, policy, [own, expected], layers)),
    }
}

/// The error of a scorer and a policy with different trunks, of which a stage is yet to train at
/// least one. `origins` are the models that the two trunks come from.
fn other_trunk(
    scorer: &ModelDescription,
    policy: &ModelDescription,
    origins: [&ModelDescription; 2],
    layers: usize,
) -> RolesError {
    let mut trained = origins.into_iter().filter_map(|model| match model.origin {
        Origin::Stage {
            stage,
            from: Some(_),
            ..
        } => Some((stage, model)),
        _ => None,
    });
    let Some((stage, model)) = trained.next() else {
        return different_models(scorer, policy, origins.map(|model| model.folder.as_path()));
    };
    let upper = model.decoder.num_hidden_layers.saturating_sub(layers);
    let freeze = match model.adapter {
        Some(_) => format!("set {stage}.lora.layers_to_transform = \"top:{upper}\""),
        None => format!("set {stage}.freeze_layers = {layers}"),
    };
    RolesError::TrainedTrunk {
        stage,
        scorer: scorer.folder.display().to_string(),
        policy: policy.folder.display().to_string(),
        mend: either([Some(freeze), start_from(scorer, &policy.folder)]),
    }
}

/// Checks that the adapters of a scorer have the policy's base.
///
/// # Errors
/// If they have another base, or a model cannot be read.
pub(super) fn check_base(
    scorer: &ModelDescription,
    adapter: &AdapterDescription,
    policy: &ModelDescription,
) -> Result<(), RolesError> {
    let (found, base) = (adapter.base.as_path(), policy.base());
    if is_same_folder(found, base) {
        return Ok(());
    }
    if !is_model(base) || !is_model(found) {
        return Err(different_models(scorer, policy, [found, base]));
    }
    // The base may be a copy. PEFT records no checksum of the base, the engine does.
    if scorer.origin == Origin::Files && AdaptedFolder::open(&scorer.folder, base)?.has_note() {
        return Ok(());
    }
    let layers = policy.decoder.num_hidden_layers;
    let checked = Trunk::in_folder(base, layers)?.check(found);
    Ok(checked.map_err(|error| of_adapter(error, &scorer.folder))?)
}

/// The error of another trunk as the error of another base of the adapter in `folder`.
fn of_adapter(error: ModelError, folder: &Path) -> ModelError {
    match error {
        ModelError::OtherTrunk {
            expected, found, ..
        } => ModelError::OtherBase {
            file: folder.join(ADAPTER_WEIGHTS),
            expected: found,
            found: expected,
        },
        other => other,
    }
}

/// The error of a scorer and a policy that are trained from the models `found` and `expected`.
fn different_models(
    scorer: &ModelDescription,
    policy: &ModelDescription,
    [found, expected]: [&Path; 2],
) -> RolesError {
    RolesError::DifferentModels {
        scorer: scorer.folder.display().to_string(),
        found: found.display().to_string(),
        expected: expected.display().to_string(),
        mend: either([
            adapters_on(policy, scorer),
            start_from(scorer, policy.base()),
        ]),
    }
}

/// The change by which the policy is trained as adapters on the base of the scorer's adapters.
fn adapters_on(policy: &ModelDescription, scorer: &ModelDescription) -> Option<String> {
    match (&policy.origin, &scorer.adapter) {
        (Origin::Stage { stage, from, .. }, Some(adapter)) => {
            let from = from.as_ref().filter(|_| policy.adapter.is_none())?;
            (from.base() == adapter.base).then(|| format!("add [{stage}.lora]"))
        }
        _ => None,
    }
}

/// The change by which a stage trains the scorer from `start`.
fn start_from(scorer: &ModelDescription, start: &Path) -> Option<String> {
    match &scorer.origin {
        Origin::Stage { stage, from, .. } => {
            let from = from.as_ref().filter(|from| from.folder != start);
            from.map(|_| format!("set {stage}.from = \"{}\"", start.display()))
        }
        Origin::Files => None,
    }
}

/// The changes that are possible, in words.
fn either(changes: [Option<String>; 2]) -> String {
    let changes: Vec<String> = changes.into_iter().flatten().collect();
    match changes.is_empty() {
        true => "train both from one model".to_owned(),
        false => changes.join(", or "),
    }
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    let canonical = |folder: &Path| folder.canonicalize().ok();
    a == b || canonical(a).is_some_and(|a| Some(a) == canonical(b))
}

/// True for the errors of a scorer that has other tensors than the roles share, and of weights that
/// do not exist yet.
pub(super) fn shares_nothing(error: &RolesError) -> bool {
    matches!(
        error,
        RolesError::TrainedTrunk { .. }
            | RolesError::DifferentModels { .. }
            | RolesError::Model(
                ModelError::OtherTrunk { .. }
                    | ModelError::OtherLayers { .. }
                    | ModelError::OtherBase { .. }
                    | ModelError::Kind { .. }
                    | ModelError::Lora(_)
                    | ModelError::Weights(_)
            )
    )
}
