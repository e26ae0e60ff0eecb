//! The README and the pages of `docs/` are true: links resolve, sample records and configurations
//! are accepted, commands run, and quoted messages are in the source.
//!
//! The info string of a code block names its check, after its language:
//!
//! | Info string | Check |
//! |---|---|
//! | `toml` | a complete configuration, which resolves |
//! | `toml,fragment` | tables that resolve once required keys are added |
//! | `jsonl,STAGE…` | records that each of these stages or commands reads |
//! | `…,NAME.EXT` | also saved under this name for the commands of the page |
//! | `console,run` | `$ collimate …` lines that succeed, in a folder with the page's files |
//!
//! Other blocks are only shown.

#[path = "docs/configurations.rs"]
mod configurations;
#[path = "docs/links.rs"]
mod links;
#[path = "docs/page.rs"]
mod page;
#[path = "docs/quotes.rs"]
mod quotes;
#[path = "docs/records.rs"]
mod records;
#[path = "docs/workspace.rs"]
mod workspace;
