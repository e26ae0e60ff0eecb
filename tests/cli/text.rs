//! `generate` and `score` on text: prompts, chats and stop texts, with a small model and a
//! tokenizer trained in the test.

use collimate::data::tokenizer::{IM_END, IM_START};
use collimate::data::{BpeTraining, Tokenizer};
use collimate::model::Decoder;
use collimate::model::config::{DecoderConfig, Family, Geometry, Head};
use collimate::model::hf_config::HfConfig;
use collimate::model::weights::SaveDtype;
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use serde_json::json;

use crate::support::{Workspace, ids};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
                        {{ m.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\
                        {% endif %}";

const CHAT: &str = r#"{"messages": [{"role": "user", "content": "low tide"}]}"#;
const ANSWERED: &str = r#"{"messages": [{"role": "user", "content": "low tide"},
    {"role": "assistant", "content": "high tide"}]}"#;

/// A folder with a freshly initialised model named `model`, and its tokenizer.
fn workspace(head: Head) -> (Workspace, Tokenizer) {
    let workspace = Workspace::new();
    let mut training = BpeTraining {
        eos_token: IM_END.to_owned(),
        chat_template: Some(TEMPLATE.to_owned()),
        ..BpeTraining::new(300)
    };
    let turns = [IM_START.to_owned(), IM_END.to_owned()];
    training.special_tokens.extend(turns);
    let text = "the low tide and the high tide, user and assistant";
    let tokenizer = Tokenizer::train_bpe(&[text], &training).expect("a tokenizer");
    let model = fresh(&tokenizer, head);
    model
        .save(&workspace.path("model"), SaveDtype::Float32)
        .expect("a saved model");
    tokenizer
        .save(workspace.path("model"))
        .expect("a saved tokenizer");
    (workspace, tokenizer)
}

fn fresh(tokenizer: &Tokenizer, head: Head) -> Decoder {
    let sizes = Geometry {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: None,
        vocab_size: tokenizer.vocab_size(),
        max_position_embeddings: 128,
    };
    let mut config = DecoderConfig::from_scratch(Family::Llama, &sizes).expect("a valid model");
    config.head = head;
    config.initializer_range = 0.2;
    config.eos_token_ids = vec![tokenizer.eos_id().expect("an EOS")];
    config.pad_token_id = tokenizer.pad_id();
    Decoder::fresh(
        HfConfig::new(config),
        4,
        |_| Trainability::Frozen,
        &Backend::CPU,
    )
    .expect("a model")
}

/// A record on one line.
fn line(record: &str) -> String {
    record.replace('\n', " ") + "\n"
}

#[test]
fn prompts_come_as_text_chats_and_ids() {
    let (workspace, tokenizer) = workspace(Head::LanguageModel);
    let encode = |text: &str| tokenizer.encode_rendered(text).expect("ids");
    let opened = "<|im_start|>user\nlow tide<|im_end|>\n<|im_start|>assistant\n";
    let wanted = [encode("the low"), encode(opened), vec![7, 8]];
    let records = [
        "{\"prompt\": \"the low\"}",
        CHAT,
        "{\"prompt_ids\": [7, 8]}",
    ];
    workspace.write("prompts.jsonl", &records.map(line).concat());
    let flags = "generate --model model --prompts prompts.jsonl --max-new-tokens 12 --seed 3";
    let lines = workspace.lines(flags);
    for (line, wanted) in lines.iter().zip(&wanted) {
        assert_eq!(&ids(line, "prompt_ids"), wanted);
        let text = tokenizer
            .decode(&ids(line, "completion_ids"))
            .expect("text");
        assert_eq!(
            line["completion"],
            json!(text),
            "special tokens have no text"
        );
    }
}

/// A record with both a prompt and a chat is refused.
#[test]
fn a_prompt_beside_a_chat_is_refused_unless_it_is_read_otherwise() {
    let (workspace, tokenizer) = workspace(Head::LanguageModel);
    let messages = json!([{"role": "user", "content": "low tide"}]);
    let speakers = json!([{"from": "human", "value": "low tide"}]);
    let flags = "generate --model model --prompts prompts.jsonl --max-new-tokens 2";
    for (chat, turns) in [("messages", messages), ("conversations", speakers)] {
        let record = json!({"prompt": "the low", chat: turns});
        workspace.write("prompts.jsonl", &record.to_string());
        let ended = workspace.run(&format!("{flags} --out out.jsonl"));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let says = format!("prompts.jsonl:1: the record has both `prompt` and `{chat}`");
        assert!(ended.stderr.contains(&says), "{}", ended.stderr);
        let lines = workspace.lines(&format!("{flags} --columns other=prompt"));
        let opened = "<|im_start|>user\nlow tide<|im_end|>\n<|im_start|>assistant\n";
        let opened = tokenizer.encode_rendered(opened).expect("ids");
        assert_eq!(ids(&lines[0], "prompt_ids"), opened);
    }
}

/// A stop text ends the completion at the token that completes it: the ids keep it, the text does
/// not.
#[test]
fn a_stop_text_ends_a_completion() {
    let (workspace, tokenizer) = workspace(Head::LanguageModel);
    workspace.write("prompts.jsonl", "{\"prompt\": \"the low\"}");
    let flags = "generate --model model --prompts prompts.jsonl --max-new-tokens 60 --ignore-eos";
    let free = &workspace.lines(flags)[0];
    let text = free["completion"].as_str().expect("a text");
    let stop = two_letters(text);
    let stopped = &workspace.lines(&format!("{flags} --stop {stop} --stop nowhere"))[0];
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["completion"], json!(text.split(stop).next()));
    let kept = ids(stopped, "completion_ids");
    assert!(ids(free, "completion_ids").starts_with(&kept));
    assert!(
        tokenizer.decode(&kept).expect("text").contains(stop),
        "the ids keep it"
    );
    let before = tokenizer.decode(&kept[..kept.len() - 1]).expect("text");
    assert!(
        !before.contains(stop),
        "the first token that completes it is the last"
    );
}

