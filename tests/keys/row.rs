//! One row of a table: a key, another value for it, and the expected effect.

/// Expected effect of another value of a key.
#[derive(Clone, Debug)]
pub enum Found {
    /// The weights differ.
    Moves,
    /// The weights stay the same, and a run may be continued with the other value.
    Stays,
    /// The weights stay the same, and this metric has other values.
    Logs(&'static str),
    /// This metric has other values; whether the weights differ depends on the processor.
    Shows(&'static str),
    /// The weights stay the same, and the file of this name beside them differs.
    Writes(&'static str),
    /// The weights stay the same, yet a run may not be continued with another value.
    Idles,
    /// Every value but the default is refused, with a message that contains these words.
    Refused(&'static str),
    /// The key is not tried here.
    Elsewhere,
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the key, as listed by `names::all`.
    pub key: String,
    /// The stage to run.
    pub stage: &'static str,
    /// The configuration file to change.
    pub file: &'static str,
    /// Settings of both runs: space-separated `TABLE.KEY=VALUE`.
    pub under: String,
    /// Setting of the second run alone: `TABLE.KEY=VALUE`.
    pub set: String,
    /// Expected effect.
    pub found: Found,
    /// Why the weights stay the same where a reader would expect them to differ.
    pub reason: &'static str,
}

/// A row that gives the key `value` in the second run. It expects other weights of the key's own
/// stage, unless another effect is added.
pub fn row(key: &str, value: &str) -> Row {
    let table = key.split('.').next().expect("a table");
    let stages = ["pretrain", "sft", "dpo", "orpo", "reward", "judge", "ppo"];
    let own = stages.into_iter().find(|stage| *stage == table);
    Row {
        key: key.to_owned(),
        stage: own.unwrap_or("pretrain"),
        file: "plain.toml",
        under: String::new(),
        set: format!("{key}={value}"),
        found: Found::Moves,
        reason: "",
    }
}

impl Row {
    /// Adds settings to both runs.
    pub fn under(mut self, settings: &str) -> Self {
        self.under = format!("{} {settings}", self.under);
        self
    }

    /// Uses another configuration file than `plain.toml`.
    pub fn of(mut self, file: &'static str) -> Self {
        self.file = file;
        self
    }

    /// The key belongs to the first reward of the array.
    pub fn of_reward(mut self, file: &'static str) -> Self {
        let value = self.set.split_once('=').map(|(_, value)| value.to_owned());
        let part = self.key.rsplit('.').next().expect("a key").to_owned();
        self.set = format!("ppo.rewards[0].{part}={}", value.expect("a value"));
        self.of(file)
    }

    fn found(mut self, found: Found, reason: &'static str) -> Self {
        (self.found, self.reason) = (found, reason);
        self
    }

    /// Expects the same weights, and that a run may be continued with the other value.
    pub fn stays(self) -> Self {
        self.found(Found::Stays, "")
    }

    /// Expects the same weights, for this reason, and other values of `metric`.
    pub fn logs(self, metric: &'static str, reason: &'static str) -> Self {
        self.found(Found::Logs(metric), reason)
    }

    /// Expects other values of `metric`; the weights may stay the same, for this reason.
    pub fn shows(self, metric: &'static str, reason: &'static str) -> Self {
        self.found(Found::Shows(metric), reason)
    }

    /// Expects the same weights, for this reason, and another `file` beside them.
    pub fn writes(self, file: &'static str, reason: &'static str) -> Self {
        self.found(Found::Writes(file), reason)
    }

    /// Expects the same weights, for this reason, though a run may not be continued with the other
    /// value.
    pub fn idles(self, reason: &'static str) -> Self {
        self.found(Found::Idles, reason)
    }

    /// Expects the value to be refused with these words, as every value but the default is.
    pub fn refused(self, words: &'static str) -> Self {
        self.found(Found::Refused(words), "")
    }

    /// Skips the key, for this reason.
    pub fn elsewhere(self, reason: &'static str) -> Self {
        self.found(Found::Elsewhere, reason)
    }
}
