//! LoRA adapters against PEFT (`tests/golden/make_adapters.py`), against their own merged weights,
//! and in generation.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use collimate::config::LayersToTransform::{self, These, Top};
use collimate::config::{LoraTable, TargetModules};
use collimate::model::config::{Family, Head, TensorSpec};
use collimate::model::hf_config::HfConfig;
use collimate::model::hf_config::adapter::AdapterConfig;
use collimate::model::weights::SaveDtype;
use collimate::model::{Decoder, Gradient, Recompute};
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use kernels::attention::Segments;
use rollout::Sampling;

use crate::differences::{check_trained, outputs, two_layers};
use crate::golden::{
    TOLERANCE, backward_of_mean_nll, check_gradients, check_logits, check_reward_model,
};
use crate::rollouts;
use crate::support::{Anyhow, COMPOSED, Expected, folder, gap, noise, tensor};

const LANGUAGE_ADAPTERS: [&str; 2] = ["llama", "gpt2"];

fn adapter_folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/adapters")
        .join(name)
}

fn frozen(folder: &Path) -> Anyhow<Decoder> {
    let frozen = |_: &TensorSpec| Trainability::Frozen;
    let head = Head::LanguageModel;
    Ok(Decoder::load(folder, head, 0, frozen, &Backend::CPU)?)
}

fn base_of(adapter: &Path, backend: &Backend) -> Anyhow<Decoder> {
    let config = AdapterConfig::read(adapter)?.expect("a PEFT folder");
    let (folder, frozen) = (config.base_folder(adapter)?, |_: &_| Trainability::Frozen);
    Ok(Decoder::load(
        &folder,
        Head::LanguageModel,
        0,
        frozen,
        backend,
    )?)
}

/// The base model's rows, and PEFT's outputs for them.
fn expected(name: &str, base: &str) -> Anyhow<Expected> {
    let mut expected = Expected::read(base)?;
    let file = adapter_folder(name).join("expected.safetensors");
    expected.tensors = candle_core::safetensors::load(file, &Device::Cpu)?;
    Ok(expected)
}

fn load(folder: &Path, head: Head) -> Anyhow<Decoder> {
    load_on(folder, head, &Backend::CPU)
}

fn load_on(folder: &Path, head: Head, backend: &Backend) -> Anyhow<Decoder> {
    let base = base_of(folder, backend)?;
    let trained = Trainability::Trained;
    Ok(Decoder::load_adapter(&base, folder, head, 0, trained)?)
}

fn bits(x: &Tensor) -> Anyhow<Vec<u32>> {
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().map(|x| x.to_bits()).collect())
}

/// LoRA of rank 3 on all projections of some layers, or of all.
fn everywhere(layers_to_transform: Option<LayersToTransform>) -> LoraTable {
    LoraTable {
        r: Some(3),
        lora_alpha: Some(4.0),
        target_modules: Some(TargetModules::AllLinear),
        layers_to_transform,
        ..LoraTable::default()
    }
}

/// A small frozen model, and the same model with non-zero adapters.
fn adapted(
    family: Family,
    layers: Option<LayersToTransform>,
    head: Head,
) -> Anyhow<(Decoder, Decoder)> {
    let config = HfConfig::new(two_layers(family)?);
    let base = Decoder::fresh(config, 1, |_| Trainability::Frozen, &Backend::CPU)?;
    let model = Decoder::adapt(&base, &everywhere(layers), head, 5, Trainability::Trained)?;
    shake(&model)?;
    Ok((base, model))
}

fn shake(model: &Decoder) -> Anyhow {
    for (stream, param) in (500..).zip(model.params().trained()) {
        let values = noise(param.value().elem_count(), stream);
        param.update(|to| {
            to.iter_mut()
                .zip(&values)
                .for_each(|(to, v)| *to += 0.2 * v)
        })?;
    }
    Ok(())
}

#[test]
fn logits_and_every_gradient_of_peft() -> Anyhow {
    for name in LANGUAGE_ADAPTERS {
        let (expected, model) = (
            expected(name, name)?,
            load(&adapter_folder(name), Head::LanguageModel)?,
        );
        check_logits(name, &model, &expected)?;
        for recompute in [Recompute::None, Recompute::Block] {
            let loss = backward_of_mean_nll(&model, &expected, recompute)?;
            let wanted = expected.tensors["loss"].to_vec1::<f32>()?;
            assert!(gap(&[loss.to_scalar()?], &wanted) < TOLERANCE, "{name}");
            check_gradients(name, &model, &expected)?;
            let composed = load_on(&adapter_folder(name), Head::LanguageModel, &COMPOSED)?;
            backward_of_mean_nll(&composed, &expected, recompute)?;
            check_gradients(name, &composed, &expected)?;
        }
    }
    Ok(())
}

