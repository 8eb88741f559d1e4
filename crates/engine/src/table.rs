//! A map that is small in the module: a sorted list.
//!
//! The standard library's tree map takes 3 to 5 KB of code for each pair of types. The service's maps are
//! looked up often and grown rarely, at most once for each resource and worker, and a sorted list does that in a
//! few hundred bytes.

use alloc::vec::Vec;

/// Values by key, in the order of the keys.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    entries: Vec<(K, V)>,
}

impl<K: Ord, V> Table<K, V> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let place = self.place(key).ok()?;
        self.entries.get(place).map(|(_, value)| value)
    }

    /// The value of `key`, which is put there if it is missing. `None` never, but for the compiler.
    pub(crate) fn get_or_insert_with(
        &mut self,
        key: K,
        value: impl FnOnce() -> V,
    ) -> Option<&mut V> {
        let place = match self.place(&key) {
            Ok(place) => place,
            Err(place) => {
                self.entries.insert(place, (key, value()));
                place
            }
        };
        self.entries.get_mut(place).map(|(_, value)| value)
    }

    /// Takes out the value of `key`.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.place(key).ok()?;
        Some(self.entries.remove(place).1)
    }

    /// Keeps the values whose key `keep` wants.
    pub(crate) fn retain_keys(&mut self, keep: impl Fn(&K) -> bool) {
        self.entries.retain(|(key, _)| keep(key));
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.entries.iter()
    }

    /// All entries, their values changeable.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut().map(|(key, value)| (&*key, value))
    }

    fn place(&self, key: &K) -> Result<usize, usize> {
        self.entries.binary_search_by(|(known, _)| known.cmp(key))
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}
