//! `explain`: why a request is answered as it is.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use sentinel_cli::explain::{Options, explain};

use super::exit_code;

/// Says what a request is called, which rules it meets in which order, and what each says to it.
///
/// The engine that ships is asked, from empty state: nobody has been here before. Exit code 1 if the rules, the
/// filter's configuration or the request cannot be used.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// A folder with rule files, or a rule file; may be given several times.
    #[arg(long, value_name = "DIR", default_value = "rules")]
    pub(crate) rules: Vec<PathBuf>,
    /// Method and path, with the query string: 'GET /hello?user=7'.
    #[arg(long, value_name = "REQUEST")]
    pub(crate) request: String,
    /// A header of the request: 'x-user: 7'; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub(crate) headers: Vec<String>,
    /// The filter's configuration, or the bootstrap or listener that holds it (default: the filter of
    /// envoy/envoy.yaml).
    #[arg(long, value_name = "FILE")]
    pub(crate) filter: Option<PathBuf>,
    /// The client's address, as Envoy sees it.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) client_ip: Option<String>,
    /// The name of Envoy's route, for a filter that names requests by it.
    #[arg(long, value_name = "NAME")]
    pub(crate) route: Option<String>,
    /// The name of Envoy's cluster, for a filter that names requests by it.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

/// # Errors
/// If the result cannot be written.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    let options = Options {
        rules: arguments.rules,
        request: arguments.request,
        headers: arguments.headers,
        filter: arguments.filter,
        client_ip: arguments.client_ip,
        route: arguments.route,
        cluster: arguments.cluster,
        json: arguments.json,
        terminal: out.is_terminal(),
    };
    Ok(exit_code(explain(&options, &mut out)?))
}
