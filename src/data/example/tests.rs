//! Records become examples, pairs and prompts. Each test encodes records with a tokenizer trained
//! on a few words, and reads the ids back as text.

mod conversations;
mod lengths;

use std::path::Path;

use super::*;
use crate::data::records::{RecordPlace, RecordSource};
use crate::data::template::GenerationPrompt;
use crate::data::tokenizer::{BpeTraining, IM_END, IM_START};

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content \
                      + '<|im_end|>\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn tokenizer(template: Option<&str>) -> Tokenizer {
    let mut training = BpeTraining::new(300);
    if template.is_some() {
        training
            .special_tokens
            .extend([IM_START.into(), IM_END.into()]);
        training.eos_token = IM_END.into();
    }
    training.chat_template = template.map(str::to_owned);
    Tokenizer::train_bpe(&["the user asks and the assistant answers"], &training).unwrap()
}

fn records(lines: &[&str]) -> Vec<Record> {
    let file = std::sync::Arc::from(Path::new("d.jsonl"));
    let record = |(i, line): (usize, &&str)| Record {
        fields: serde_json::from_str(line).unwrap(),
        source: RecordSource {
            file: std::sync::Arc::clone(&file),
            place: RecordPlace::Line(i + 1),
        },
    };
    lines.iter().enumerate().map(record).collect()
}

fn limit(tokens: usize) -> Limit {
    Limit {
        tokens,
        words: format!("sft.max_length is {tokens}"),
        mend: "raise sft.max_length".to_owned(),
    }
}

/// The answers of an example, as text.
fn answers(t: &Tokenizer, example: &Example) -> Vec<String> {
    example
        .answer
        .iter()
        .map(|a| t.decode_with_specials(&example.ids[a.clone()]).unwrap())
        .collect()
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_boundary_is_a_token_boundary_and_eos_comes_once() {
    let t = tokenizer(None);
    let encoder = Encoder::new(&t, limit(100), TooLong::Error).unwrap();
    let lines = [
        r#"{"prompt": "the us", "completion": "er asks"}"#,
        r#"{"prompt": "the us", "completion": "er asks<|endoftext|>"}"#,
    ];
    let examples = encoder.examples(&records(&lines)).unwrap().items.concat();
    assert_eq!(examples[0], examples[1]);
    let prompt = t.encode_text("the us").unwrap();
    assert_eq!(examples[0].ids[..prompt.len()], prompt);
    assert_eq!(answers(&t, &examples[0]), ["er asks<|endoftext|>"]);
}

#[test]
fn chats_learn_the_answers_with_their_closing_token() {
    let t = tokenizer(Some(CHATML));
    let encoder = Encoder::new(&t, limit(200), TooLong::Error).unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "the"},
                                {"role": "assistant", "content": "asks "},
                                {"role": "user", "content": "and"},
                                {"role": "assistant", "content": "answers"}]}"#;
    let example = &encoder.examples(&records(&[line])).unwrap().items[0][0];
    assert_eq!(
        answers(&t, example),
        ["asks <|im_end|>", "answers<|im_end|>"]
    );
    let template = t.compiled_template().unwrap().unwrap();
    let whole = template
        .render(
            &records(&[line])[0].messages().unwrap(),
            GenerationPrompt::Omit,
        )
        .unwrap();
    assert_eq!(t.decode_with_specials(&example.ids).unwrap(), whole);

    let split = r#"{"prompt": [{"role": "user", "content": "the"},
                               {"role": "assistant", "content": "asks"},
                               {"role": "user", "content": "and"}],
                    "completion": [{"role": "assistant", "content": "answers"}]}"#;
    let example = &encoder.examples(&records(&[split])).unwrap().items[0][0];
    assert_eq!(answers(&t, example), ["answers<|im_end|>"]);
}

#[test]
fn an_answer_that_the_template_leaves_open_is_closed_by_eos() {
    let t = tokenizer(Some(
        "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}",
    ));
    let encoder = Encoder::new(&t, limit(200), TooLong::Error).unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "the"},
                                {"role": "assistant", "content": "asks"}]}"#;
    let example = &encoder.examples(&records(&[line])).unwrap().items[0][0];
    assert_eq!(answers(&t, example), ["assistant:asks\n<|im_end|>"]);
}