#[test]
fn a_reward_model_of_peft() -> Anyhow {
    let model = load(&adapter_folder("llama_reward"), Head::Score)?;
    check_reward_model("llama_reward", &model, &expected("llama_reward", "llama")?)
}

/// Code that reads models also reads PEFT folders, with the adapters merged.
#[test]
fn a_peft_folder_is_a_model_folder() -> Anyhow {
    for name in LANGUAGE_ADAPTERS {
        let merged = frozen(&adapter_folder(name))?;
        assert!(merged.lora().is_none());
        check_logits(name, &merged, &expected(name, name)?)?;
    }
    let folder = adapter_folder("llama_reward");
    let merged = Decoder::load_reward_model(&folder, |_| Trainability::Trained, &Backend::CPU)?;
    let expected = expected("llama_reward", "llama")?;
    let (ids, segments) = expected.packed();
    let hidden = merged.forward(&ids, &segments, Gradient::Skip)?;
    let wanted = crate::golden::expected_rows(&expected, "token_scores", |n| n)?;
    assert!(gap(&merged.scores(&hidden)?.to_vec1()?, &wanted) < TOLERANCE);
    Ok(())
}

#[test]
fn a_fresh_adapter_changes_no_bit_of_its_base() -> Anyhow {
    for family in Family::ALL {
        let config = HfConfig::new(two_layers(family)?);
        let base = Decoder::fresh(config, 1, |_| Trainability::Frozen, &Backend::CPU)?;
        let lora = everywhere(None);
        let model = Decoder::adapt(&base, &lora, Head::LanguageModel, 5, Trainability::Trained)?;
        let (with, without) = (
            outputs(&model, Gradient::Skip)?,
            outputs(&base, Gradient::Skip)?,
        );
        assert_eq!(bits(&with)?, bits(&without)?, "{family:?}");
        let draws = model
            .params()
            .get("model.layers.0.self_attn.q_proj.lora_A.weight");
        if let Ok(a) = draws {
            let largest = a.read(|a| a.iter().fold(0f32, |m, v| m.max(v.abs())))?;
            assert!(0.2 < largest && largest <= 0.25, "16 inputs: {largest}");
        }
    }
    Ok(())
}

/// A role on a shared base holds nothing but its adapters and, for a reward model, its head.
#[test]
fn a_role_owns_its_adapters_alone() -> Anyhow {
    let (base, actor) = adapted(Family::Llama, Some(Top(1)), Head::LanguageModel)?;
    let names = |model: &Decoder| -> Vec<String> {
        model
            .params()
            .owned()
            .map(|p| p.name().to_owned())
            .collect()
    };
    assert_eq!(names(&actor).len(), 14);
    assert!(
        names(&actor)
            .iter()
            .all(|name| name.contains("layers.1.") && name.contains("lora_"))
    );
    for param in actor.params().shared() {
        assert!(Arc::ptr_eq(param, &base.params().get(param.name())?));
    }
    let lora = everywhere(Some(Top(1)));
    let critic = Decoder::adapt(&base, &lora, Head::Score, 5, Trainability::Trained)?;
    assert!(names(&critic).contains(&"score.weight".to_owned()));
    assert_eq!(names(&critic).len(), 15);
    assert!(Decoder::adapt(&critic, &lora, Head::Score, 5, Trainability::Trained).is_err());
    Ok(())
}

#[test]
fn recording_changes_no_bit_of_an_adapted_model() -> Anyhow {
    for family in Family::ALL {
        for layers in [None, Some(Top(1)), Some(These(vec![0]))] {
            let (_, model) = adapted(family, layers.clone(), Head::LanguageModel)?;
            let skipped = bits(&outputs(&model, Gradient::Skip)?)?;
            for recompute in [Recompute::None, Recompute::Block] {
                let recorded = bits(&outputs(&model, Gradient::Record(recompute))?)?;
                assert_eq!(recorded, skipped, "{family:?} {layers:?}");
            }
        }
    }
    Ok(())
}

