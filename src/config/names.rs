//! Names of tables, and the known name that an unknown one probably means.

use super::Stage;

/// Tables that are not stages.
const SHARED: [&str; 3] = ["run", "model", "tokenizer"];

/// Names of all tables that a configuration may have, in the order of the file.
pub fn tables() -> impl Iterator<Item = &'static str> {
    SHARED
        .into_iter()
        .chain(Stage::ALL.into_iter().map(Stage::name))
}

/// Whether `table` is the name of a stage.
pub fn is_stage(table: &str) -> bool {
    Stage::ALL.into_iter().any(|stage| stage.name() == table)
}

/// The known name most similar to `name`, if one is similar enough: 0.6 lets `lr_sheduler` and
/// `learning-rate` through, and keeps names that share only a suffix apart.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = by_similarity(name, known).into_iter().next();
    nearest.filter(|nearest| similarity(name, nearest) >= 0.6)
}

/// The known names, those most similar to `name` first.
pub fn by_similarity<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = known.into_iter().collect();
    names.sort_by(|a, b| similarity(name, b).total_cmp(&similarity(name, a)));
    names
}

/// Damerau-Levenshtein distance over the longer length, from 1 for the same name down to 0.
fn similarity(one: &str, other: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(one, other)
}

/// Keys of other trainers and common abbreviations, with our names for them.
const ALIASES: [(&str, &str); 23] = [
    ("lr", "learning_rate"),
    ("beta", "kl_coef"),
    ("init_kl_coef", "kl_coef"),
    ("max_length", "context_length"),
    ("block_size", "context_length"),
    ("response_length", "max_new_tokens"),
    ("ppo_epochs", "num_ppo_epochs"),
    ("num_train_epochs", "max_epochs"),
    ("epochs", "max_epochs"),
    ("max_grad_clip", "max_grad_norm"),
    ("per_device_train_batch_size", "batch_size"),
    ("clip_range", "cliprange"),
    ("clip_ratio_c", "dual_clip"),
    ("loss_agg_mode", "loss_aggregation"),
    ("loss_type", "loss_aggregation"),
    ("use_kl_loss", "kl_in"),
    ("epsilon_high", "cliprange_high"),
    ("adv_estimator", "advantage_estimator"),
    ("num_generations", "num_samples_per_prompt"),
    ("rloo_k", "num_samples_per_prompt"),
    ("horizon", "kl_horizon"),
    ("gamma", "simpo_gamma"),
    ("drop_last", "dataloader_drop_last"),
];

/// The key of `known` that was meant by `name`: our word for another trainer's, or the nearest.
pub fn meant<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    alias(name, known).or_else(|| nearest(name, known.iter().map(String::as_str)))
}

/// Our word for a key that other trainers use, if `known` has it.
pub fn alias<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let (_, ours) = ALIASES
        .into_iter()
        .find(|(theirs, ours)| *theirs == name && known.iter().any(|k| k == ours))?;
    known.iter().map(String::as_str).find(|key| *key == ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_refuses_strangers() {
        let known = ["learning_rate", "kl_coef", "cliprange", "cliprange_value"];
        assert_eq!(nearest("learning-rate", known), Some("learning_rate"));
        assert_eq!(nearest("kl_coeff", known), Some("kl_coef"));
        assert_eq!(nearest("clip_range", known), Some("cliprange"));
        assert_eq!(nearest("dropout", known), None);
    }
}
