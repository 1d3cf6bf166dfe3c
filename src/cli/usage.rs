//! The command line and the `WICE_*` variables: which of the two gave a value, and what is said where one is wrong.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use crate::config::{ConfigError, place_of};

/// Options of which an empty value says something: none, where the file has one.
const MAY_BE_EMPTY: [&str; 2] = ["proxy", "metrics"];

/// `command` for which empty variables are as good as none: `WICE_MTU=` in an environment file sets nothing.
pub(super) fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: Option<&OsStr>| {
        name.and_then(std::env::var_os)
            .is_some_and(|value| value.is_empty())
    };
    command
        .mut_args(|arg| {
            let says_something = MAY_BE_EMPTY.contains(&arg.get_id().as_str());
            match is_empty(arg.get_env()) && !says_something {
                true => arg.env(Resettable::Reset),
                false => arg,
            }
        })
        .mut_subcommands(without_empty_variables)
}

/// Where a variable, and no argument, has a wrong value: what to say of it.
pub(super) fn wrong_variable(
    command: &Command,
    arguments: &[OsString],
    error: &clap::Error,
) -> Option<String> {
    if !matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    ) {
        return None;
    }
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = context(ContextKind::InvalidArg)?.split([' ', '=']).next()?;
    let value = context(ContextKind::InvalidValue)?;
    let is_flag = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text.strip_prefix(flag)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    if arguments.iter().any(is_flag) {
        return None;
    }
    let (mut asked, mut path) = (command, "wice".to_owned());
    for argument in arguments {
        if let Some(inner) = asked.find_subcommand(argument) {
            asked = inner;
            path = format!("{path} {}", inner.get_name());
        }
    }
    let long = flag.strip_prefix("--")?;
    let arg = asked
        .get_arguments()
        .find(|arg| arg.get_long() == Some(long))?;
    let variable = arg.get_env()?.to_string_lossy();
    let why = std::error::Error::source(error)
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    Some(format!(
        "the variable {variable} cannot be {value:?}{why}\n  it is what {flag} takes ({path} --help); unset it, or leave it empty, for the default"
    ))
}

/// Says where a wrong value was given: as the flag, the variable, or the line of the file.
pub(super) fn located(error: ConfigError, matches: &ArgMatches, file: &Path) -> ConfigError {
    let ConfigError::Value {
        name,
        problem,
        hint,
    } = error
    else {
        return error;
    };
    let known = matches.try_contains_id(&name).is_ok();
    let source = known.then(|| matches.value_source(&name)).flatten();
    let name = match source {
        // The token is no flag.
        Some(ValueSource::CommandLine) if name != "token" => {
            format!("--{}", name.replace('_', "-"))
        }
        Some(ValueSource::EnvVariable) => format!("WICE_{}", name.to_uppercase()),
        _ => match place_of(file, &name) {
            Some(place) => format!("{place}: {name}"),
            None => name,
        },
    };
    ConfigError::Value {
        name,
        problem,
        hint,
    }
}
