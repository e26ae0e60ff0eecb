//! What a model folder records about the trunk that the model was trained on, and how it is
//! compared with another trunk.

use std::fs;
use std::path::Path;

use candle_core::Device;
use collimate::model::Decoder;
use collimate::model::config::{Head, TensorSpec, is_embedding, layer_of};
use collimate::model::hf_config::HfConfig;
use collimate::model::trunk::Trunk;
use collimate::model::weights::{SaveDtype, Weights};
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use tempfile::TempDir;

use crate::support::{Anyhow, folder};

/// Layers of the trunk, out of three.
const TRUNK: usize = 2;
const FILE: &str = "model.safetensors";

fn frozen(folder: &Path) -> Anyhow<Decoder> {
    let frozen = |_: &TensorSpec| Trainability::Frozen;
    let head = HfConfig::read(folder)?.decoder.head;
    Ok(Decoder::load(folder, head, 0, frozen, &Backend::CPU)?)
}

/// Loads a reward model as its stage does, with the layers below frozen.
fn above(folder: &Path, layers: usize) -> Anyhow<Decoder> {
    let training = |spec: &TensorSpec| match layer_of(&spec.name) {
        Some(layer) if layer < layers => Trainability::Frozen,
        None if is_embedding(&spec.name) => Trainability::Frozen,
        _ => Trainability::Trained,
    };
    let head = Head::Score;
    Ok(Decoder::load(folder, head, 3, training, &Backend::CPU)?)
}

/// A reward model trained on the trunk of `model`.
fn branch(model: &str, dtype: SaveDtype) -> Anyhow<TempDir> {
    let saved = tempfile::tempdir()?;
    above(&folder(model), TRUNK)?.save(saved.path(), dtype)?;
    Ok(saved)
}

/// The number of layers and the fingerprint recorded in the folder.
fn noted(folder: &Path) -> Anyhow<[Option<String>; 2]> {
    let weights = Weights::open(folder)?;
    let note = |key| weights.note(key).map(str::to_owned);
    Ok(["trunk_layers", "trunk_fingerprint"].map(note))
}

fn check(base: &Path, layers: usize, branch: &Path) -> Anyhow {
    let (loaded, unread) = (frozen(base)?, Trunk::in_folder(base, layers)?);
    let found = loaded.trunk(layers)?.check(branch);
    // The folder of the base model has the same trunk.
    assert_eq!(
        unread.check(branch).map_err(|e| e.to_string()),
        found.as_ref().map(|_| ()).map_err(ToString::to_string)
    );
    Ok(found?)
}

/// Rewrites the weights as another program would: the same values without the header's notes.
#[expect(
    clippy::disallowed_methods,
    reason = "it is to lack what our own writer notes"
)]
fn write_anew(folder: &Path) -> Anyhow {
    let file = folder.join(FILE);
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu)?;
    fs::remove_file(&file)?;
    Ok(candle_core::safetensors::save(&tensors, &file)?)
}

/// Changes stored `f32` values of a tensor and leaves everything else unchanged.
fn tamper(folder: &Path, tensor: &str, change: impl Fn(usize, f32) -> f32) -> Anyhow {
    let file = folder.join(FILE);
    let mut bytes = fs::read(&file)?;
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let info = metadata.info(tensor).expect("a tensor of the file");
    let start = 8 + header;
    let place = start + info.data_offsets.0..start + info.data_offsets.1;
    for (i, four) in bytes[place].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *four = change(i, f32::from_le_bytes(*four)).to_le_bytes();
    }
    Ok(fs::write(file, bytes)?)
}

#[test]
fn a_branch_notes_the_trunk_that_it_was_trained_on() -> Anyhow {
    for model in ["llama", "gpt2", "qwen3"] {
        let base = folder(model);
        assert_eq!(noted(&base)?, [None, None]);
        let saved = branch(model, SaveDtype::Float32)?;
        let [layers, fingerprint] = noted(saved.path())?;
        assert_eq!(
            (layers.as_deref(), fingerprint.map(|f| f.len())),
            (Some("2"), Some(8))
        );
        check(&base, TRUNK, saved.path())?;
        // The check also holds for a trunk of fewer layers, and for a file without a note.
        check(&base, 1, saved.path())?;
        write_anew(saved.path())?;
        assert_eq!(noted(saved.path())?, [None, None], "{model}");
        check(&base, TRUNK, saved.path())?;
        check(&base, 1, saved.path())?;
    }
    Ok(())
}

