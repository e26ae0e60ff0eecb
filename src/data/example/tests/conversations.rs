//! Conversations whose template renders earlier turns differently, or opens the answer.

use super::{CHATML, limit, message, records, tokenizer};
use crate::config::{Learn, TooLong};
use crate::data::example::Encoder;
use crate::data::tokenizer::Tokenizer;

/// Qwen3's way: the reasoning of an answer is there while it is the last one, and the generation
/// prompt can be told to leave it out.
const DROPS_EARLIER: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
                             {% if m.role == 'assistant' and loop.last %}\
                             <t>{{ m.reasoning_content or '' }}</t>{% endif %}\
                             {{ m.content }}{{ '<|im_end|>\n' }}{% endfor %}\
                             {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                             {% if enable_thinking is defined and not enable_thinking %}\
                             <t></t>{% endif %}{% endif %}";

/// DeepSeek-R1's way: the generation prompt opens the reasoning, which completed turns lack.
const OPENS_THINK: &str = "{% for m in messages %}\
                           {{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] \
                           + '<|im_end|>\n' }}{% endfor %}\
                           {% if add_generation_prompt %}\
                           {{ '<|im_start|>assistant\n<think>\n' }}{% endif %}";

const TWO_ANSWERS: &str = r#"{"messages": [{"role": "user", "content": "the"},
                                           {"role": "assistant", "content": "asks"},
                                           {"role": "user", "content": "and"},
                                           {"role": "assistant", "content": "answers"}]}"#;

/// Each example of `record` as text: before the answer, and the answer.
fn read_back(t: &Tokenizer, encoder: &Encoder<'_>, record: &str) -> Vec<(String, String)> {
    let text = |ids: &[u32]| t.decode_with_specials(ids).unwrap();
    let examples = encoder
        .examples(&records(&[record]))
        .unwrap()
        .items
        .concat();
    let parts = examples.iter().map(|example| {
        let answer = example.answer[0].clone();
        (
            text(&example.ids[..answer.start]),
            text(&example.ids[answer]),
        )
    });
    parts.collect()
}

#[test]
fn answers_whose_history_is_rewritten_are_examples_of_their_own() {
    let t = tokenizer(Some(DROPS_EARLIER));
    let encoder = Encoder::new(&t, limit(500), TooLong::Error).unwrap();
    let opened = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n";
    let history =
        format!("{opened}asks<|im_end|>\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n");
    let last = (history.clone(), "<t></t>answers<|im_end|>".to_owned());
    let first = (opened.to_owned(), "<t></t>asks<|im_end|>".to_owned());
    assert_eq!(read_back(&t, &encoder, TWO_ANSWERS), [first, last.clone()]);
    let encoder = encoder.learning(Learn::Last);
    assert_eq!(read_back(&t, &encoder, TWO_ANSWERS), [last]);
    // The tokens before an answer are the prompt's tokens at generation.
    let prompt = r#"{"prompt": [{"role": "user", "content": "the"},
                                {"role": "assistant", "content": "asks"},
                                {"role": "user", "content": "and"}]}"#;
    let prompt = &encoder.prompts(&records(&[prompt])).unwrap().items[0];
    let example = &encoder.examples(&records(&[TWO_ANSWERS])).unwrap().items[0][0];
    assert_eq!(example.ids[..example.answer[0].start], prompt.ids);
}

#[test]
fn a_conversation_of_one_rendering_stays_one_example_and_the_last_answer_can_be_learned_alone() {
    let t = tokenizer(Some(CHATML));
    let encoder = Encoder::new(&t, limit(500), TooLong::Error).unwrap();
    let both = encoder.examples(&records(&[TWO_ANSWERS])).unwrap().items;
    assert_eq!((both[0].len(), both[0][0].answer.len()), (1, 2));
    let last = encoder
        .learning(Learn::Last)
        .examples(&records(&[TWO_ANSWERS]))
        .unwrap();
    let (both, last) = (&both[0][0], &last.items[0][0]);
    assert_eq!(last.answer, both.answer[1..]);
    assert_eq!(last.ids, both.ids[..last.ids.len()]);
}

