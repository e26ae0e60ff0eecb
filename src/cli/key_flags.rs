//! Flags that are keys of the configuration, as other trainers have them: `--learning_rate 1e-4`.

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;
use crate::config::reference;

/// `error`, or the `--set` to write instead where an unknown flag is a key of the configuration.
pub(super) fn explained(error: clap::Error, arguments: &[String]) -> clap::Error {
    let message = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => mend(flag, arguments),
        _ => None,
    };
    match message {
        Some(message) => Cli::command().error(ErrorKind::UnknownArgument, message),
        None => error,
    }
}

/// How to set the key that `flag` names.
fn mend(flag: &str, arguments: &[String]) -> Option<String> {
    let name = flag.split('=').next().unwrap_or(flag);
    let key = name.trim_start_matches('-').replace('-', "_");
    let command = command_of(arguments)?;
    let tables = reference::tables_with(&key);
    let known = |table: &&String| **table == command;
    let table = match tables.iter().find(known) {
        Some(table) => table.clone(),
        None if matches!(command, "run" | "plan") => match tables.as_slice() {
            [] => return None,
            [only] => only.clone(),
            _ => "TABLE".to_owned(),
        },
        None => return None,
    };
    let value = value_of(name, arguments).unwrap_or("VALUE");
    let mut message = format!("unexpected argument '{name}'; use --set {table}.{key}={value}");
    if table == "TABLE" {
        let names: Vec<String> = tables.iter().map(|table| format!("[{table}]")).collect();
        message.push_str(&format!(", where TABLE is one of {}", names.join(", ")));
    }
    Some(message)
}

/// The first argument that names a command; global flags may stand before it.
fn command_of(arguments: &[String]) -> Option<&str> {
    let cli = Cli::command();
    let mut names = arguments.iter().skip(1).map(String::as_str);
    names.find(|name| cli.find_subcommand(name).is_some())
}

/// The value given to `flag`, after `=` or as the next argument.
fn value_of<'a>(flag: &str, arguments: &'a [String]) -> Option<&'a str> {
    let place = arguments.iter().position(|argument| {
        let rest = argument.strip_prefix(flag);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })?;
    match arguments[place].split_once('=') {
        Some((_, value)) => Some(value),
        None => arguments
            .get(place + 1)
            .map(String::as_str)
            .filter(|next| !next.starts_with("--")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(line: &str) -> String {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error = Cli::try_parse_from(&arguments).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        explained(error, &arguments).to_string()
    }

    #[test]
    fn a_flag_that_is_a_key_names_the_override() {
        for (line, says) in [
            (
                "collimate sft c.toml --learning_rate 1e-4",
                "use --set sft.learning_rate=1e-4\n",
            ),
            (
                "collimate ppo c.toml --kl-coef=0.1 --fresh",
                "use --set ppo.kl_coef=0.1\n",
            ),
            (
                "collimate -q sft c.toml --learning_rate 1e-4",
                "use --set sft.learning_rate=1e-4\n",
            ),
            (
                "collimate reward --batch-size",
                "use --set reward.batch_size=VALUE\n",
            ),
            (
                "collimate run c.toml --kl_coef 0.1",
                "use --set ppo.kl_coef=0.1\n",
            ),
            (
                "collimate run c.toml --max_steps 3",
                "--set TABLE.max_steps=3, where TABLE is one of",
            ),
        ] {
            let error = said(line);
            assert!(
                error.contains(says) && !error.contains("-- --"),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn other_flags_are_left_to_clap() {
        assert!(said("collimate sft c.toml --freshh").contains("'--fresh'"));
        assert!(!said("collimate sft c.toml --kl_coef 1").contains("--set sft"));
    }
}
