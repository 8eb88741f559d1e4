//! `cargo xtask up` on a directory that is edited, with the newest Envoy, which reads the files itself, and the oldest, which
//! is told of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sentinel_integration::client;
use sentinel_integration::clock;
use sentinel_integration::up::{Options, Up};

use crate::sources::flow;
use crate::world;

/// A running `up` and what it has printed.
struct Terminal {
    up: Up,
    printed: Vec<u8>,
}

impl Terminal {
    fn start(envoy: &Path, rules: &Path) -> Self {
        let options = Options {
            envoy: envoy.to_owned(),
            dist: world::dist(),
            rules: rules.to_owned(),
            workers: 4,
            port: 0,
            admin_port: 0,
            console_port: 0,
        };
        let mut printed = Vec::new();
        let up = Up::start(&options, &mut printed).unwrap();
        Self { up, printed }
    }

    fn status(&self, path: &str) -> u16 {
        client::get(self.up.envoy().proxy(), path).unwrap().status
    }

    /// Follows the directory until each path is answered with its status, which must be soon.
    #[track_caller]
    fn follows(&mut self, what: &str, expected: &[(&str, u16)]) {
        let edited = clock::now();
        clock::wait_for(what, Duration::from_secs(30), || {
            self.up.follow(&mut self.printed)?;
            clock::pause(Duration::from_millis(60));
            // On each worker.
            let mut all = (0..12).flat_map(|_| expected);
            Ok(all.all(|(path, status)| self.status(path) == *status).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}; printed: {}; {:?}", self.text(), self.up));
        let took = clock::now() - edited;
        println!("{what}: followed after {took:?}");
        assert!(took < world::FOLLOWED, "{what}: {took:?}; printed: {}", self.text());
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed).into_owned()
    }
}

fn check_edits(envoy: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { directory.path().join(name) };
    let write = |name: &str, text: &str| fs::write(file(name), text).unwrap();
    write("a.yaml", &flow(&[("a", "/a", 0)]));
    write("flow-limits.json", r#"[{"resource": "GET:/list", "threshold": 0}]"#);
    // Somebody's own: `up` keeps one of its own.
    write("index.yaml", "files: [a.yaml]");
    write("notes.txt", "no rules");
    let mut terminal = Terminal::start(envoy, directory.path());
    assert_eq!((terminal.status("/a"), terminal.status("/list")), (429, 429));
    assert!(terminal.text().contains("is in force: 2 rules"), "{}", terminal.text());

    write("a.yaml", &flow(&[("a", "/a2", 0)]));
    terminal.follows("an edit in place", &[("/a2", 429), ("/a", 200)]);

    write("new file.yaml", &flow(&[("new", "/new", 0)]));
    terminal.follows("a new file", &[("/new", 429), ("/a2", 429)]);

    fs::rename(file("new file.yaml"), file("renamed.yaml")).unwrap();
    write(".edit", &flow(&[("new", "/newer", 0)]));
    fs::rename(file(".edit"), file("renamed.yaml")).unwrap();
    terminal.follows("a renamed file", &[("/newer", 429), ("/new", 200)]);

    fs::remove_file(file("renamed.yaml")).unwrap();
    terminal.follows("a removed file", &[("/newer", 200), ("/a2", 429)]);
    assert!(!terminal.text().contains("refused"), "{}", terminal.text());

    write(
        "a.yaml",
        "apiVersion: datasource.sentinel.io/v1alpha1\nkind: FlowRules\nspec:\n  rules:\n  - {id: a, resource: 'GET:/bad', threshold: -1}\n",
    );
    clock::wait_for("the reason", Duration::from_secs(2), || {
        terminal.up.follow(&mut terminal.printed)?;
        Ok(terminal.text().contains("must be 0 or more").then_some(()))
    })
    .unwrap();
    let text = terminal.text();
    let reason = text.lines().find(|line| line.contains("must be 0 or more")).unwrap();
    let place = format!("{}/a.yaml:5:", directory.path().display());
    assert!(reason.contains(place.trim_start_matches('/')), "{reason}");
    let log = terminal.up.envoy().log_lines("must be 0 or more").unwrap();
    assert!(log[0].ends_with(reason), "{log:?}");
    assert_eq!((terminal.status("/a2"), terminal.status("/list")), (429, 429));
    assert_eq!(terminal.up.envoy().stats().unwrap().total("rules_rejected"), 1);

    write("a.yaml", &flow(&[("a", "/mended", 0)]));
    terminal.follows("a mended file", &[("/mended", 429), ("/a2", 200)]);
    assert_eq!(terminal.up.envoy().stats().unwrap().sum("wasm.", ".vm_reload"), 0);
}

#[test]
fn every_edit_is_followed_within_two_seconds_and_a_bad_one_says_why_in_the_newest_envoy() {
    let _turn = world::machine();
    check_edits(&world::envoy());
}

#[test]
fn every_edit_is_followed_within_two_seconds_and_a_bad_one_says_why_in_the_oldest_envoy() {
    let _turn = world::machine();
    check_edits(&world::oldest_envoy());
}

#[test]
fn edits_are_followed_with_nothing_but_envoy_running() {
    let _turn = world::machine();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, flow(&[("a", "/a", 0)])).unwrap();
    let terminal = Terminal::start(&world::envoy(), directory.path());
    assert_eq!(terminal.status("/a"), 429);

    // From here on nobody calls `follow`.
    fs::write(&file, flow(&[("a", "/a2", 0)])).unwrap();
    clock::wait_for("the edit", Duration::from_secs(2), || {
        let is_followed = || (terminal.status("/a2"), terminal.status("/a")) == (429, 200);
        Ok((0..12).all(|_| is_followed()).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}; {:?}", terminal.up));
}
