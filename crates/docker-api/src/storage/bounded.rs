//! A map that forgets its oldest entries: what a client made and never came back for.

use std::collections::{HashMap, VecDeque};

#[derive(Debug)]
pub(super) struct Bounded<T> {
    most: usize,
    entries: HashMap<String, T>,
    order: VecDeque<String>,
}

impl<T> Bounded<T> {
    pub(super) fn new(most: usize) -> Self {
        Bounded {
            most,
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&T> {
        self.entries.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut T> {
        self.entries.get_mut(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &T)> {
        self.entries.iter()
    }

    pub(super) fn insert(&mut self, key: String, value: T) {
        if self.entries.insert(key.clone(), value).is_some() {
            return;
        }
        self.order.push_back(key);
        while self.entries.len() > self.most {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<T> {
        let removed = self.entries.remove(key)?;
        self.order.retain(|k| k != key);
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let mut map = Bounded::new(2);
        for key in ["a", "b", "a", "c"] {
            map.insert(key.to_owned(), key.len());
        }
        assert_eq!(map.get("a"), None);
        assert_eq!(map.remove("b"), Some(1));
        map.insert("d".to_owned(), 4);
        let mut keys: Vec<_> = map.iter().map(|(k, _)| k.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["c", "d"]);
    }
}
