//! `plan`: a table for each stage, from sizes alone.

use std::fs;

use serde_json::{Value, json};

use crate::language::{CONFIG, files};
use crate::support::{Ended, Workspace, fixture};

/// The cells of each non-empty line, table by table, without the line of the peak.
pub fn tables(text: &str) -> Vec<Vec<Vec<&str>>> {
    let mut tables: Vec<Vec<Vec<&str>>> = Vec::new();
    let lines = text.lines().filter(|l| !l.starts_with("Peak "));
    for line in lines.filter(|l| l.contains(char::is_alphanumeric)) {
        let cells: Vec<&str> = line
            .split("  ")
            .map(str::trim)
            .filter(|c| !c.is_empty())
            .collect();
        match cells.contains(&"in all") {
            true => tables.push(vec![cells]),
            false => tables.last_mut().expect("a heading first").push(cells),
        }
    }
    tables
}

fn heads<'a>(table: &[Vec<&'a str>]) -> Vec<&'a str> {
    table.iter().map(|cells| cells[0]).collect()
}

/// The tables of a run whose data `file` does not exist yet: they are printed before the missing
/// file is named.
#[track_caller]
fn priced<'a>(ended: &'a Ended, file: &str) -> Vec<Vec<Vec<&'a str>>> {
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(file), "{}", ended.stderr);
    tables(&ended.stdout)
}

#[test]
fn a_reward_model_that_ppo_does_not_read_is_noted() {
    let workspace = Workspace::new();
    workspace.write("config.toml", CONFIG);
    let note = "[reward] trains a model that [ppo] does not read";
    let rules = r#"--set ppo.rewards=[{type="length",max=3}]"#;
    for (flags, noted) in [("", false), (rules, true)] {
        let ended = workspace.run(&format!("plan config.toml {flags}"));
        assert_eq!(ended.stderr.contains(note), noted, "{}", ended.stderr);
    }
}

/// Models of the run, and data, that do not exist yet.
#[test]
fn every_stage_has_its_table_before_anything_is_made() {
    let workspace = Workspace::new();
    workspace.write("config.toml", CONFIG);
    let ended = workspace.run(
        "plan config.toml --set sft.lora.r=4 --set sft.lora.layers_to_transform=top:1 \
         --set ppo.target_kl=0.1 \
         --set ppo.rollback_kl_factor=2.0",
    );
    let tables = priced(&ended, "text.jsonl");
    let [pretrain, sft, dpo, reward, ppo] = &tables[..] else {
        panic!("{}", ended.stdout);
    };
    let activations = "activations of 248 tokens";
    assert_eq!(
        heads(pretrain),
        ["pretrain (MiB)", "model", activations, "log-prob chunk",]
    );
    assert_eq!(heads(sft)[1..3], ["base", "adapters"]);
    assert_eq!(heads(dpo)[0..2], ["dpo (MiB)", "model"]);
    assert_eq!(heads(reward)[0..2], ["reward (MiB)", "model"]);
    assert_eq!(
        heads(ppo),
        [
            "ppo (MiB)",
            "actor",
            "critic",
            "reference",
            "reward",
            "cache of 1024 tokens",
            "panels for generation",
            "activations of 512 tokens",
            "log-prob chunk",
            "rollback copy",
            "the prompts or their tokenizer do not exist yet: prompts of 52 tokens are assumed, \
             the longest that fit (the policy's context holds 64, of which the response may take \
             12)",
            "not counted: the program itself, about 80 MiB, and in stage pretrain the tokenizing \
             of its text, about 110 bytes for each byte of it",
        ]
    );
    let peaks: Vec<&str> = ended
        .stdout
        .lines()
        .filter(|l| l.starts_with("Peak "))
        .collect();
    assert_eq!(peaks.len(), 5, "{}", ended.stdout);
    let first = ended.stdout.lines().next().expect("a line");
    assert!(first.ends_with(" MiB in stage pretrain"), "{first}");
    assert!(ended.stdout.starts_with(peaks[0]), "{}", ended.stdout);
    // Parameters: embedding 320 · 32; per layer two norms of 32, q and o of 32 · 32, k and v of 16
    // · 32, three of 64 · 32; a final norm; × 4 bytes.
    let elements = 320 * 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32) + 32;
    let mib = |count: f64| format!("{:.1}", elements as f64 * 4.0 * count / f64::from(1 << 20));
    let model = ["model".to_owned(), mib(1.0), mib(1.0), mib(2.0), mib(4.0)];
    assert_eq!(pretrain[1], model);
    assert_eq!(workspace.names(), ["config.toml"], "a plan writes nothing");
}

