//! A small language, and a configuration that runs all stages on it.

use serde_json::{Value, json};

/// All stages on the small language; each takes a fraction of a second.
pub const CONFIG: &str = r#"
[run]
name = "trial"
seed = 3

[model]
family = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64

[tokenizer]
vocab_size = 320

[pretrain]
data = "text.jsonl"
eval_data = "text_eval.jsonl"
context_length = 32
batch_size = 8
max_steps = 60
learning_rate = 1e-2
eval_steps = 25
save_steps = 7

[sft]
data = "sft.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
max_steps = 40
learning_rate = 5e-3
eval_steps = 25
save_steps = 7

[dpo]
data = "pairs.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
max_steps = 30
learning_rate = 1e-3
eval_steps = 25
save_steps = 7

[reward]
data = "pairs.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
max_steps = 30
learning_rate = 5e-3
eval_steps = 25
save_steps = 7

[ppo]
prompts = "prompts.jsonl"
eval_prompts = "prompts_eval.jsonl"
lexicon = "lexicon.tsv"
batch_size = 16
num_mini_batches = 2
num_ppo_epochs = 2
max_new_tokens = 12
max_steps = 6
learning_rate = 1e-3
kl_coef = 0.05
missing_eos_penalty = 1.0
score_normalization = "running"
eval_steps = 4
eval_samples = 8
save_steps = 2
"#;

const SUBJECTS: [&str; 6] = [
    "the cat",
    "a sailor",
    "my sister",
    "the old king",
    "a neighbour",
    "the teacher",
];
const VERBS: [&str; 5] = ["saw", "found", "bought", "painted", "lost"];
const HAPPY: [&str; 4] = ["happy", "lovely", "cheerful", "golden"];
const SAD: [&str; 4] = ["sad", "ugly", "dreary", "broken"];
const OBJECTS: [&str; 5] = ["dog", "boat", "house", "picture", "garden"];

/// The beginning of sentence `i`, which also serves as a prompt.
fn beginning(i: usize) -> String {
    format!("{} {} a", SUBJECTS[i % 6], VERBS[i / 6 % 5])
}

/// The end of sentence `i`, with an adjective from `adjectives`.
fn end(i: usize, adjectives: [&str; 4]) -> String {
    format!(" {} {}.", adjectives[i / 3 % 4], OBJECTS[i / 7 % 5])
}

fn sentence(i: usize) -> String {
    let adjectives = if i.is_multiple_of(2) { HAPPY } else { SAD };
    beginning(i) + &end(i, adjectives)
}

/// `count` records from `first` on, one per line.
pub fn records(first: usize, count: usize, record: impl Fn(usize) -> Value) -> String {
    (first..first + count)
        .map(|i| record(i).to_string() + "\n")
        .collect()
}

/// A prompt with sentence `i`'s end.
pub fn example(i: usize) -> Value {
    let adjectives = if i.is_multiple_of(2) { HAPPY } else { SAD };
    json!({"prompt": beginning(i), "completion": end(i, adjectives)})
}

/// A pair whose chosen answer is the happy ending.
pub fn pair(i: usize) -> Value {
    json!({"prompt": beginning(i), "chosen": end(i, HAPPY), "rejected": end(i, SAD)})
}

/// The beginning of a sentence.
pub fn prompt(i: usize) -> Value {
    json!({"prompt": beginning(i)})
}

/// A text of three sentences.
fn document(i: usize) -> Value {
    let three: Vec<String> = (3 * i..3 * i + 3).map(sentence).collect();
    json!({"text": three.join(" ")})
}

/// The data files that [`CONFIG`] names, and their contents.
pub fn files() -> [(&'static str, String); 7] {
    let valence = |words: [&str; 4], valence: &str| words.map(|w| format!("{w}\t{valence}\n"));
    let lexicon = [valence(HAPPY, "2.0"), valence(SAD, "-2.0")].concat();
    [
        ("text.jsonl", records(0, 100, document)),
        ("text_eval.jsonl", records(100, 10, document)),
        ("sft.jsonl", records(0, 200, example)),
        ("pairs.jsonl", records(0, 200, pair)),
        ("prompts.jsonl", records(0, 30, prompt)),
        ("prompts_eval.jsonl", records(60, 8, prompt)),
        ("lexicon.tsv", lexicon.concat()),
    ]
}
