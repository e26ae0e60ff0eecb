//! A PPO iteration as the stage runs it, checkpoints apart: the `ppo` cases of the peers.
//!
//!     cargo bench --bench ppo_iteration
//!
//! Models are random and tokens words of a made-up vocabulary; sizes and settings are the peers'.

mod support;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use collimate::config::{Config, Document, Stage};
use collimate::model::Decoder;
use collimate::model::config::{Geometry, Head};
use collimate::model::weights::SaveDtype;
use collimate::ops::param::Training;
use collimate::stages;
use collimate::train::run_folder::Existing;
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

/// Iterations that are timed, behind one that warms up.
const TIMED: usize = 5;

struct Sizes {
    model: Geometry,
    tied: bool,
    batch: usize,
    prompt: usize,
    new: usize,
    epochs: usize,
    minibatches: usize,
}

fn main() -> Result<()> {
    support::run(&[("ppo quickstart", quickstart), ("ppo tiny6", tiny6)])
}

fn quickstart(case: &str) -> Result<()> {
    iterate(
        case,
        &Sizes {
            model: QUICKSTART,
            tied: true,
            batch: 64,
            prompt: 10,
            new: 40,
            epochs: 2,
            minibatches: 2,
        },
    )
}

fn tiny6(case: &str) -> Result<()> {
    iterate(
        case,
        &Sizes {
            model: support::TINY6,
            tied: false,
            batch: 32,
            prompt: 32,
            new: 64,
            epochs: 4,
            minibatches: 4,
        },
    )
}

fn iterate(case: &str, sizes: &Sizes) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = prepare(sizes, folder.path())?;
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
    support::report(
        case,
        json!({
            "seconds_per_iteration": part("time/step")?, "rollout": part("time/rollout")?,
            "score": part("time/score")?, "update": part("time/update")?,
            "peak_mib": support::peak_mib(),
        }),
    );
    Ok(())
}

/// Writes models and prompts and returns the configuration.
fn prepare(sizes: &Sizes, folder: &Path) -> Result<String> {
    let save = |model: Decoder, name: &str| -> Result<()> {
        let folder = folder.join(name);
        model.save(&folder, SaveDtype::F32)?;
        std::fs::write(
            folder.join("tokenizer.json"),
            tokenizer(sizes.model.vocab_size)?,
        )?;
        let special = json!({ "eos_token": "</s>", "pad_token": "<pad>" });
        std::fs::write(folder.join("tokenizer_config.json"), special.to_string())?;
        Ok(())
    };
    let random = |head| support::random(&sizes.model, head, sizes.tied, Training::Frozen);
    let mut policy = random(Head::LanguageModel)?;
    policy.config_mut().stop_ids = vec![2];
    save(policy, "policy")?;
    let mut reward = random(Head::Score)?;
    reward.config_mut().decoder.pad_token_id = Some(0);
    save(reward, "reward")?;
    let words = |i: usize| {
        (0..sizes.prompt).fold(String::new(), |mut text, j| {
            let _ = write!(text, "t{} ", 3 + (i * 977 + j * 31) % 1000);
            text
        })
    };
    let prompts = (0..sizes.batch * (TIMED + 1)).map(|i| json!({ "prompt": words(i).trim() }));
    let prompts: String = prompts.map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("prompts.jsonl"), prompts)?;
    let at = folder.display();
    Ok(format!(
        "[run]\nname = \"bench\"\ndir = \"{at}/runs\"\n\
         [ppo]\nfrom = \"{at}/policy\"\nreward_model = \"{at}/reward\"\nprompts = \"{at}/prompts.jsonl\"\n\
         batch_size = {}\nnum_ppo_epochs = {}\nnum_mini_batches = {}\nmax_new_tokens = {new}\nmin_new_tokens = {new}\n\
         max_steps = {}\nlearning_rate = 1e-5\nsave_steps = 1000\neval_steps = 0\n",
        sizes.batch,
        sizes.epochs,
        sizes.minibatches,
        TIMED + 1,
        new = sizes.new,
    ))
}

/// A tokenizer of whole words `t3`, `t4`, … behind the special tokens.
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
            json!({ "id": i, "content": s, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    Ok(serde_json::to_string(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "t3" },
    }))?)
}
