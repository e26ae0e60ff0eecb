//! Data files and model folders that the stages read, and whether they exist.

use std::path::{Path, PathBuf};

use super::check::Checker;
use super::{Config, ConfigError, Document, ModelStart, Stage, StageTable};

impl Config {
    /// Checks that the files that `stages` read exist; the configuration was read from `document`.
    ///
    /// A model that one of `stages` trains for a later one need not exist. For a missing model of
    /// another stage of the run, the error names that stage.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every missing file and its absolute path.
    pub fn check_files(&self, document: &Document, stages: &[Stage]) -> Result<(), ConfigError> {
        let mut checker = Checker::new(document);
        let given = self.model.start.as_ref().and_then(ModelStart::folder);
        given
            .iter()
            .for_each(|folder| checker.table("model").model_exists("from", folder));
        // A path copied from model.from is reported there.
        if let Some(path) = self
            .tokenizer
            .from
            .as_deref()
            .filter(|path| Some(*path) != given)
        {
            checker.table("tokenizer").model_exists("from", path);
        }
        let template = self.tokenizer.chat_template.as_deref();
        if let Some(file) = template.filter(|_| stages.contains(&Stage::Pretrain)) {
            checker.table("tokenizer").exists("chat_template", file);
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
        self.table(stage)
            .map_or_else(Vec::new, StageTable::data_files)
    }

    /// The model folders that `stage` reads, by key.
    pub fn models_read(&self, stage: Stage) -> Vec<(&'static str, &Path)> {
        self.table(stage).map_or_else(Vec::new, StageTable::models)
    }

    /// Every folder of a model or tokenizer that `stages` may read, including those of the run.
    pub fn model_folders_mut(&mut self, stages: &[Stage]) -> Vec<&mut PathBuf> {
        let mut folders: Vec<&mut PathBuf> = Vec::new();
        let tables = self.tables_mut();
        if let Some(ModelStart::Folder(folder)) = &mut tables.model.start {
            folders.push(folder);
        }
        folders.extend(&mut tables.tokenizer.from);
        let run = tables.stages.into_iter();
        let run = run.filter(|(stage, _)| stages.contains(stage));
        folders.extend(run.flat_map(|(_, table)| table.models_mut()));
        folders
    }
}