/// A judge that shares layers with the other roles owns as much as a reward model does; any other
/// judge owns a whole model.
#[test]
fn a_judge_is_listed_with_what_it_will_own() {
    let workspace = Workspace::new();
    let judge = "\n[judge]\ndata = \"pairs.jsonl\"\n";
    workspace.write("config.toml", &(CONFIG.to_owned() + judge));
    let rows = |flags: &str| {
        let ended = workspace.run(&format!(
            "plan config.toml --set ppo.eval_prompts=more.jsonl {flags}"
        ));
        let tables = priced(&ended, "more.jsonl");
        let ppo = tables.last().expect("tables");
        let row = |name: &str| {
            let row = ppo.iter().find(|cells| cells[0] == name);
            row.expect(name)[1].to_owned()
        };
        [row("reward"), row("judge")]
    };
    let whole = rows("")[1].clone();
    let trunk = "--set ppo.share=trunk --set ppo.trunk_layers=1 --set reward.freeze_layers=1";
    let [branch, judge] = rows(&format!("{trunk} --set judge.freeze_layers=1"));
    assert!(judge == branch && judge != whole, "{judge} {branch}");
    for other in ["", "--set judge.freeze_layers=1 --set judge.from=elsewhere"] {
        if !other.is_empty() {
            let from = workspace.path("elsewhere");
            fs::create_dir(&from).expect("a folder");
            let sizes = fs::read(fixture("llama").join("config.json")).expect("a fixture");
            let mut sizes: Value = serde_json::from_slice(&sizes).expect("JSON");
            sizes["vocab_size"] = json!(320);
            fs::write(from.join("config.json"), sizes.to_string()).expect("a file");
        }
        assert_ne!(rows(&format!("{trunk} {other}"))[1], branch, "{other}");
    }
    assert_eq!(rows(trunk)[1], whole);
    let adapter = "--set ppo.share=adapter --set reward.lora.r=4";
    let [branch, judge] = rows(&format!("{adapter} --set judge.lora.r=4"));
    assert!(judge == branch && judge != whole, "{judge} {branch}");
    assert_eq!(rows(adapter)[1], whole);
}

/// A model of realistic size without a weights file.
#[test]
fn a_folder_is_asked_for_its_sizes_alone() {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    fs::remove_file(workspace.path("model/model.safetensors")).expect("a file");
    let file = workspace.path("model/config.json");
    let mut sizes: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    sizes["vocab_size"] = json!(128_256);
    sizes["hidden_size"] = json!(1024);
    workspace.write("model/config.json", &sizes.to_string());
    workspace.write(
        "config.toml",
        "[run]\nname = \"trial\"\n[model]\nfrom = \"model\"\n[dpo]\ndata = \"pairs.jsonl\"\n\
         micro_batch_tokens = 2048\n",
    );
    let ended = workspace.run("plan config.toml");
    let tables = priced(&ended, "pairs.jsonl");
    let chunk = tables[0].iter().find(|cells| cells[0] == "log-prob chunk");
    // From 384 rows on, a pass over the head pays.
    let mib = 384.0 * 128_256.0 * 4.0 / f64::from(1 << 20);
    assert_eq!(chunk.expect("a row")[1], format!("{mib:.1}"));
}

