//! The answers of a conversation, each with the text that the model is given before it.
//!
//! Before answer i the model is given the same text as at inference: the earlier messages and the
//! generation prompt. The answer is the text that the completed turn adds. If the generation prompt
//! has text that the completed turn lacks (DeepSeek-R1 opens `<think>`, and drops the reasoning of
//! completed turns), the answer is the text that the turn adds to the part that both have, as in
//! TRL (#3522); the given text is still that of inference.
//!
//! Many templates render earlier turns differently once later ones follow (Qwen3 drops their
//! reasoning). Then no single rendering has all answers as they would be generated, and each answer
//! has its own rendering.

use super::{ChatTemplate, GenerationPrompt, TemplateSpan, Variables};
use crate::config::Learn;
use crate::data::error::{DataError, Result};
use crate::data::records::Message;

/// Content that occurs in no template, from which the start of an answer is found.
const PROBE: &str = "\u{e000}";

/// A conversation with the template that renders it.
pub struct Chat<'a> {
    pub(super) template: &'a ChatTemplate,
    pub(super) messages: &'a [Message],
    pub(super) variables: &'a Variables,
}

/// An answer with the text before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTurn {
    /// Text that inference gives before the answer.
    pub given: String,
    /// Text that the model answers: the turn's content with its closing.
    pub answer: String,
}

impl ChatTurn {
    /// The turn as spans.
    pub fn into_spans(self) -> Vec<TemplateSpan> {
        let mut spans = Vec::new();
        push(&mut spans, TemplateSpan::Given(self.given));
        push(&mut spans, TemplateSpan::Answer(self.answer));
        spans
    }
}

impl Chat<'_> {
    /// The renderings to learn from, in spans: the assistant's turns from message `first_answer` on
    /// are answers, the rest is given. There is one rendering if it has all answers as they would
    /// be generated, else one for each answer; with [`Learn::Last`] only that of the last answer.
    ///
    /// # Errors
    /// If the template refuses the messages, or renders the messages before an answer differently
    /// once the answer is there: then no text is the one that the model saw.
    pub fn renderings(&self, first_answer: usize, learn: Learn) -> Result<Vec<Vec<TemplateSpan>>> {
        let answers = self.answers(first_answer);
        if learn == Learn::Last {
            let last = answers.last().map(|&i| self.turn(i, &self.completed(i)?));
            return Ok(last
                .transpose()?
                .map(ChatTurn::into_spans)
                .into_iter()
                .collect());
        }
        let turns = answers.iter().map(|&i| self.turn(i, &self.completed(i)?));
        let turns: Vec<ChatTurn> = turns.collect::<Result<_>>()?;
        Ok(match self.joined(&turns)? {
            Some(spans) => vec![spans],
            None => turns.into_iter().map(ChatTurn::into_spans).collect(),
        })
    }

    /// One rendering in which the text from the first answer on, message `first_answer` or later,
    /// is one long answer. If no single rendering has all answers as they would be generated, it is
    /// that of the whole conversation.
    ///
    /// # Errors
    /// The errors of [`Self::renderings`].
    pub fn as_one(&self, first_answer: usize) -> Result<Vec<TemplateSpan>> {
        let mut renderings = self.renderings(first_answer, Learn::All)?;
        let last = self.answers(first_answer).last().copied();
        match (renderings.len(), last) {
            (0 | 1, _) | (_, None) => Ok(renderings.pop().unwrap_or_default()),
            (_, Some(last)) => Ok(self
                .turn(first_answer, &self.completed(last)?)?
                .into_spans()),
        }
    }

    /// The text of the whole conversation.
    ///
    /// # Errors
    /// If the template refuses the messages.
    pub fn whole(&self) -> Result<String> {
        self.render(self.messages, GenerationPrompt::Omit)
    }

    /// The whole conversation, opened for an answer.
    ///
    /// # Errors
    /// The errors of [`Self::whole`].
    pub fn opened(&self) -> Result<String> {
        self.render(self.messages, GenerationPrompt::Add)
    }

    /// Indices of the answers from message `first` on.
    fn answers(&self, first: usize) -> Vec<usize> {
        let answers = self.messages.iter().enumerate().skip(first);
        let answers = answers.filter(|(_, message)| message.role() == "assistant");
        answers.map(|(i, _)| i).collect()
    }

    /// The conversation up to answer `i`.
    fn completed(&self, i: usize) -> Result<String> {
        self.render(&self.messages[..=i], GenerationPrompt::Omit)
    }

    /// Answer `i` and the text after it in `rendering`, with the text before it.
    fn turn(&self, i: usize, rendering: &str) -> Result<ChatTurn> {
        let earlier = &self.messages[..i];
        let given = self.render(earlier, GenerationPrompt::Add)?;
        if let Some(answer) = rendering.strip_prefix(&given) {
            let answer = answer.to_owned();
            return Ok(ChatTurn { given, answer });
        }
        let history = self.render(earlier, GenerationPrompt::Omit)?;
        let common = common_prefix(&given, rendering);
        let header = self.header(i, &given);
        if header > common || !given.starts_with(&history) || !rendering.starts_with(&history) {
            return Err(rewritten(i, &given[..common]));
        }
        let answer = rendering[header..].to_owned();
        Ok(ChatTurn { given, answer })
    }

    /// Number of bytes of `given` that are rendered before answer `i`, whatever its content.
    fn header(&self, i: usize, given: &str) -> usize {
        let mut messages = self.messages[..i].to_vec();
        messages.push(Message::new("assistant", PROBE));
        // If the template refuses such an answer, the start of others is not known.
        let probe = self.render(&messages, GenerationPrompt::Omit);
        probe.map_or(given.len(), |probe| common_prefix(given, &probe))
    }

    /// The turns as one rendering, if it has all of them.
    fn joined(&self, turns: &[ChatTurn]) -> Result<Option<Vec<TemplateSpan>>> {
        let (mut spans, mut done) = (Vec::new(), String::new());
        for ChatTurn { given, answer } in turns {
            let Some(more) = given.strip_prefix(&done) else {
                return Ok(None);
            };
            push(&mut spans, TemplateSpan::Given(more.to_owned()));
            push(&mut spans, TemplateSpan::Answer(answer.clone()));
            done = format!("{given}{answer}");
        }
        let whole = self.whole()?;
        Ok(whole.strip_prefix(&done).map(|rest| {
            push(&mut spans, TemplateSpan::Given(rest.to_owned()));
            spans
        }))
    }

    fn render(&self, messages: &[Message], generation: GenerationPrompt) -> Result<String> {
        self.template
            .render_with(messages, self.variables, generation)
    }
}

