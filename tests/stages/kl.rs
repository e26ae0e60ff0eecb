//! The KL of policy and reference in real runs whose sampling cuts the distribution, compared with
//! Σ log π − log π_ref over the whole vocabulary, computed here from the logits of both models.
//! Also: what a KL without a weight leaves out.

use std::path::Path;

use collimate::data::tokenizer::Tokenizer;
use collimate::model::config::Head;
use collimate::model::generator::Generator;
use collimate::model::{Decoder, Gradient};
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use collimate::random::Purpose;
use kernels::attention::Segments;
use kernels::random::Key;
use rollout::{Completion, Decoding, GenerationSettings, Request, Sampling, generate};

use crate::on_policy::number;
use crate::support::{Line, Workspace, lines, read, records};

/// Sampling that keeps three tokens, and no token that ends a completion at first.
const CUT: &str = "--set ppo.top_k=3 --set ppo.temperature=0.8 --set ppo.min_new_tokens=2";
const SAMPLING: Sampling = Sampling {
    temperature: 0.8,
    top_k: 3,
    top_p: 1.0,
    min_p: 0.0,
};
const MIN_NEW_TOKENS: usize = 2;

/// One epoch of one minibatch per iteration, with raw scores as rewards, so that the KL metrics
/// follow from a single batch.
const PLAIN: &str = "--set ppo.num_mini_batches=1 --set ppo.num_ppo_epochs=1 \
                     --set ppo.score_normalization=none --set ppo.kl_coef=0.5 \
                     --set ppo.learning_rate=5e-3";

/// The only training prompt, so that the order of prompts does not matter.
const PROMPT: &str = "the old king painted a";

fn workspace() -> Workspace {
    let workspace = Workspace::trained();
    let prompt = |_| serde_json::json!({ "prompt": PROMPT });
    workspace.write("prompts.jsonl", &records(0, 16, prompt));
    workspace
}

/// Runs PPO for some iterations under its own name and returns the metrics.
#[track_caller]
fn run(workspace: &Workspace, name: &str, iterations: usize, flags: &str) -> Vec<Line> {
    let set = format!("--set run.name={name} --set ppo.max_steps={iterations}");
    workspace.succeed(&format!("ppo config.toml {set} {PLAIN} {flags}"));
    workspace.metrics(name, "ppo")
}

fn load(folder: &Path) -> Decoder {
    let frozen = |_: &_| Trainability::Frozen;
    Decoder::load(folder, Head::LanguageModel, 0, frozen, &Backend::CPU).expect("a model")
}

/// The policy after the first iteration, which sampled the second batch, and the reference.
struct Policies {
    tokenizer: Tokenizer,
    policy: Decoder,
    reference: Decoder,
}

impl Policies {
    fn load(workspace: &Workspace, policy: &str) -> Self {
        let reference = workspace.path("models/sft");
        Self {
            tokenizer: Tokenizer::load(&reference).expect("a tokenizer"),
            policy: load(&workspace.model(policy, "ppo")),
            reference: load(&reference),
        }
    }

    /// The completions that a stage sampled for these prompts.
    fn draw(&self, prompts: &[(u64, &str)], purpose: Purpose, iteration: u64) -> Vec<Drawn> {
        let ids = |prompt: &str| self.tokenizer.encode_text(prompt).expect("ids");
        let request = |&(key, prompt): &(u64, &str)| Request {
            key,
            prompt: ids(prompt),
            max_new_tokens: 12,
            min_new_tokens: MIN_NEW_TOKENS,
            samples: 1,
        };
        let requests: Vec<Request> = prompts.iter().map(request).collect();
        let seed = if purpose == Purpose::Sample { 3 } else { 0 };
        let settings = GenerationSettings {
            decoding: Decoding::Sample(SAMPLING),
            key: Key::new(seed, purpose),
            iteration,
            stop_ids: &self.policy.config().stop_ids,
            ..GenerationSettings::default()
        };
        let mut generator = Generator::new(&self.policy);
        let output = generate(&mut generator, &requests, &settings, &mut |_| {});
        let completions = output.expect("completions").completions.into_iter();
        let compared = completions.map(|c| self.compare(&requests[c.request].prompt, &c));
        compared.collect()
    }

    fn compare(&self, prompt: &[u32], completion: &Completion) -> Drawn {
        let [of_policy, of_reference] =
            [&self.policy, &self.reference].map(|model| log_probs(model, prompt, completion));
        let apart = |i: usize| -> Vec<f64> {
            let pairs = of_policy.iter().zip(&of_reference);
            pairs.map(|(p, r)| p[i] - r[i]).collect()
        };
        Drawn {
            whole: apart(0),
            kept: apart(1),
        }
    }
}

/// log π − log π_ref for each token of a completion.
struct Drawn {
    /// With log-probs over the whole vocabulary.
    whole: Vec<f64>,
    /// With log-probs renormalised over the kept set.
    kept: Vec<f64>,
}

