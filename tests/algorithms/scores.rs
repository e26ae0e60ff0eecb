//! The processing of scores before advantages are estimated, against PyTorch: every entry of
//! `golden/scores.json`, made by `golden/make_scores.py`.

use collimate::rlhf::ScoreNormalizer;
use collimate::rlhf::advantage::remax::remax;
use collimate::rlhf::ensemble::Combine;
use collimate::rlhf::score::{Overlong, penalize_missing_eos, penalize_overlong};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::check;

type Matrix = Vec<Vec<f64>>;

struct Entry(Value);

impl Entry {
    fn named(name: &str) -> Self {
        let golden: Value = serde_json::from_str(include_str!("../golden/scores.json")).unwrap();
        Self(golden[name].clone())
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> T {
        let value = self.0.get(key).unwrap_or_else(|| panic!("no {key}"));
        serde_json::from_value(value.clone()).unwrap()
    }
}

#[test]
fn remax_advantages_agree_with_pytorch() {
    let golden = Entry::named("remax");
    let (scores, greedy): (Matrix, Vec<f64>) = (golden.get("score"), golden.get("greedy"));
    let found = remax(&scores.concat(), &greedy, scores[0].len()).unwrap();
    check(
        &found,
        &golden.get::<Matrix>("advantages").concat(),
        "remax",
    );
}

#[test]
fn penalties_of_how_a_response_ended() {
    let golden = Entry::named("missing_eos");
    let (scores, finished): (Vec<f64>, Vec<bool>) = (golden.get("score"), golden.get("finished"));
    let found = penalize_missing_eos(&scores, &finished, golden.get("penalty")).unwrap();
    check(&found, &golden.get::<Vec<f64>>("penalised"), "missing_eos");

    let golden = Entry::named("overlong");
    let (scores, lengths): (Vec<f64>, Vec<usize>) = (golden.get("score"), golden.get("lengths"));
    let overlong = Overlong {
        limit: golden.get("limit"),
        buffer: golden.get("buffer"),
        penalty: golden.get("penalty"),
    };
    let found = penalize_overlong(&scores, &lengths, overlong).unwrap();
    check(&found, &golden.get::<Vec<f64>>("penalised"), "overlong");
}

#[test]
fn running_normalisation_is_by_all_scores_so_far() {
    let golden = Entry::named("running");
    let (batches, normalised): (Matrix, Matrix) = (golden.get("batches"), golden.get("normalised"));
    let (means, deviations): (Vec<f64>, Vec<f64>) = (golden.get("mean"), golden.get("std"));
    let mut normalizer = ScoreNormalizer::Running(Default::default());
    for (i, (batch, expected)) in batches.iter().zip(&normalised).enumerate() {
        normalizer.observe(batch);
        check(&normalizer.normalize(batch), expected, "normalised");
        let ScoreNormalizer::Running(moments) = normalizer else {
            unreachable!()
        };
        check(
            &[moments.mean(), moments.std()],
            &[means[i], deviations[i]],
            "moments",
        );
    }
}

#[test]
fn fixed_normalisation_is_by_the_reference_s_samples() {
    let golden = Entry::named("fixed");
    let reference: Vec<f64> = golden.get("reference");
    let normalizer = ScoreNormalizer::from_reference(&reference).unwrap();
    let found = normalizer.normalize(&golden.get::<Vec<f64>>("score"));
    check(&found, &golden.get::<Vec<f64>>("normalised"), "fixed");
}

#[test]
fn ensembles_agree_with_pytorch() {
    let golden = Entry::named("ensemble");
    let models: Matrix = golden.get("scores");
    let deviations: f64 = golden.get("deviations");
    for (key, combine) in [
        ("mean", Combine::Mean),
        ("minimum", Combine::Minimum),
        ("mean_minus_deviation", Combine::MeanMinusDeviation),
    ] {
        let expected: Vec<f64> = golden.get(key);
        let of_one = |i: usize| models.iter().map(|m| m[i]).collect::<Vec<_>>();
        let found: Vec<f64> = (0..expected.len())
            .map(|i| combine.of(&of_one(i), deviations))
            .collect();
        check(&found, &expected, key);
    }
}