/// The weights of OpenAI's chats: an answer of weight 0 is part of the history alone.
#[test]
fn an_earlier_answer_of_weight_0_goes_with_the_last_answer_alone() {
    let t = tokenizer(Some(CHATML));
    let weighed = TWO_ANSWERS.replace("\"asks\"", "\"asks\", \"weight\": 0");
    let weighed = records(&[&weighed]);
    let encoder = Encoder::new(&t, limit(500), TooLong::Error).unwrap();
    let e = message(encoder.examples(&weighed));
    assert!(e.contains("message 1 has weight 0"), "{e}");
    assert!(encoder.texts(&weighed).is_ok(), "it can be scored");
    let encoder = encoder.learning(Learn::Last);
    let plain = encoder.examples(&records(&[TWO_ANSWERS])).unwrap().items;
    assert_eq!(encoder.examples(&weighed).unwrap().items, plain);
}

#[test]
fn the_limit_leaves_out_later_answers_of_a_conversation_as_it_cuts_them_off() {
    let t = tokenizer(Some(DROPS_EARLIER));
    let whole = Encoder::new(&t, limit(500), TooLong::Error).unwrap();
    let examples = whole
        .examples(&records(&[TWO_ANSWERS]))
        .unwrap()
        .items
        .concat();
    let tight = limit(examples[1].answer[0].start);
    let encoder = Encoder::new(&t, tight.clone(), TooLong::Truncate).unwrap();
    let fitted = encoder.examples(&records(&[TWO_ANSWERS])).unwrap();
    assert_eq!(fitted.items, [examples[..1].to_vec()]);
    assert_eq!((fitted.too_long.truncated, fitted.too_long.skipped), (1, 0));
    // `skip` leaves out the record as a whole, also the answer that fits.
    let encoder = Encoder::new(&t, tight.clone(), TooLong::Skip).unwrap();
    let short = r#"{"prompt": "the", "completion": "asks"}"#;
    let fitted = encoder.examples(&records(&[TWO_ANSWERS, short])).unwrap();
    assert_eq!(fitted.items.len(), 1);
    assert_eq!(fitted.items[0].len(), 1);
    assert!(!examples.contains(&fitted.items[0][0]), "the short one");
    assert_eq!((fitted.too_long.truncated, fitted.too_long.skipped), (0, 1));
    let encoder = Encoder::new(&t, tight, TooLong::Error).unwrap();
    assert!(message(encoder.examples(&records(&[TWO_ANSWERS]))).contains("the record has"));
}

#[test]
fn what_the_generation_prompt_opens_is_given_in_every_form() {
    let t = tokenizer(Some(OPENS_THINK));
    let encoder = Encoder::new(&t, limit(500), TooLong::Error).unwrap();
    let given = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n<think>\n";
    let line = r#"{"prompt": [{"role": "user", "content": "the"}],
                   "completion": [{"role": "assistant", "content": "asks"}],
                   "chosen": [{"role": "assistant", "content": "asks"}],
                   "rejected": [{"role": "assistant", "content": "user"}]}"#;
    let expected = (given.to_owned(), "asks<|im_end|>".to_owned());
    assert_eq!(read_back(&t, &encoder, line), [expected]);
    let pair = &encoder.pairs(&records(&[line])).unwrap().items[0];
    let prompt = &encoder.prompts(&records(&[line])).unwrap().items[0];
    assert_eq!((&prompt.text[..], &prompt.ids), (given, &pair.prompt));
    assert_eq!(
        t.decode_with_specials(&pair.rejected).unwrap(),
        "user<|im_end|>"
    );
    assert_eq!(read_back(&t, &encoder, TWO_ANSWERS).len(), 2);
}

