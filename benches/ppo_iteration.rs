//! A PPO iteration as the stage runs it, without checkpoints: the `ppo` cases of the peers.
//!
//!     cargo bench --bench ppo_iteration
//!
//! Models have random weights and tokens are words of a made-up vocabulary; sizes and settings are
//! those of the peers' cases.

#[path = "support/floor.rs"]
mod floor;
mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use collimate::config::{Config, Document, LoraTable, Stage, TargetModules};
use collimate::model::Decoder;
use collimate::model::config::{Geometry, Head};
use collimate::model::weights::SaveDtype;
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use collimate::stages;
use collimate::train::run_folder::Existing;
use kernels::host::product::ProductKernel;
use serde_json::{Value, json};

/// The policy of the quickstart.
const QUICKSTART: Geometry = Geometry {
    hidden_size: 192,
    intermediate_size: 512,
    num_hidden_layers: 4,
    num_attention_heads: 6,
    num_key_value_heads: 6,
    head_dim: None,
    vocab_size: 2048,
    max_position_embeddings: 128,
};

/// Which weights the roles share.
#[derive(Clone, Copy)]
enum Sharing {
    None,
    /// The lowest 24 of SmolLM2's 30 layers are shared.
    Trunk,
    /// Everything but adapters of rank 16 on every projection is shared.
    Adapter,
}

enum Start {
    /// Random weights of these sizes.
    Random { sizes: Geometry, tied: bool },
    /// SmolLM2-135M-Instruct.
    SmolLm2(Sharing),
}

struct Case {
    model: Start,
    batch: usize,
    prompt: usize,
    new: usize,
    epochs: usize,
    minibatches: usize,
    /// Number of timed iterations, after one to warm up.
    timed: usize,
}

fn main() -> Result<()> {
    support::run(&[
        ("ppo quickstart", quickstart),
        ("ppo tiny6", tiny6),
        ("ppo smollm2 none", |case| smollm2(case, Sharing::None)),
        ("ppo smollm2 trunk", |case| smollm2(case, Sharing::Trunk)),
        ("ppo smollm2 adapter", |case| {
            smollm2(case, Sharing::Adapter)
        }),
    ])
}

fn quickstart(case: &str) -> Result<()> {
    iterate(
        case,
        &Case {
            model: Start::Random {
                sizes: QUICKSTART,
                tied: true,
            },
            batch: 64,
            prompt: 10,
            new: 40,
            epochs: 2,
            minibatches: 2,
            timed: 5,
        },
    )
}

fn tiny6(case: &str) -> Result<()> {
    iterate(
        case,
        &Case {
            model: Start::Random {
                sizes: support::TINY6,
                tied: false,
            },
            batch: 32,
            prompt: 32,
            new: 64,
            epochs: 4,
            minibatches: 4,
            timed: 5,
        },
    )
}

fn smollm2(case: &str, sharing: Sharing) -> Result<()> {
    iterate(
        case,
        &Case {
            model: Start::SmolLm2(sharing),
            batch: 32,
            prompt: 32,
            new: 64,
            epochs: 4,
            minibatches: 4,
            timed: 2,
        },
    )
}

/// Environment variable that tells a case to write its models and prompts into this folder and
/// exit.
const PREPARE_INTO: &str = "PREPARE_INTO";

fn iterate(name: &str, case: &Case) -> Result<()> {
    if let Some(folder) = std::env::var_os(PREPARE_INTO) {
        let folder = Path::new(&folder);
        return Ok(std::fs::write(
            folder.join("bench.toml"),
            prepare(case, folder)?,
        )?);
    }
    let folder = tempfile::tempdir()?;
    // A separate process, because the models are whole in memory while they are made.
    let made = Command::new(std::env::current_exe()?)
        .args(["--case", name])
        .env(PREPARE_INTO, folder.path())
        .status()?;
    ensure!(made.success(), "{name}: its models could not be made");
    let config = std::fs::read_to_string(folder.path().join("bench.toml"))?;
    let document = Document::parse(&config, Path::new("bench.toml"))?;
    let config = Config::resolve(&document)?;
    if std::env::var_os("PROFILE").is_some() {
        collimate::ops::profile::enable();
    }
    stages::run_stage(&config, Stage::Ppo, Existing::Continue)?;
    let metrics = std::fs::read_to_string(folder.path().join("runs/bench/ppo/metrics.jsonl"))?;
    let lines: Vec<Value> = metrics
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let part = |name: &str| -> Result<f64> {
        let times = lines
            .iter()
            .skip(1)
            .map(|line| line[name].as_f64().context("a time"));
        let mut times: Vec<f64> = times.collect::<Result<_>>()?;
        times.sort_by(f64::total_cmp);
        Ok(support::median(&times))
    };
    let (seconds, peak) = (part("time/step")?, support::peak_mib());
    let mut fields = json!({
        "seconds_per_iteration": seconds, "rollout": part("time/rollout")?,
        "score": part("time/score")?, "update": part("time/update")?, "peak_mib": peak,
    });
    if case.shares_nothing() {
        let least = case.least_seconds(folder.path())?;
        fields["share_of_floor"] = json!(least / seconds);
    }
    support::report(name, fields);
    Ok(())
}

impl Case {
    fn shares_nothing(&self) -> bool {
        matches!(
            self.model,
            Start::Random { .. } | Start::SmolLm2(Sharing::None)
        )
    }

