//! The JSON protocol of reward programs and endpoints: one request and one response for a batch.
//!
//! The request is
//!
//! ```json
//! {"completions": [{"prompt": "…", "completion": "…", "prompt_ids": […], "completion_ids": […],
//!                   "fields": {…}}, …]}
//! ```
//!
//! with the prompt as rendered for the policy, the completion without the stop text that ended it,
//! and in `fields` the prompt's record without `prompt`. The response is one number for each
//! completion, in order: `[0.5, 1, …]` or `{"scores": [0.5, 1, …]}`.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::RewardInput;

/// Most bytes of a response.
pub const LONGEST_RESPONSE: usize = 16 << 20;
/// Number of a response's characters in an error message.
const SHOWN: usize = 200;

/// The request for a batch.
pub fn request_json(completions: &[RewardInput]) -> Value {
    let completions = completions.iter().map(|completion| {
        let given = completion.ids.len() - completion.response.len().min(completion.ids.len());
        json!({
            "prompt": completion.prompt,
            "completion": completion.text,
            "prompt_ids": completion.ids[..given],
            "completion_ids": completion.response,
            "fields": completion.fields,
        })
    });
    json!({"completions": completions.collect::<Vec<_>>()})
}

/// The form of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseForm {
    /// A line of a program's output.
    Line,
    /// The body of an endpoint's response.
    Body,
}

/// The scores in a response, one for each of `completions`.
///
/// # Errors
/// If the response is not as many finite numbers: the problem, in words that follow the name of the
/// program or endpoint.
pub fn scores(
    response: &str,
    completions: &[RewardInput],
    form: ResponseForm,
) -> Result<Vec<f32>, String> {
    let expected = completions.len();
    let refuse = |why: String| {
        let form = match form {
            ResponseForm::Line => "expected one line of JSON with",
            ResponseForm::Body => "expected JSON with",
        };
        format!(
            "answered {}: {why}; {form} {expected} finite numbers, [s1, s2, …] or {{\"scores\": \
             [s1, s2, …]}}",
            shown(response)
        )
    };
    let value = parsed(response).map_err(|error| refuse(format!("which is not JSON ({error})")))?;
    let Some(numbers) = value.get("scores").unwrap_or(&value).as_array() else {
        return Err(refuse("which is not a list".to_owned()));
    };
    if numbers.len() != expected {
        return Err(refuse(format!("which has {} scores", numbers.len())));
    }
    let score = |(place, (number, completion)): (usize, (&Value, &RewardInput))| {
        let score = number.as_f64().map(|number| number as f32);
        score.filter(|score| score.is_finite()).ok_or_else(|| {
            let (place, prompt) = (place + 1, shown(completion.prompt));
            refuse(format!(
                "in which score {place} of {expected}, for the prompt {prompt}, is {}",
                unquoted(number)
            ))
        })
    };
    numbers
        .iter()
        .zip(completions)
        .enumerate()
        .map(score)
        .collect()
}

/// Numbers that Python's `json.dumps` writes and JSON does not have.
static NOT_FINITE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"-?\b(?:NaN|Infinity)\b").ok());

/// The JSON of a response, with NaN and infinities as text.
fn parsed(response: &str) -> serde_json::Result<Value> {
    serde_json::from_str(response).or_else(|error| {
        let pattern = NOT_FINITE.as_ref();
        let quoted = pattern.map(|pattern| pattern.replace_all(response, "\"$0\""));
        let value = quoted.and_then(|text| serde_json::from_str(&text).ok());
        value.ok_or(error)
    })
}

/// A value as it stood in the response; NaN and infinities are held as text.
fn unquoted(value: &Value) -> String {
    let is_number = |text: &&str| ["NaN", "Infinity", "-Infinity"].contains(text);
    match value.as_str().filter(is_number) {
        Some(number) => number.to_owned(),
        None => value.to_string(),
    }
}

/// The start of a response, in quotes.
pub fn shown(response: &str) -> String {
    match response.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &response[..end]),
        None => format!("{response:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_holds_texts_ids_and_fields() {
        let fields = json!({"answer": 4});
        let completion = RewardInput {
            prompt: "2+2=",
            text: "4",
            ids: &[5, 6, 7, 1],
            states: None,
            response: vec![7, 1],
            fields: fields.as_object().unwrap(),
        };
        let expected = json!({"completions": [{
            "prompt": "2+2=",
            "completion": "4",
            "prompt_ids": [5, 6],
            "completion_ids": [7, 1],
            "fields": {"answer": 4},
        }]});
        assert_eq!(request_json(&[completion]), expected);
    }

    /// The scores of a program's line for `count` completions of the prompt "2+2=".
    fn read(response: &str, count: usize) -> Result<Vec<f32>, String> {
        let fields = serde_json::Map::new();
        let completion = RewardInput {
            prompt: "2+2=",
            text: "4",
            ids: &[],
            states: None,
            response: Vec::new(),
            fields: &fields,
        };
        scores(response, &vec![completion; count], ResponseForm::Line)
    }

    #[test]
    fn both_forms_of_an_answer_are_read() {
        assert_eq!(read("[1, -0.5]\n", 2), Ok(vec![1.0, -0.5]));
        assert_eq!(read("{\"scores\": [2], \"note\": 0}", 1), Ok(vec![2.0]));
    }

    #[test]
    fn a_wrong_answer_is_shown() {
        for (response, says) in [
            ("loading …", "not JSON"),
            ("NaN is not a list", "not JSON"),
            ("[1e400]", "not JSON"),
            ("[1e300]", "score 1 of 1, for the prompt \"2+2=\", is 1e"),
            ("[NaN]", "score 1 of 1, for the prompt \"2+2=\", is NaN;"),
            ("{\"scores\": [-Infinity]}", "is -Infinity;"),
            ("3", "not a list"),
            ("{\"score\": [1]}", "not a list"),
            ("[1, 2]", "has 2 scores"),
            ("[null]", "is null;"),
            ("[\"1\"]", "is \"1\";"),
        ] {
            let message = read(response, 1).unwrap_err();
            assert!(message.contains(says), "{response}: {message}");
            assert!(message.contains(&format!("{response:?}")), "{message}");
            assert!(
                message.contains("expected one line of JSON with 1 finite numbers"),
                "{message}"
            );
        }
        let third = read("[0.83, 1, NaN]", 3).unwrap_err();
        assert!(third.contains("score 3 of 3"), "{third}");
        let long = read(&"x".repeat(300), 1).unwrap_err();
        assert!(
            long.contains(&format!("\"{}\"…", "x".repeat(200))),
            "{long}"
        );
    }
}