/// Adapters on the top layer leave the lower layers frozen: a pass that starts above them gives all
/// gradients, bit for bit.
#[test]
fn adapters_of_the_top_layers_leave_a_trunk() -> Anyhow {
    let (base, model) = adapted(Family::Qwen2, Some(Top(1)), Head::LanguageModel)?;
    let (ids, segments) = (
        (0..17).collect::<Vec<u32>>(),
        Segments::from_lengths([9, 8]),
    );
    let record = Gradient::Record(Recompute::None);
    let gradients = |hidden: &Tensor| -> Anyhow<Vec<u32>> {
        model.params().zero_grad()?;
        (hidden * tensor(hidden.dims(), 6))?.sum_all()?.backward()?;
        assert_eq!(model.params().unreached(), Vec::<&str>::new());
        bits(model.params().arena().expect("trained"))
    };
    let whole = model.forward(&ids, &segments, record)?;
    let boundary = base.hidden_at(1, &ids, &segments)?;
    let cut = model.forward_from(1, &boundary, &segments, None, record)?;
    assert_eq!(bits(&whole)?, bits(&cut)?);
    assert_eq!(gradients(&whole)?, gradients(&cut)?);
    Ok(())
}

#[test]
fn gradients_of_adapters_match_finite_differences() -> Anyhow {
    for (family, head) in [
        (Family::Qwen3, Head::LanguageModel),
        (Family::Gpt2, Head::LanguageModel),
        (Family::Llama, Head::Score),
    ] {
        let (_, model) = adapted(family, None, head)?;
        check_trained(&format!("adapters, {family:?}"), &model, Recompute::None)?;
    }
    Ok(())
}

/// Sampled log-probs are those of the training forward pass, bit for bit.
#[test]
fn generation_applies_adapters_as_training_does() -> Anyhow {
    for name in LANGUAGE_ADAPTERS {
        let model = load(&adapter_folder(name), Head::LanguageModel)?;
        rollouts::check(&model, 128, Sampling::default())?;
    }
    let base = crate::support::llama(576, 2, 9, 3, 512, Head::LanguageModel, &Backend::CPU)?;
    let saved = tempfile::tempdir()?;
    base.save(saved.path(), SaveDtype::Float32)?;
    let mut lora = everywhere(None);
    lora.r = Some(16);
    let base = frozen(saved.path())?;
    let model = Decoder::adapt(&base, &lora, Head::LanguageModel, 5, Trainability::Trained)?;
    for (stream, param) in (700..).zip(model.params().trained()) {
        let values = noise(param.value().elem_count(), stream);
        param.update(|to| {
            to.iter_mut()
                .zip(&values)
                .for_each(|(to, v)| *to += 0.02 * v)
        })?;
    }
    rollouts::check(&model, 512, Sampling::default())
}

#[test]
fn what_is_saved_comes_back_and_merges() -> Anyhow {
    for (layers, targets) in [
        (None, Some(TargetModules::AllLinear)),
        (Some(Top(2)), None),
        (
            None,
            Some(TargetModules::Named(vec![
                "layers.1.mlp.up_proj".to_owned(),
            ])),
        ),
    ] {
        let saved = tempfile::tempdir()?;
        let base = frozen(&folder("llama"))?;
        let mut lora = everywhere(layers);
        lora.target_modules = targets;
        lora.use_rslora = Some(true);
        let model = Decoder::adapt(&base, &lora, Head::LanguageModel, 5, Trainability::Trained)?;
        shake(&model)?;
        model.save_adapter(saved.path(), &folder("llama"), SaveDtype::Float32)?;
        let again = load(saved.path(), Head::LanguageModel)?;
        assert_eq!(again.lora(), model.lora());
        let (ids, segments) = Expected::read("llama")?.packed();
        let pass = |model: &Decoder| model.forward(&ids, &segments, Gradient::Skip);
        assert_eq!(bits(&pass(&model)?)?, bits(&pass(&again)?)?);

        let merged = tempfile::tempdir()?;
        model.save(merged.path(), SaveDtype::Float32)?;
        let close = |other: &Decoder| -> Anyhow<f32> {
            let (found, wanted) = (pass(other)?, pass(&model)?);
            Ok(gap(
                &found.flatten_all()?.to_vec1()?,
                &wanted.flatten_all()?.to_vec1()?,
            ))
        };
        // Rounding of the merged weights, for hidden states of size one.
        assert!(close(&frozen(merged.path())?)? < 1e-4);
        assert!(close(&frozen(saved.path())?)? < 1e-4);
        assert!(close(&base)? > 1e-2);
    }
    Ok(())
}

