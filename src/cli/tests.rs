//! The contract of the command line: flags, exit codes, and help that teaches.

use std::path::Path;

use super::*;
use crate::config::diff::{Effect, diff};
use crate::config::{Config, Device, Document, Stage, reference};
use crate::train::run_folder::Existing;
use clap::CommandFactory;
use clap::error::ErrorKind;

fn generate(flags: &[&str]) -> Result<GenerateArgs, clap::Error> {
    let required = [
        "collimate",
        "generate",
        "--model",
        "m",
        "--prompts",
        "p",
        "--out",
        "o",
    ];
    match Cli::try_parse_from(required.iter().chain(flags))?.command {
        Command::Generate(args) => Ok(args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_an_example() {
    for command in Cli::command().get_subcommands() {
        let example = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let call = format!("collimate {}", command.get_name());
        assert!(
            example.contains(&call),
            "{} teaches by no example",
            command.get_name()
        );
    }
}

/// The calls that the help texts teach.
fn examples() -> Vec<String> {
    let cli = Cli::command();
    let help = |command: &clap::Command| command.get_after_help().map(ToString::to_string);
    let texts = cli
        .get_subcommands()
        .chain([&cli])
        .filter_map(help)
        .map(|text| text.replace("\\\n", " "));
    let calls = |text: String| {
        let call = |line: &str| {
            line.trim()
                .starts_with("collimate ")
                .then(|| line.to_owned())
        };
        text.lines().filter_map(call).collect::<Vec<_>>()
    };
    texts.flat_map(calls).collect()
}

/// The examples read bundled files, or outputs of `collimate run configs/quickstart.toml`, which is
/// the first example.
#[test]
fn examples_work_once_the_first_has_run() {
    for example in examples() {
        let words: Vec<&str> = example.split_whitespace().collect();
        let cli = Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{example}: {e}"));
        match cli.command {
            Command::Generate(args) => assert!(is_left(&args.model) && args.prompts.exists()),
            Command::Score(args) => assert!(is_left(&args.model) && args.data.exists()),
            Command::Export(args) => assert!(is_left(&args.model) && is_left(&args.adapter)),
            Command::Run(args) => drop(resolve(&args)),
            Command::Plan(args) => drop(Config::load(&args.config, &args.overrides).unwrap()),
            Command::Config(args) => drop(reference::explain(args.key.as_deref()).unwrap()),
            Command::Stage(command) => assert_can_run(&command.args, words[1]),
        }
    }
}

fn is_left(folder: &Path) -> bool {
    folder.starts_with("runs/quickstart")
}

/// The stage finds its models, and is not refused for continuing under other values.
fn assert_can_run(args: &ConfigArgs, name: &str) {
    let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name);
    let stage = stage.unwrap();
    let (plain, config) = (Config::load(&args.config, &[]).unwrap(), resolve(args));
    for (key, folder) in config.models_read(stage) {
        assert!(is_left(folder), "{name}: {key} = {}", folder.display());
    }
    let mut changes = diff(&plain, &config).unwrap().into_iter();
    let other = changes.any(|c| c.effect == Effect::ChangesResult && c.concerns(stage));
    let apart = args.existing() == Existing::SetAside || config.run.name != plain.run.name;
    assert!(apart || !other, "{name} would continue under other values");
}

/// The configuration of an example; the data that it names is there.
fn resolve(args: &ConfigArgs) -> Config {
    let document = Document::read(&args.config).unwrap();
    let document = document.with(&args.overrides).unwrap();
    let config = Config::resolve(&document).unwrap_or_else(|e| panic!("{e}"));
    config.check_files(&document, &config.stages()).unwrap();
    config
}

/// `configs/dpo.toml` continues from what the quickstart has left, so the tables that both have
/// must be the same.
#[test]
fn the_preference_example_continues_the_quickstart() {
    let load = |name: &str| Config::load(&Path::new("configs").join(name), &[]).unwrap();
    let changes = diff(&load("quickstart.toml"), &load("dpo.toml")).unwrap();
    let whole_tables = |change: &crate::config::diff::Change| !change.key.contains('.');
    assert!(changes.iter().all(whole_tables), "{changes:?}");
    assert!(
        changes
            .iter()
            .all(|change| change.effect == Effect::Harmless)
    );
}

/// Every bundled configuration resolves, and the data that it names is there.
#[test]
fn bundled_configurations_are_whole() {
    let entries = std::fs::read_dir("configs").unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let configs: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|kind| kind == "toml"))
        .collect();
    assert!(configs.len() >= 6, "{configs:?}");
    for file in configs {
        let config = Config::load(&file, &[]).unwrap_or_else(|e| panic!("{e}"));
        for stage in config.stages() {
            for (key, data) in config.data_files(stage) {
                assert!(data.exists(), "{}: {stage}.{key}", file.display());
            }
        }
    }
}

