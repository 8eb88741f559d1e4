//! Inputs for a target: those of its corpus, and new ones made of them.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fastrand::Rng;

use crate::{mutate::mutated, targets::Target};

/// How much memory was asked for since the program began, in bytes, counting what was given back.
pub type Allocated = fn() -> u64;

/// What an input of no bytes may cost, and each further one. (A rule of 40 bytes that is wrong in every field costs a refusal
/// of some hundred bytes for each of them, in each of fifteen readings.)
const ALLOCATED_MAX: u64 = 8 * 1024 * 1024;
const ALLOCATED_EACH: u64 = 16 * 1024;

/// Judges one input: a panic, or memory out of proportion, is as bad as what the target itself says.
///
/// # Errors
/// What is wrong.
pub fn judge(target: Target, input: &[u8], allocated: Allocated) -> Result<(), String> {
    let before = allocated();
    match catch_unwind(AssertUnwindSafe(|| (target.judge)(input))) {
        Ok(judged) => judged?,
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            return Err(format!("panics: {}", words.unwrap_or("without a word")));
        }
    }
    let asked = allocated().saturating_sub(before);
    let length = u64::try_from(input.len()).unwrap_or(u64::MAX);
    let most = ALLOCATED_MAX.saturating_add(ALLOCATED_EACH.saturating_mul(length));
    if asked > most {
        return Err(format!(
            "asks for {asked} bytes of memory for {length} of input; {most} would do"
        ));
    }
    Ok(())
}

/// The files of a target's corpus with their bytes, in the order of their names; for rule documents, those of `rules/` too.
///
/// # Errors
/// If the folder cannot be read.
pub fn corpus(target: Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![here.join("corpus").join(target.name)];
    if target.name == "rules" {
        folders.push(here.join("../../rules"));
    }
    let mut files = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let is_shown = path.extension().is_none_or(|ending| ending != "md");
            if path.is_file() && is_shown {
                files.push(path);
            }
        }
    }
    files.sort();
    files.into_iter().map(|file| fs::read(&file).map(|bytes| (file, bytes))).collect()
}

/// New inputs, one after the other, from a seed.
#[derive(Debug)]
pub struct Search {
    random: Rng,
    known: Vec<Vec<u8>>,
}

impl Search {
    /// Begins with the target's corpus.
    ///
    /// # Errors
    /// If the corpus cannot be read, or is empty.
    pub fn new(target: Target, seed: u64) -> io::Result<Self> {
        let known: Vec<_> = corpus(target)?.into_iter().map(|(_, bytes)| bytes).collect();
        if known.is_empty() {
            return Err(io::Error::other(format!("the corpus of {} is empty", target.name)));
        }
        Ok(Self { random: Rng::with_seed(seed), known })
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let [input, other] = [(); 2].map(|()| self.random.usize(0..self.known.len()));
        let input = self.known.get(input).map_or(&[] as &[u8], Vec::as_slice);
        let other = self.known.get(other).map_or(&[] as &[u8], Vec::as_slice);
        mutated(&mut self.random, input, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::TARGETS;

    fn nothing() -> u64 {
        0
    }

    #[test]
    fn every_input_of_the_corpus_is_read_as_it_should() {
        for target in TARGETS {
            for (file, input) in corpus(*target).unwrap() {
                let judged = judge(*target, &input, nothing);
                assert_eq!(judged, Ok(()), "{}", file.display());
            }
        }
    }

    #[test]
    fn what_is_made_of_the_corpus_is_read_as_it_should() {
        for target in TARGETS {
            let mut search = Search::new(*target, 1).unwrap();
            for _ in 0..150 {
                let input = search.next_input();
                let judged = judge(*target, &input, nothing);
                assert_eq!(
                    judged,
                    Ok(()),
                    "{} of {:?}",
                    target.name,
                    String::from_utf8_lossy(&input)
                );
            }
        }
    }

    #[test]
    fn the_corpus_is_small() {
        let all: Vec<_> = TARGETS.iter().flat_map(|target| corpus(*target).unwrap()).collect();
        assert!(all.len() < 150, "{} files", all.len());
        let bytes: usize = all.iter().map(|(_, input)| input.len()).sum();
        assert!(bytes < 300_000, "{bytes} bytes");
    }

    #[test]
    fn a_panic_and_a_broken_promise_and_greed_are_told_apart() {
        let target = |judge| Target { name: "test", about: "", judge };
        assert_eq!(judge(target(|_| panic!("here")), b"", nothing), Err("panics: here".to_owned()));
        assert_eq!(judge(target(|_| Err("so".to_owned())), b"", nothing), Err("so".to_owned()));
        fn more() -> u64 {
            use std::sync::atomic::{AtomicU64, Ordering};
            static ASKED: AtomicU64 = AtomicU64::new(0);
            ASKED.fetch_add(1 << 30, Ordering::Relaxed)
        }
        let greedy = judge(target(|_| Ok(())), b"", more).unwrap_err();
        assert!(greedy.starts_with("asks for 1073741824 bytes"), "{greedy}");
    }
}
