//! Which port an ingress gets.
//!
//! Left to the kernel (port 0), the choice takes the longer the more connections have just ended: it looks at one port after the other from a random
//! one on, and each that such a connection still holds costs it a look at all of that port's. At some hundred starts a second that is a sixth of a start.
//! So ports are asked for one after the other; each has been left alone for longest.
//!
//! Owns: what was asked for last. Must not: know of listeners.

use std::sync::atomic::{AtomicU16, Ordering};

/// Linux's default range of ports for connections (ip(7), ip_local_port_range), which nobody counts on. Its even ports are those that connections get first.
const FIRST: u16 = 32_769;
/// How many odd ones there are.
const COUNT: u16 = 14_116;
/// After so many that were not free the kernel may choose.
const ATTEMPTS: usize = 64;

#[derive(Debug)]
pub(crate) struct Ports(AtomicU16);

impl Ports {
    /// Begins somewhere else than other daemons on the machine, most likely.
    pub(crate) fn new() -> Ports {
        Ports(AtomicU16::new(
            (std::process::id() % u32::from(COUNT)) as u16,
        ))
    }

    /// To be tried one after the other; the last is 0, any.
    pub(crate) fn next(&self) -> impl Iterator<Item = u16> {
        std::iter::repeat_with(|| self.one())
            .take(ATTEMPTS)
            .chain([0])
    }

    fn one(&self) -> u16 {
        let step = |at: u16| Some((at + 1) % COUNT);
        let at = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        let (Ok(at) | Err(at)) = at;
        FIRST + 2 * at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_comes_once_before_the_first_comes_again() {
        let ports = Ports::new();
        let all: Vec<u16> = (0..COUNT).map(|_| ports.one()).collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), usize::from(COUNT));
        assert!(all.iter().all(|port| (FIRST..=60_999).contains(port)));
        assert_eq!(ports.one(), all[0]);
    }

    #[test]
    fn in_the_end_the_kernel_chooses() {
        let tried: Vec<u16> = Ports::new().next().collect();
        assert_eq!(tried.len(), ATTEMPTS + 1);
        assert_eq!(tried.iter().position(|port| *port == 0), Some(ATTEMPTS));
    }
}