/// Log-prob of each generated token over the whole vocabulary and over the kept set, in `f64` from
/// the model's logits.
fn log_probs(model: &Decoder, prompt: &[u32], completion: &Completion) -> Vec<[f64; 2]> {
    let ids = [prompt, &completion.tokens].concat();
    let segments = Segments::from_lengths([ids.len()]);
    let hidden = model.forward(&ids, &segments, Gradient::Skip);
    let logits = model.logits(&hidden.expect("a pass")).expect("logits");
    let rows: Vec<Vec<f32>> = logits.to_vec2().expect("rows");
    let of_token = |i: usize| {
        let (row, token) = (&rows[prompt.len() + i - 1], completion.tokens[i]);
        let score = |id: u32| f64::from(row[id as usize]) / f64::from(SAMPLING.temperature);
        let all: Vec<u32> = (0..row.len() as u32).collect();
        let kept = completion.kept[i].as_deref();
        let kept = kept.unwrap_or(&all);
        [&all[..], kept].map(|ids| {
            let sum: f64 = ids.iter().map(|&id| score(id).exp()).sum();
            score(token) - sum.ln()
        })
    };
    (0..completion.tokens.len()).map(of_token).collect()
}

/// Mean over sequences of the sum over tokens.
fn mean_of_sums(drawn: &[Drawn], of: impl Fn(&Drawn) -> f64) -> f64 {
    drawn.iter().map(of).sum::<f64>() / drawn.len() as f64
}

fn estimate(estimator: &str, d: f64) -> f64 {
    match estimator {
        "k1" => d,
        "k2" => 0.5 * d * d,
        _ => (-d).exp() - 1.0 + d,
    }
}

/// Log-probs are `f32` in the run: the difference of two has an error of about 1e-6, and a sequence
/// has up to twelve tokens.
#[track_caller]
fn close(found: f64, expected: f64, what: &str) {
    let gap = (found - expected).abs();
    assert!(
        gap < 1e-4 * expected.abs().max(1.0),
        "{what}: {found} is logged, {expected} was computed"
    );
}

/// The batch of the second iteration, sampled from the policy that the first one left.
fn second_batch(workspace: &Workspace) -> Vec<Drawn> {
    run(workspace, "first", 1, CUT);
    let prompts: Vec<_> = (16..32).map(|place| (place, PROMPT)).collect();
    Policies::load(workspace, "first").draw(&prompts, Purpose::Sample, 2)
}

#[test]
fn rewards_carry_the_kl_of_whole_distributions() {
    let workspace = workspace();
    let batch = second_batch(&workspace);
    let kl = mean_of_sums(&batch, |b| b.whole.iter().sum());
    let over_kept = mean_of_sums(&batch, |b| b.kept.iter().sum());
    println!("KL per sequence: {kl} over the whole vocabulary, {over_kept} over what was kept");
    assert!(
        (kl - over_kept).abs() > 0.1,
        "{kl} {over_kept}: the cut changes nothing"
    );
    for estimator in ["k1", "k2", "k3"] {
        let flags = format!("{CUT} --set ppo.kl_estimator={estimator}");
        let lines = run(&workspace, estimator, 2, &flags);
        let last = lines.last().expect("an iteration");
        close(number(last, "objective/kl"), kl, estimator);
        let penalty = mean_of_sums(&batch, |b| {
            b.whole.iter().map(|&d| estimate(estimator, d)).sum()
        });
        let rewarded = number(last, "objective/scores") - 0.5 * penalty;
        close(number(last, "objective/rlhf_reward"), rewarded, estimator);
        // The ratio compares distributions over the kept sets.
        assert_eq!(number(last, "policy/first_ratio_max_dev"), 0.0);
    }
}

#[test]
fn losses_carry_the_kl_of_whole_distributions() {
    let workspace = workspace();
    let batch = second_batch(&workspace);
    let tokens: usize = batch.iter().map(|b| b.whole.len()).sum();
    for estimator in ["k2", "k3"] {
        let flags = format!("{CUT} --set ppo.kl_in=loss --set ppo.kl_estimator={estimator}");
        let lines = run(&workspace, estimator, 2, &flags);
        let last = lines.last().expect("an iteration");
        let all = batch.iter().flat_map(|b| &b.whole);
        let sum: f64 = all.map(|&d| estimate(estimator, d)).sum();
        close(number(last, "loss/kl"), sum / tokens as f64, estimator);
        let kl = mean_of_sums(&batch, |b| b.whole.iter().sum());
        close(number(last, "objective/kl"), kl, estimator);
        assert_eq!(number(last, "policy/first_ratio_max_dev"), 0.0);
    }
}

#[test]
fn evaluations_measure_the_kl_of_whole_distributions() {
    let workspace = workspace();
    let metrics = run(&workspace, "trial", 3, CUT);
    let mut samples = lines(&workspace.stage("trial", "ppo").join("samples.jsonl"));
    samples.retain(|sample| number(sample, "step") == 3.0);
    let prompts = samples.iter().map(|sample| sample["prompt"].as_str());
    let prompts = prompts.map(|prompt| prompt.expect("a prompt"));
    let prompts: Vec<_> = (0..).zip(prompts).collect();
    let drawn = Policies::load(&workspace, "trial").draw(&prompts, Purpose::Evaluation, 0);
    assert_eq!(drawn.len(), 8);
    for (sample, drawn) in samples.iter().zip(&drawn) {
        assert_eq!(number(sample, "tokens"), drawn.whole.len() as f64);
        let kl = drawn.whole.iter().sum();
        close(number(sample, "kl"), kl, "a sample's KL");
    }
    let kl = mean_of_sums(&drawn, |d| d.whole.iter().sum());
    let last = metrics.last().expect("an iteration");
    close(number(last, "eval/kl"), kl, "eval/kl");
}

