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

/// The scores in a response.
///
/// # Errors
/// If the response is not `expected` finite numbers: the problem, in words that follow the name of
/// the program or endpoint.
pub fn scores(response: &str, expected: usize) -> Result<Vec<f32>, String> {
    let refuse = |why: String| {
        format!(
            "answered {}: {why}; expected one line of JSON with {expected} finite numbers, [s1, \
             s2, …] or {{\"scores\": [s1, s2, …]}}",
            shown(response)
        )
    };
    let value: Value = serde_json::from_str(response)
        .map_err(|error| refuse(format!("which is not JSON ({error})")))?;
    let Some(numbers) = value.get("scores").unwrap_or(&value).as_array() else {
        return Err(refuse("which is not a list".to_owned()));
    };
    if numbers.len() != expected {
        return Err(refuse(format!("which has {} scores", numbers.len())));
    }
    let score = |(place, number): (usize, &Value)| {
        let score = number.as_f64().map(|number| number as f32);
        score
            .filter(|score| score.is_finite())
            .ok_or_else(|| refuse(format!("in which score {place} is {number}")))
    };
    numbers.iter().enumerate().map(score).collect()
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

    #[test]
    fn both_forms_of_an_answer_are_read() {
        assert_eq!(scores("[1, -0.5]\n", 2), Ok(vec![1.0, -0.5]));
        assert_eq!(scores("{\"scores\": [2], \"note\": 0}", 1), Ok(vec![2.0]));
    }

    #[test]
    fn a_wrong_answer_is_shown() {
        for (response, says) in [
            ("loading …", "not JSON"),
            ("[NaN]", "not JSON"),
            ("[1e400]", "not JSON"),
            ("[1e300]", "score 0 is 1e"),
            ("3", "not a list"),
            ("{\"score\": [1]}", "not a list"),
            ("[1, 2]", "has 2 scores"),
            ("[null]", "score 0 is null"),
            ("[\"1\"]", "score 0 is \"1\""),
        ] {
            let message = scores(response, 1).unwrap_err();
            assert!(message.contains(says), "{response}: {message}");
            assert!(message.contains(&format!("{response:?}")), "{message}");
            assert!(message.contains("1 finite numbers"), "{message}");
        }
        let long = scores(&"x".repeat(300), 1).unwrap_err();
        assert!(
            long.contains(&format!("\"{}\"…", "x".repeat(200))),
            "{long}"
        );
    }
}
