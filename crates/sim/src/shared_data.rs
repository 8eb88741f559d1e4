//! Envoy's shared data.
//!
//! A map of the whole process with one lock, so that each call is one step. What makes it easy to get
//! wrong: the token is one counter over all keys, 0 as a token means "whatever stands there", a token
//! for a missing key creates it, and nothing is ever removed.

use std::collections::BTreeMap;

/// Keys and values, each with the token of its last write.
#[derive(Debug, Default)]
pub struct SharedData {
    values: BTreeMap<String, (Vec<u8>, u32)>,
    last_token: u32,
}

/// Somebody else has written since the token was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CasMismatch;

impl SharedData {
    /// An empty map whose last token was `last_token`.
    pub fn after_token(last_token: u32) -> Self {
        Self { values: BTreeMap::new(), last_token }
    }

    /// The value under `key`, and its token.
    pub fn value(&self, key: &str) -> Option<(&[u8], u32)> {
        self.values.get(key).map(|(value, token)| (value.as_slice(), *token))
    }

    /// Writes `value` under `key`: always if `token` is 0 or there is no such key, else only if `token` is
    /// the key's.
    pub fn set(&mut self, key: &str, value: &[u8], token: u32) -> Result<(), CasMismatch> {
        match self.values.get_mut(key) {
            Some((_, current)) if token != 0 && token != *current => return Err(CasMismatch),
            Some((stored, current)) => {
                self.last_token = next(self.last_token);
                *current = self.last_token;
                stored.clear();
                stored.extend_from_slice(value);
            }
            None => {
                self.last_token = next(self.last_token);
                self.values.insert(key.to_owned(), (value.to_vec(), self.last_token));
            }
        }
        Ok(())
    }

    /// All keys and the size of their values.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.values.iter().map(|(key, (value, _))| (key.as_str(), value.len()))
    }

    /// How many keys there are: never fewer than before.
    pub fn keys(&self) -> usize {
        self.values.len()
    }
}

fn next(token: u32) -> u32 {
    // Wraps past 0, which means "unconditional".
    token.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_one_write() {
        let mut data = SharedData::default();
        assert_eq!(data.set("k", b"a", 7), Ok(()));
        let (_, token) = data.value("k").unwrap();

        assert_eq!(data.set("k", b"b", token), Ok(()));
        assert_eq!(data.set("k", b"c", token), Err(CasMismatch));
        assert_eq!(data.value("k").unwrap().0, b"b");
    }

    #[test]
    fn no_token_overwrites_whatever_stands_there() {
        let mut data = SharedData::default();
        data.set("k", b"a", 1).unwrap();

        assert_eq!(data.set("k", b"b", 0), Ok(()));
    }

    #[test]
    fn tokens_wrap_past_zero() {
        let mut data = SharedData::after_token(u32::MAX);
        data.set("k", b"a", 1).unwrap();

        assert_eq!(data.value("k").unwrap().1, 1);
    }
}