/// Removes the held-out prompts and the keys of evaluations.
fn without_evaluations(workspace: &Workspace) {
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let evaluated = ["eval_prompts", "lexicon", "eval_samples"];
    let (rest, ppo) = config.split_once("[ppo]").expect("the stage");
    let kept = ppo
        .lines()
        .filter(|line| !evaluated.iter().any(|key| line.starts_with(key)))
        .filter(|line| !line.starts_with("eval_steps"));
    let ppo: Vec<&str> = kept.collect();
    workspace.write("quiet.toml", &format!("{rest}[ppo]{}", ppo.join("\n")));
}

/// A weight of 1e-300 makes the reference score every batch and changes no number that a loss
/// reads.
#[test]
fn a_kl_without_a_weight_is_not_measured_and_changes_no_bit() {
    let workspace = Workspace::trained();
    without_evaluations(&workspace);
    let grpo = "--set ppo.advantage_estimator=grpo --set ppo.num_samples_per_prompt=4";
    for (i, flags) in ["", grpo, CUT].into_iter().enumerate() {
        let run = |name: &str, config: &str, coef: &str| {
            let name = format!("{name}-{i}");
            let set = format!("--set run.name={name} --set ppo.kl_coef={coef}");
            workspace.succeed(&format!("ppo {config} {set} {flags}"));
            let (weights, metrics) = (
                workspace.weights(&name, "ppo"),
                workspace.metrics(&name, "ppo"),
            );
            (weights, metrics)
        };
        let scored = run("scored", "config.toml", "1e-300");
        let free = run("free", "config.toml", "0.0");
        let quiet = run("quiet", "quiet.toml", "0.0");
        assert!(scored.0 == free.0 && scored.0 == quiet.0, "{flags}");
        let names = |line: &Line, part: &str| line.keys().any(|name| name == part);
        for (kl, evaluated, (_, metrics)) in [
            (true, true, &scored),
            (false, true, &free),
            (false, false, &quiet),
        ] {
            let iterations = metrics.iter().filter(|l| number(l, "step") > 0.0);
            for line in iterations {
                assert_eq!(names(line, "objective/kl"), kl, "{flags}: {line:?}");
                assert!(names(line, "objective/rlhf_reward"), "{flags}: {line:?}");
                let coef = number(line, "objective/kl_coef");
                assert_eq!(coef > 0.0, kl, "{flags}: {line:?}");
            }
            assert_eq!(names(metrics.last().expect("a line"), "eval/kl"), evaluated);
        }
    }
}

/// The reference's samples set the scale of scores, though no KL has a weight.
#[test]
fn the_reference_is_read_where_it_gives_the_scale_of_scores() {
    let workspace = Workspace::trained();
    without_evaluations(&workspace);
    let free =
        "--set ppo.kl_coef=0.0 --set ppo.max_steps=2 --set ppo.score_normalization=reference";
    workspace.succeed(&format!("ppo quiet.toml {free}"));
    let lines = workspace.metrics("trial", "ppo");
    assert!(lines.iter().all(|line| !line.contains_key("objective/kl")));
}

#[test]
fn sampling_that_leaves_nothing_to_learn_is_refused_or_said() {
    let workspace = Workspace::trained();
    for command in ["ppo", "plan"] {
        let ended = workspace.run(&format!("{command} config.toml --set ppo.top_p=0.001"));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let words = "ppo.top_p = 0.001 keeps one token of a vocabulary of 320";
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    let words = "at every position only one token could be drawn";
    for (flags, said) in [("--set ppo.top_p=0.01", true), ("--set ppo.top_k=2", false)] {
        let ended = workspace.succeed(&format!(
            "ppo config.toml --fresh --set ppo.max_steps=1 {flags}"
        ));
        assert_eq!(
            ended.stderr.contains(words),
            said,
            "{flags}: {}",
            ended.stderr
        );
    }
}

#[test]
fn a_penalty_under_a_cut_says_what_it_cannot_do() {
    let workspace = Workspace::trained();
    let says = "the penalty cannot pull back";
    for (flags, said) in [
        ("--set ppo.top_k=3", true),
        ("--set ppo.top_k=3 --set ppo.kl_in=loss", false),
        ("--set ppo.top_k=3 --set ppo.kl_coef=0.0", false),
        ("", false),
    ] {
        let ended = workspace.succeed(&format!(
            "ppo config.toml --fresh --set ppo.max_steps=1 {flags}"
        ));
        assert_eq!(
            ended.stderr.contains(says),
            said,
            "{flags}: {}",
            ended.stderr
        );
    }
}
