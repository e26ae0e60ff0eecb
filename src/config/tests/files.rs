//! Files and models that a configuration names, and whether they exist.

use std::path::Path;

use crate::config::tests::SAMPLE;
use crate::config::{Config, Document, Stage};

#[test]
fn files_are_looked_for_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let present = folder.path().join("prompts.jsonl");
    std::fs::write(&present, "{}").unwrap();
    let text = SAMPLE
        .replace("prompts.jsonl", &present.display().to_string())
        .replace("\"pairs.jsonl\"", "\"pairs.jsonl\"\nfrom = \".\"");
    let document = Document::parse(&text, Path::new("trial.toml")).unwrap();
    let config = Config::resolve(&document).unwrap();
    let error = config
        .check_files(&document, &[Stage::Reward])
        .unwrap_err()
        .to_string();
    let looked = std::env::current_dir().unwrap().join("pairs.jsonl");
    let expected = format!(
        "reward.data = \"pairs.jsonl\" (trial.toml:21): no such file or folder (looked for {})",
        looked.display()
    );
    assert_eq!(error, expected);
}

#[test]
fn a_stage_asks_for_those_whose_models_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let text = SAMPLE
        .replace("[run]", &format!("[run]\ndir = {:?}", folder.path()))
        .replace("prompts.jsonl", "Cargo.toml")
        .replace("pairs.jsonl", "Cargo.toml");
    let document = Document::parse(&text, Path::new("trial.toml")).unwrap();
    let config = Config::resolve(&document).unwrap();
    let refused = |stages: &[Stage]| {
        let error = config.check_files(&document, stages).unwrap_err();
        error.to_string()
    };
    let error = refused(&[Stage::Ppo]);
    for (key, stage) in [("ppo.from", "sft"), ("ppo.reward_model", "reward")] {
        let path = folder.path().join("trial").join(stage).join("final");
        let line = format!(
            "{key} = \"{}\" (the default): stage {stage} has not written its model yet; run \
             `collimate {stage}` with",
            path.display()
        );
        assert!(error.contains(&line), "{error}");
    }
    // A folder that an earlier stage of the same command makes need not exist yet.
    let error = refused(&[Stage::Reward, Stage::Ppo]);
    assert!(
        error.contains("reward.from") && error.contains("ppo.from"),
        "{error}"
    );
    assert!(!error.contains("ppo.reward_model"), "{error}");
    for stage in [Stage::Sft, Stage::Reward] {
        std::fs::create_dir_all(config.run.final_model(stage)).unwrap();
    }
    config.check_files(&document, &[Stage::Ppo]).unwrap();
}

#[test]
#[cfg(not(feature = "hub"))]
fn a_name_of_the_hub_asks_for_the_feature() {
    let text =
        "[run]\nname = \"a\"\n[model]\nfrom = \"owner/name\"\n[sft]\ndata = \"Cargo.toml\"\n";
    let document = Document::parse(text, Path::new("trial.toml")).unwrap();
    let config = Config::resolve(&document).unwrap();
    let error = config.check_files(&document, &[Stage::Sft]).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("model.from = \"owner/name\" (trial.toml:4)"),
        "{error}"
    );
    assert!(error.contains("--features hub"), "{error}");
}

#[test]
fn a_missing_start_is_reported_once() {
    let text = "[run]\nname = \"a\"\n[model]\nfrom = \"no-such\"\n[sft]\ndata = \"Cargo.toml\"\n";
    let document = Document::parse(text, Path::new("trial.toml")).unwrap();
    let config = Config::resolve(&document).unwrap();
    assert_eq!(config.sft.as_ref().unwrap().from, Path::new("no-such"));
    let error = config
        .check_files(&document, &[Stage::Sft])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("model.from = \"no-such\" (trial.toml:4): no such file"),
        "{error}"
    );
}

#[test]
fn a_folder_of_a_stage_names_the_model_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display();
    let stage = folder.path().join("mine/sft");
    std::fs::create_dir_all(stage.join("final")).unwrap();
    // Another run's folder, and this run's.
    for dir in ["elsewhere".to_owned(), format!("{root}")] {
        let text = format!(
            "[run]\nname = \"mine\"\ndir = {dir:?}\n[dpo]\nfrom = \"{root}/mine/sft\"\n\
             data = \"Cargo.toml\"\n"
        );
        let document = Document::parse(&text, Path::new("trial.toml")).unwrap();
        let config = Config::resolve(&document).unwrap();
        let check = || config.check_files(&document, &[Stage::Dpo]);
        std::fs::write(stage.join("final/config.json"), "{}").unwrap();
        let error = check().unwrap_err().to_string();
        let meant = format!("did you mean \"{root}/mine/sft/final\"?");
        assert!(
            error.contains("dpo.from") && error.contains(&meant),
            "{error}"
        );
        // A folder with a model of its own is what was meant.
        std::fs::write(stage.join("config.json"), "{}").unwrap();
        check().unwrap();
        std::fs::remove_file(stage.join("config.json")).unwrap();
    }
}
