//! Memory of a forward and backward pass, counted by the allocator, against what `plan` lists. The
//! only test of this binary makes both comparisons, because the count is that of the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use collimate::config::{LoraTable, TargetModules};
use collimate::model::activations::TrainingPass;
use collimate::model::config::{DecoderConfig, Family, Geometry, TensorSpec, layer_of};
use collimate::model::hf_config::HfConfig;
use collimate::model::{Decoder, Gradient, Holding, Recompute};
use collimate::ops::backend::Backend;
use collimate::ops::head::{Target, most_logits};
use collimate::ops::param::Trainability;
use kernels::attention::Segments;

/// The system's allocator with a count of the bytes in use.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller guarantees.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller guarantees.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROWS: usize = 2048;
/// Few targets, so that the layers need more memory than the head.
const TARGETS: usize = 128;

/// Trained adapters on all projections of `base`.
fn adapted(base: &Decoder, rank: usize) -> Decoder {
    let table = LoraTable {
        r: Some(rank),
        target_modules: Some(TargetModules::AllLinear),
        ..LoraTable::default()
    };
    let head = base.decoder_config().head;
    Decoder::adapt(base, &table, head, 1, Trainability::Trained).expect("adapters")
}

fn fresh(family: Family, training: Trainability) -> Decoder {
    let sizes = Geometry {
        hidden_size: 64,
        intermediate_size: 160,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        num_key_value_heads: if family == Family::Gpt2 { 4 } else { 2 },
        head_dim: None,
        vocab_size: 512,
        max_position_embeddings: 128,
    };
    let config = DecoderConfig::from_scratch(family, &sizes).expect("a valid model");
    let config = HfConfig::new(config);
    Decoder::fresh(config, 1, |_| training, &Backend::CPU).expect("a model")
}

/// Bytes held between the two passes, and the peak of both passes, relative to the state before
/// them.
fn measured(model: &Decoder, recompute: Recompute) -> [usize; 2] {
    let ids: Vec<u32> = (0..ROWS as u32).map(|i| i * 7 % 128).collect();
    let segments = Segments::from_lengths([128; ROWS / 128]);
    let targets: Vec<Target> = (0..TARGETS).map(|row| Target::whole(row, 3)).collect();
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let hidden = model.forward(&ids, &segments, Gradient::Record(recompute));
    let hidden = hidden.expect("a pass");
    let held = LIVE.load(Ordering::Relaxed) - before;
    let found = model.log_probs(&hidden, &targets, 1.0).expect("log-probs");
    let loss = found.log_probs.sum_all().expect("a sum");
    drop(loss.backward().expect("gradients"));
    [held, PEAK.load(Ordering::Relaxed) - before]
}

/// The fixture in `folder` with the layers from `first` on trained.
fn fixture(folder: &Path, first: usize) -> Decoder {
    let head = HfConfig::read(folder)
        .expect("a configuration")
        .decoder
        .head;
    let holding = |spec: &TensorSpec| {
        Holding::Own(match layer_of(&spec.name) {
            Some(layer) if layer >= first => Trainability::Trained,
            _ => Trainability::Frozen,
        })
    };
    Decoder::load_sharing(folder, head, 1, holding, &Backend::CPU).expect("a model")
}

/// The columns that a layer of every fixture holds, to the column: what a pass holds with one more
/// recorded layer.
fn a_layer_holds_the_planned_columns() {
    let column = ROWS * size_of::<f32>();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    for folder in fixtures.read_dir().expect("fixtures") {
        let folder = folder.expect("a fixture").path();
        for recompute in [Recompute::None, Recompute::Block] {
            let [more, less] = [1, 2].map(|first| {
                let model = fixture(&folder, first);
                // A pass in which a thread allocates its scratch memory holds more.
                let held = (0..4).map(|_| measured(&model, recompute)[0]).min();
                let pass = TrainingPass {
                    decoder: model.decoder_config(),
                    lora: None,
                    rows: ROWS,
                    first,
                    recompute,
                };
                [held.expect("a measurement"), pass.held()]
            });
            let [found, planned] = [0, 1].map(|i| (more[i] - less[i] + column / 2) / column);
            assert_eq!(found, planned, "{} {recompute:?}", folder.display());
        }
    }
}

#[test]
fn a_pass_has_in_memory_what_is_planned() {
    a_layer_holds_the_planned_columns();
    for family in [Family::Llama, Family::Qwen3, Family::Gpt2] {
        a_model_has_in_memory_what_is_planned(
            &format!("{family:?}"),
            &fresh(family, Trainability::Trained),
        );
        // Of rank 256, the inner values take more than a tenth of the peak.
        for rank in [1, 256] {
            let name = format!("{family:?} with adapters of rank {rank}");
            let model = adapted(&fresh(family, Trainability::Frozen), rank);
            a_model_has_in_memory_what_is_planned(&name, &model);
        }
    }
}

fn a_model_has_in_memory_what_is_planned(name: &str, model: &Decoder) {
    for recompute in [Recompute::None, Recompute::Block] {
        // The scratch memory of the threads is allocated in the first pass.
        measured(model, recompute);
        let [held, peak] = measured(model, recompute);
        let pass = TrainingPass {
            decoder: model.decoder_config(),
            lora: model.lora(),
            rows: ROWS,
            first: 0,
            recompute,
        };
        let logits = most_logits(TARGETS, 512) * size_of::<f32>();
        // The head's backward pass has ended when that of the layers begins.
        let planned = [pass.held(), pass.held() + pass.backward().max(logits)];
        for (what, found, planned) in [("held", held, planned[0]), ("peak", peak, planned[1])] {
            let ratio = planned as f64 / found as f64;
            let words = format!(
                "{name} {recompute:?} {what}: {found} found, {planned} planned, {ratio:.3}"
            );
            println!("{words}");
            assert!((0.9..1.15).contains(&ratio), "{words}");
        }
    }
}
