//! A whole run: every stage writes its model, the same command then has nothing left to do, and a
//! changed configuration is accepted or refused depending on what it would change.

use serde_json::{Value, json};

use crate::refusal::refused;
use crate::support::{Workspace, lines, read};

const STAGES: [&str; 5] = ["pretrain", "sft", "dpo", "reward", "ppo"];

#[test]
fn every_stage_leaves_a_model_and_then_has_nothing_to_do() {
    let workspace = Workspace::new();
    let first = workspace.command("run config.toml").output();
    let first = String::from_utf8(first.expect("the binary").stdout).expect("UTF-8");
    let kept = |stage: &str| {
        let metrics = read(&workspace.stage("trial", stage).join("metrics.jsonl"));
        (workspace.weights("trial", stage), metrics)
    };
    for stage in STAGES {
        for file in [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            assert!(
                workspace.model("trial", stage).join(file).exists(),
                "{stage}/final/{file}"
            );
        }
        let table = format!("runs/trial/{stage}/final");
        assert!(first.contains(&table), "no {table} in {}", first);
    }
    for column in [
        "before",
        "after",
        "eval/perplexity",
        "eval/accuracy",
        "eval/rewards/margins",
        "KL per sequence",
    ] {
        assert!(first.contains(column), "no {column} in {}", first);
    }
    let before = STAGES.map(kept);
    let second = workspace.succeed("run config.toml");
    for stage in STAGES {
        let says = format!("{stage}: finished after");
        assert!(
            second.stderr.contains(&says),
            "no {says:?} in {}",
            second.stderr
        );
    }
    assert!(STAGES.map(kept) == before, "a finished stage was touched");
}

#[test]
fn the_first_special_token_ends_a_text_and_the_second_fills() {
    let workspace = Workspace::new();
    let specials = r#"--set tokenizer.special_tokens=["<end>","<fill>","<turn>"]"#;
    workspace.succeed(&format!(
        "pretrain config.toml {specials} --set pretrain.max_steps=1"
    ));
    let file = |name| read(&workspace.model("trial", "pretrain").join(name));
    let object = |name| serde_json::from_slice::<Value>(&file(name)).expect("JSON");
    let tokenizer = object("tokenizer_config.json");
    assert_eq!(tokenizer["eos_token"], "<end>");
    assert_eq!(tokenizer["pad_token"], "<fill>");
    let model = object("config.json");
    assert_eq!(
        (&model["eos_token_id"], &model["pad_token_id"]),
        (&json!(0), &json!(1))
    );
}

#[test]
fn a_change_that_would_change_the_result_is_refused() {
    let workspace = Workspace::trained();
    workspace.succeed("ppo config.toml --set ppo.max_steps=2");
    let weights = workspace.weights("trial", "ppo");

    let changed = "ppo config.toml --set ppo.max_steps=2 --set ppo.kl_coef=0.5";
    refused(
        &workspace,
        changed,
        &["ppo.kl_coef", "0.05", "0.5", "--fresh"],
    );
    assert!(workspace.weights("trial", "ppo") == weights);

    workspace.succeed(
        "ppo config.toml --set ppo.max_steps=2 --set ppo.save_steps=1 --set run.threads=1",
    );
    assert!(
        workspace.weights("trial", "ppo") == weights,
        "a harmless change is applied"
    );

    workspace.succeed(&format!("{changed} --fresh"));
    assert!(
        workspace.weights("trial", "ppo") != weights,
        "--fresh starts over"
    );
    let old = workspace
        .stage("trial", "ppo.old-1")
        .join("final/model.safetensors");
    assert!(read(&old) == weights, "--fresh sets the old stage aside");
}

#[test]
fn a_stage_that_has_not_begun_may_change() {
    let workspace = Workspace::new();
    workspace.succeed("pretrain config.toml --set pretrain.max_steps=5");
    workspace.succeed(
        "sft config.toml --set pretrain.max_steps=5 --set sft.learning_rate=1e-3 \
                       --set sft.max_steps=5",
    );
    // But a later stage may not start from something else.
    let changed = "reward config.toml --set pretrain.max_steps=6";
    refused(&workspace, changed, &["pretrain.max_steps"]);
}

