//! Notes on models that a valid configuration trains and no stage reads.

use super::{Config, Stage};

impl Config {
    /// Notes on models that this configuration trains and no stage of it reads.
    pub fn notes(&self) -> Vec<String> {
        let unread = |stage: Stage, mend: &str| {
            let model = self.run.final_model(stage);
            let read = self
                .models_read(Stage::Ppo)
                .iter()
                .any(|(_, folder)| **folder == model);
            (self.has(stage) && self.has(Stage::Ppo) && !read)
                .then(|| format!("[{stage}] trains a model that [ppo] does not read; {mend}"))
        };
        let reward = "remove the table, or add [[ppo.rewards]] with type = \"model\"";
        let judge = "remove the table, or set ppo.eval_prompts";
        let notes = [unread(Stage::Reward, reward), unread(Stage::Judge, judge)];
        notes.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::resolve;

    #[test]
    fn a_model_that_nothing_reads_is_noted() {
        let notes = |overrides: &[&str]| resolve(overrides).unwrap().notes();
        let held_out = "ppo.eval_prompts=e.jsonl";
        assert_eq!(notes(&[held_out]), Vec::<String>::new());
        let rules = "ppo.rewards=[{ type = \"length\", max = 3 }]";
        let [reward] = notes(&[held_out, rules]).try_into().unwrap();
        assert!(
            reward.starts_with("[reward] trains a model that [ppo] does not read"),
            "{reward}"
        );
        let model = "ppo.rewards=[{ type = \"model\" }]";
        assert_eq!(notes(&[held_out, model]), Vec::<String>::new());
        let [judge] = notes(&[]).try_into().unwrap();
        assert!(
            judge.starts_with("[judge]") && judge.contains("ppo.eval_prompts"),
            "{judge}"
        );
    }
}
