//! Values that are refused, and the messages.

use crate::config::tests::{SAMPLE, refusal, refused, resolve, resolve_text};

#[test]
fn a_rate_that_does_not_fall_has_no_end() {
    for (stage, usual) in [("pretrain", 0.1), ("sft", 0.0), ("ppo", 0.0)] {
        let constant = format!("{stage}.lr_scheduler_type=constant");
        let end = |ratio: f64| format!("{stage}.min_lr_ratio={ratio}");
        refused(
            &[&constant, &end(0.5)],
            &[&format!("{stage}.min_lr_ratio"), "\"constant\""],
        );
        // The file in a run folder writes the default out.
        assert!(resolve(&[&constant, &end(usual)]).is_ok());
        let falls = format!("{stage}.lr_scheduler_type=linear");
        assert!(resolve(&[&falls, &end(0.5)]).is_ok());
    }
    refused(&["ppo.min_lr_ratio=0.1"], &["ppo.min_lr_ratio"]);
}

#[test]
fn eval_steps_are_refused_where_nothing_is_held_out() {
    for stage in ["pretrain", "sft", "dpo", "orpo", "reward", "judge"] {
        let asked = format!("{stage}.eval_steps=7");
        let says = [
            &*format!("{stage}.eval_steps"),
            "without held-out records",
            "eval_data",
        ];
        refused(&[&asked], &says);
        for kept in ["eval_steps=0", "eval_steps=100"] {
            assert!(resolve(&[&format!("{stage}.{kept}")]).is_ok());
        }
        let held_out = format!("{stage}.eval_data=held_out.jsonl");
        assert!(resolve(&[&held_out, &asked]).is_ok());
    }
    assert!(resolve(&["sft.eval_fraction=0.1", "sft.eval_steps=7"]).is_ok());
    refused(
        &["pretrain.eval_batches=2"],
        &["pretrain.eval_batches", "eval_data"],
    );
}

#[test]
fn keys_without_effect_on_a_preference_loss_are_refused() {
    for (loss, key, only) in [
        ("ipo", "label_smoothing", "sigmoid"),
        ("simpo", "label_smoothing", "sigmoid"),
        ("sigmoid", "simpo_gamma", "simpo"),
        ("ipo", "simpo_gamma", "simpo"),
    ] {
        let (loss, value) = (format!("dpo.loss_type={loss}"), format!("dpo.{key}=0.2"));
        let says = format!("has no effect unless loss_type = \"{only}\"; remove it");
        let error = refusal(&[&loss, &value]);
        assert!(error.contains(&says), "{error}");
    }
    for (key, says) in [
        ("dpo.label_smoothing=0.5", "below 0.5"),
        ("dpo.beta=0", "must be larger than 0"),
        ("dpo.beta=inf", "must be finite and larger than 0"),
        ("dpo.weight_decay=inf", "must be finite and zero or larger"),
        ("dpo.loss_type=kto", "unknown word"),
        ("dpo.micro_batch_tokens=100", "2 × max_length = 2048"),
        ("dpo.early_stopping_patience=2", "early stopping needs"),
        ("dpo.gamma=1", "did you mean `simpo_gamma`?"),
    ] {
        let error = refusal(&[key]);
        assert!(error.contains(says), "{key}: {error}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    let error = resolve_text(&SAMPLE.replace("max_steps = 40", "kl_coeff = 1"), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ppo.kl_coeff (trial.toml:28): unknown key; did you mean `kl_coef`?"
    );
    assert!(refusal(&["ppo.lr=1e-3"]).contains("did you mean `learning_rate`?"));
    let error = refusal(&["model.layers=3"]);
    assert!(
        error.contains("unknown key; the nearest in [model] are "),
        "{error}"
    );
    assert!(error.contains("num_hidden_layers"), "{error}");
    assert!(error.matches(", ").count() == 9, "{error}");
    for (set, words) in [
        (
            "ppo.epsilon=0.1",
            "unknown key; TRL's `epsilon` is `cliprange` here",
        ),
        (
            "sft.report_to=[]",
            "TRL's `report_to` is no key here: metrics.jsonl has",
        ),
        (
            "run.bf16=true",
            "TRL's `bf16` is no key here: training is in float32",
        ),
        (
            "sft.warmup_ratio=0.1",
            "no key here: warmup_steps is the length",
        ),
        (
            "dpo.save_total_limit=2",
            "TRL's `save_total_limit` is `keep_last` here",
        ),
    ] {
        let error = refusal(&[set]);
        assert!(error.contains(words), "--set {set} gave: {error}");
    }
    let error = resolve_text(&SAMPLE.replace("[pretrain]", "[pretraining]"), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("[pretraining] (trial.toml:12): unknown table; did you mean [pretrain]?"),
        "{error}"
    );
    let error = resolve_text(&format!("seed = 1\n{SAMPLE}"), &[])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "seed (trial.toml:1): stands outside any table; put it under the table it belongs to, such \
         as [run]"
    );
}

#[test]
fn wrong_types_name_key_value_line_and_what_is_expected() {
    let error = resolve_text(
        &SAMPLE.replace("max_steps = 40", "max_steps = \"many\""),
        &[],
    )
    .unwrap_err()
    .to_string();
    let expected = "ppo.max_steps = \"many\" (trial.toml:28): invalid type: string \"many\", \
                    expected a whole number, zero or larger";
    assert_eq!(error, expected);
    assert!(refusal(&["ppo.kl_coef=high"]).contains("expected a number"));
    assert!(refusal(&["ppo.max_steps=-1"]).contains("ppo.max_steps = -1 (--set ppo.max_steps=-1)"));
    assert!(
        refusal(&["sft.lr_scheduler_type=step"])
            .contains("unknown word `step`, expected one of `cosine`")
    );
    assert!(refusal(&["run.device=gpu"]).contains("write `cpu` or `cuda:0`"));
    assert!(refusal(&["sft.data=3"]).contains("a list of { path"));
}

