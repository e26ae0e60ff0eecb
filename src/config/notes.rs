//! Notes on models that a valid configuration trains and no stage reads.

use super::{Config, Stage, StageTable};

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
        let passed_over = self.passed_over().into_iter();
        notes.into_iter().flatten().chain(passed_over).collect()
    }

    /// Sentences on policies tuned on preferences where `[ppo]` starts from an earlier stage
    /// because `ppo.from` is unset.
    fn passed_over(&self) -> Vec<String> {
        let from = self.ppo.as_ref().and_then(StageTable::start);
        let makes = |stage: &Stage| Some(&*self.run.final_model(*stage)) == from;
        let earlier = [Stage::Pretrain, Stage::Sft].into_iter().find(makes);
        let Some(earlier) = earlier.filter(|_| from == self.usual_start(Stage::Ppo).as_deref())
        else {
            return Vec::new();
        };
        let note = |tuned: Stage| {
            format!(
                "[ppo] starts from {earlier}, not from {tuned}; to start there, set ppo.from = \
                 \"{}\"",
                self.run.final_model(tuned).display()
            )
        };
        self.tuned_on_preferences().into_iter().map(note).collect()
    }

    /// The stages of this configuration that tune the policy on preferences.
    pub(super) fn tuned_on_preferences(&self) -> Vec<Stage> {
        let stages = [Stage::Dpo, Stage::Orpo].into_iter();
        stages.filter(|stage| self.has(*stage)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{SAMPLE, resolve, resolve_text};

    #[test]
    fn a_model_that_nothing_reads_is_noted() {
        let notes = |overrides: &[&str]| {
            let from = ["ppo.from=given"];
            resolve(&[overrides, &from].concat()).unwrap().notes()
        };
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

    #[test]
    fn a_tuned_policy_that_ppo_does_not_start_from_is_noted() {
        let text = SAMPLE.replace("[orpo]\ndata = \"pairs.jsonl\"\n", "");
        let notes = |from: &[&str]| {
            let overrides = [&["ppo.eval_prompts=e.jsonl"], from].concat();
            resolve_text(&text, &overrides).unwrap().notes()
        };
        let expected = "[ppo] starts from sft, not from dpo; to start there, set ppo.from = \
                        \"runs/trial/dpo/final\"";
        assert_eq!(notes(&[]), [expected]);
        for from in ["ppo.from=runs/trial/dpo/final", "ppo.from=given"] {
            assert_eq!(notes(&[from]), Vec::<String>::new());
        }
    }

    #[test]
    fn a_missing_start_names_the_tuned_policy() {
        let dpo = "[dpo]\nfrom = \"given\"\ndata = \"pairs.jsonl\"\n";
        let ppo = "[ppo]\nprompts = \"p.jsonl\"\nreward_model = \"r\"\n";
        let text = format!("[run]\nname = \"trial\"\n{dpo}{ppo}");
        let error = resolve_text(&text, &[]).unwrap_err().to_string();
        let says = "for the model of [dpo], set it to \"runs/trial/dpo/final\"";
        assert!(
            error.contains("ppo.from") && error.contains(says),
            "{error}"
        );
    }
}