#[test]
fn what_cannot_be_planned_is_said() {
    let workspace = Workspace::new();
    let missing =
        "[run]\nname = \"trial\"\n[model]\nfrom = \"nowhere\"\n[sft]\ndata = \"sft.jsonl\"\n";
    workspace.write("config.toml", missing);
    let ended = workspace.run("plan config.toml");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("nowhere"), "{}", ended.stderr);
    workspace.write("sft.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    let model = fixture("llama");
    let ended = workspace.run(&format!(
        "plan config.toml --set model.from={} --set sft.lora.target_modules=[\"c_attn\"]",
        model.display()
    ));
    assert_eq!(ended.code, Some(1));
    for word in ["sft.lora", "c_attn"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

/// A policy that is still to be tuned on pairs, and PPO that starts from it.
#[test]
fn what_preference_tuning_trains_is_counted() {
    let workspace = Workspace::new();
    let text = format!(
        "[run]\nname = \"trial\"\n[model]\nfrom = {:?}\n[dpo]\ndata = \"pairs.jsonl\"\n[ppo]\n\
         prompts = \"prompts.jsonl\"\n\
         from = \"runs/trial/dpo/final\"\ncritic_from = \"policy\"\nmax_new_tokens = 4\n\
         [[ppo.rewards]]\ntype = \"json\"\n",
        fixture("llama")
    );
    workspace.write("config.toml", &text);
    let planned = |flags: &str| {
        let ended = workspace.run(&format!("plan config.toml {flags}"));
        priced(&ended, "pairs.jsonl");
        ended.stdout
    };
    let whole = planned("");
    assert_eq!(heads(&tables(&whole)[0])[..2], ["dpo (MiB)", "model"]);
    let actor = "--set ppo.share=adapter --set dpo.lora.r=4";
    let adapters = planned(actor);
    let tables = tables(&adapters);
    let [dpo, ppo] = &tables[..] else {
        panic!("{adapters}");
    };
    assert_eq!(heads(dpo)[..3], ["dpo (MiB)", "base", "adapters"]);
    // The adapters belong to the actor, and the reference keeps a frozen copy of the initial ones.
    let roles = ["ppo (MiB)", "base", "actor", "critic", "reference"];
    assert_eq!(heads(ppo)[..5], roles);
}

/// The roles of `[ppo]` planned before the models exist, and again afterwards: with adapters that
/// one stage makes and another stage reads, and with adapters that no table describes.
#[test]
fn a_model_to_be_made_is_planned_as_what_is_then_made() {
    for lora in ["--set sft.lora.r=4", ""] {
        let workspace = Workspace::new();
        workspace.write("config.toml", CONFIG);
        for (name, contents) in files() {
            workspace.write(name, &contents);
        }
        // A few steps, and the adapters that the reward model will have.
        let set = format!(
            "{lora} --set ppo.share=adapter --set reward.lora.r=4 --set pretrain.max_steps=1 \
             --set sft.max_steps=1 --set reward.max_steps=1"
        );
        let roles = || {
            let ended = workspace.run(&format!("plan config.toml {set}"));
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            let tables = tables(&ended.stdout);
            let ppo = tables.last().expect("tables");
            let roles = ppo.iter().skip(1);
            let roles = roles.take_while(|cells| !cells[0].starts_with("cache"));
            roles.map(|cells| cells.join(" ")).collect::<Vec<String>>()
        };
        let before = roles();
        assert!(before[0].starts_with("base "), "{before:?}");
        for stage in ["pretrain", "sft", "reward"] {
            let ended = workspace.run(&format!("{stage} config.toml {set}"));
            assert_eq!(ended.code, Some(0), "{stage}: {}", ended.stderr);
        }
        assert_eq!(roles(), before, "{lora}");
    }
}

/// `[reward]` continues the adapters that it starts from, whether they exist or are yet to be made.
#[test]
fn adapters_that_are_continued_have_the_settings_of_their_start() {
    let workspace = Workspace::new();
    workspace.write("config.toml", CONFIG);
    for (name, contents) in files() {
        workspace.write(name, &contents);
    }
    let set = "--set sft.lora.r=4 --set sft.lora.lora_alpha=16 --set pretrain.max_steps=1 --set \
               sft.max_steps=1";
    let other = "--set reward.lora.lora_alpha=32";
    let says = "[reward.lora] continues the adapter in runs/trial/sft/final, so its settings must \
                match: lora_alpha is 32 here, 16 there";
    let refused = |command: &str| {
        let ended = workspace.run(&format!("{command} config.toml {set} {other}"));
        assert_eq!(ended.code, Some(1), "{}", ended.stdout);
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    };
    refused("plan");
    let ended = workspace.run(&format!(
        "plan config.toml {set} --set reward.lora.lora_alpha=16"
    ));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for stage in ["pretrain", "sft"] {
        let ended = workspace.run(&format!("{stage} config.toml {set}"));
        assert_eq!(ended.code, Some(0), "{stage}: {}", ended.stderr);
    }
    refused("plan");
    refused("reward");
}

/// The tables are printed to show what takes the memory; then the first stage that does not fit is
/// named.
#[test]
fn a_plan_beyond_this_machine_fails() {
    let workspace = Workspace::new();
    workspace.write("config.toml", CONFIG);
    for (name, contents) in files() {
        workspace.write(name, &contents);
    }
    let ended = workspace.run(
        "plan config.toml --set model.hidden_size=16384 --set model.intermediate_size=65536 \
         --set model.num_hidden_layers=1000",
    );
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(!tables(&ended.stdout).is_empty());
    for part in [
        "stage pretrain needs",
        "GiB of memory at once",
        "this machine has",
    ] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
}
