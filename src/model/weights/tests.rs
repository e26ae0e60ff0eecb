use std::borrow::Cow;
use std::convert::Infallible;
use std::fs;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize};

use super::*;
use crate::model::config::{DecoderConfig, Init};
use crate::model::hf_config::HfConfig;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/models")
        .join(name)
}

fn decoder(name: &str) -> DecoderConfig {
    HfConfig::read(&golden(name)).expect(name).decoder
}

const GOLDEN: [&str; 10] = [
    "llama",
    "llama_old_dialect",
    "llama3_tied",
    "llama_reward",
    "mistral",
    "mistral_swa",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt2_bare",
];

fn spec(name: &str, shape: &[usize], layout: StoredLayout) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        layout,
        init: Init::Zeros,
    }
}

/// A tensor with its values, in the engine's layout.
type NamedTensor = (TensorSpec, Vec<f32>);

/// Saves `tensors` into `folder`.
fn put(
    folder: &Path,
    tensors: &[NamedTensor],
    dtype: SaveDtype,
    most: u64,
) -> Result<(), WeightsError> {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    save(folder, &specs, dtype, most, &BTreeMap::new(), |spec| {
        let found = tensors.iter().find(|(other, _)| other.name == spec.name);
        Ok::<_, Infallible>(Cow::Borrowed(found.map_or(&[][..], |(_, values)| values)))
    })
}

/// Every tensor of a golden model.
fn loaded(name: &str) -> Vec<NamedTensor> {
    let weights = Weights::open(&golden(name)).expect(name);
    let load = |spec: TensorSpec| {
        let values = weights.load(&spec).expect(&spec.name);
        (spec, values)
    };
    decoder(name).tensors().into_iter().map(load).collect()
}

#[test]
fn the_listed_tensors_are_those_of_the_file() {
    for name in GOLDEN {
        let weights = Weights::open(&golden(name)).expect(name);
        let specs = decoder(name).tensors();
        for spec in &specs {
            let (_, entry) = weights.resolve(&spec.name).expect(&spec.name);
            assert_eq!(entry.shape, spec.stored_shape(), "{name}: {}", spec.name);
        }
        assert_eq!(weights.names().count(), specs.len(), "{name}");
        assert_eq!(weights.unexpected(&specs), [""; 0], "{name}");
    }
}

#[test]
fn values_are_those_of_the_file_with_conv1d_turned_over() {
    let file = fs::read(golden("gpt2_bare").join(SINGLE)).expect("the file");
    let reference = SafeTensors::deserialize(&file).expect("safetensors");
    let stored = |name: &str| -> Vec<f32> {
        let (values, _) = reference.tensor(name).expect(name).data().as_chunks();
        values.iter().copied().map(f32::from_le_bytes).collect()
    };
    let weights = Weights::open(&golden("gpt2_bare")).expect("gpt2_bare");
    let load =
        |name, shape: &[usize], layout| weights.load(&spec(name, shape, layout)).expect(name);
    let plain = load("transformer.wpe.weight", &[128, 32], StoredLayout::OutIn);
    assert_eq!(plain, stored("wpe.weight"));
    let turned = load(
        "transformer.h.1.attn.c_attn.weight",
        &[96, 32],
        StoredLayout::Conv1d,
    );
    let file_order = stored("h.1.attn.c_attn.weight");
    for (out, row) in turned.chunks(32).enumerate() {
        for (input, value) in row.iter().enumerate() {
            assert_eq!(*value, file_order[input * 96 + out]);
        }
    }
}

#[test]
fn a_transposition_undone_is_the_matrix() {
    // Sides on both sides of the tile.
    for (rows, columns) in [(1, 1), (1, 70), (70, 1), (31, 33), (32, 64), (65, 40)] {
        let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let turned = transpose(&matrix, rows, columns);
        assert_eq!(turned[(columns - 1) * rows], matrix[columns - 1]);
        assert_eq!(transpose(&turned, columns, rows), matrix);
    }
    assert!(transpose(&[], 0, 3).is_empty());
}

