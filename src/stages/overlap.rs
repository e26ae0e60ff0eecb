//! Warnings on records that are to measure a model, but have trained it.

use std::fs;
use std::path::Path;

use crate::config::{Config, Stage};
use crate::files::checksum;

/// Sentences on files that a run trains with and measures with.
pub fn warnings(config: &Config) -> Vec<String> {
    let files = |stage, key: &str| -> Vec<&Path> {
        let files = config.data_files(stage).into_iter();
        let files = files.filter(|(name, _)| *name == key);
        files.map(|(_, path)| path).collect()
    };
    let shared = |one: &[&Path], other: &[&Path]| {
        let mut one = one.iter();
        let found = one.find(|one| other.iter().any(|other| have_same_contents(one, other)));
        found.map(|path| path.display().to_string())
    };
    let [reward, judge] = [Stage::Reward, Stage::Judge].map(|stage| files(stage, "data"));
    let judge = shared(&judge, &reward).map(|file| {
        format!(
            "warning: [judge] and [reward] train on the same records ({file}), so that the judge \
             repeats the reward model's mistakes; give it others"
        )
    });
    let [prompts, held_out] = ["prompts", "eval_prompts"].map(|key| files(Stage::Ppo, key));
    let held_out = shared(&held_out, &prompts).map(|file| {
        format!(
            "warning: ppo.eval_prompts are the prompts that [ppo] trains on ({file}); evaluate on \
             others"
        )
    });
    judge.into_iter().chain(held_out).collect()
}

/// Whether two files are one, or have the same bytes; a file that cannot be read is like no other.
fn have_same_contents(one: &Path, other: &Path) -> bool {
    let size = |path| fs::metadata(path).map(|file| file.len()).ok();
    let sum = |path| checksum::of_file(path).ok();
    one == other
        || (size(one).is_some() && size(one) == size(other))
            && (sum(one).is_some() && sum(one) == sum(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    #[test]
    fn records_that_train_and_measure_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (a, copy, b) = (file("a", "one"), file("copy", "one"), file("b", "two"));
        let warnings = |judge: &str, held_out: &str| {
            let text = format!(
                "[run]\nname = \"t\"\n[reward]\nfrom = \"m\"\ndata = [{b:?}, {a:?}]\n\
                 [judge]\nfrom = \"m\"\ndata = {judge:?}\n\
                 [ppo]\nfrom = \"m\"\nprompts = {a:?}\neval_prompts = {held_out:?}\n"
            );
            let document = Document::parse(&text, Path::new("t.toml")).unwrap();
            warnings(&Config::resolve(&document).unwrap())
        };
        let other = file("other", "six");
        assert_eq!(warnings(&other, &b), Vec::<String>::new());
        for same in [&a, &copy] {
            let [judge, held_out] = warnings(same, same).try_into().unwrap();
            assert!(
                judge.contains("[judge] and [reward]") && judge.contains(same),
                "{judge}"
            );
            assert!(held_out.contains("ppo.eval_prompts"), "{held_out}");
        }
    }
}
