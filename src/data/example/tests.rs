//! Each test encodes records with a tokenizer trained on a few words, and reads the ids back as
//! text.

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
fn what_is_too_long_follows_the_policy() {
    let t = tokenizer(None);
    let lines = [
        r#"{"prompt": "a", "completion": "b"}"#,
        r#"{"prompt": "zzz", "completion": "yyyyyyyy"}"#,
    ];
    let encode = |policy| {
        Encoder::new(&t, limit(8), policy)
            .unwrap()
            .examples(&records(&lines))
    };
    let e = message(encode(TooLong::Error));
    assert!(
        e.contains("d.jsonl:2") && e.contains("12 tokens but sft.max_length is 8"),
        "{e}"
    );
    let skipped = encode(TooLong::Skip).unwrap();
    assert_eq!((skipped.items.len(), skipped.too_long.skipped), (1, 1));
    let cut = encode(TooLong::Truncate).unwrap();
    assert_eq!(
        (cut.items[1][0].ids.len(), &cut.items[1][0].answer[0]),
        (8, &(3..8))
    );
    assert_eq!(cut.too_long.truncated, 1);

    let long =
        records(&[r#"{"prompt": "zzzzzzzz", "completion": "y", "chosen": "x", "rejected": "yy"}"#]);
    assert!(
        Encoder::new(&t, limit(8), TooLong::Error)
            .unwrap()
            .prompts(&long)
            .is_ok()
    );
    let short = limit(7).or("lower ppo.max_new_tokens");
    let encoder = Encoder::new(&t, short, TooLong::Error).unwrap();
    let e = message(encoder.prompts(&long));
    let mend = "sft.max_length is 7; shorten it, or raise sft.max_length or lower ppo.max";
    assert!(e.contains(mend), "{e}");
    let e = message(
        Encoder::new(&t, limit(8), TooLong::Skip)
            .unwrap()
            .pairs(&long),
    );
    assert!(e.contains("no record is left: all 1 are too long"), "{e}");
    assert!(e.contains("raise sft.max_length"), "{e}");
}

/// A byte is a token here, and the answer's last is EOS.
#[test]
fn a_prompt_that_leaves_no_room_loses_its_start() {
    let t = tokenizer(None);
    let encoder = |tokens| Encoder::new(&t, limit(tokens), TooLong::Truncate).unwrap();
    let long = records(&[
        r#"{"prompt": "xzwvxzwv", "completion": "y", "chosen": "x", "rejected": "yw"}"#,
        r#"{"prompt": "xzwvxzwv", "completion": "yyyyyyyy", "chosen": "xxxxxxxx",
            "rejected": "y"}"#,
    ]);
    let text = |ids: &[u32]| t.decode_with_specials(ids).unwrap();

    let examples = encoder(8).examples(&long).unwrap();
    assert_eq!(text(&examples.items[0][0].ids), "wvxzwvy<|endoftext|>");
    assert_eq!(answers(&t, &examples.items[0][0]), ["y<|endoftext|>"]);
    assert_eq!(text(&examples.items[1][0].ids), "xzwvyyyy", "half for each");
    assert_eq!(answers(&t, &examples.items[1][0]), ["yyyy"]);

    let pairs = encoder(7).pairs(&long).unwrap();
    let first = &pairs.items[0];
    let parts = [&first.prompt, &first.chosen, &first.rejected].map(|ids| text(ids));
    assert_eq!(parts, ["xzwv", "x<|endoftext|>", "yw<|endoftext|>"]);
    let second = &pairs.items[1];
    let parts = [&second.prompt, &second.chosen, &second.rejected].map(|ids| text(ids));
    assert_eq!(parts, ["zwv", "xxxx", "y<|endoftext|>"]);

    let prompts = encoder(3).prompts(&long).unwrap();
    assert_eq!(
        (text(&prompts.items[0].ids), &*prompts.items[0].text),
        ("zwv".into(), "zwv")
    );
    for counts in [examples.too_long, pairs.too_long, prompts.too_long] {
        assert_eq!(
            (counts.prompts_truncated, counts.truncated, counts.skipped),
            (2, 0, 0)
        );
    }
    let e = message(encoder(0).prompts(&long));
    assert!(e.contains("the prompt has 8 tokens"), "no room at all: {e}");
    let e = message(encoder(1).pairs(&long));
    assert!(
        e.contains("the prompt has 8 tokens"),
        "no room for both: {e}"
    );
}

#[test]
fn what_stands_before_every_text_stays_before_a_cut_prompt() {
    let mut ids = vec![1, 5, 6, 7, 8];
    cut_start(&mut ids, &[1], 3);
    assert_eq!(ids, [1, 7, 8]);
    let mut ids = vec![4, 5, 6, 7];
    cut_start(&mut ids, &[1], 2);
    assert_eq!(ids, [6, 7], "a template may write no BOS");
    let mut ids = vec![1, 5, 6];
    cut_start(&mut ids, &[1], 1);
    assert_eq!(ids, [6]);
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

/// Too long is not bad: it has a policy of its own.
#[test]
fn a_record_that_is_too_long_is_not_left_out_as_bad() {
    let t = tokenizer(None);
    let encoder = Encoder::new(&t, limit(4), TooLong::Error).unwrap();
    let encoder = encoder.with_bad_records(BadRecords::Skip);
    let e = message(encoder.examples(&records(&[r#"{"prompt": "zz", "completion": "yyyy"}"#])));
    assert!(e.contains("7 tokens but sft.max_length is 4"), "{e}");
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