#[test]
fn a_refused_conversation_is_learned_when_its_advice_is_followed() {
    let source = "{% for m in messages %}{{ m.role if loop.last else m.role[:1] }}:\
                  {{ m.content }};{% endfor %}";
    let t = tokenizer(Some(source));
    let encoder = Encoder::new(&t, limit(200), TooLong::Error).unwrap();
    let refused = message(encoder.examples(&records(&[TWO_ANSWERS])));
    assert!(
        refused.contains("d.jsonl:1") && refused.contains("`prompt` and `completion`"),
        "{refused}"
    );
    let followed = r#"{"prompt": "u:the;assistant:", "completion": "asks;"}"#;
    let found = read_back(&t, &encoder, followed);
    assert_eq!(
        found,
        [("u:the;assistant:".to_owned(), "asks;<|im_end|>".to_owned())]
    );
    let pair = r#"{"prompt": [{"role": "user", "content": "the"}],
                   "chosen": [{"role": "assistant", "content": "x"}],
                   "rejected": [{"role": "assistant", "content": "y"}]}"#;
    let refused = message(encoder.pairs(&records(&[pair])));
    assert!(
        refused.contains("for pairs `prompt`, `chosen` and `rejected`"),
        "{refused}"
    );
    let followed = r#"{"prompt": "u:the;assistant:", "chosen": "x;", "rejected": "y;"}"#;
    assert!(encoder.pairs(&records(&[followed])).is_ok());
}

#[test]
fn tools_and_variables_of_a_record_reach_its_template() {
    let source = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}\
                  {{ m.role + ':' + (m.content or '') }}\
                  {% for call in m.tool_calls or [] %}{{ call.name }}{% endfor %};{% endfor %}\
                  {{ style }}{% if add_generation_prompt %}assistant:{% endif %}";
    let t = tokenizer(Some(source));
    let encoder = Encoder::new(&t, limit(500), TooLong::Error).unwrap();
    let line = r#"{"prompt": [{"role": "user", "content": "the"}],
                   "chosen": [{"role": "assistant", "content": null,
                               "tool_calls": [{"name": "f"}]}],
                   "completion": [{"role": "assistant", "content": "asks"}],
                   "rejected": [{"role": "assistant", "content": "asks"}],
                   "tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"style": ""},
                   "other": 1}"#;
    let given = r#"[{"name": "f"}]user:the;assistant:"#;
    assert_eq!(read_back(&t, &encoder, line)[0].0, given);
    let pair = &encoder.pairs(&records(&[line])).unwrap().items[0];
    assert_eq!(t.decode_with_specials(&pair.prompt).unwrap(), given);
    assert_eq!(
        t.decode_with_specials(&pair.chosen).unwrap(),
        "f;<|im_end|>"
    );
    let prompt = &encoder.prompts(&records(&[line])).unwrap().items[0];
    assert_eq!(prompt.text, given);
    let fields: Vec<&String> = prompt.fields.keys().collect();
    assert!(
        ["tools", "chat_template_kwargs", "other"]
            .iter()
            .all(|name| fields.iter().any(|f| f == name))
    );
    let wrong = r#"{"prompt": [{"role": "user", "content": "the"}], "tools": 3}"#;
    assert!(message(encoder.prompts(&records(&[wrong]))).contains("d.jsonl:1: `tools` is 3"));
}

#[test]
fn reasoning_that_the_template_drops_is_counted() {
    let line = r#"{"prompt": [{"role": "user", "content": "the"}],
                   "completion": [{"role": "assistant", "content": "<think>so</think>asks"}],
                   "chosen": [{"role": "assistant", "content": "asks", "reasoning_content": "so"}],
                   "rejected": [{"role": "assistant", "content": "asks"}]}"#;
    for (template, lost) in [
        (OPENS_THINK, [1, 2]),
        (CHATML, [0, 1]),
        (DROPS_EARLIER, [0, 0]),
    ] {
        let t = tokenizer(Some(template));
        let encoder = Encoder::new(&t, limit(500), TooLong::Error).unwrap();
        encoder.examples(&records(&[line])).unwrap();
        let first = encoder.lost_reasoning();
        encoder.pairs(&records(&[line])).unwrap();
        assert_eq!([first, encoder.lost_reasoning()], lost, "{template}");
    }
}
