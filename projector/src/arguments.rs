//! How the ledger's programs read their arguments, and the variables of their environment that stand for some of them.

use std::env;

use async_nats::ServerAddr;
use clap::{
    Arg, ArgMatches, Command, CommandFactory, Error, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// The arguments of this process. A variable that is empty is as good as none: whoever hands variables on from another place
/// cannot leave one out. `Err` is what is wrong with them, in one line without secrets.
///
/// # Errors
///
/// When they are not such arguments. The process ends where its help or its version was asked for.
pub fn read<P: CommandFactory + FromArgMatches>() -> Result<P, String> {
    let mut command = without_empty_variables(P::command());
    let matches = command.try_get_matches_from_mut(env::args_os());
    let matches = matches.map_err(|error| refused(&command, &error))?;
    check_nats_url(&matches)?;
    P::from_arg_matches(&matches).map_err(|error| refused(&command, &error))
}

fn without_empty_variables(command: Command) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// What is wrong, in one line.
fn refused(command: &Command, error: &Error) -> String {
    if !error.use_stderr() {
        // The help or the version was asked for.
        error.exit();
    }
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if (is_help || error.kind() == ErrorKind::MissingSubcommand)
        && let Some(missing) = what_is_missing(command)
    {
        return missing;
    }
    if is_help {
        // Nothing at all was asked for.
        error.exit();
    }
    let text = error.to_string();
    // What is wrong may go on over several lines; a blank one ends it.
    let lines: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let line = lines.join(" ");
    let line = without_secrets(line.trim_start_matches("error: "));
    match variable(command, error) {
        Some((flag, variable)) => format!("{line} ({flag}, or the variable {variable}; --help tells what there is)"),
        None => format!("{line} (--help tells what there is)"),
    }
}

/// The command that needs another word after its own, and which words there are.
fn what_is_missing(command: &Command) -> Option<String> {
    let command = command.get_subcommands().find(|command| command.is_subcommand_required_set())?;
    let words: Vec<_> = command.get_subcommands().map(Command::get_name).filter(|word| *word != "help").collect();
    let (last, others) = words.split_last()?;
    Some(format!("{} needs {} or {last}", command.get_name(), others.join(", ")))
}

/// The flag whose value is wrong and the variable that stands for it: whoever set the one may not know the other.
fn variable(command: &Command, error: &Error) -> Option<(String, String)> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else { return None };
    // Only the commands that were given are built, and the arguments of the others have no form yet.
    let mut command = command.clone();
    command.build();
    with_subcommands(&command).into_iter().flat_map(Command::get_arguments).find_map(|arg| {
        let (flag, variable) = (arg.get_long()?, arg.get_env()?);
        (arg.to_string() == *named).then(|| (format!("--{flag}"), variable.display().to_string()))
    })
}

fn with_subcommands(command: &Command) -> Vec<&Command> {
    let mut commands = vec![command];
    for subcommand in command.get_subcommands() {
        commands.extend(with_subcommands(subcommand));
    }
    commands
}

/// Blanks what stands between `//` and `@` in a text: the user and password of an address that somebody mistyped.
fn without_secrets(line: &str) -> String {
    match (line.find("//"), line.rfind('@')) {
        (Some(start), Some(end)) if start + 2 < end => format!("{}//…{}", &line[..start], &line[end..]),
        _ => line.to_owned(),
    }
}

/// Refuses an address of a NATS server that can never be connected to, whichever command it was given to. It is not repeated:
/// it may hold a password.
fn check_nats_url(matches: &ArgMatches) -> Result<(), String> {
    if let Ok(Some(url)) = matches.try_get_one::<String>("nats_url") {
        nats_url(url)?;
    }
    matches.subcommand().map_or(Ok(()), |(_, matches)| check_nats_url(matches))
}

/// An empty one means none.
fn nats_url(url: &str) -> Result<(), String> {
    if url.is_empty() {
        return Ok(());
    }
    if !["nats://", "tls://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err("--nats-url must begin with nats:// or tls://, such as nats://127.0.0.1:4222".to_owned());
    }
    match url.parse::<ServerAddr>() {
        Ok(address) if !address.host().is_empty() => Ok(()),
        _ => Err("--nats-url cannot be read; write nats://HOST:PORT, such as nats://127.0.0.1:4222".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let number = |name: &'static str| Arg::new(name).long(name).value_parser(clap::value_parser!(u8).range(1..));
        let create = Command::new("create").arg(number("limit").env("LIMIT_OF_A_TEST"));
        let keys = Command::new("keys").subcommand_required(true).arg_required_else_help(true);
        Command::new("program")
            .arg(number("room").env("ROOM_OF_A_TEST"))
            .arg(number("colour"))
            .arg(Arg::new("nats_url").long("nats-url"))
            .subcommand(keys.subcommands([create, Command::new("list"), Command::new("revoke").arg(number("room"))]))
    }

    fn told(arguments: &[&str]) -> String {
        let mut command = without_empty_variables(command());
        let given = std::iter::once(&"program").chain(arguments);
        let error = command.try_get_matches_from_mut(given).expect_err("wrong");
        refused(&command, &error)
    }

    #[test]
    fn a_wrong_value_is_told_by_its_flag_and_its_variable() {
        let room = told(&["--room", "0"]);
        assert!(room.contains("(--room, or the variable ROOM_OF_A_TEST; --help"), "{room}");
        let limit = told(&["keys", "create", "--limit", "0"]);
        assert!(limit.contains("(--limit, or the variable LIMIT_OF_A_TEST; --help"), "{limit}");
        let colour = told(&["--colour", "red"]);
        assert!(colour.contains("'red'") && colour.ends_with("(--help tells what there is)"), "{colour}");
        assert_eq!(colour.lines().count(), 1, "{colour}");
    }

    #[test]
    fn a_command_that_needs_a_word_says_which_there_are() {
        for arguments in [&["keys"][..], &["--colour", "1", "keys"]] {
            assert_eq!(told(arguments), "keys needs create, list or revoke", "{arguments:?}");
        }
    }

    #[test]
    fn no_password_is_repeated() {
        assert_eq!(
            without_secrets("unexpected argument 'postgres://ann:pa@ss@db/ledger' found"),
            "unexpected argument 'postgres://…@db/ledger' found"
        );
        assert_eq!(without_secrets("unexpected argument '--colour' found"), "unexpected argument '--colour' found");
    }

    #[test]
    fn an_address_that_is_none_of_a_nats_server_is_refused_without_repeating_it() {
        for url in ["", "nats://127.0.0.1:4222", "tls://ann:s3cret@nats.example", "nats://[::1]:4222"] {
            nats_url(url).expect(url);
        }
        for url in ["http://ann:s3cret@a", "ann:s3cret@127.0.0.1:4222", "ws://s3cret", "nats://s3cret:port", "nats://"]
        {
            let refused = nats_url(url).expect_err(url);
            assert!(refused.starts_with("--nats-url ") && !refused.contains("s3cret"), "{refused}");
        }
        let given = command().try_get_matches_from(["program", "--nats-url", "127.0.0.1:4222"]).expect("a text");
        check_nats_url(&given).expect_err("no scheme");
    }
}