#[test]
fn all_problems_come_at_once() {
    let error = refusal(&["ppo.cliprange=0", "ppo.top_p=1.5", "sft.adam_beta2=1"]);
    assert!(
        error.starts_with("3 problems in the configuration:\n  sft.adam_beta2 = 1 "),
        "{error}"
    );
    assert!(error.contains(
        "\n  ppo.cliprange = 0 (--set ppo.cliprange=0): must be larger than 0; 0.2 is usual"
    ));
}

#[test]
fn batches_must_divide() {
    let error = refusal(&["ppo.num_mini_batches=3"]);
    assert!(
        error.contains(
            "must divide ppo.batch_size = 64; set batch_size = 66, or change num_mini_batches"
        ),
        "{error}"
    );
    let ppo = resolve(&["ppo.num_samples_per_prompt=4", "ppo.num_mini_batches=2"])
        .unwrap()
        .ppo
        .unwrap();
    assert_eq!(
        (ppo.prompts_per_iteration(), ppo.mini_batch_size()),
        (16, 32)
    );
}

#[test]
fn combinations_that_cannot_run_are_refused() {
    let cases = [
        ("model.from=some/folder", "remove this key or model.from"),
        (
            "model.num_key_value_heads=3",
            "must divide model.num_attention_heads = 4",
        ),
        (
            "model.num_attention_heads=3",
            "model.hidden_size = 64 (trial.toml:6): must be a multiple of \
             model.num_attention_heads = 3",
        ),
        ("model.vocab_size=300", "below tokenizer.vocab_size = 2048"),
        (
            "pretrain.context_length=256",
            "above model.max_position_embeddings = 128",
        ),
        ("pretrain.max_epochs=2", "max_steps = 100 is set too"),
        (
            "sft.early_stopping_patience=2",
            "needs eval_steps and held-out records",
        ),
        (
            "sft.max_length=9999",
            "cannot hold one row of max_length = 9999",
        ),
        (
            "sft.data=[{path=\"x\", weight=1}, {path=\"y\"}]",
            "1 weights for 2 files",
        ),
        ("ppo.min_new_tokens=99", "above max_new_tokens = 64"),
        ("run.name=a/b", "the path belongs in run.dir"),
        (
            "tokenizer.special_tokens=[\"<a>\", \"<a>\"]",
            "two different",
        ),
    ];
    for (set, words) in cases {
        let error = refusal(&[set]);
        assert!(error.contains(words), "--set {set} gave: {error}");
    }
}

#[test]
fn a_chat_template_is_for_a_tokenizer_that_the_run_trains() {
    let template = "tokenizer.chat_template=chat.jinja";
    resolve(&[template]).unwrap();
    let error = refusal(&[template, "tokenizer.from=some/folder"]);
    assert!(
        error.contains("has no effect: the tokenizer is read"),
        "{error}"
    );
}

#[test]
fn keys_of_evaluations_are_refused_where_nothing_is_evaluated() {
    for set in [
        "ppo.judge_model=judge",
        "ppo.lexicon=words.tsv",
        "ppo.eval_samples=8",
        "ppo.eval_steps=5",
        "ppo.eval_seed=1",
    ] {
        let error = refusal(&[set]);
        assert!(
            error.contains("has no effect without eval_prompts"),
            "--set {set} gave: {error}"
        );
        resolve(&[set, "ppo.eval_prompts=held_out.jsonl"]).unwrap();
    }
    // PPO then does not use the judge of [judge] either.
    let ppo = resolve(&["ppo.eval_steps=0"]).unwrap().ppo.unwrap();
    assert_eq!(ppo.judge_model, None);
}

#[test]
fn what_a_stage_needs_is_asked_for() {
    let refused = |text: &str| {
        resolve_text(text, &[])
            .expect_err("must be refused")
            .to_string()
    };
    assert!(refused("[run]\nname = \"a\"\n").contains("has no stage"));
    let error = refused("[run]\nname = \"a\"\n[sft]\ndata = \"x\"\n");
    assert!(
        error.contains("sft.from (trial.toml:3): is required: there is no model to start from"),
        "{error}"
    );
    let error = refused("[run]\nname = \"a\"\n[ppo]\nprompts = \"x\"\nfrom = \"y\"\n");
    assert!(
        error.contains("ppo.reward_model (trial.toml:3): is required: there is no reward model"),
        "{error}"
    );
    let error = refused("[model]\nhidden_size = 8\n[pretrain]\n");
    assert!(
        error.contains("run.name (trial.toml:1)")
            && error.contains("model.num_hidden_layers (trial.toml:1)")
    );
    assert!(
        error.contains("pretrain.data (trial.toml:3): is required"),
        "{error}"
    );
}

#[test]
fn held_out_records_are_not_drawn_and_take_no_weights() {
    for stage in ["pretrain", "sft", "dpo", "orpo", "reward", "judge"] {
        let weighted = format!("{stage}.eval_data=[{{ path = \"a.jsonl\", weight = 2.0 }}]");
        let key = format!("{stage}.eval_data");
        refused(&[&weighted], &[&key, "takes no weights"]);
    }
    for key in ["ppo.prompts", "ppo.eval_prompts"] {
        let weighted = format!("{key}=[{{ path = \"a.jsonl\", weight = 2.0 }}]");
        refused(&[&weighted], &[key, "takes no weights"]);
    }
}