fn push(spans: &mut Vec<TemplateSpan>, span: TemplateSpan) {
    let (TemplateSpan::Given(text) | TemplateSpan::Answer(text)) = &span;
    if !text.is_empty() {
        spans.push(span);
    }
}

/// Length in bytes of the common start of both texts, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(a, _)| a.len_utf8()).sum()
}

fn rewritten(i: usize, common: &str) -> DataError {
    let character = common.chars().count();
    DataError::Template(format!(
        "the messages before messages[{i}] are rendered differently once that answer is there \
         (from character {character} on), so that no text is the one that the model saw and \
         answered; give the record as text in the model's format (`prompt` and `completion`; for \
         pairs `prompt`, `chosen` and `rejected`), or use a template that keeps what comes before \
         an answer"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const CHATML: &str = "{% for m in messages %}\
                          {{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' \
                          + '\n' }}{% endfor %}{% if add_generation_prompt %}\
                          {{ '<|im_start|>assistant\n' }}{% endif %}";

    /// DeepSeek-R1's way: a generation prompt that opens the reasoning, which completed turns drop.
    const OPENS_THINK: &str = "{% for m in messages %}\
                               {{ '<' + m.role + '>' + m.content.split('</think>')[-1] + '</s>' }}\
                               {% endfor %}{% if add_generation_prompt %}\
                               {{ '<assistant><think>\n' }}{% endif %}";

    /// Qwen3's way: the last turn has its reasoning, which earlier ones lose.
    const DROPS_EARLIER: &str = "{% for m in messages %}{{ '<' + m.role + '>' }}\
                                 {% if m.role == 'assistant' and loop.last %}\
                                 <think>\n\n</think>\n\n{% endif %}\
                                 {{ m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}\
                                 {{ '<assistant>' }}{% endif %}";

    fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
        let message = |(role, content): &(&str, &str)| Message::new(role, content);
        turns.iter().map(message).collect()
    }

    fn two_answers() -> Vec<Message> {
        chat(&[
            ("user", "q"),
            ("assistant", "a"),
            ("user", "r"),
            ("assistant", "b"),
        ])
    }

    fn renderings(
        source: &str,
        messages: &[Message],
        first: usize,
        learn: Learn,
    ) -> Result<Vec<Vec<TemplateSpan>>> {
        let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
        let variables = Variables::default();
        template.chat(messages, &variables).renderings(first, learn)
    }

    fn given(text: &str) -> TemplateSpan {
        TemplateSpan::Given(text.to_owned())
    }

    fn answer(text: &str) -> TemplateSpan {
        TemplateSpan::Answer(text.to_owned())
    }

    #[test]
    fn answers_are_what_a_turn_adds() {
        let messages = two_answers();
        let found = renderings(CHATML, &messages, 0, Learn::All).unwrap();
        let expected = [
            given("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
            answer("a<|im_end|>\n"),
            given("<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"),
            answer("b<|im_end|>\n"),
        ];
        assert_eq!(found, [expected.to_vec()]);
        let last_only = &renderings(CHATML, &messages, 2, Learn::All).unwrap()[0];
        assert_eq!((last_only.len(), &last_only[1]), (2, &expected[3]));
        assert_eq!(
            &renderings(CHATML, &messages, 0, Learn::Last).unwrap()[0],
            last_only
        );
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_gives_each_answer_its_own_rendering() {
        let found = renderings(DROPS_EARLIER, &two_answers(), 0, Learn::All).unwrap();
        let first = vec![
            given("<user>q</s><assistant>"),
            answer("<think>\n\n</think>\n\na</s>"),
        ];
        let second = vec![
            given("<user>q</s><assistant>a</s><user>r</s><assistant>"),
            answer("<think>\n\n</think>\n\nb</s>"),
        ];
        assert_eq!(found, [first, second.clone()]);
        let last = renderings(DROPS_EARLIER, &two_answers(), 0, Learn::Last).unwrap();
        assert_eq!(last, [second]);
    }

    #[test]
    fn what_the_generation_prompt_opens_stays_before_the_answer() {
        let found = renderings(OPENS_THINK, &two_answers()[..2], 0, Learn::All).unwrap();
        assert_eq!(
            found,
            [[given("<user>q</s><assistant><think>\n"), answer("a</s>")]]
        );
        // An answer that starts with the letters of what was opened loses none of them.
        let tagged = chat(&[("user", "q"), ("assistant", "<th>")]);
        let found = renderings(OPENS_THINK, &tagged, 0, Learn::All).unwrap();
        assert_eq!(found[0][1], answer("<th></s>"));
        let both = renderings(OPENS_THINK, &two_answers(), 0, Learn::All).unwrap();
        let before = "<user>q</s><assistant>a</s><user>r</s><assistant><think>\n";
        assert_eq!((both.len(), &both[1][0]), (2, &given(before)));
    }

    #[test]
    fn several_answers_of_a_pair_are_one_rendering() {
        let template = ChatTemplate::new(DROPS_EARLIER, BTreeMap::new()).unwrap();
        let (messages, variables) = (two_answers(), Variables::default());
        let chat = template.chat(&messages, &variables);
        let whole = "a</s><user>r</s><assistant><think>\n\n</think>\n\nb</s>";
        let expected = [given("<user>q</s><assistant>"), answer(whole)];
        assert_eq!(chat.as_one(1).unwrap(), expected);
        assert_eq!(
            chat.as_one(3).unwrap()[1],
            answer("<think>\n\n</think>\n\nb</s>")
        );
    }

    #[test]
    fn a_template_that_rewrites_what_is_answered_is_refused() {
        let source = "{% for m in messages %}{{ m.role if loop.last else m.role[:1] }}:\
                      {{ m.content }};{% endfor %}";
        let error = renderings(source, &two_answers()[..2], 0, Learn::All)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("messages[1]") && error.contains("`prompt` and `completion`"),
            "{error}"
        );
    }
}
