//! The table that closes the stage.

use anyhow::Result;

use super::super::state::State;
use super::{Evaluator, Measured};
use crate::train::metrics::names;
use crate::train::run_folder::StageFolder;
use crate::train::summary::Summary;

/// The measures in the order of the table, with what people call them.
const MEASURES: [(&str, &str); 12] = [
    (names::EVAL_SCORE, "reward model"),
    (names::EVAL_JUDGE_SCORE, "judge (never seen in training)"),
    (names::EVAL_VALENCE_MEAN, "valence a word"),
    (names::EVAL_VALENCE_SUM, "valence a completion"),
    (names::EVAL_JUDGE_CORRELATION, "rank correlation of the two"),
    (names::EVAL_JUDGE_DISAGREEMENT, "moved against the judge"),
    (names::EVAL_KL, "KL a sequence"),
    (names::EVAL_ENTROPY, "entropy a token"),
    (names::EVAL_DISTINCT_2, "distinct-2"),
    (names::EVAL_SEQ_REP_4, "repeated 4-grams"),
    (names::EVAL_EOS_FRACTION, "finished"),
    (names::EVAL_LENGTH_MEAN, "tokens"),
];

/// The closing table: what was learned, a few completions before and after, and where everything lies.
pub fn table(
    state: &State,
    evaluator: Option<&Evaluator>,
    folder: &StageFolder,
) -> Result<Summary> {
    let mut table = Summary::new("ppo");
    if let (Some(before), Some(after)) = (&state.before, &state.last) {
        let mut row = |name: &str, shown: &str| {
            if let (Some(before), Some(after)) = (before.number(name), after.number(name)) {
                table.row(shown, before, after);
            }
        };
        let summed = evaluator.is_some_and(|e| !e.config.rewards.is_empty());
        for (name, shown) in MEASURES {
            let sum = summed && name == names::EVAL_SCORE;
            row(name, if sum { "score (weighted sum)" } else { shown });
        }
        for name in before.names().filter(|_| summed) {
            if let Some(component) = name.strip_prefix(names::EVAL_REWARD) {
                row(name, &format!("reward {component}"));
            }
        }
        if let Some(words) = state.watch.in_words() {
            table.text("judge fell while reward rose", "", &words);
        }
        if let Some(warning) = never_ends(after) {
            table.note(&format!("warning: {warning}"));
        }
        let prompts = evaluator.map_or(&[][..], Evaluator::prompts);
        for (prompt, (before, after)) in prompts
            .iter()
            .zip(before.completions().iter().zip(after.completions()))
        {
            table.note(&format!(
                "{}\n    before: {before}\n    after:  {after}",
                prompt.text
            ));
        }
    }
    table
        .text("iterations", "", &state.iteration.to_string())
        .path("policy", &folder.final_model())
        .path("samples", &folder.samples())
        .path("metrics", &folder.metrics());
    Ok(table)
}

/// A warning where no completion of an evaluation ended by itself.
fn never_ends(measured: &Measured) -> Option<String> {
    let finished = measured.number(names::EVAL_EOS_FRACTION)?.mean;
    (finished == 0.0).then(|| {
        "no completion ends by itself: raise max_new_tokens, or add what ends answers to stop"
            .to_owned()
    })
}