#[test]
fn what_is_saved_is_loaded() {
    type Round = fn(f32) -> f32;
    let dtypes: [(SaveDtype, Round); 3] = [
        (SaveDtype::Float32, |x| x),
        (SaveDtype::Bfloat16, |x| bf16::from_f32(x).to_f32()),
        (SaveDtype::Float16, |x| f16::from_f32(x).to_f32()),
    ];
    for name in ["gpt2", "qwen3", "llama_reward"] {
        let tensors = loaded(name);
        for (dtype, round) in dtypes {
            for most in [DEFAULT_MAX_SHARD_BYTES, 40_000] {
                let folder = tempfile::tempdir().expect("a temporary folder");
                put(folder.path(), &tensors, dtype, most).expect("saved");
                let weights = Weights::open(folder.path()).expect("opened");
                for (spec, values) in &tensors {
                    let rounded: Vec<f32> = values.iter().copied().map(round).collect();
                    assert!(
                        weights.load(spec).expect("loaded") == rounded,
                        "{}",
                        spec.name
                    );
                }
                assert_eq!(weights.names().count(), tensors.len());
            }
        }
    }
}

#[test]
fn a_saved_file_is_the_one_transformers_wrote() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    put(folder.path(), &loaded("gpt2"), SaveDtype::Float32, u64::MAX).expect("saved");
    let ours = fs::read(folder.path().join(SINGLE)).expect("ours");
    let theirs = fs::read(golden("gpt2").join(SINGLE)).expect("theirs");
    let (ours, theirs) = (
        SafeTensors::deserialize(&ours).expect("ours"),
        SafeTensors::deserialize(&theirs).expect("theirs"),
    );
    assert_eq!(ours.len(), theirs.len());
    for name in theirs.names() {
        assert_eq!(ours.tensor(name).ok(), theirs.tensor(name).ok(), "{name}");
    }
}

#[test]
fn rounding_is_to_nearest_even() {
    // Halfway between two bf16 values: 1 + 2^-8 falls to the even 1, 1 + 3 * 2^-8 rises to the even
    // 1 + 2^-6.
    let halves = [1.0 + 2_f32.powi(-8), 1.0 + 3.0 * 2_f32.powi(-8), f32::NAN];
    let tensors = [(spec("a", &[3], StoredLayout::OutIn), halves.to_vec())];
    let folder = tempfile::tempdir().expect("a temporary folder");
    put(folder.path(), &tensors, SaveDtype::Bfloat16, u64::MAX).expect("saved");
    let weights = Weights::open(folder.path()).expect("opened");
    let values = weights.load(&tensors[0].0).expect("loaded");
    assert_eq!(values[..2], [1.0, 1.0 + 2_f32.powi(-6)]);
    assert!(values[2].is_nan());
}

/// The names in `folder`, ascending.
fn listing(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = names
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_save_leaves_its_own_files_only_and_the_same_bytes_each_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tensors: Vec<_> = ["a", "b", "c"]
        .map(|name| (spec(name, &[4], StoredLayout::OutIn), vec![1.0; 4]))
        .into();
    put(folder.path(), &tensors, SaveDtype::Float32, u64::MAX).expect("single");
    assert_eq!(listing(folder.path()), [SINGLE]);
    let first = fs::read(folder.path().join(SINGLE)).expect("bytes");
    fs::write(folder.path().join("notes.txt"), "kept").expect("written");
    put(folder.path(), &tensors, SaveDtype::Float32, 32).expect("sharded");
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    assert_eq!(
        listing(folder.path()),
        [shards[0], shards[1], INDEX, "notes.txt"]
    );
    put(folder.path(), &tensors, SaveDtype::Float32, u64::MAX).expect("single again");
    assert_eq!(listing(folder.path()), [SINGLE, "notes.txt"]);
    assert_eq!(fs::read(folder.path().join(SINGLE)).expect("bytes"), first);
}