#[test]
fn a_reward_adapter_keeps_its_head() -> Anyhow {
    let (saved, base) = (tempfile::tempdir()?, frozen(&folder("llama"))?);
    let lora = everywhere(Some(Top(1)));
    let model = Decoder::adapt(&base, &lora, Head::Score, 5, Trainability::Trained)?;
    shake(&model)?;
    model.save_adapter(saved.path(), &folder("llama"), SaveDtype::Float32)?;
    let again = load(saved.path(), Head::Score)?;
    let score =
        |model: &Decoder| -> Anyhow<Vec<u32>> { bits(model.params().get("score.weight")?.value()) };
    assert_eq!(score(&model)?, score(&again)?);
    let merged = Decoder::load_reward_model(saved.path(), |_| Trainability::Frozen, &Backend::CPU)?;
    assert_eq!(score(&model)?, score(&merged)?);
    Ok(())
}

#[test]
fn another_base_is_refused() -> Anyhow {
    let (saved, base) = (tempfile::tempdir()?, frozen(&folder("llama"))?);
    let lora = everywhere(None);
    let model = Decoder::adapt(&base, &lora, Head::LanguageModel, 5, Trainability::Trained)?;
    model.save_adapter(
        saved.path(),
        &folder("llama_old_dialect"),
        SaveDtype::Float32,
    )?;
    for refused in [
        load(saved.path(), Head::LanguageModel).map(|_| ()),
        frozen(saved.path()).map(|_| ()),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("fingerprint"), "{message}");
    }
    Ok(())
}

#[test]
fn what_is_not_done_is_refused_by_its_key() -> Anyhow {
    let refused = |key: &str, value: &str| -> Anyhow<String> {
        let copy = tempfile::tempdir()?;
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(adapter_folder("llama").join(file), copy.path().join(file))?;
        }
        let file = copy.path().join("adapter_config.json");
        let mut keys: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        keys["base_model_name_or_path"] = folder("llama").display().to_string().into();
        keys[key] = serde_json::from_str(value)?;
        fs::write(&file, keys.to_string())?;
        Ok(frozen(copy.path()).map(|_| ()).unwrap_err().to_string())
    };
    for (key, value) in [
        ("peft_type", "\"IA3\""),
        ("bias", "\"all\""),
        ("use_dora", "true"),
        ("rank_pattern", "{\"q_proj\": 2}"),
        ("alpha_pattern", "{\"q_proj\": 2}"),
        ("lora_bias", "true"),
        ("trainable_token_indices", "[1]"),
        ("target_parameters", "[\"experts\"]"),
        ("layer_replication", "[[0, 2]]"),
        ("task_type", "\"SEQ_2_SEQ_LM\""),
        ("modules_to_save", "[\"embed_tokens\"]"),
        ("init_lora_weights", "\"pissa_niter_4\""),
        ("lora_alpha", "\"six\""),
        ("r", "0"),
        ("base_model_name_or_path", "\"no/such/folder\""),
    ] {
        let message = refused(key, value)?;
        assert!(message.contains(key), "{key}: {message}");
    }
    // The rank is checked against the tensors' shapes.
    assert!(refused("r", "5")?.contains("shape"));
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the file is to lack something")]
#[test]
fn a_file_without_an_adapter_is_none() -> Anyhow {
    let (copy, file) = (tempfile::tempdir()?, "adapter_model.safetensors");
    let mut tensors =
        candle_core::safetensors::load(adapter_folder("llama_reward").join(file), &Device::Cpu)?;
    tensors.retain(|name, _| name.contains("score"));
    assert!(!tensors.is_empty());
    candle_core::safetensors::save(&tensors, copy.path().join(file))?;
    let keys = fs::read_to_string(adapter_folder("llama_reward").join("adapter_config.json"))?;
    let mut keys: serde_json::Value = serde_json::from_str(&keys)?;
    keys["base_model_name_or_path"] = folder("llama").display().to_string().into();
    fs::write(copy.path().join("adapter_config.json"), keys.to_string())?;
    let message = load(copy.path(), Head::Score)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(message.contains("holds no adapter"), "{message}");
    Ok(())
}

/// An adapter of a language model cannot be loaded with a scalar head.
#[test]
fn a_head_that_the_task_has_no_use_for_is_refused() -> Anyhow {
    let copy = tempfile::tempdir()?;
    let from = adapter_folder("llama_reward");
    let weights = "adapter_model.safetensors";
    fs::copy(from.join(weights), copy.path().join(weights))?;
    let mut keys: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(from.join("adapter_config.json"))?)?;
    keys["base_model_name_or_path"] = folder("llama").display().to_string().into();
    keys["task_type"] = "CAUSAL_LM".into();
    keys["modules_to_save"] = serde_json::Value::Null;
    fs::write(copy.path().join("adapter_config.json"), keys.to_string())?;
    let message = load(copy.path(), Head::LanguageModel)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(message.contains("score.weight"), "{message}");
    Ok(())
}
