//! The formulas of `rlhf` against PyTorch: every entry of `golden/algorithms.json`.
//!
//! The numbers were computed in `f64` by `golden/make_fixtures.py` (library versions in
//! `golden/versions.json`). The engine computes in `f64` too, so the tolerance only has to cover
//! the order of the sums.

#[path = "algorithms/by_hand.rs"]
mod by_hand;
#[path = "algorithms/kl.rs"]
mod kl;
#[path = "algorithms/policy_update.rs"]
mod policy_update;
#[path = "algorithms/scores.rs"]
mod scores;

use candle_core::{Device, Tensor, Var};
use collimate::config::{Dpo, KlIn, Ppo};
use collimate::rlhf::advantage::gae::{Gae, GaeConfig, gae};
use collimate::rlhf::advantage::{group, reinforce};
use collimate::rlhf::preference::{
    DirectPreferenceConfig, DpoLossType, OddsRatioTotals, bradley_terry, direct_preference,
    odds_ratio,
};
use collimate::rlhf::reward::token_rewards;
use collimate::rlhf::stats::whiten;
use collimate::rlhf::{
    AdaptiveKl, KlController, KlEstimator, LossAggregation, Mean, PolicyLossConfig, RaggedRows,
    Totals, ValueLossConfig, policy_loss, value_loss,
};
use serde_json::Value;

const TOLERANCE: f64 = 1e-9;

/// The golden file. Its padded `[B, T]` arrays are read as ragged rows.
struct Golden {
    json: Value,
    valid: Vec<Vec<f64>>, // B × T
    offsets: Vec<usize>,  // B + 1
}

impl Golden {
    fn load() -> Self {
        let json: Value = serde_json::from_str(include_str!("golden/algorithms.json")).unwrap();
        let valid: Vec<Vec<f64>> = serde_json::from_value(json["valid"].clone()).unwrap();
        let mut offsets = vec![0];
        offsets.extend(valid.iter().scan(0, |end, row| {
            *end += row.iter().sum::<f64>() as usize;
            Some(*end)
        }));
        Self {
            json,
            valid,
            offsets,
        }
    }

    fn rows(&self) -> RaggedRows<'_> {
        RaggedRows::new(&self.offsets).unwrap()
    }

    fn at(&self, pointer: &str) -> &Value {
        self.json
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer} is missing"))
    }

    fn number(&self, pointer: &str) -> f64 {
        self.at(pointer).as_f64().unwrap()
    }

    fn list(&self, pointer: &str) -> Vec<f64> {
        serde_json::from_value(self.at(pointer).clone()).unwrap()
    }

    fn matrix(&self, pointer: &str) -> Vec<Vec<f64>> {
        serde_json::from_value(self.at(pointer).clone()).unwrap()
    }

    /// The valid elements of a `[B, T]` array, joined: `[n]`.
    fn tokens(&self, pointer: &str) -> Vec<f64> {
        let padded = self.matrix(pointer).concat().into_iter();
        padded
            .zip(self.valid.concat())
            .filter(|&(_, valid)| valid == 1.0)
            .map(|(value, _)| value)
            .collect()
    }

    fn token_mean(&self) -> Vec<f64> {
        LossAggregation::Token
            .weights(self.rows(), Totals::of(self.rows(), 1))
            .unwrap()
    }

    fn var(&self, pointer: &str) -> Var {
        let values = if self.at(pointer)[0].is_array() {
            self.tokens(pointer)
        } else {
            self.list(pointer)
        };
        Var::new(values, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn check_number(&self, found: f64, pointer: &str) {
        let expected = self.number(pointer);
        assert!(
            (found - expected).abs() <= TOLERANCE,
            "{pointer}: found {found}, expected {expected}"
        );
    }

    #[track_caller]
    fn check_tokens(&self, found: &[f64], pointer: &str) {
        check(found, &self.tokens(pointer), pointer);
    }

    #[track_caller]
    fn check_list(&self, found: &[f64], pointer: &str) {
        check(found, &self.list(pointer), pointer);
    }
}

#[track_caller]
fn check(found: &[f64], expected: &[f64], what: &str) {
    check_within(found, expected, TOLERANCE, what);
}

#[track_caller]
fn check_within(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance,
            "{what}[{i}]: found {found}, expected {expected}"
        );
    }
}

