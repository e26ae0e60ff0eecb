//! The table of ORPO on the small language, which the tests add to their configuration.

/// `[orpo]`, on models that are there already.
pub const ORPO: &str = r#"
[orpo]
from = "models/sft"
data = "pairs.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
max_steps = 30
learning_rate = 1e-3
eval_steps = 25
save_steps = 7
"#;
