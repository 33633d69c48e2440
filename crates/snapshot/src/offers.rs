//! Drafts that wait for their name, under tokens: 122 random bits, bound to the owner, good for one use and a short time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::copy::Copied;
use crate::store::{Draft, new_id};

#[derive(Debug, Default)]
pub(crate) struct Offers(Mutex<HashMap<String, Offer>>);

#[derive(Debug)]
struct Offer {
    owner: String,
    draft: Draft,
    copied: Copied,
    made: Instant,
}

impl Offers {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Offer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn make(&self, owner: &str, draft: Draft, copied: Copied) -> String {
        let token = new_id();
        let offer = Offer {
            owner: owner.to_owned(),
            draft,
            copied,
            made: Instant::now(),
        };
        self.map().insert(token.clone(), offer);
        token
    }

    pub(crate) fn take(&self, owner: &str, token: &str) -> Option<(Draft, Copied)> {
        let mut map = self.map();
        // Another's token is not used up by a guess.
        map.get(token).filter(|offer| offer.owner == owner)?;
        let offer = map.remove(token)?;
        Some((offer.draft, offer.copied))
    }

    pub(crate) fn bytes(&self, owner: &str) -> u64 {
        let map = self.map();
        let own = map.values().filter(|offer| offer.owner == owner);
        own.map(|offer| offer.copied.bytes).sum()
    }

    pub(crate) fn expire(&self, after_ms: u64) {
        let after = Duration::from_millis(after_ms);
        let old: Vec<Offer> = {
            let mut map = self.map();
            let is_old = |offer: &Offer| offer.made.elapsed() >= after;
            map.extract_if(|_, offer| is_old(offer))
                .map(|(_, offer)| offer)
                .collect()
        };
        // Removed from disk here, without the lock.
        drop(old);
    }
}