fn gradient(loss: &Tensor, of: &Var) -> Vec<f64> {
    loss.backward()
        .unwrap()
        .get(of)
        .expect("no gradient")
        .to_vec1()
        .unwrap()
}

#[test]
fn kl_estimators_agree_with_pytorch() {
    let golden = Golden::load();
    let (policy, reference) = (golden.tokens("/logp_old"), golden.tokens("/logp_ref"));
    for (estimator, pointer) in [
        (KlEstimator::K1, "/kl/k1"),
        (KlEstimator::K2, "/kl/k2"),
        (KlEstimator::K3, "/kl/k3"),
    ] {
        golden.check_tokens(&estimator.per_token(&policy, &reference).unwrap(), pointer);
    }
}

#[test]
fn token_rewards_from_kl_and_score() {
    let golden = Golden::load();
    let (kl, beta) = (golden.tokens("/kl/k1"), golden.number("/rewards/beta"));
    let rewards = token_rewards(&golden.list("/score"), &kl, beta, golden.rows()).unwrap();
    golden.check_tokens(&rewards, "/rewards/rewards");
}

#[test]
fn generalised_advantages_and_whitening() {
    let golden = Golden::load();
    let config = GaeConfig {
        gamma: golden.number("/gae/gamma"),
        lam: golden.number("/gae/lam"),
    };
    let rewards = golden.tokens("/rewards/rewards");
    let Gae {
        advantages,
        returns,
    } = gae(
        &rewards,
        &golden.tokens("/value_old"),
        golden.rows(),
        config,
    )
    .unwrap();
    golden.check_tokens(&advantages, "/gae/advantages");
    golden.check_tokens(&returns, "/gae/returns");
    golden.check_tokens(&whiten(&advantages, Mean::Remove), "/whiten/advantages");
    golden.check_tokens(&whiten(&rewards, Mean::Keep), "/whiten/rewards_keep_mean");
}

#[test]
fn policy_losses_and_gradients() {
    let golden = Golden::load();
    for name in ["symmetric", "clip_higher", "dual_clip"] {
        let entry = |key: &str| format!("/policy_loss_{name}/{key}");
        let config = PolicyLossConfig {
            cliprange_low: golden.number(&entry("lo")),
            cliprange_high: golden.number(&entry("hi")),
            dual_clip: golden.at(&entry("dual")).as_f64(),
        };
        let (new, old) = (golden.var("/logp_new"), golden.tokens("/logp_old"));
        let advantages = golden.tokens("/whiten/advantages");
        let result = policy_loss(&new, &old, &advantages, &golden.token_mean(), &config).unwrap();
        golden.check_number(result.value, &entry("loss"));
        golden.check_number(result.loss.to_scalar().unwrap(), &entry("loss"));
        golden.check_tokens(&gradient(&result.loss, &new), &entry("grad_logp_new"));
        golden.check_number(result.stats.clip_fraction(), &entry("clip_fraction"));
        golden.check_number(result.stats.ratio.approx_kl(), &entry("approx_kl"));
    }
}

#[test]
fn value_loss_and_gradient() {
    let golden = Golden::load();
    let new = golden.var("/value_new");
    let (old, returns) = (golden.tokens("/value_old"), golden.tokens("/gae/returns"));
    let config = ValueLossConfig {
        cliprange_value: Some(golden.number("/value_loss/clip")),
    };
    let result = value_loss(&new, &old, &returns, &golden.token_mean(), &config).unwrap();
    golden.check_number(result.value, "/value_loss/loss");
    golden.check_number(result.loss.to_scalar().unwrap(), "/value_loss/loss");
    golden.check_tokens(&gradient(&result.loss, &new), "/value_loss/grad_value_new");
}

#[test]
fn group_advantages_agree_with_pytorch() {
    let golden = Golden::load();
    let groups = golden.matrix("/groups/score");
    let (scores, group_size) = (groups.concat(), groups[0].len());
    for (found, name) in [
        (group::grpo(&scores, group_size), "grpo"),
        (group::dr_grpo(&scores, group_size), "dr_grpo"),
        (group::rloo(&scores, group_size), "rloo"),
    ] {
        let pointer = format!("/groups/{name}/advantages");
        check(&found.unwrap(), &golden.matrix(&pointer).concat(), &pointer);
    }
}

