//! Pairs whose prompt is the common start of both answers (TRL's implicit prompts,
//! `extract_prompt`).
//!
//! The view splits conversations. Text is split here, for a task that counts only the answers'
//! tokens: at the byte where the answers begin to differ, with a space before it in the answers, as
//! in TRL. Unlike in TRL, a word is not split.

use std::borrow::Cow;

use serde_json::Value;

use super::super::Record;
use super::super::names::likely_name;
use super::RecordTask;

/// Finds the prompt that both answers start with.
pub(super) fn find_prompt(record: &mut Cow<'_, Record>, task: RecordTask) {
    if holds_prompt_twice(record) {
        record.to_mut().fields.shift_remove("prompt");
    }
    if task != RecordTask::DirectPairs
        || record.has("prompt")
        || likely_name(&record.fields, "prompt").is_some()
    {
        return;
    }
    let text = |name: &str| record.fields.get(name).and_then(Value::as_str);
    let (Some(chosen), Some(rejected)) = (text("chosen"), text("rejected")) else {
        return;
    };
    let at = border(chosen, rejected);
    let parts = [
        ("prompt", chosen[..at].to_owned()),
        ("chosen", chosen[at..].to_owned()),
        ("rejected", rejected[at..].to_owned()),
    ];
    for (name, part) in parts {
        record.to_mut().fields.insert(name.to_owned(), part.into());
    }
}

/// True if `prompt` is text and the answers are whole conversations that contain it; TRL then reads
/// the conversations only.
pub(super) fn holds_prompt_twice(record: &Record) -> bool {
    let is_whole = |name: &str| {
        let first = record.fields.get(name).and_then(|value| value.get(0));
        let speaker = first.and_then(|m| m.get("role").or(m.get("from")));
        speaker.is_some_and(|speaker| speaker != "assistant" && speaker != "gpt")
    };
    let prompt = record.fields.get("prompt");
    prompt.is_some_and(Value::is_string) && is_whole("chosen") && is_whole("rejected")
}

/// The byte at which the answers begin.
fn border(chosen: &str, rejected: &str) -> usize {
    let same = chosen.chars().zip(rejected.chars());
    let same = same.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8());
    let differ = same.sum::<usize>();
    let shared = &chosen[..differ];
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let goes_on = |text: &str| text[differ..].chars().next().is_some_and(is_word);
    let in_word = goes_on(chosen) || goes_on(rejected);
    let shared = match in_word {
        true => shared.trim_end_matches(is_word),
        false => shared,
    };
    shared.strip_suffix(' ').unwrap_or(shared).len()
}

#[cfg(test)]
mod tests {
    use super::border;

    #[test]
    fn answers_begin_where_they_differ() {
        for (chosen, rejected, prompt) in [
            ("The sky is blue.", "The sky is green.", "The sky is"), // TRL's own example
            ("Q: a\n\nA: Yes", "Q: a\n\nA: No", "Q: a\n\nA:"),
            ("It is blue.", "It is black.", "It is"), // TRL cuts behind "bl"
            ("a!", "a?", "a"),
            ("é ä", "é ö", "é"),
            ("yes", "no", ""),
            ("A:\n\nfoo", "A:\n\nbar", "A:\n\n"),
            ("one two", "one", "one"),
        ] {
            assert_eq!(
                &chosen[..border(chosen, rejected)],
                prompt,
                "{chosen:?} {rejected:?}"
            );
            assert_eq!(
                &rejected[..border(chosen, rejected)],
                prompt,
                "{rejected:?}"
            );
        }
    }
}
