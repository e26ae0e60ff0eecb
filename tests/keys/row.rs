//! One row of a table: a key, the value that it is changed to, and what comes of it.

/// What becomes of the result where a key has another value.
#[derive(Clone, Debug)]
pub enum Found {
    /// Other weights.
    Moves,
    /// The same weights: a run may be continued with the other value.
    Stays,
    /// The same weights, and other values of this metric.
    Logs(&'static str),
    /// Other values of this metric; whether the weights are the same depends on the processor.
    Shows(&'static str),
    /// The same weights, and another file of this name beside them.
    Writes(&'static str),
    /// The same weights, though a run may not be continued with another value.
    Idles,
    /// The only value that is not refused is the default; the message says so in these words.
    Refused(&'static str),
    /// Not tried here.
    Elsewhere,
}

/// One change of a key.
#[derive(Clone, Debug)]
pub struct Row {
    /// The key by its name among all keys.
    pub key: String,
    /// The stage that is run.
    pub stage: &'static str,
    /// The configuration that is changed.
    pub file: &'static str,
    /// What is set in both runs: `TABLE.KEY=VALUE`, parted by spaces.
    pub under: String,
    /// What is set in the second run alone: `TABLE.KEY=VALUE`.
    pub set: String,
    /// What comes of it.
    pub found: Found,
    /// Why the weights stay the same where a reader would expect others.
    pub reason: &'static str,
}

/// The key has `value` in the second run. It moves the weights of its own stage, unless more is said.
pub fn row(key: &str, value: &str) -> Row {
    let table = key.split('.').next().expect("a table");
    let stages = ["pretrain", "sft", "dpo", "reward", "judge", "ppo"];
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
    /// Sets more in both runs.
    pub fn under(mut self, settings: &str) -> Self {
        self.under = format!("{} {settings}", self.under);
        self
    }

    /// Changes another configuration than `plain.toml`.
    pub fn of(mut self, file: &'static str) -> Self {
        self.file = file;
        self
    }

    /// The key is a part of a reward, the first one of the array.
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

    /// The weights stay the same, and a run may go on with the other value.
    pub fn stays(self) -> Self {
        self.found(Found::Stays, "")
    }

    /// The weights stay the same for this reason, and `metric` has other values.
    pub fn logs(self, metric: &'static str, reason: &'static str) -> Self {
        self.found(Found::Logs(metric), reason)
    }

    /// The weights may stay the same for this reason; `metric` has other values in any case.
    pub fn shows(self, metric: &'static str, reason: &'static str) -> Self {
        self.found(Found::Shows(metric), reason)
    }

    /// The weights stay the same for this reason, and `file` beside them is another.
    pub fn writes(self, file: &'static str, reason: &'static str) -> Self {
        self.found(Found::Writes(file), reason)
    }

    /// The weights stay the same for this reason, though a run may not go on with the other value.
    pub fn idles(self, reason: &'static str) -> Self {
        self.found(Found::Idles, reason)
    }

    /// The value is refused with these words, as every value but the default is.
    pub fn refused(self, words: &'static str) -> Self {
        self.found(Found::Refused(words), "")
    }

    /// This cannot be tried here, for this reason.
    pub fn elsewhere(self, reason: &'static str) -> Self {
        self.found(Found::Elsewhere, reason)
    }
}
