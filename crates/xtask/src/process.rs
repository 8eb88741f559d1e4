//! Other programs: run, captured, limited in time, with an error that names the command.
//!
//! No program gets our standard input: none of them may wait for an answer where nobody sits.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

/// Runs a program whose output goes where ours goes.
///
/// # Errors
/// If it cannot be started, or if it fails.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let shown = shown(&command);
    let status = command.stdin(Stdio::null()).status().with_context(|| cannot_start(&shown))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}); what it says stands above");
    }
    Ok(())
}

/// Runs a program, lets its standard output through and shows each line of it to `each`. Whether it succeeded.
///
/// # Errors
/// If it cannot be started, or if its output cannot be read.
pub(crate) fn run_reading(mut command: Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let shown = shown(&command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| cannot_start(&shown))?;
    let output = child.stdout.take().with_context(|| format!("`{shown}` has no output to read"))?;
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    // By bytes: a test may print what is not UTF-8.
    while output
        .read_until(b'\n', &mut bytes)
        .with_context(|| format!("reading what `{shown}` says"))?
        > 0
    {
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end_matches('\n');
        crate::say::result(text);
        each(text);
        bytes.clear();
    }
    Ok(child.wait().with_context(|| format!("waiting for `{shown}`"))?.success())
}

/// What a program prints, without the white space around it; the program is killed when `limit` is over.
///
/// # Errors
/// If it cannot be started, takes longer than `limit`, or fails: then with the last line it wrote to standard error.
pub(crate) fn captured(command: Command, limit: Duration) -> Result<String> {
    let shown = shown(&command);
    let output = output_within(command, limit, &shown)?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it does not say why");
        bail!("`{shown}` failed ({}): {}", output.status, last.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where `program` stands on the path, if it does.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_executable(file))
}

/// A program by name with its arguments.
pub(crate) fn command<I>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator<Item: AsRef<OsStr>>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn output_within(command: Command, limit: Duration, shown: &str) -> Result<Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a timer")?;
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    match runtime.block_on(async { tokio::time::timeout(limit, command.output()).await }) {
        Ok(output) => output.with_context(|| cannot_start(shown)),
        Err(_) => Err(anyhow!("`{shown}` did not end within {} s", limit.as_secs())),
    }
}

fn is_executable(file: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    }
    #[cfg(not(unix))]
    {
        file.is_file()
    }
}

fn cannot_start(shown: &str) -> String {
    format!("cannot start `{shown}`: is it installed?")
}

/// The command as one would type it, its program without the folders.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or_else(|| command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_comes_back_without_its_newline() {
        assert_eq!(captured(command("echo", ["one", "two"]), LONG).unwrap(), "one two");
    }

    #[test]
    fn a_program_that_fails_is_named_with_its_last_complaint() {
        let error = captured(command("sh", ["-c", "echo first >&2; echo last >&2; exit 3"]), LONG)
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("`sh -c ") && text.ends_with("failed (exit status: 3): last"),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        let error = captured(command("sleep", ["600"]), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.to_string(), "`sleep 600` did not end within 0 s");
    }

    #[test]
    fn lines_are_read_even_if_they_are_not_text() {
        let mut lines = Vec::new();
        let ended_well =
            run_reading(command("printf", ["a\\377\\nb"]), |line| lines.push(line.to_owned()))
                .unwrap();
        assert!(ended_well);
        assert_eq!(lines, ["a\u{fffd}", "b"]);
    }

    const LONG: Duration = Duration::from_secs(60);
}