#[test]
fn a_failed_save_keeps_the_old_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let a = spec("a", &[2], StoredLayout::OutIn);
    let good = [(a.clone(), vec![1.0, 2.0])];
    put(folder.path(), &good, SaveDtype::Float32, u64::MAX).expect("saved");
    let fails: [(Vec<NamedTensor>, &str); 3] = [
        (
            vec![(a.clone(), vec![1.0])],
            "was given 1 values, its shape holds 2",
        ),
        (
            vec![(a.clone(), vec![1.0, 70_000.0])],
            "the value 70000, too large for float16",
        ),
        (
            vec![good[0].clone(), good[0].clone()],
            "`a` is listed twice",
        ),
    ];
    for (tensors, expected) in fails {
        let refused = put(folder.path(), &tensors, SaveDtype::Float16, u64::MAX);
        let message = refused.expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
    let fetch = |_: &TensorSpec| Err::<Cow<[f32]>, _>("the device is gone");
    let refused = save(
        folder.path(),
        std::slice::from_ref(&a),
        SaveDtype::Float32,
        1,
        &BTreeMap::new(),
        fetch,
    );
    assert!(matches!(refused, Err(WeightsError::Fetch { .. })));
    assert_eq!(listing(folder.path()), [SINGLE]);
    let weights = Weights::open(folder.path()).expect("the old ones");
    assert_eq!(weights.load(&a).expect("loaded"), [1.0, 2.0]);
}

#[test]
fn a_file_cut_short_is_named_with_both_sizes() {
    let whole = fs::read(golden("llama").join(SINGLE)).expect("the file");
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().expect("a length")) as usize;
    for cut in [0, 5, 100, header, whole.len() - 1] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join(SINGLE), &whole[..cut]).expect("written");
        let message = Weights::open(folder.path()).expect_err("cut").to_string();
        let found = format!("the file has {cut} bytes");
        assert!(
            message.contains(SINGLE) && message.contains(&found),
            "{message}"
        );
        if cut >= header {
            assert!(
                message.contains(&format!("needs {}", whole.len())),
                "{message}"
            );
        }
    }
}