/// The two ways from one fine-tuned model: with a critic, and without.
#[test]
fn the_arithmetic_examples_differ_by_their_estimator_alone() {
    let load = |name: &str| Config::load(&Path::new("configs").join(name), &[]).unwrap();
    let (grpo, ppo) = (load("arithmetic.toml"), load("arithmetic_ppo.toml"));
    let (with, without) = (ppo.ppo.as_ref().unwrap(), grpo.ppo.as_ref().unwrap());
    assert_eq!(with.from, grpo.run.final_model(Stage::Sft));
    assert!(with.has_critic() && !without.has_critic());
    let its_own = [
        "from",
        "advantage_estimator",
        "whiten_advantages",
        "num_samples_per_prompt",
        "dynamic_sampling",
        "critic_from",
        "critic_learning_rate",
        // Without effect: the KL's weight is 0 in both.
        "kl_in",
        "kl_estimator",
    ];
    assert_eq!(with.objective.kl_coef, 0.0);
    for change in diff(&grpo, &ppo).unwrap() {
        let key = change.key.strip_prefix("ppo.");
        let shared = key.is_some_and(|key| !its_own.contains(&key));
        assert!(!shared, "{change}");
    }
}

#[test]
fn stages_read_overrides_and_fresh() {
    let line = [
        "collimate",
        "ppo",
        "c.toml",
        "--set",
        "ppo.kl_coef=0.1",
        "--set",
        "run.name=x",
        "--fresh",
    ];
    let cli = Cli::try_parse_from(line).unwrap();
    let Command::Stage(StageCommand { args, .. }) = cli.command else {
        panic!()
    };
    assert_eq!(
        (args.overrides.len(), args.existing()),
        (2, Existing::SetAside)
    );
    let error = Cli::try_parse_from(["collimate", "ppo", "c.toml", "--set", "kl=1"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(
        error.to_string().contains("expected TABLE.KEY=VALUE"),
        "{error}"
    );
}

#[test]
fn generate_has_the_flags_of_the_contract() {
    let flags = [
        "--n",
        "2",
        "--max-new-tokens",
        "9",
        "--temperature",
        "0.5",
        "--top-k",
        "3",
        "--top-p",
        "0.9",
        "--min-p",
        "0.1",
        "--stop",
        "a",
        "--stop",
        "b",
        "--ignore-eos",
        "--seed",
        "7",
        "--batch",
        "4",
        "--device",
        "cuda:0",
    ];
    let args = generate(&flags).unwrap();
    let generation = args.generation();
    assert_eq!(
        (
            generation.temperature,
            generation.top_k,
            generation.stop.len()
        ),
        (0.5, 3, 2)
    );
    assert_eq!(
        (args.decoding(), args.stop_tokens()),
        (DecodingKind::Sample, StopTokens::Ignore)
    );
    assert_eq!(
        (args.num_samples, args.seed, args.device),
        (2, 7, Device::Cuda(0))
    );
    assert_eq!(
        generate(&["--greedy"]).unwrap().decoding(),
        DecodingKind::Greedy
    );
}

#[test]
fn values_out_of_range_name_the_flag() {
    for (flags, range) in [
        (["--temperature", "0"], "must be larger than 0"),
        (
            ["--temperature", "1e-5"],
            "must lie between 0.0001 and 10000",
        ),
        (["--top-p", "1.5"], "must be above 0 and at most 1"),
        (["--min-p", "nan"], "must lie between 0 and 1"),
        (["--stop", ""], "an empty text would end every completion"),
    ] {
        let error = generate(&flags).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation, "{flags:?}");
        let says = error.to_string();
        assert!(says.contains(flags[0]) && says.contains(range), "{says}");
    }
    assert_eq!(
        generate(&["--n", "0"]).unwrap_err().kind(),
        ErrorKind::ValueValidation
    );
    assert_eq!(
        generate(&["--greedy", "--top-k", "3"]).unwrap_err().kind(),
        ErrorKind::ArgumentConflict
    );
}