/// Keys of a later stage do not keep an earlier one from starting over. The later stage continues
/// neither with these keys nor on the new model, and starts over on it alone.
#[test]
fn a_stage_starts_over_whatever_was_changed_for_later_stages() {
    let workspace = Workspace::new();
    let flags = |rate: &str| {
        let steps = "--set pretrain.max_steps=2 --set sft.max_steps=2";
        format!("{steps} --set pretrain.learning_rate={rate}")
    };
    let stage = |stage: &str, flags: &str| format!("{stage} config.toml {flags}");
    workspace.succeed(&stage("pretrain", &flags("1e-3")));
    workspace.succeed(&stage("sft", &flags("1e-3")));

    let changed = format!("{} --set sft.learning_rate=1e-4", flags("2e-3"));
    refused(
        &workspace,
        &stage("sft", &format!("{changed} --fresh")),
        &[
            "pretrain.learning_rate",
            "belongs to another configuration",
            "start over: collimate pretrain … --fresh, then collimate sft … --fresh",
        ],
    );
    workspace.succeed(&stage("pretrain", &format!("{changed} --fresh")));
    let other_keys = ["sft.learning_rate", "[sft]", "start over with --fresh"];
    refused(&workspace, &stage("sft", &changed), &other_keys);
    refused(
        &workspace,
        &stage("sft", &flags("2e-3")),
        &["other contents of sft.from"],
    );
    workspace.succeed(&stage("sft", &format!("{changed} --fresh")));
}

#[test]
fn a_finished_stage_goes_on_when_more_steps_are_asked_for() {
    let workspace = Workspace::new();
    let ask = |name: &str, steps: usize| {
        let constant = "pretrain.lr_scheduler_type=constant";
        format!(
            "pretrain config.toml --set run.name={name} --set {constant} \
             --set pretrain.max_steps={steps}"
        )
    };
    workspace.succeed(&ask("raised", 3));
    let short = workspace.weights("raised", "pretrain");
    workspace.succeed(&ask("raised", 6));
    workspace.succeed(&ask("whole", 6));
    let raised = workspace.weights("raised", "pretrain");
    assert!(raised != short, "three more steps changed nothing");
    assert!(raised == workspace.weights("whole", "pretrain"));
}

#[test]
fn a_finished_schedule_that_is_lengthened_says_how_to_train_on() {
    let workspace = Workspace::trained();
    workspace.succeed("sft config.toml --set sft.max_steps=2");
    let says = [
        "sft.max_steps: 2 → 4",
        "A finished cosine schedule cannot be lengthened",
        "set sft.from to runs/trial/sft/final under a new run.name",
    ];
    refused(&workspace, "sft config.toml --set sft.max_steps=4", &says);
    // Only a longer length alone is a wish to train on.
    for other in ["max_steps=1", "max_steps=4 --set sft.learning_rate=1e-3"] {
        let ended = workspace.run(&format!("sft config.toml --set sft.{other}"));
        ended.assert_refused(&["sft.max_steps: 2 → ", "Put the old values back"]);
        assert!(!ended.stderr.contains("To train on"), "{}", ended.stderr);
    }
    let fresh = workspace.succeed("sft config.toml --set sft.max_steps=4 --fresh");
    let kept = "runs/trial/sft is kept as runs/trial/sft.old-1";
    assert!(fresh.stderr.contains(kept), "{}", fresh.stderr);
}

/// A key has one line however many stages began with its old value, and a long list is cut.
#[test]
fn a_run_of_another_configuration_lists_each_key_once() {
    let workspace = Workspace::trained();
    workspace.succeed("sft config.toml --set sft.max_steps=1");
    workspace.succeed("dpo config.toml --set sft.max_steps=1 --set dpo.max_steps=1");
    let steps = "--set sft.max_steps=1 --set dpo.max_steps=1";
    let other = format!("run config.toml {steps} --set run.seed=77");
    let ended = workspace.run(&other);
    ended.assert_refused(&["runs/trial belongs to another configuration", "[sft, dpo]"]);
    assert_eq!(
        ended.stderr.matches("run.seed: ").count(),
        1,
        "{}",
        ended.stderr
    );
    let keys = [
        "learning_rate=1e-5",
        "batch_size=3",
        "warmup_steps=1",
        "weight_decay=0.5",
        "adam_beta1=0.5",
        "adam_beta2=0.5",
        "adam_epsilon=1e-5",
        "max_grad_norm=0.5",
        "max_length=17",
        "min_lr_ratio=0.9",
        "lr_scheduler_type=linear",
    ];
    let keys = keys.map(|key| format!(" --set sft.{key}")).concat();
    let ended = workspace.run(&format!("{other}{keys}"));
    ended.assert_refused(&["  and 2 more"]);
}

