//! What the stages of a configuration read: data files and model folders, and whether they are there.

use std::path::{Path, PathBuf};

use super::check::Checker;
use super::{
    Config, ConfigError, Document, Dpo, ModelStart, Ppo, Pretrain, Reward, Sft, Stage, rewards,
};

impl Config {
    /// Looks whether the files that `stages` read exist; `document` is where the configuration came
    /// from.
    ///
    /// A model that one of `stages` makes for a later one is not looked for; one that another stage of the run should have
    /// made is asked of that stage.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], with every file that is missing and where it was looked for.
    pub fn check_files(&self, document: &Document, stages: &[Stage]) -> Result<(), ConfigError> {
        let mut checker = Checker::new(document);
        let given = self.model.start.as_ref().and_then(ModelStart::folder);
        given
            .iter()
            .for_each(|folder| checker.table("model").model_exists("from", folder));
        // What was copied from model.from is blamed there.
        if let Some(path) = self
            .tokenizer
            .from
            .as_deref()
            .filter(|path| Some(*path) != given)
        {
            checker.table("tokenizer").model_exists("from", path);
        }
        for stage in stages {
            self.check_stage_files(*stage, &mut checker);
            self.check_stages_before(*stage, stages, &mut checker);
        }
        checker.finish()
    }

    fn check_stage_files(&self, stage: Stage, checker: &mut Checker<'_>) {
        for (key, file) in self.data_files(stage) {
            checker.table(stage.name()).exists(key, file);
        }
        let own = self.run.folder();
        for (key, folder) in self.models_read(stage) {
            let given = self.model.start.as_ref().and_then(ModelStart::folder) == Some(folder);
            if !given && !folder.starts_with(&own) {
                checker.table(stage.name()).model_exists(key, folder);
            }
        }
    }

    /// The data files that `stage` reads, by key.
    pub fn data_files(&self, stage: Stage) -> Vec<(&'static str, &Path)> {
        match stage {
            Stage::Pretrain => self
                .pretrain
                .iter()
                .flat_map(Pretrain::data_files)
                .collect(),
            Stage::Sft => self.sft.iter().flat_map(Sft::data_files).collect(),
            Stage::Dpo => self.dpo.iter().flat_map(Dpo::data_files).collect(),
            Stage::Reward => self.reward.iter().flat_map(Reward::data_files).collect(),
            Stage::Judge => self.judge.iter().flat_map(Reward::data_files).collect(),
            Stage::Ppo => self.ppo.iter().flat_map(Ppo::data_files).collect(),
        }
    }

    /// The model folders that `stage` reads, by key.
    pub fn models_read(&self, stage: Stage) -> Vec<(&'static str, &Path)> {
        match stage {
            Stage::Pretrain => Vec::new(),
            Stage::Sft => self
                .sft
                .iter()
                .map(|sft| ("from", sft.from.as_path()))
                .collect(),
            Stage::Dpo => self
                .dpo
                .iter()
                .map(|dpo| ("from", dpo.from.as_path()))
                .collect(),
            Stage::Reward => self
                .reward
                .iter()
                .map(|reward| ("from", reward.from.as_path()))
                .collect(),
            Stage::Judge => self
                .judge
                .iter()
                .map(|judge| ("from", judge.from.as_path()))
                .collect(),
            Stage::Ppo => self.ppo.iter().flat_map(Ppo::models_read).collect(),
        }
    }

    /// Every folder of a model or tokenizer that `stages` may read, those that the run itself makes among them.
    pub fn model_folders_mut(&mut self, stages: &[Stage]) -> Vec<&mut PathBuf> {
        let Self {
            model,
            tokenizer,
            sft,
            dpo,
            reward,
            judge,
            ppo,
            ..
        } = self;
        let runs = |stage| stages.contains(&stage);
        let mut folders: Vec<&mut PathBuf> = Vec::new();
        if let Some(ModelStart::Folder(folder)) = &mut model.start {
            folders.push(folder);
        }
        folders.extend(&mut tokenizer.from);
        folders.extend(
            sft.iter_mut()
                .filter(|_| runs(Stage::Sft))
                .map(|sft| &mut sft.from),
        );
        folders.extend(
            dpo.iter_mut()
                .filter(|_| runs(Stage::Dpo))
                .map(|dpo| &mut dpo.from),
        );
        for (stage, table) in [(Stage::Reward, reward), (Stage::Judge, judge)] {
            folders.extend(
                table
                    .iter_mut()
                    .filter(|_| runs(stage))
                    .map(|table| &mut table.from),
            );
        }
        if let Some(ppo) = ppo.as_mut().filter(|_| runs(Stage::Ppo)) {
            folders.push(&mut ppo.from);
            folders.extend(&mut ppo.reward_model);
            folders.extend(rewards::folders_mut(&mut ppo.rewards));
            folders.extend(&mut ppo.judge_model);
        }
        folders
    }
}
