//! Records of every shape for every task.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::super::{RecordPlace, RecordSource};
use super::*;
use crate::config::Learn;

fn record(fields: Value) -> Record {
    let Value::Object(fields) = fields else {
        panic!("not an object")
    };
    Record {
        fields,
        source: RecordSource {
            file: Arc::from(Path::new("d.jsonl")),
            place: RecordPlace::Line(7),
        },
    }
}

fn shaped(fields: Value, task: RecordTask, style: Style) -> Record {
    record(fields).shaped(task, style).unwrap().into_owned()
}

#[track_caller]
fn refused(fields: Value, task: RecordTask, says: &[&str]) {
    let error = record(fields).shaped(task, Style::Chat).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("d.jsonl:7: "), "{error}");
    for part in says {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn records_in_their_own_shape_pass_as_they_are() {
    for (fields, task) in [
        (json!({"text": "a"}), RecordTask::Documents),
        (json!({"text": "a"}), RecordTask::Examples),
        (
            json!({"messages": [{"role": "user", "content": "a"}]}),
            RecordTask::Examples,
        ),
        (
            json!({"prompt": "a", "completion": "b"}),
            RecordTask::Examples,
        ),
        (
            json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
            RecordTask::DirectPairs,
        ),
        (json!({"chosen": "b", "rejected": "c"}), RecordTask::Pairs),
        (json!({"prompt": "a", "answer": 3}), RecordTask::Prompts),
        (
            json!({"prompt": "a", "response": "b"}),
            RecordTask::Examples,
        ), // the view names the missing field
    ] {
        let record = record(fields);
        let found = record.shaped(task, Style::Plain).unwrap();
        assert!(matches!(found, Cow::Borrowed(_)), "{record:?}");
    }
}

#[test]
fn speakers_become_roles() {
    let fields = json!({"system": "s", "conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "3"}, {"from": "gpt", "value": "a", "weight": 1}]});
    let found = shaped(fields, RecordTask::Examples, Style::Chat);
    let expected = json!({"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "3"}, {"role": "assistant", "content": "a", "weight": 1}]});
    assert_eq!(Value::from(found.fields), expected);
    // The other way round: roles in `conversations`, speakers in `messages`.
    let fields = json!({"conversations": [{"role": "user", "content": "q"}]});
    let found = shaped(fields, RecordTask::Examples, Style::Chat);
    assert_eq!(found.messages().unwrap()[0].role(), "user");
    let fields = json!({"messages": [{"from": "human", "value": "q"}]});
    let found = shaped(fields, RecordTask::Examples, Style::Chat);
    assert_eq!(found.messages().unwrap()[0].content(), Some("q"));
}

#[test]
fn speakers_and_calls_that_are_not_known_are_refused() {
    let chat = |turn: Value| json!({"conversations": [turn]});
    let unknown = chat(json!({"from": "narrator", "value": "q"}));
    refused(
        unknown,
        RecordTask::Examples,
        &[
            "`conversations[0].from` is \"narrator\"",
            "human, user, gpt",
        ],
    );
    let empty = chat(json!({"from": "human", "value": 3}));
    refused(
        empty,
        RecordTask::Examples,
        &["`conversations[0]` has no text in `value`"],
    );
    let call = chat(json!({"from": "function_call", "value": "f(1)"}));
    refused(
        call,
        RecordTask::Examples,
        &["`conversations[0].value` of a function_call"],
    );
    let two = json!({"system": "s", "conversations": [{"from": "system", "value": "t"}]});
    refused(two, RecordTask::Examples, &["`system`", "differ"]);
    refused(
        json!({"conversations": "q"}),
        RecordTask::Examples,
        &["`conversations` is no list"],
    );
}

#[test]
fn instructions_are_chats_or_stanfords_words() {
    let fields =
        json!({"instruction": "i", "input": "x", "output": "o", "system": "", "text": "all of it"});
    let chat = shaped(fields.clone(), RecordTask::Examples, Style::Chat);
    let expected = json!([{"role": "user", "content": "i\nx"}]);
    assert_eq!(chat.fields["prompt"], expected);
    assert_eq!(
        chat.fields["completion"],
        json!([{"role": "assistant", "content": "o"}])
    );
    let plain = shaped(fields, RecordTask::Examples, Style::Plain);
    assert_eq!(
        plain.fields["prompt"],
        "Below is an instruction that describes a task, paired with an input that provides further \
         context. Write a response that appropriately completes the request.\n\n\
         ### Instruction:\ni\n\n### Input:\nx\n\n### Response:"
    );
    assert_eq!(plain.fields["completion"], "o");
    let short = shaped(
        json!({"instruction": "i", "output": "o"}),
        RecordTask::Examples,
        Style::Plain,
    );
    assert_eq!(
        short.fields["prompt"],
        "Below is an instruction that describes a task. Write a response that appropriately \
         completes the request.\n\n\
         ### Instruction:\ni\n\n### Response:"
    );
    let prompt = shaped(
        json!({"instruction": "i", "output": "o"}),
        RecordTask::Prompts,
        Style::Chat,
    );
    assert_eq!(
        prompt.fields["prompt"],
        json!([{"role": "user", "content": "i"}])
    );
    assert_eq!(prompt.fields["output"], "o", "rewards read it");
}

#[test]
fn history_and_system_need_a_template() {
    let fields = json!({"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"]]});
    let found = shaped(fields.clone(), RecordTask::Examples, Style::Chat);
    let expected = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                          {"role": "assistant", "content": "a"}, {"role": "user", "content": "i"}]);
    assert_eq!(found.fields["prompt"], expected);
    let record = record(fields);
    let plain = record.shaped(RecordTask::Examples, Style::Plain);
    assert!(plain.unwrap_err().to_string().contains("chat template"));
    let broken = json!({"instruction": "i", "output": "o", "history": ["q"]});
    refused(broken, RecordTask::Examples, &["`history`"]);
}

#[test]
fn pairs_come_in_all_shapes() {
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    let sharegpt = json!({"conversations": [{"from": "human", "value": "q"}],
                          "chosen": {"from": "gpt", "value": "b"},
                          "rejected": {"from": "gpt", "value": "c"}});
    let alpaca = json!({"instruction": "q", "chosen": "b", "rejected": "c"});
    let mixed =
        json!({"conversations": [{"from": "human", "value": "q"}], "chosen": "b", "rejected": "c"});
    for fields in [sharegpt, alpaca, mixed] {
        let found = shaped(fields, RecordTask::Pairs, Style::Chat).fields;
        assert_eq!(found["prompt"], json!([{"role": "user", "content": "q"}]));
        assert_eq!(
            (&found["chosen"], &found["rejected"]),
            (&answer("b"), &answer("c"))
        );
    }
    let turns = |text: &str| {
        json!([{"role": "user", "content": "q"},
                                    {"role": "assistant", "content": text}])
    };
    let twice =
        json!({"prompt": "q", "chosen": turns("b"), "rejected": turns("c"), "score_chosen": 3});
    assert_eq!(
        record(twice.clone()).unused(RecordTask::Pairs, Style::Chat),
        ["prompt", "score_chosen"]
    );
    let pair = shaped(twice, RecordTask::Pairs, Style::Chat)
        .preference()
        .unwrap();
    let super::super::Turns::Messages(prompt) = pair.prompt else {
        panic!("the prompt of a chat is messages")
    };
    assert_eq!((prompt.len(), prompt[0].content()), (1, Some("q")));
}

#[test]
fn implicit_prompts_of_text_are_found_where_answers_alone_count() {
    let fields = json!({"chosen": "Q: a A: yes", "rejected": "Q: a A: no"});
    let found = shaped(fields.clone(), RecordTask::DirectPairs, Style::Plain).fields;
    let expected = json!({"chosen": " yes", "rejected": " no", "prompt": "Q: a A:"});
    assert_eq!(Value::from(found), expected);
    assert!(
        !shaped(fields, RecordTask::Pairs, Style::Plain)
            .fields
            .contains_key("prompt")
    );
    let alias = json!({"question": "q", "chosen": "a b", "rejected": "a c"});
    let found = shaped(alias, RecordTask::DirectPairs, Style::Plain);
    assert!(
        found
            .preference()
            .unwrap_err()
            .to_string()
            .contains("rename `question`")
    );
}

/// Every shape, with the words for it, against every task that does not read it.
#[test]
fn a_wrong_shape_says_what_it_is_and_what_is_needed() {
    let turns = json!([{"role": "user", "content": "q"}]);
    let shapes = [
        (
            json!({"chosen": "a", "rejected": "b"}),
            "a pair (`chosen`, `rejected`); [dpo], [orpo], [reward], [judge] read pairs",
        ),
        (json!({"messages": turns}), "a chat (`messages`); [sft]"),
        (
            json!({"conversations": turns}),
            "a chat (`conversations`); [sft]",
        ),
        (
            json!({"instruction": "a", "output": "b"}),
            "an instruction with its answer (`instruction`, `output`); [sft]",
        ),
        (
            json!({"prompt": "a", "completion": "b"}),
            "a prompt with its completion (`prompt`, `completion`); [sft]",
        ),
        (
            json!({"text": "a"}),
            "a document (`text`); [pretrain] and [sft]",
        ),
        (json!({"prompt": "a"}), "a prompt alone (`prompt`); [ppo]"),
        (json!({"ids": [1]}), "token ids (`ids`)"),
    ];
    let tasks = [
        (RecordTask::Documents, "needed here: `text`"),
        (
            RecordTask::Examples,
            "needed here: `messages` or `conversations`, `prompt` and `completion`, `instruction` \
             and `output`, or `text`",
        ),
        (RecordTask::Pairs, "needed here: `chosen` and `rejected`"),
        (
            RecordTask::DirectPairs,
            "needed here: `chosen` and `rejected`",
        ),
        (RecordTask::Prompts, "needed here: `prompt`"),
    ];
    let mut wrong = 0;
    for (fields, words) in &shapes {
        for (task, needed) in tasks {
            if RecordShape::of(&record(fields.clone()), task).is_none() {
                refused(fields.clone(), task, &[words, needed]);
                wrong += 1;
            }
        }
    }
    assert_eq!(
        wrong,
        40 - 1 - 5 - 2 - 3,
        "documents, examples, pairs and prompts are read where they should be"
    );
}

#[test]
fn unpaired_preferences_are_refused() {
    let unpaired = |label: bool| json!({"prompt": "a", "completion": "b", "label": label});
    for task in [RecordTask::Pairs, RecordTask::DirectPairs] {
        refused(unpaired(true), task, &["unpaired preference", "KTO"]);
    }
    refused(
        unpaired(false),
        RecordTask::Examples,
        &["`label` is false", "KTO"],
    );
    let worse = record(unpaired(false));
    assert!(
        worse.shaped(RecordTask::Texts, Style::Plain).is_ok(),
        "it can be scored"
    );
    assert_eq!(
        record(unpaired(true)).unused(RecordTask::Examples, Style::Chat),
        ["label"]
    );
}

#[test]
fn turns_that_must_not_be_learned_are_refused() {
    let chat = |weights: &[i32]| {
        let turn = |(i, weight): (usize, &i32)| {
            let role = ["user", "assistant"][i % 2];
            json!({"role": role, "content": "t", "weight": weight})
        };
        let messages: Value = weights.iter().enumerate().map(turn).collect();
        record(json!({"messages": messages}))
    };
    let said = |weights: &[i32], learn: Learn| {
        let checked = chat(weights).check_weights(learn);
        checked.map_or_else(|e| e.to_string(), |()| String::new())
    };
    let cases: [(&[i32], Learn, &[&str]); 6] = [
        // Turns of the user are never learned.
        (&[0, 1, 0, 1], Learn::All, &[]),
        (
            &[0, 0, 0, 1],
            Learn::All,
            &["d.jsonl:7: message 1 has weight 0", "sft.learn = \"last\""],
        ),
        (&[0, 0, 0, 1], Learn::Last, &[]),
        (
            &[0, 1, 0, 0],
            Learn::Last,
            &["message 3 has weight 0", "the last answer"],
        ),
        (&[0, 1, 0, 0], Learn::All, &["message 3 has weight 0"]),
        (&[0, 0], Learn::Last, &["message 1 has weight 0"]),
    ];
    for (weights, learn, says) in cases {
        let found = said(weights, learn);
        assert_eq!(found.is_empty(), says.is_empty(), "{weights:?}: {found}");
        for part in says {
            assert!(found.contains(part), "{part:?} is not in: {found}");
        }
    }
    // `last` would not help where the last answer itself is not to be learned.
    assert!(!said(&[0, 0, 0, 0], Learn::All).contains("sft.learn"));
    let answer = json!([{"role": "assistant", "content": "a", "weight": 0.0}]);
    let prompt = json!([{"role": "user", "content": "q"}]);
    let completion = record(json!({"prompt": prompt, "completion": answer}));
    let error = completion.check_weights(Learn::All).unwrap_err();
    assert!(
        error.to_string().contains("message 0 has weight 0"),
        "{error}"
    );
}

#[test]
fn columns_that_are_not_read_are_named() {
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let unused = |fields: Value, task: RecordTask| {
        let record = record(fields);
        let names = record.unused(task, Style::Chat).into_iter();
        names.map(str::to_owned).collect::<Vec<String>>()
    };
    assert_eq!(
        unused(
            json!({"id": 1, "prompt": "q", "messages": turns, "tools": [], "note": null}),
            RecordTask::Examples
        ),
        ["id", "prompt"]
    );
    assert_eq!(
        unused(
            json!({"prompt": "q", "completion": "a", "tools": []}),
            RecordTask::Examples
        ),
        ["tools"]
    );
    let pair = json!({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1});
    assert_eq!(unused(pair.clone(), RecordTask::Pairs), [""; 0]);
    assert_eq!(unused(pair, RecordTask::DirectPairs), ["margin"]);
    assert_eq!(
        unused(json!({"text": "a", "url": "b"}), RecordTask::Documents),
        ["url"]
    );
    assert_eq!(
        unused(json!({"prompt": "q", "answer": "b"}), RecordTask::Prompts),
        [""; 0]
    );
    let alpaca = json!({"instruction": "i", "input": "", "output": "o", "text": "all"});
    assert_eq!(unused(alpaca, RecordTask::Examples), ["text"]);
}

#[test]
fn tools_of_plain_text_are_named() {
    let turns = json!([{"role": "user", "content": "q"}]);
    for (mut fields, task, chat, plain) in [
        (json!({"prompt": "q"}), RecordTask::Prompts, false, false),
        (json!({"prompt": turns}), RecordTask::Prompts, true, true),
        (json!({"text": "t"}), RecordTask::Examples, false, false),
        (json!({"text": "t"}), RecordTask::Documents, false, false),
        (
            json!({"chosen": "a", "rejected": "b"}),
            RecordTask::Pairs,
            false,
            false,
        ),
        (json!({"messages": turns}), RecordTask::Examples, true, true),
        (
            json!({"instruction": "i", "output": "o"}),
            RecordTask::Examples,
            true,
            false,
        ),
        (
            json!({"instruction": "i"}),
            RecordTask::Prompts,
            true,
            false,
        ),
    ] {
        fields["tools"] = json!([{"name": "f"}]);
        for (style, read) in [(Style::Chat, chat), (Style::Plain, plain)] {
            let record = record(fields.clone());
            let expected: &[&str] = if read { &[] } else { &["tools"] };
            assert_eq!(record.unused(task, style), expected, "{fields}, {style:?}");
        }
    }
}

#[test]
fn what_looks_like_a_field_is_named() {
    for (fields, task, missing, mend) in [
        (
            json!({"dialogue": []}),
            RecordTask::Examples,
            "messages",
            "dialogue",
        ),
        (
            json!({"content": "a"}),
            RecordTask::Examples,
            "text",
            "content",
        ),
        (
            json!({"instruction": "a", "response": "b"}),
            RecordTask::Examples,
            "output",
            "response",
        ),
        (
            json!({"output": "a", "question": "b"}),
            RecordTask::Examples,
            "instruction",
            "question",
        ),
    ] {
        let field = format!("missing field `{missing}`");
        let mend = format!(
            "rename `{mend}` to `{missing}`, or set columns = {{ {missing} = \"{mend}\" }}"
        );
        refused(fields, task, &[&field, &mend]);
    }
    // A record of no known form is told all forms.
    let says = [
        "`prompt` and `completion`",
        "this record has `sentence`, `label`. For plain text use [pretrain]",
    ];
    refused(
        json!({"sentence": "a", "label": 1}),
        RecordTask::Examples,
        &says,
    );
    // Half of a pair is a pair with a field missing, not a prompt.
    let half = record(json!({"prompt": "a", "chosen": "b"}));
    let half = half.shaped(RecordTask::DirectPairs, Style::Chat).unwrap();
    let error = half.preference().unwrap_err().to_string();
    assert!(error.contains("missing field `rejected`"), "{error}");
}