#[test]
fn reinforce_plus_plus_advantages() {
    let golden = Golden::load();
    let rewards = golden.tokens("/rewards/rewards");
    let advantages = reinforce::reinforce_plus_plus(&rewards, golden.rows(), 1.0).unwrap();
    golden.check_tokens(&advantages, "/reinforce_pp/advantages");
}

#[test]
fn bradley_terry_with_margin_and_centring() {
    let golden = Golden::load();
    let (chosen, rejected) = (
        golden.var("/bradley_terry/chosen"),
        golden.var("/bradley_terry/rejected"),
    );
    let margins = golden.list("/bradley_terry/margin");
    // The centring coefficient is part of the entry's formula.
    let result = bradley_terry(&chosen, &rejected, Some(&margins), 0.01, margins.len()).unwrap();
    golden.check_number(result.ranking, "/bradley_terry/loss");
    golden.check_number(result.centering, "/bradley_terry/centering");
    golden.check_list(
        &gradient(&result.loss, &chosen),
        "/bradley_terry/grad_chosen",
    );
    golden.check_list(
        &gradient(&result.loss, &rejected),
        "/bradley_terry/grad_rejected",
    );
}

/// Answers of one token each, whose total log-probs are given: each pair's chosen answer, then its
/// rejected one.
fn interleaved(golden: &Golden, chosen: &str, rejected: &str) -> Vec<f64> {
    let pairs = golden.list(chosen).into_iter().zip(golden.list(rejected));
    pairs.flat_map(|(c, r)| [c, r]).collect()
}

#[test]
fn direct_preference_losses_agree_with_pytorch() {
    let golden = Golden::load();
    let policy = interleaved(&golden, "/dpo/policy_chosen", "/dpo/policy_rejected");
    let reference = interleaved(&golden, "/dpo/ref_chosen", "/dpo/ref_rejected");
    let offsets: Vec<usize> = (0..=policy.len()).collect();
    for (loss_type, name) in [(DpoLossType::Sigmoid, "dpo"), (DpoLossType::Ipo, "ipo")] {
        let config = DirectPreferenceConfig {
            loss_type,
            beta: golden.number("/dpo/beta"),
            label_smoothing: 0.0,
            simpo_gamma: 0.0,
        };
        let (x, rows) = (
            Var::new(policy.as_slice(), &Device::Cpu).unwrap(),
            RaggedRows::new(&offsets).unwrap(),
        );
        let result = direct_preference(&x, rows, &reference, &config, policy.len() / 2).unwrap();
        golden.check_number(result.value, &format!("/dpo/{name}"));
        let [chosen, rejected] =
            ["chosen", "rejected"].map(|answer| format!("/dpo/{name}_grad_policy_{answer}"));
        check(
            &gradient(&result.loss, &x),
            &interleaved(&golden, &chosen, &rejected),
            name,
        );
    }
}

/// Answers of several tokens: `golden/preference.json`, made by `golden/make_preference.py`.
#[test]
fn direct_preference_of_whole_answers() {
    let json: Value = serde_json::from_str(include_str!("golden/preference.json")).unwrap();
    let list = |value: &Value| serde_json::from_value::<Vec<f64>>(value.clone()).unwrap();
    let joined = |value: &Value| {
        serde_json::from_value::<Vec<Vec<f64>>>(value.clone())
            .unwrap()
            .concat()
    };
    let mut offsets = vec![0];
    offsets.extend(list(&json["lengths"]).iter().scan(0, |end, n| {
        *end += *n as usize;
        Some(*end)
    }));
    let (tokens, reference) = (joined(&json["log_probs"]), list(&json["reference"]));
    for (name, loss_type) in [
        ("sigmoid", DpoLossType::Sigmoid),
        ("cdpo", DpoLossType::Sigmoid),
        ("ipo", DpoLossType::Ipo),
        ("simpo", DpoLossType::Simpo),
    ] {
        let case = &json[name];
        let number = |key: &str| case[key].as_f64().unwrap();
        let config = DirectPreferenceConfig {
            loss_type,
            beta: number("beta"),
            label_smoothing: number("label_smoothing"),
            simpo_gamma: number("gamma"),
        };
        let reference = match loss_type.has_reference() {
            true => &reference[..],
            false => &[],
        };
        let (x, rows) = (
            Var::new(tokens.as_slice(), &Device::Cpu).unwrap(),
            RaggedRows::new(&offsets).unwrap(),
        );
        let pairs = rows.len() / 2;
        let found = direct_preference(&x, rows, reference, &config, pairs).unwrap();
        check(&[found.value], &[number("loss")], name);
        check(&gradient(&found.loss, &x), &joined(&case["gradient"]), name);
        let (rewards, stats) = (list(&case["rewards"]), found.stats.rewards);
        let margins: Vec<f64> = rewards.chunks(2).map(|pair| pair[0] - pair[1]).collect();
        let right = margins.iter().filter(|margin| **margin > 0.0).count() as f64;
        let means = [margins.iter().sum::<f64>(), right].map(|sum| sum / pairs as f64);
        check(&[stats.margin(), stats.accuracy()], &means, name);
    }
}