    /// Lower bound of an iteration's seconds: sampling, one pass of critic, reference and reward
    /// model, and for each epoch three times the work of a pass for policy and critic. The head
    /// counts where a token is drawn or trained on.
    fn least_seconds(&self, folder: &Path) -> Result<f64> {
        let frozen = |_: &_| Trainability::Frozen;
        let (policy, head) = (folder.join("policy"), Head::LanguageModel);
        let policy = Decoder::load(&policy, head, 0, frozen, &Backend::CPU)?;
        let sizes = policy.decoder_config();
        let head = (sizes.vocab_size * sizes.hidden_size) as f64;
        let all = floor::multiply_adds(&policy);
        let (layers, batch) = (all - head, self.batch as f64);
        let (prompt, drawn) = (batch * self.prompt as f64, batch * self.new as f64);
        let of_layers = layers * (prompt + drawn);
        let updates = 3.0 * self.epochs as f64 * (2.0 * of_layers + head * drawn);
        let passes = prompt * layers + 3.0 * of_layers + head * drawn + updates;
        let kernel = ProductKernel::fastest();
        let step = floor::seconds(kernel, self.batch, all * batch, 4.0 * all);
        Ok(self.new as f64 * step + floor::seconds(kernel, 2048, passes, 0.0))
    }
}

/// Writes models and prompts and returns the configuration.
fn prepare(case: &Case, folder: &Path) -> Result<String> {
    let keys = match &case.model {
        Start::Random { sizes, tied } => random_models(sizes, *tied, folder)?,
        Start::SmolLm2(sharing) => smollm2_models(*sharing, folder)?,
    };
    let words = |i: usize| {
        (0..case.prompt).fold(String::new(), |mut text, j| {
            let _ = write!(text, "t{} ", 3 + (i * 977 + j * 31) % 1000);
            text
        })
    };
    let prompts = (0..case.batch * (case.timed + 1)).map(|i| json!({ "prompt": words(i).trim() }));
    let prompts: String = prompts.map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("prompts.jsonl"), prompts)?;
    let at = folder.display();
    Ok(format!(
        "[run]\nname = \"bench\"\ndir = \"{at}/runs\"\n\
         [ppo]\nfrom = \"{at}/policy\"\nreward_model = \"{at}/reward\"\n\
         prompts = \"{at}/prompts.jsonl\"\n\
         batch_size = {}\nnum_ppo_epochs = {}\nnum_mini_batches = {}\nmax_new_tokens = {new}\n\
         min_new_tokens = {new}\n\
         max_steps = {}\nlearning_rate = 1e-5\nsave_steps = 1000\neval_steps = 0\n{keys}",
        case.batch,
        case.epochs,
        case.minibatches,
        case.timed + 1,
        new = case.new,
    ))
}

/// Writes a policy and a reward model with random weights; returns no further keys.
fn random_models(sizes: &Geometry, tied: bool, folder: &Path) -> Result<String> {
    let random = |head| support::random(sizes, head, tied, Trainability::Frozen, &Backend::CPU);
    save(random(Head::LanguageModel)?, &folder.join("policy"))?;
    save(random(Head::Score)?, &folder.join("reward"))?;
    Ok(String::new())
}

/// Writes SmolLM2 as the policy, and under a new head as the reward model; returns the keys of
/// sharing.
fn smollm2_models(sharing: Sharing, folder: &Path) -> Result<String> {
    let load = |head| {
        let frozen = |_: &_| Trainability::Frozen;
        Decoder::load(Path::new(support::SMOLLM2), head, 0, frozen, &Backend::CPU)
    };
    let (policy, reward) = (folder.join("policy"), folder.join("reward"));
    save(load(Head::LanguageModel)?, &policy)?;
    let lora = "lora = { r = 16, target_modules = \"all-linear\" }";
    Ok(match sharing {
        Sharing::None => {
            save(load(Head::Score)?, &reward)?;
            String::new()
        }
        Sharing::Trunk => {
            save(load(Head::Score)?, &reward)?;
            "share = \"trunk\"\ntrunk_layers = 24\n".to_owned()
        }
        Sharing::Adapter => {
            let config = LoraTable {
                r: Some(16),
                lora_alpha: Some(32.0),
                target_modules: Some(TargetModules::AllLinear),
                ..LoraTable::default()
            };
            let base = load(Head::LanguageModel)?;
            let adapted = Decoder::adapt(&base, &config, Head::Score, 0, Trainability::Frozen)?;
            adapted.save_adapter(&reward, &policy, SaveDtype::Float32)?;
            tokenizer_files(&reward, base.decoder_config().vocab_size)?;
            format!("share = \"adapter\"\n{lora}\n")
        }
    })
}

fn save(mut model: Decoder, folder: &Path) -> Result<()> {
    match model.decoder_config().head {
        Head::LanguageModel => model.config_mut().stop_ids = vec![2],
        Head::Score => model.config_mut().decoder.pad_token_id = Some(0),
    }
    model.save(folder, SaveDtype::Float32)?;
    tokenizer_files(folder, model.decoder_config().vocab_size)
}

fn tokenizer_files(folder: &Path, size: usize) -> Result<()> {
    std::fs::write(folder.join("tokenizer.json"), tokenizer(size)?)?;
    let special = json!({ "eos_token": "</s>", "pad_token": "<pad>" });
    Ok(std::fs::write(
        folder.join("tokenizer_config.json"),
        special.to_string(),
    )?)
}

/// A tokenizer of whole words `t3`, `t4`, … after the special tokens.
fn tokenizer(size: usize) -> Result<String> {
    let special = ["<pad>", "<s>", "</s>"];
    let words = special
        .iter()
        .map(|s| (*s).to_owned())
        .chain((3..size).map(|i| format!("t{i}")));
    let vocabulary: serde_json::Map<String, Value> =
        words.enumerate().map(|(i, w)| (w, i.into())).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, s)| {
            json!({ "id": i, "content": s, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    Ok(serde_json::to_string(&json!({
        "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "t3" },
    }))?)
}
