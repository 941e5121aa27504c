//! What was found out once, by what was asked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;

/// Answers by question. Each question is asked once, however often the answer is needed.
pub struct Memory<K, V>(RefCell<HashMap<K, V>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    /// The answer, which `find` finds out the first time.
    pub fn get(&self, key: K, find: impl FnOnce(&K) -> V) -> V {
        if let Some(known) = self.0.borrow().get(&key) {
            return known.clone();
        }
        let value = find(&key);
        self.0.borrow_mut().insert(key, value.clone());
        value
    }
}
