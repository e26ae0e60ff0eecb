//! Models of the Hugging Face hub, with the feature `hub`: fetched once into the cache that the
//! Python libraries share (`HF_HOME`, else `~/.cache/huggingface`), then read from there like any
//! folder.

use std::path::{Path, PathBuf};

use crate::config::HubName;

/// An error of fetching a model, with the model's name.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The binary was built without the feature.
    #[error(
        "{0}: no such folder; if a model of the Hugging Face hub is meant, build with --features \
         hub, or download it"
    )]
    NotBuilt(String),
    /// The hub did not answer, or has no such file.
    #[error("{name}: no such folder, and {what} cannot be fetched from the Hugging Face hub")]
    Fetch {
        /// Model and revision.
        name: String,
        /// The file, or the list of files.
        what: String,
        /// Error of the transfer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The hub's answer names a file or a commit that cannot exist.
    #[error("{name}: the download stops, because {what} names {found}: {why}")]
    Refused {
        /// Model and revision.
        name: String,
        /// The file, or the list of files.
        what: &'static str,
        /// The name.
        found: String,
        /// The reason why the name is invalid.
        why: String,
    },
    /// The model lacks a file that the engine needs.
    #[error("{name}: the Hugging Face hub has this model, but without {lacking}")]
    Lacking {
        /// Model and revision.
        name: String,
        /// The missing file.
        lacking: &'static str,
    },
}

/// The folder that holds a model: `path` itself if it exists or is not a [`HubName`], otherwise the
/// folder in the cache to which the model was fetched.
///
/// A complete model in the cache is not looked up again, so that a continued run reads the same
/// files.
///
/// # Errors
/// If the model cannot be fetched.
pub fn local(path: &Path) -> Result<PathBuf, HubError> {
    match HubName::parse(path) {
        Some(name) if !path.exists() => fetch(&name),
        _ => Ok(path.to_owned()),
    }
}

#[cfg(not(feature = "hub"))]
fn fetch(name: &HubName) -> Result<PathBuf, HubError> {
    Err(HubError::NotBuilt(name.repo.clone()))
}

#[cfg(feature = "hub")]
use download::fetch;

#[cfg(feature = "hub")]
mod download {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
    use hf_hub::{Cache, CacheRepo, Repo, RepoType};
    use serde_json::Value;

    use super::HubError;
    use crate::config::HubName;
    use crate::files::regular;
    use crate::model::weights::shard_name;
    use crate::terminal;

    const CONFIG: &str = "config.json";
    const TOKENIZER: &str = "tokenizer.json";
    const WEIGHTS: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    /// Files that are fetched if the model has them.
    const OPTIONAL: [&str; 5] = [
        TOKENIZER,
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ];
    const RETRIES: usize = 5;

    pub(super) fn fetch(name: &HubName) -> Result<PathBuf, HubError> {
        let named = |revision: &str| {
            Repo::with_revision(name.repo.clone(), RepoType::Model, revision.to_owned())
        };
        let cache = Cache::from_env().repo(named(&name.revision));
        if let Some(folder) = whole(&cache) {
            return Ok(folder);
        }
        let api = ApiBuilder::from_env()
            .with_progress(terminal::is_live())
            .with_retries(RETRIES);
        let api = match std::env::var("HF_TOKEN") {
            Ok(token) => api.with_token(Some(token)),
            Err(_) => api,
        };
        let api = api.build().map_err(failed(name, "a connection"))?;
        let list = api.repo(named(&name.revision)).info();
        let list = list.map_err(failed(name, "its list of files"))?;
        check_commit(name, &list.sha)?;
        // All files come from the commit of the list, even if the branch moves during the download.
        let files = list
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect();
        let folder = download(name, &api.repo(named(&list.sha)), &files)?;
        let noted = cache.create_ref(&list.sha);
        noted.map_err(|error| failed(name, "its place in the cache")(ApiError::from(error)))?;
        Ok(folder)
    }

    /// Fetches the files that the engine reads; `config.json` last.
    fn download(
        name: &HubName,
        api: &ApiRepo,
        files: &BTreeSet<String>,
    ) -> Result<PathBuf, HubError> {
        let get = |file: &str| api.get(file).map_err(failed(name, file));
        let lacking = |lacking| HubError::Lacking {
            name: name.to_string(),
            lacking,
        };
        if !files.contains(CONFIG) {
            return Err(lacking("a config.json"));
        }
        if files.contains(WEIGHTS) {
            get(WEIGHTS)?;
        } else if files.contains(INDEX) {
            let shards = shards(&get(INDEX)?);
            shards.iter().try_for_each(|shard| check(name, shard))?;
            for shard in shards {
                get(&shard)?;
            }
        } else {
            return Err(lacking("weights as safetensors"));
        }
        for file in OPTIONAL.into_iter().filter(|file| files.contains(*file)) {
            get(file)?;
        }
        let config = get(CONFIG)?;
        Ok(config.parent().map_or_else(PathBuf::new, Path::to_owned))
    }

    /// The snapshot's folder, if it has all files that a decoder with a tokenizer needs.
    fn whole(cache: &CacheRepo) -> Option<PathBuf> {
        let config = cache.get(CONFIG)?;
        cache.get(TOKENIZER)?;
        if cache.get(WEIGHTS).is_none() {
            let shards = shards(&cache.get(INDEX)?);
            let is_there =
                |shard: &String| shard_name::check(shard).is_ok() && cache.get(shard).is_some();
            if shards.is_empty() || !shards.iter().all(is_there) {
                return None;
            }
        }
        config.parent().map(Path::to_owned)
    }

    /// The files that an index names; none if it cannot be read, which is reported when the weights
    /// are opened.
    fn shards(index: &Path) -> BTreeSet<String> {
        let text = regular::read_text(index).unwrap_or_default();
        let index: Value = serde_json::from_str(&text).unwrap_or_default();
        let map = index["weight_map"].as_object();
        let names = map.into_iter().flat_map(|map| map.values());
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Checks that a shard's name can be part of an address and of a path.
    fn check(name: &HubName, shard: &str) -> Result<(), HubError> {
        shard_name::check(shard).map_err(|why| HubError::Refused {
            name: name.to_string(),
            what: INDEX,
            found: shard_name::shown(shard),
            why,
        })
    }

    /// Checks that a commit is a valid one, because it becomes the name of a folder in the cache.
    fn check_commit(name: &HubName, commit: &str) -> Result<(), HubError> {
        let is_hash = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        match is_hash {
            true => Ok(()),
            false => Err(HubError::Refused {
                name: name.to_string(),
                what: "its list of files",
                found: shard_name::shown(commit),
                why: "it is not a commit".to_owned(),
            }),
        }
    }

    fn failed<'a>(name: &'a HubName, what: &'a str) -> impl Fn(ApiError) -> HubError + 'a {
        move |error| HubError::Fetch {
            name: name.to_string(),
            what: what.to_owned(),
            source: error.into(),
        }
    }
}