/// ORPO on the sequences of `golden/preference.json`.
#[test]
fn odds_ratio_preference() {
    let json: Value = serde_json::from_str(include_str!("golden/preference.json")).unwrap();
    let case = &json["orpo"];
    let counts = |value: &Value| serde_json::from_value::<Vec<usize>>(value.clone()).unwrap();
    let joined = |value: &Value| {
        serde_json::from_value::<Vec<Vec<f64>>>(value.clone())
            .unwrap()
            .concat()
    };
    let (lengths, answers) = (counts(&json["lengths"]), counts(&case["answers"]));
    let mut offsets = vec![0];
    offsets.extend(lengths.iter().scan(0, |end, n| {
        *end += n;
        Some(*end)
    }));
    let number = |key: &str| case[key].as_f64().unwrap();
    let x = Var::new(joined(&json["log_probs"]).as_slice(), &Device::Cpu).unwrap();
    let totals = OddsRatioTotals {
        pairs: lengths.len() / 2,
        chosen_tokens: lengths.iter().step_by(2).sum(),
    };
    let rows = RaggedRows::new(&offsets).unwrap();
    let found = odds_ratio(&x, rows, &answers, number("beta"), totals).unwrap();
    check(&[found.value], &[number("loss")], "orpo");
    check(
        &gradient(&found.loss, &x),
        &joined(&case["gradient"]),
        "orpo",
    );
    let (stats, pairs) = (found.stats, totals.pairs as f64);
    let means = [
        stats.nll / totals.chosen_tokens as f64,
        stats.log_odds_ratio / pairs,
        stats.log_odds / pairs,
    ];
    let expected = ["nll", "log_odds_ratio", "log_odds"].map(number);
    check(&means, &expected, "orpo");
    let rewards: Vec<f64> = serde_json::from_value(case["rewards"].clone()).unwrap();
    let margins = rewards.chunks(2).map(|pair| pair[0] - pair[1]);
    let margin = margins.sum::<f64>() / pairs;
    check(&[stats.rewards.margin()], &[margin], "orpo");
}

#[test]
fn adaptive_kl_coefficients_agree_with_pytorch() {
    let golden = Golden::load();
    let setting = |key: &str| golden.number(&format!("/adaptive_kl/{key}"));
    let adaptive =
        AdaptiveKl::new(setting("beta0"), setting("target"), setting("horizon")).unwrap();
    let mut controller = KlController::Adaptive(adaptive);
    let coefs: Vec<f64> = golden
        .list("/adaptive_kl/kl")
        .into_iter()
        .map(|kl| {
            controller.update(kl, setting("n") as usize);
            controller.coef()
        })
        .collect();
    golden.check_list(&coefs, "/adaptive_kl/beta");
}

/// A number of `golden/trl_defaults.json`: TRL's result with the defaults of its own classes, made
/// by `golden/make_trl_defaults.py`.
fn trl(key: &str) -> Value {
    let trl: Value = serde_json::from_str(include_str!("golden/trl_defaults.json")).unwrap();
    trl["on_algorithms"][key].clone()
}

