//! Models that one stage trains for another.

use std::path::Path;

use super::check::Checker;
use super::{Config, Stage};

impl Config {
    /// Checks that the models of other stages that `stage` reads exist, or that an earlier one of
    /// `stages` trains them.
    pub(super) fn check_stages_before(
        &self,
        stage: Stage,
        stages: &[Stage],
        checker: &mut Checker<'_>,
    ) {
        for (key, folder) in self.models_read(stage) {
            let maker = self.maker(folder);
            let comes = maker.is_some_and(|maker| maker < stage && stages.contains(&maker));
            if comes || !folder.starts_with(self.run.folder()) {
                continue;
            }
            let mut keys = checker.table(stage.name());
            if folder.exists() {
                keys.model_exists(key, folder);
                continue;
            }
            match maker {
                Some(maker) => {
                    let message = format!(
                        "stage {maker} has not written its model yet; run `collimate {maker}` with \
                         this configuration first, or `collimate run` for all stages"
                    );
                    keys.wrong(key, format!("\"{}\"", folder.display()), message);
                }
                None => keys.exists(key, folder),
            }
        }
    }

    /// The stage of this configuration whose final model is `folder`.
    fn maker(&self, folder: &Path) -> Option<Stage> {
        self.stages()
            .into_iter()
            .find(|&stage| self.run.final_model(stage) == folder)
    }
}