/// Two adjacent letters that usually come from different tokens, somewhere after the start.
fn two_letters(text: &str) -> &str {
    let bytes = text.as_bytes();
    let letters = |at: &usize| bytes[*at..*at + 2].iter().all(u8::is_ascii_alphabetic);
    let at = (4..bytes.len() - 1)
        .find(letters)
        .expect("two letters in a row");
    &text[at..at + 2]
}

#[test]
fn the_name_of_a_special_token_stops_at_it() {
    let (workspace, tokenizer) = workspace(Head::LanguageModel);
    workspace.write("prompts.jsonl", "{\"prompt\": \"the low\"}");
    let start = tokenizer.token_id(IM_START).expect("a token");
    let flags = "generate --model model --prompts prompts.jsonl --max-new-tokens 100 --ignore-eos \
                 --n 20 --stop <|im_start|>";
    let lines = workspace.lines(flags);
    let stopped = lines.iter().filter(|line| line["finish_reason"] == "stop");
    let ends: Vec<_> = stopped
        .map(|line| ids(line, "completion_ids").last().copied())
        .collect();
    assert!(!ends.is_empty(), "no sample met it");
    assert!(ends.iter().all(|end| *end == Some(start)));
}

#[test]
fn texts_to_score_are_tokenised_as_in_training() {
    let (workspace, tokenizer) = workspace(Head::LanguageModel);
    let encode = |text: &str| tokenizer.encode_rendered(text).expect("ids");
    let turn = "<|im_start|>user\nlow tide<|im_end|>\n";
    let wanted = [
        // Tokenised separately, "th" + "e low" does not give the tokens of "the low".
        [encode("th"), encode("e low<|im_end|>")].concat(),
        encode(&format!(
            "{turn}<|im_start|>assistant\nhigh tide<|im_end|>\n"
        )),
        encode(turn),
    ];
    let apart = "{\"prompt\": \"th\", \"completion\": \"e low\"}";
    workspace.write("data.jsonl", &[apart, ANSWERED, CHAT].map(line).concat());
    let lines = workspace.lines("score --model model --data data.jsonl");
    let found: Vec<_> = lines.iter().map(|line| ids(line, "ids")).collect();
    assert_eq!(found, wanted);
}

#[test]
fn a_reward_model_scores_at_the_token_that_closes_the_answer() {
    let (workspace, tokenizer) = workspace(Head::Score);
    let text = "<|im_start|>user\nlow tide<|im_end|>\n<|im_start|>assistant\nhigh tide<|im_end|>";
    let closed = json!({"ids": tokenizer.encode_rendered(text).expect("ids")}).to_string();
    let after = format!("{text}\n");
    let after = json!({"ids": tokenizer.encode_rendered(&after).expect("ids")}).to_string();
    workspace.write(
        "data.jsonl",
        &[ANSWERED, &closed, &after].map(line).concat(),
    );
    let lines = workspace.lines("score --model model --data data.jsonl");
    assert_eq!(lines[0]["score"], lines[1]["score"]);
    assert_ne!(lines[0]["score"], lines[2]["score"]);
}

/// A template in the style of published ones: tools first, and a generation prompt that can leave
/// out the reasoning.
const TOOL_TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n\
                             {% endif %}{% for m in messages %}\
                             <|im_start|>{{ m.role }}\n{{ m['content'] | trim }}<|im_end|>\n\
                             {% endfor %}{% if add_generation_prompt %}\
                             <|im_start|>assistant\n{% if enable_thinking is false \
                             %}<think></think>{% endif %}{% endif %}";

#[test]
fn tools_and_variables_of_a_record_are_rendered_to_generate_and_score() {
    let (workspace, tokenizer) = workspace(Head::LanguageModel);
    workspace.write("model/chat_template.jinja", TOOL_TEMPLATE);
    let encode = |text: &str| tokenizer.encode_rendered(text).expect("ids");
    let given =
        "<|im_start|>system\n[{\"name\": \"f\"}]<|im_end|>\n<|im_start|>user\nlow<|im_end|>\n";
    let user = json!({"role": "user", "content": "low"});
    let assistant = json!({"role": "assistant", "content": null, "tool_calls": []});
    let tools = json!([{"name": "f"}]);
    let kwargs = json!({"enable_thinking": false});
    let prompt = json!({"messages": [user], "tools": tools, "chat_template_kwargs": kwargs});
    workspace.write("prompts.jsonl", &prompt.to_string());
    let line =
        &workspace.lines("generate --model model --prompts prompts.jsonl --max-new-tokens 1")[0];
    let opened = encode(&format!("{given}<|im_start|>assistant\n<think></think>"));
    assert_eq!(ids(line, "prompt_ids"), opened);
    let records = [
        json!({"messages": [user, assistant], "tools": tools.to_string()}),
        json!({"messages": [user], "tools": tools}),
    ];
    workspace.write(
        "data.jsonl",
        &records.map(|record| record.to_string() + "\n").concat(),
    );
    let lines = workspace.lines("score --model model --data data.jsonl");
    let answered = encode(&format!("{given}<|im_start|>assistant\n<|im_end|>\n"));
    let found: Vec<_> = lines.iter().map(|line| ids(line, "ids")).collect();
    assert_eq!(found, [answered, encode(given)]);
}