#[test]
fn a_branch_that_is_loaded_and_saved_again_notes_what_is_true_then() -> Anyhow {
    let (base, saved, again) = (
        folder("llama"),
        branch("llama", SaveDtype::Float32)?,
        tempfile::tempdir()?,
    );
    above(saved.path(), TRUNK)?.save(again.path(), SaveDtype::Float32)?;
    assert_eq!(noted(again.path())?, noted(saved.path())?);
    above(saved.path(), 1)?.save(again.path(), SaveDtype::Float32)?;
    let [layers, fingerprint] = noted(again.path())?;
    assert_eq!(layers.as_deref(), Some("1"));
    assert_ne!(fingerprint, noted(saved.path())?[1]);
    check(&base, 1, again.path())?;
    check(&base, TRUNK, again.path())?;
    // A model with no trained layer, or with all layers trained, has no trunk.
    frozen(saved.path())?.save(again.path(), SaveDtype::Float32)?;
    assert_eq!(noted(again.path())?, [None, None]);
    check(&base, TRUNK, again.path())?;
    above(saved.path(), 0)?.save(again.path(), SaveDtype::Float32)?;
    assert_eq!(noted(again.path())?, [None, None]);
    Ok(())
}

/// The note names the trunk that training used, even if the file stores it rounded.
#[test]
fn a_branch_in_half_the_bits_stands_on_the_whole_trunk() -> Anyhow {
    let (base, whole) = (folder("llama"), branch("llama", SaveDtype::Float32)?);
    for dtype in [SaveDtype::Bfloat16, SaveDtype::Float16] {
        let half = branch("llama", dtype)?;
        assert_eq!(noted(half.path())?, noted(whole.path())?);
        check(&base, TRUNK, half.path())?;
        // Trained further, the model stands on the rounded trunk and no longer on the original one.
        // Only its note can tell, the bits cannot.
        let further = tempfile::tempdir()?;
        above(half.path(), TRUNK)?.save(further.path(), dtype)?;
        assert_ne!(noted(further.path())?, noted(half.path())?);
        check(half.path(), TRUNK, further.path())?;
        check(half.path(), TRUNK, half.path())?;
        let message = check(&base, TRUNK, further.path()).unwrap_err().to_string();
        let [_, noted_further] = noted(further.path())?;
        assert!(
            message.contains(&noted_further.expect("noted")),
            "{message}"
        );
        write_anew(further.path())?;
        check(&base, TRUNK, further.path())?;
        write_anew(half.path())?;
        check(&base, TRUNK, half.path())?;
        // The unrounded model was not trained on the rounded trunk.
        assert!(check(half.path(), TRUNK, whole.path()).is_err());
    }
    Ok(())
}

#[test]
fn another_trunk_is_refused_with_both_fingerprints() -> Anyhow {
    let (saved, other) = (branch("llama", SaveDtype::Float32)?, tempfile::tempdir()?);
    let fresh = Decoder::fresh(
        HfConfig::read(&folder("llama"))?,
        5,
        |_| Trainability::Frozen,
        &Backend::CPU,
    )?;
    fresh.save(other.path(), SaveDtype::Float32)?;
    let [_, found] = noted(saved.path())?;
    above(other.path(), TRUNK)?.save(&other.path().join("branch"), SaveDtype::Float32)?;
    let [_, expected] = noted(&other.path().join("branch"))?;
    for anew in [false, true] {
        if anew {
            write_anew(saved.path())?;
        }
        let message = check(other.path(), TRUNK, saved.path())
            .unwrap_err()
            .to_string();
        for said in [&found, &expected] {
            assert!(
                message.contains(said.as_deref().expect("noted")),
                "{message}"
            );
        }
        assert!(message.contains("freeze_layers = 2"), "{message}");
    }
    Ok(())
}

/// A note stays valid-looking if somebody changes values and leaves the header: the tensors decide,
/// down to the last value.
#[test]
fn a_note_is_not_believed_of_tensors_that_are_otherwise() -> Anyhow {
    let (base, q) = (folder("llama"), "model.layers.1.self_attn.q_proj.weight");
    let saved = branch("llama", SaveDtype::Float32)?;
    tamper(saved.path(), q, |i, x| if i == 1 { x + 1.0 } else { x })?;
    assert!(noted(saved.path())?[1].is_some());
    let message = check(&base, TRUNK, saved.path()).unwrap_err().to_string();
    assert!(message.contains("fingerprint"), "{message}");
    Ok(())
}

#[test]
fn layers_that_compute_otherwise_are_refused() -> Anyhow {
    let saved = branch("llama", SaveDtype::Float32)?;
    let file = saved.path().join("config.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    keys["rms_norm_eps"] = 0.5.into();
    fs::write(&file, keys.to_string())?;
    let message = check(&folder("llama"), TRUNK, saved.path())
        .unwrap_err()
        .to_string();
    assert!(message.contains("another computation"), "{message}");
    Ok(())
}
