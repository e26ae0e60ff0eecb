//! The tokens at which an answer of a tokenizer's model ends: the tokenizer's EOS, and the token
//! with which its chat template closes an assistant's turn.
//!
//! The second is found by rendering a conversation with one answer and reading the token after the
//! answer's text. Many base models and some published chat models name an `eos_token` that is not
//! this token; training on chats teaches it all the same. A template that closes a turn with text
//! that is no special or added token gives no such token, and a note says so.
//!
//! Left out: tokens that close other kinds of turn, such as Llama 3.1's `<|eom_id|>` after a tool
//! call; models that use them list them in `generation_config.json`.

use super::records::Message;
use super::template::{ChatTemplate, GenerationPrompt};
use super::tokenizer::Tokenizer;
use crate::terminal;

/// Content of the answer that is rendered; templates have no reason to change it.
const PROBE: &str = "Collimate";

/// The text with which a template closes an assistant's turn.
#[derive(Debug, PartialEq, Eq)]
enum TurnClosing {
    /// A special or added token.
    Token(u32),
    /// Ordinary text: its first line.
    Text(String),
}

impl Tokenizer {
    /// The tokens at which a completion ends: the EOS, if the tokenizer names one, and
    /// [`turn_end`].
    pub fn end_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.eos_id().into_iter().collect();
        // A template that does not compile is reported where it renders records.
        let template = self.compiled_template().ok().flatten();
        ids.extend(template.and_then(|template| turn_end(self, &template)));
        ids.dedup();
        ids
    }
}

/// The special or added token with which the template closes an assistant's turn; `None` if it
/// closes turns with ordinary text, which a note then names, or with nothing, or refuses a plain
/// conversation.
pub fn turn_end(tokenizer: &Tokenizer, template: &ChatTemplate) -> Option<u32> {
    match closing(tokenizer, template)? {
        TurnClosing::Token(id) => Some(id),
        TurnClosing::Text(text) => {
            terminal::note_once(format!(
                "the chat template closes an answer with {text:?}, which is not a special or added \
                 token of the tokenizer, so generation does not stop there; add it to the \
                 tokenizer's special tokens, or make it a stop text (ppo.stop, generate --stop)"
            ));
            None
        }
    }
}

/// The closing of an assistant's turn; `None` if there is none but white space, or the template
/// refuses a plain conversation.
fn closing(tokenizer: &Tokenizer, template: &ChatTemplate) -> Option<TurnClosing> {
    let messages = [
        Message::new("user", "Hello"),
        Message::new("assistant", PROBE),
    ];
    let text = template.render(&messages, GenerationPrompt::Omit).ok()?;
    let after = &text[text.rfind(PROBE)? + PROBE.len()..];
    let ids = tokenizer.encode_rendered(after).ok()?;
    let is_text = |id: &u32| {
        let text = tokenizer.decode_with_specials(&[*id]);
        text.is_ok_and(|text| !text.trim().is_empty())
    };
    let first = ids.into_iter().find(is_text)?;
    Some(match tokenizer.is_added(first) {
        true => TurnClosing::Token(first),
        false => TurnClosing::Text(after.trim().lines().next()?.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::{BpeTraining, END_OF_TEXT, IM_END, IM_START, PAD};

    const CHATML: &str =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

    fn with(template: Option<&str>) -> Tokenizer {
        let special = [END_OF_TEXT, PAD, IM_START, IM_END].map(str::to_owned);
        let training = BpeTraining {
            special_tokens: special.into(),
            chat_template: template.map(str::to_owned),
            ..BpeTraining::new(300)
        };
        Tokenizer::train_bpe(&["user assistant Hello Collimate"], &training).unwrap()
    }

    fn ends(template: &str) -> Vec<String> {
        let tokenizer = with(Some(template));
        let name = |id: u32| tokenizer.decode_with_specials(&[id]).unwrap();
        tokenizer.end_ids().into_iter().map(name).collect()
    }

    #[test]
    fn an_answer_ends_at_eos_and_at_the_token_that_closes_its_turn() {
        assert_eq!(ends(CHATML), [END_OF_TEXT, IM_END]);
        assert_eq!(with(None).end_ids().len(), 1);
    }

    #[test]
    fn spaces_before_the_closing_token_and_tokens_after_it_do_not_count() {
        // Llama 2 writes a space before its EOS; Phi-3 writes EOS after the turn's own end.
        let spaced = CHATML.replace("<|im_end|>", " <|im_end|>");
        assert_eq!(ends(&spaced), [END_OF_TEXT, IM_END]);
        assert_eq!(
            ends(&format!("{CHATML}<|endoftext|>")),
            [END_OF_TEXT, IM_END]
        );
        let eos = CHATML.replace("<|im_end|>", END_OF_TEXT);
        assert_eq!(ends(&eos), [END_OF_TEXT]);
    }

    #[test]
    fn a_turn_that_plain_text_closes_adds_nothing() {
        let closing = |template: &str| {
            let tokenizer = with(Some(template));
            let template = tokenizer.compiled_template().unwrap().unwrap();
            super::closing(&tokenizer, &template)
        };
        let plain = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}";
        assert_eq!(
            (ends(plain), closing(plain)),
            (vec![END_OF_TEXT.into()], None)
        );
        let refusing = "{{ raise_exception('no') }}";
        assert_eq!(
            (ends(refusing), closing(refusing)),
            (vec![END_OF_TEXT.into()], None)
        );
        // A token's name that the tokenizer does not know is ordinary text.
        let unknown = CHATML.replace("<|im_end|>", "<|eot_id|>");
        assert_eq!(ends(&unknown), [END_OF_TEXT]);
        let text = TurnClosing::Text("<|eot_id|>".to_owned());
        assert_eq!(closing(&unknown), Some(text));
        let id = with(None).token_id(IM_END).unwrap();
        assert_eq!(closing(CHATML), Some(TurnClosing::Token(id)));
    }
}
