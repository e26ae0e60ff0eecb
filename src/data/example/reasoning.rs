//! Reasoning of a record that its chat template drops. The model then learns to answer without
//! reasoning.

use crate::data::records::Message;
use crate::data::template::TemplateSpan;

/// Number of learned answers of `messages` whose reasoning is in no answer of `renderings`.
pub(super) fn lost(messages: &[Message], renderings: &[Vec<TemplateSpan>]) -> usize {
    let answers = || {
        let spans = renderings.iter().flatten();
        spans.filter_map(|span| match span {
            TemplateSpan::Answer(text) => Some(text),
            TemplateSpan::Given(_) => None,
        })
    };
    let reasoning = messages.iter().filter_map(reasoning);
    let is_lost = |text: &&str| !answers().any(|answer| answer.contains(*text));
    reasoning.filter(is_lost).count()
}

/// An assistant's reasoning: a field of the message, or the text in `<think>` in its content.
fn reasoning(message: &Message) -> Option<&str> {
    if message.role() != "assistant" {
        return None;
    }
    let names = ["reasoning_content", "thinking", "reasoning"];
    let field = names
        .iter()
        .find_map(|name| message.fields().get(*name)?.as_str());
    let text = field.or_else(|| {
        let (before, _) = message.content()?.split_once("</think>")?;
        Some(
            before
                .rsplit_once("<think>")
                .map_or(before, |(_, text)| text),
        )
    });
    text.map(str::trim).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_is_lost_where_no_answer_has_it() {
        let messages = [
            Message::new("user", "<think>not his</think>"),
            Message::new("assistant", "<think>\nhm\n</think>\n\na"),
            Message::new("assistant", "b"),
        ];
        let learned = |answer: &str| {
            [vec![
                TemplateSpan::Given("hm".into()),
                TemplateSpan::Answer(answer.into()),
            ]]
        };
        assert_eq!(lost(&messages, &learned("a")), 1);
        assert_eq!(lost(&messages, &learned("<think>hm</think>a")), 0);
    }
}