/// The checks come before the run's folder or the stage's is renamed.
#[test]
fn a_run_that_cannot_start_over_stays_where_it_is() {
    let workspace = Workspace::trained();
    workspace.succeed("sft config.toml --set sft.max_steps=1");
    let weights = workspace.weights("trial", "sft");
    workspace.write("broken.jsonl", "{\"question\": \"no answer\"}\n");
    let broken = "config.toml --set sft.data=broken.jsonl --fresh";
    for command in ["run", "sft"] {
        let ended = workspace.run(&format!("{command} {broken}"));
        ended.assert_refused(&["stage sft", "broken.jsonl:1"]);
        assert!(!ended.stderr.contains("is kept as"), "{}", ended.stderr);
    }
    assert!(workspace.weights("trial", "sft") == weights);
    assert!(!workspace.path("runs/trial.old-1").exists());
    // The models of the run that is set aside are made again, with other sizes.
    let workspace = Workspace::new();
    let short = "--set pretrain.max_steps=1 --set sft.max_steps=1 --set dpo.max_steps=1 \
                 --set reward.max_steps=1 --set ppo.max_steps=1";
    workspace.succeed(&format!("run config.toml {short}"));
    let sizes = "--set model.num_hidden_layers=1";
    workspace.succeed(&format!("run config.toml {short} {sizes} --fresh"));
    assert!(
        workspace
            .path("runs/trial.old-1/ppo/final/config.json")
            .exists()
    );
}

/// A model of the run that no stage of the file makes would be renamed away.
#[test]
fn a_run_that_reads_its_own_folder_is_not_set_aside() {
    let workspace = Workspace::trained();
    workspace.succeed("sft config.toml --set sft.max_steps=1");
    let one = "[run]\nname = \"trial\"\n[dpo]\nfrom = \"runs/trial/sft/final\"\n\
               data = \"pairs.jsonl\"\nmax_steps = 1\n";
    workspace.write("one.toml", one);
    let says = [
        "--fresh would rename runs/trial",
        "dpo.from",
        "collimate dpo … --fresh",
    ];
    refused(&workspace, "run one.toml --fresh", &says);
    // Another spelling of the same folder.
    let spelt = "run one.toml --fresh --set dpo.from=./runs/../runs/trial/sft/final";
    refused(&workspace, spelt, &says);
    let own = "sft config.toml --fresh --set sft.from=runs/trial/sft/final";
    let says = [
        "--fresh would rename runs/trial/sft",
        "copy it to another folder",
    ];
    refused(&workspace, own, &says);
    assert!(workspace.path("runs/trial/sft/final/config.json").exists());
}

#[test]
fn a_width_that_the_heads_do_not_divide_trains_where_head_dim_is_set() {
    let workspace = Workspace::new();
    let sizes = "--set model.family=mistral --set model.hidden_size=36 \
                 --set model.num_attention_heads=5 \
                 --set model.num_key_value_heads=1 --set model.head_dim=8";
    workspace.succeed(&format!(
        "pretrain config.toml {sizes} --set pretrain.max_steps=1"
    ));
    let config = read(&workspace.model("trial", "pretrain").join("config.json"));
    let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    assert_eq!(config["head_dim"], 8);
}

/// Metrics of every iteration of PPO.
const EVERY: [&str; 24] = [
    "step",
    "objective/kl",
    "objective/entropy",
    "objective/scores",
    "objective/rlhf_reward",
    "objective/kl_coef",
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/ratio_mean",
    "policy/grad_norm",
    "policy/learning_rate",
    "loss/policy",
    "loss/value",
    "value/explained_variance",
    "value/clip_fraction",
    "value/grad_norm",
    "rollout/tokens_per_second",
    "rollout/length_mean",
    "rollout/eos_fraction",
    "time/step",
    "time/rollout",
    "time/score",
    "time/update",
    "memory/peak_bytes",
];

/// Metrics of every evaluation.
const EVALUATED: [&str; 5] = [
    "eval/score",
    "eval/kl",
    "eval/length_mean",
    "eval/eos_fraction",
    "eval/distinct_2",
];