#[test]
fn pairs_of_text_and_of_chats() {
    let t = tokenizer(Some(CHATML));
    let encoder = Encoder::new(&t, limit(200), TooLong::Error).unwrap();
    let lines = [
        r#"{"prompt": "the", "chosen": " user", "rejected": " asks", "margin": 2}"#,
        r#"{"prompt": [{"role": "user", "content": "the"}],
            "chosen": [{"role": "assistant", "content": "user"}],
            "rejected": [{"role": "assistant", "content": "asks"}]}"#,
    ];
    let pairs = encoder.pairs(&records(&lines)).unwrap().items;
    let text = |ids: &[u32]| t.decode_with_specials(ids).unwrap();
    assert_eq!(
        (text(&pairs[0].prompt), text(&pairs[0].chosen)),
        ("the".into(), " user<|im_end|>".into())
    );
    assert_eq!((pairs[0].margin, pairs[1].margin), (2.0, 0.0));
    assert_eq!(
        text(&pairs[1].prompt),
        "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(text(&pairs[1].rejected), "asks<|im_end|>");
    assert!(text(&pairs[1].sequences()[0]).ends_with("assistant\nuser<|im_end|>"));

    let wrong = r#"{"prompt": [{"role": "user", "content": "the"}],
                    "chosen": [{"role": "user", "content": "x"}],
                    "rejected": [{"role": "assistant", "content": "asks"}]}"#;
    assert!(message(encoder.pairs(&records(&[wrong]))).contains("role \"assistant\""));
}

