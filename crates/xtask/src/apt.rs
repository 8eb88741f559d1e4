//! Debian's packages, for machines on which something is missing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{process, say};

/// Installs packages, as root or through a `sudo` that asks nothing. Removes nothing.
///
/// # Errors
/// If this is no Debian, if we may not, or if apt fails: then with the command to type.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if process::on_path("apt-get").is_none() {
        bail!(
            "{why}, and there is no apt-get here to install {}: install them by hand",
            packages.join(" ")
        );
    }
    let Some(root) = root() else {
        bail!("{why}: run `sudo {by_hand}` and start again");
    };
    let step = say::Step::begin_silent(format_args!(
        "Debian's packages {}: {why} (some minutes)",
        packages.join(" ")
    ));
    let install = || {
        let mut command = root.command();
        // Some of the packages conflict with other Rusts: nobody's toolchain is taken away from under them.
        command.args(["install", "--yes", "--no-remove", "--no-install-recommends"]).args(packages);
        process::captured(command, LIMIT)
    };
    if install().is_err() {
        // The lists may be missing or old.
        let mut update = root.command();
        update.arg("update");
        process::captured(update, LIMIT)
            .and_then(|_| install())
            .with_context(|| format!("{why}, and apt cannot help: try `{by_hand}` to see more"))?;
    }
    step.done("installed");
    Ok(())
}

/// How we may be root.
enum Root {
    Already,
    Sudo,
}

impl Root {
    fn command(&self) -> Command {
        match self {
            // Through `env`, since sudo drops the environment.
            Self::Already => process::command("env", APT_GET),
            Self::Sudo => process::command("sudo", ["-n", "env"].into_iter().chain(APT_GET)),
        }
    }
}

fn root() -> Option<Root> {
    let limit = Duration::from_secs(10);
    if process::captured(process::command("id", ["-u"]), limit).is_ok_and(|id| id == "0") {
        return Some(Root::Already);
    }
    process::captured(process::command("sudo", ["-n", "true"]), limit).is_ok().then_some(Root::Sudo)
}

const APT_GET: [&str; 2] = ["DEBIAN_FRONTEND=noninteractive", "apt-get"];
const LIMIT: Duration = Duration::from_secs(900);