#[test]
fn ppo_writes_the_metrics_that_the_field_knows() {
    let workspace = Workspace::trained();
    workspace.succeed("ppo config.toml");
    let metrics = workspace.metrics("trial", "ppo");
    let steps: Vec<u64> = metrics
        .iter()
        .filter_map(|line| line["step"].as_u64())
        .collect();
    assert_eq!(steps, (0..=6).collect::<Vec<u64>>());
    for line in &metrics {
        let step = line["step"].as_u64().expect("a step");
        let evaluated = [0, 4, 6].contains(&step);
        let every = EVERY.iter().filter(|_| step > 0);
        for name in every.chain(EVALUATED.iter().filter(|_| evaluated)) {
            assert!(
                line.get(*name).is_some_and(|value| value.is_number()),
                "{name} in {line:?}"
            );
        }
        assert_eq!(line.contains_key("eval/score"), evaluated, "{line:?}");
    }
    assert_samples(&workspace, 3);
}

/// `samples.jsonl` holds every evaluated prompt with its completion and measures.
fn assert_samples(workspace: &Workspace, evaluations: usize) {
    let samples = lines(&workspace.stage("trial", "ppo").join("samples.jsonl"));
    assert_eq!(samples.len(), 8 * evaluations);
    for sample in &samples {
        for name in ["prompt", "completion"] {
            assert!(sample[name].is_string(), "{name} in {sample:?}");
        }
        for name in ["score", "kl", "step"] {
            assert!(sample[name].is_number(), "{name} in {sample:?}");
        }
    }
    // The seed is the same each time: before training, a prompt's completion is that of the
    // reference, with a KL of 0.
    assert!(
        samples[..8].iter().all(|s| s["kl"].as_f64() == Some(0.0)),
        "{samples:?}"
    );
}

#[test]
fn a_stage_whose_inputs_were_replaced_is_refused() {
    let workspace = Workspace::trained();
    let sets =
        "--set sft.max_steps=2 --set reward.max_steps=2 --set reward.from=runs/trial/sft/final";
    workspace.succeed(&format!("sft config.toml {sets}"));
    workspace.succeed(&format!("reward config.toml {sets}"));
    let sets = format!("{sets} --set sft.batch_size=8");
    workspace.succeed(&format!("sft config.toml {sets} --fresh"));
    let other = format!("reward config.toml {sets}");
    refused(&workspace, &other, &["reward.from", "--fresh"]);

    let pairs = read(&workspace.path("pairs.jsonl"));
    let pairs = String::from_utf8(pairs).expect("UTF-8");
    let fresh = format!("{other} --fresh");
    workspace.succeed(&fresh);
    workspace.write(
        "pairs.jsonl",
        pairs.trim_end().rsplit_once('\n').expect("pairs").0,
    );
    refused(&workspace, &other, &["reward.data", "--fresh"]);
    workspace.succeed(&fresh);
}

#[test]
fn a_stage_remembers_its_configuration_when_others_run_between() {
    let workspace = Workspace::trained();
    workspace.succeed("ppo config.toml --set ppo.max_steps=2");
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let without_ppo = config.split("[ppo]").next().expect("a table");
    workspace.write("no_ppo.toml", without_ppo);
    workspace.succeed("sft no_ppo.toml --set sft.max_steps=2");
    refused(
        &workspace,
        "ppo config.toml --set ppo.max_steps=2 --set ppo.cliprange=0.5 --set sft.max_steps=2",
        &["ppo.cliprange", "--fresh"],
    );
}

/// A stage that lost `final/` writes it again from its last checkpoint, without a step: the closing
/// table, the log and the weights are the same.
#[test]
fn a_finished_stage_reports_the_same_from_its_last_checkpoint() {
    let workspace = Workspace::trained();
    let patient = "--set sft.early_stopping_patience=2 --set sft.eval_steps=1 \
                   --set sft.learning_rate=3e-2 --set sft.lr_scheduler_type=constant \
                   --set sft.max_steps=60";
    for (stage, flags) in [
        ("sft", patient),
        ("reward", "--set reward.max_steps=3"),
        ("ppo", "--set ppo.max_steps=2 --set ppo.eval_steps=1"),
    ] {
        let arguments = format!("{stage} config.toml --set run.name=once-{stage} {flags}");
        let name = format!("once-{stage}");
        let run = || {
            let ended = workspace.command(&arguments).output().expect("the binary");
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(ended.status.success(), "{said}");
            let metrics = workspace.metrics(&name, stage);
            (ended.stdout, metrics, workspace.weights(&name, stage))
        };
        let (table, metrics, weights) = run();
        assert!(stage != "sft" || metrics.len() < 60, "it was not stopped");
        workspace.lose_final(&name, stage);
        let again = run();
        assert_eq!(again.0, table, "{stage}");
        assert_eq!(again.1, metrics, "{stage}");
        assert!(again.2 == weights, "{stage}");
    }
}