#[test]
fn prompts_are_opened_for_the_answer() {
    let t = tokenizer(Some(CHATML));
    let encoder = Encoder::new(&t, limit(200), TooLong::Error).unwrap();
    let lines = [
        r#"{"prompt": [{"role": "system", "content": "asks"},
                       {"role": "user", "content": "the"}]}"#,
        r#"{"prompt": "the"}"#,
    ];
    let prompts = encoder.prompts(&records(&lines)).unwrap().items;
    assert!(prompts[0].text.ends_with("<|im_start|>assistant\n"));
    assert_eq!(
        t.decode_with_specials(&prompts[0].ids).unwrap(),
        prompts[0].text
    );
    assert_eq!(prompts[1].text, "the");
    let questions = prompts.iter().map(|prompt| prompt.question.as_str());
    assert!(questions.eq(["the"; 2]));
    assert!(message(encoder.prompts(&records(&[r#"{"prompt": ""}"#]))).contains("no token"));
}

#[test]
fn bad_records_are_left_out_and_named() {
    let t = tokenizer(None);
    let lines = [
        r#"{"prompt": "the", "completion": " user"}"#,
        r#"{"prompt": "the", "answer": " user", "id": 7}"#,
        r#"{"prompt": "", "completion": ""}"#,
        r#"{"prompt": "the", "completion": " asks", "source": "x"}"#,
    ];
    let encoder = Encoder::new(&t, limit(100), TooLong::Error).unwrap();
    let e = message(encoder.examples(&records(&lines)));
    assert!(
        e.starts_with("d.jsonl:2: missing field `completion`"),
        "{e}"
    );
    let encoder = encoder.with_bad_records(BadRecords::Skip);
    let encoded = encoder.examples(&records(&lines)).unwrap();
    assert_eq!((encoded.items.len(), encoded.bad.count), (2, 2));
    assert!(encoded.bad.first[1].starts_with("d.jsonl:3: there is nothing to learn"));
    assert_eq!(encoded.unused, ["source"]);
    let e = message(encoder.examples(&records(&lines[1..3])));
    assert!(
        e.contains("no record is left: all 2 are bad\n  d.jsonl:1: missing field"),
        "{e}"
    );

    let documents = documents(
        records(&[r#"{"text": "a", "url": "u"}"#, r#"{"prompt": "b"}"#]),
        BadRecords::Skip,
    );
    let documents = documents.unwrap();
    assert_eq!((documents.items.len(), documents.bad.count), (1, 1));
    assert_eq!(documents.unused, ["url"]);
}

/// As TRL trains on language-modelling records: EOS at the end, once, and the loss on every token
/// that is predicted.
#[test]
fn all_of_a_document_is_learned() {
    let t = tokenizer(None);
    let encoder = Encoder::new(&t, limit(100), TooLong::Error).unwrap();
    let lines = [
        r#"{"text": "the user asks"}"#,
        r#"{"text": "the user asks<|endoftext|>"}"#,
    ];
    let examples = encoder.examples(&records(&lines)).unwrap().items;
    assert_eq!(examples[0], examples[1]);
    assert_eq!(answers(&t, &examples[0][0]), ["the user asks<|endoftext|>"]);
    let ([all], length) = (examples[0][0].answer.as_slice(), examples[0][0].ids.len()) else {
        panic!("one answer")
    };
    assert_eq!(*all, 0..length);
    let half = r#"{"prompt": "a", "text": "the"}"#;
    assert!(message(encoder.examples(&records(&[half]))).contains("missing field `completion`"));
}

#[test]
fn other_shapes_are_encoded_as_their_own() {
    let t = tokenizer(Some(CHATML));
    let encoder = Encoder::new(&t, limit(300), TooLong::Error).unwrap();
    let same = |lines: [&str; 2]| {
        let examples = encoder.examples(&records(&lines)).unwrap().items;
        assert_eq!(examples[0], examples[1], "{lines:?}");
    };
    same([
        r#"{"conversations": [{"from": "human", "value": "the"},
                              {"from": "gpt", "value": "asks"}]}"#,
        r#"{"messages": [{"role": "user", "content": "the"},
                         {"role": "assistant", "content": "asks"}]}"#,
    ]);
    same([
        r#"{"instruction": "the", "input": "user", "output": "asks", "messages": null}"#,
        r#"{"prompt": [{"role": "user", "content": "the\nuser"}],
            "completion": [{"role": "assistant", "content": "asks"}]}"#,
    ]);
    let pairs = records(&[r#"{"chosen": "the user asks", "rejected": "the user answers"}"#]);
    let direct = &encoder.direct_pairs(&pairs).unwrap().items[0];
    assert_eq!(t.decode_with_specials(&direct.prompt).unwrap(), "the user");
    assert_eq!(
        t.decode_with_specials(&direct.chosen).unwrap(),
        " asks<|im_end|>"
    );
    assert!(encoder.pairs(&pairs).unwrap().items[0].prompt.is_empty());
    let nothing = r#"{"prompt": "", "chosen": "", "rejected": "the"}"#;
    let e = message(encoder.direct_pairs(&records(&[nothing])));
    assert!(
        e.contains("d.jsonl:1: no prompt and an empty answer"),
        "{e}"
    );
}

#[test]
fn records_without_an_answer_or_template_are_named() {
    let t = tokenizer(None);
    let encoder = Encoder::new(&t, limit(100), TooLong::Error).unwrap();
    let chat = r#"{"messages": [{"role": "user", "content": "the"}]}"#;
    assert!(message(encoder.examples(&records(&[chat]))).contains("no chat template"));
    let empty = r#"{"prompt": "", "completion": ""}"#;
    assert!(message(encoder.examples(&records(&[empty]))).contains("nothing to learn"));
    let t = tokenizer(Some(CHATML));
    let encoder = Encoder::new(&t, limit(100), TooLong::Error).unwrap();
    assert!(
        message(encoder.examples(&records(&[chat])))
            .contains("d.jsonl:1: there is nothing to learn")
    );
    let misspelt = r#"{"messages": [{"role": "user", "content": "the"},
                                    {"role": "asistant", "content": "cat"}]}"#;
    let error = message(encoder.examples(&records(&[misspelt])));
    assert!(
        error.contains("no message has the role assistant; roles found: user, asistant"),
        "{error}"
    );
}

#[test]
fn documents_are_plain_text() {
    let t = tokenizer(None);
    let documents = encode_documents(&t, &records(&[r#"{"text": "the<|endoftext|>"}"#])).unwrap();
    assert!(!documents[0].contains(&t.eos_id().unwrap()));
    assert!(
        message(encode_documents(&t, &records(&[r#"{"content": "x"}"#])))
            .contains("rename `content`")
    );
}