/// Checks a per-token quantity against TRL's.
#[track_caller]
fn check_trl_tokens(golden: &Golden, found: &[f64], key: &str, tolerance: f64) {
    let padded: Vec<Vec<f64>> = serde_json::from_value(trl(key)).unwrap();
    let padded = padded.concat().into_iter().zip(golden.valid.concat());
    let valid = padded.filter(|(_, valid)| *valid == 1.0);
    let expected: Vec<f64> = valid.map(|(value, _)| value).collect();
    check_within(found, &expected, tolerance, key);
}

/// Advantages and returns with the default constants of `[ppo]`; the rewards and advantages are
/// TRL's.
fn default_gae(golden: &Golden, ppo: &Ppo) -> Gae {
    let rows = golden.rows();
    let (old, reference) = (golden.tokens("/logp_old"), golden.tokens("/logp_ref"));
    assert_eq!(ppo.kl_in(), KlIn::Reward);
    let kl = ppo.kl_estimator().per_token(&old, &reference).unwrap();
    let rewards = token_rewards(&golden.list("/score"), &kl, ppo.objective.kl_coef, rows).unwrap();
    check_trl_tokens(golden, &rewards, "rewards", TOLERANCE);

    let config = GaeConfig {
        gamma: ppo.objective.gamma,
        lam: ppo.critic.lam,
    };
    let gae = gae(&rewards, &golden.tokens("/value_old"), rows, config).unwrap();
    // TRL whitens with the unbiased variance; this engine, like OpenAI's code, with the biased one.
    let count = rows.tokens() as f64;
    let unbiased = ((count - 1.0) / count).sqrt();
    let whitened = whiten(&gae.advantages, Mean::Remove).into_iter();
    let advantages: Vec<f64> = whitened.map(|advantage| advantage * unbiased).collect();
    check_trl_tokens(golden, &advantages, "advantages", 1e-7);
    Gae { advantages, ..gae }
}

/// The formulas with the default constants of `[ppo]`, against TRL's.
#[test]
fn ppo_losses_with_every_default_are_trls() {
    let (golden, ppo) = (Golden::load(), Ppo::default());
    let gae = default_gae(&golden, &ppo);
    assert_eq!(ppo.loss_aggregation(), LossAggregation::Token);
    let weights = golden.token_mean();
    let clip = PolicyLossConfig {
        cliprange_low: ppo.objective.cliprange,
        cliprange_high: ppo.objective.cliprange_high(),
        dual_clip: ppo.update.dual_clip,
    };
    let (new, old) = (golden.var("/logp_new"), golden.tokens("/logp_old"));
    let policy = policy_loss(&new, &old, &gae.advantages, &weights, &clip).unwrap();
    let clip = ValueLossConfig {
        cliprange_value: Some(ppo.critic.cliprange_value),
    };
    let (new, old) = (golden.var("/value_new"), golden.tokens("/value_old"));
    let value = value_loss(&new, &old, &gae.returns, &weights, &clip).unwrap();
    let loss = policy.value + ppo.critic.vf_coef * value.value;
    for (found, key) in [
        (policy.value, "policy_loss"),
        (value.value, "value_loss"),
        (loss, "loss"),
    ] {
        check_within(&[found], &[trl(key).as_f64().unwrap()], 1e-7, key);
    }
}

/// The formula with the default constants of `[dpo]`, against TRL's.
#[test]
fn the_dpo_loss_with_every_default_is_trls() {
    let (golden, dpo) = (Golden::load(), Dpo::default());
    assert_eq!(dpo.loss_type, DpoLossType::Sigmoid);
    let config = DirectPreferenceConfig {
        loss_type: dpo.loss_type,
        beta: dpo.beta,
        label_smoothing: dpo.label_smoothing,
        simpo_gamma: dpo.simpo_gamma,
    };
    let policy = interleaved(&golden, "/dpo/policy_chosen", "/dpo/policy_rejected");
    let reference = interleaved(&golden, "/dpo/ref_chosen", "/dpo/ref_rejected");
    let offsets: Vec<usize> = (0..=policy.len()).collect();
    let (x, rows) = (
        Var::new(policy.as_slice(), &Device::Cpu).unwrap(),
        RaggedRows::new(&offsets).unwrap(),
    );
    let found = direct_preference(&x, rows, &reference, &config, policy.len() / 2).unwrap();
    let expected = trl("dpo_loss").as_f64().unwrap();
    check(&[found.value], &[expected], "dpo_loss");
}