#[test]
fn a_file_that_is_no_safetensors_is_named() {
    let whole = fs::read(golden("llama").join(SINGLE)).expect("the file");
    let longer = [&whole[..], b"more"].concat();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec();
    let negative = [&6_u64.to_le_bytes()[..], b"[1, 2]"].concat();
    for (bytes, expected) in [
        (longer, "not a safetensors file"),
        (pointer, "git lfs pull"),
        (negative, "not a safetensors file"),
        (vec![0xff; 64], "not a safetensors file"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join(SINGLE), bytes).expect("written");
        let message = Weights::open(folder.path())
            .expect_err(expected)
            .to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_folder_without_weights_is_told_what_was_expected() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let message = |folder: &Path| Weights::open(folder).expect_err("nothing").to_string();
    assert!(message(folder.path()).contains("no model.safetensors"));
    fs::write(folder.path().join("pytorch_model.bin"), "").expect("written");
    assert!(message(folder.path()).contains("convert pytorch_model.bin"));
    assert!(message(&folder.path().join("nowhere")).contains("no such folder"));
}

#[test]
fn a_tensor_that_does_not_fit_is_named() {
    let weights = Weights::open(&golden("llama")).expect("llama");
    let refusal = |name: &str, shape: &[usize]| {
        let refused = weights.load(&spec(name, shape, StoredLayout::OutIn));
        refused.expect_err(name).to_string()
    };
    let message = refusal("model.norm.weight", &[33]);
    assert!(
        message.contains("`model.norm.weight` has shape [32], but config.json describes [33]"),
        "{message}"
    );
    let message = refusal("model.layers.3.self_attn.q_proj.weight", &[32, 32]);
    assert!(
        message.contains("nearest is `model.layers.") && message.contains(SINGLE),
        "{message}"
    );
    assert!(!refusal("zzz", &[1]).contains("nearest"));
}

/// A folder whose one file holds `bytes` as the tensor `name`.
fn folder_with(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let view = TensorView::new(dtype, shape.to_vec(), bytes).expect("a view");
    let file = serialize([(name, view)], None).expect("serialised");
    fs::write(folder.path().join(SINGLE), file).expect("written");
    folder
}

#[test]
fn other_types_are_widened_or_refused() {
    let x = spec("x", &[2], StoredLayout::OutIn);
    let doubles: Vec<u8> = [0.1_f64, -2.0]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let folder = folder_with("x", Dtype::F64, &[2], &doubles);
    let weights = Weights::open(folder.path()).expect("opened");
    assert_eq!(weights.load(&x).expect("loaded"), [0.1, -2.0]);
    let folder = folder_with("x", Dtype::I8, &[2], &[1, 2]);
    let weights = Weights::open(folder.path()).expect("opened");
    let message = weights.load(&x).expect_err("integers").to_string();
    assert!(
        message.contains("`x` holds I8") && message.contains("supported are F32"),
        "{message}"
    );
}

#[test]
fn surplus_that_checkpoints_are_known_for_is_passed_over() {
    let specs = decoder("gpt2").tensors();
    for (name, passed_over) in [
        ("h.0.attn.bias", true),
        ("transformer.h.2.attn.masked_bias", true),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", true),
        ("rotary_emb.inv_freq", true),
        ("lm_head.weight", true),
        ("score.weight", true),
        ("score.bias", false),
        ("transformer.h.3.ln_1.weight", false),
        ("vision_tower.weight", false),
    ] {
        let folder = folder_with(name, Dtype::U8, &[1], &[0]);
        let weights = Weights::open(folder.path()).expect("opened");
        assert_eq!(weights.unexpected(&specs).is_empty(), passed_over, "{name}");
    }
}

#[test]
fn an_index_that_its_shards_contradict_is_refused() {
    let a = (spec("a", &[1], StoredLayout::OutIn), vec![1.0]);
    let b = (spec("b", &[1], StoredLayout::OutIn), vec![2.0]);
    let first = "model-00001-of-00002.safetensors";
    for (index, expected) in [
        (
            format!(r#"{{"weight_map": {{"a": "{first}", "b": "{first}"}}}}"#),
            "`b` is not in",
        ),
        (
            r#"{"weight_map": {"a": "model-9.safetensors"}}"#.into(),
            "`model-9.safetensors` is not in the folder",
        ),
        (
            r#"{"weight_map": {"a": "../other.safetensors"}}"#.into(),
            "not a file name",
        ),
        (r#"{"weight_map": {"a": 3}}"#.into(), "not a file name"),
        (r#"{"metadata": {}}"#.into(), "no object `weight_map`"),
        ("{".into(), "not JSON"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        put(
            folder.path(),
            &[a.clone(), b.clone()],
            SaveDtype::Float32,
            1,
        )
        .expect("sharded");
        fs::write(folder.path().join(INDEX), index).expect("written");
        let message = Weights::open(folder.path())
            .expect_err(expected)
            .to_string();
        assert!(
            message.contains(INDEX) && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn a_bare_llama_is_found_without_its_prefix() {
    let folder = folder_with("norm.weight", Dtype::F32, &[1], &1.5_f32.to_le_bytes());
    let weights = Weights::open(folder.path()).expect("opened");
    let norm = spec("model.norm.weight", &[1], StoredLayout::OutIn);
    assert_eq!(weights.load(&norm).expect("loaded"), [1.5]);
}

/// One of two files was rewritten by a program that drops metadata.
#[test]
fn a_note_that_not_all_files_bear_is_none() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let specs = ["a", "b"].map(|name| spec(name, &[1], StoredLayout::OutIn));
    let notes = BTreeMap::from([("key".to_owned(), "what it says".to_owned())]);
    let fetch = |_: &TensorSpec| Ok::<_, Infallible>(Cow::Owned(vec![1.0]));
    save(folder.path(), &specs, SaveDtype::Float32, 4, &notes, fetch).expect("two files");
    let note = |key: &str| {
        let weights = Weights::open(folder.path()).expect("opened");
        weights.note(key).map(str::to_owned)
    };
    assert_eq!(note("key").as_deref(), Some("what it says"));
    assert_eq!(note("other"), None);
    let second = folder.path().join("model-00002-of-00002.safetensors");
    save_file(
        &second,
        &specs[1..],
        SaveDtype::Float32,
        BTreeMap::new(),
        fetch,
    )
    .expect("anew");
    assert_eq!(note("key"), None);
}
