//! A seeded scheduler over [`Waiting`]: waiters come and go, those who look at ports end, in any
//! order. Each step holds the lock once, so that the order of steps is all that threads could
//! change.

use super::*;

const PORTS: u64 = 2;
const STEPS: usize = 400;
const SEEDS: u64 = 300;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Somebody with the duty to look.
struct Looker {
    port: u16,
    seen: watch::Sender<u64>,
    /// The broken variant keeps here what it saw before it took the lock.
    thinks_nobody_waits: bool,
}

/// One step of a looker; whether that was its last.
type Step = fn(&Waiting, &mut Looker) -> bool;

fn as_it_is(waiting: &Waiting, looker: &mut Looker) -> bool {
    waiting.leave(looker.port, &looker.seen)
}

/// Asks first, and takes the lock then: in between somebody may come.
fn broken(waiting: &Waiting, looker: &mut Looker) -> bool {
    if !looker.thinks_nobody_waits {
        looker.thinks_nobody_waits = looker.seen.receiver_count() == 0;
        return false;
    }
    lock(&waiting.ports).remove(&looker.port);
    true
}

fn run(seed: u64, step: Step) -> Result<(), String> {
    let mut random = Random(seed);
    let waiting = Waiting::default();
    let mut waiters: Vec<(u16, watch::Receiver<u64>)> = Vec::new();
    let mut lookers: Vec<Looker> = Vec::new();
    for at in 0..STEPS {
        match random.below(3) {
            0 if waiters.len() < 4 => {
                let port = random.below(PORTS as usize) as u16;
                let (receiver, duty) = waiting.join(port);
                waiters.push((port, receiver));
                lookers.extend(duty.map(|seen| Looker {
                    port,
                    seen,
                    thinks_nobody_waits: false,
                }));
            }
            1 if !waiters.is_empty() => {
                waiters.swap_remove(random.below(waiters.len()));
            }
            2 if !lookers.is_empty() => {
                let which = random.below(lookers.len());
                if step(&waiting, &mut lookers[which]) {
                    lookers.swap_remove(which);
                }
            }
            _ => {}
        }
        // Each waiter hears of the next look.
        for (port, receiver) in &mut waiters {
            receiver.mark_unchanged();
            let of_port: Vec<_> = lookers.iter().filter(|it| it.port == *port).collect();
            for looker in &of_port {
                looker.seen.send_modify(|count| *count += 1);
            }
            if of_port.len() != 1 || !receiver.has_changed().unwrap_or(false) {
                let lookers = of_port.len();
                return Err(format!("seed {seed}, step {at}: {lookers} look at {port}"));
            }
        }
    }
    // Nobody waits: everybody who looks ends.
    waiters.clear();
    lookers.retain_mut(|looker| !step(&waiting, looker) && !step(&waiting, looker));
    match lookers.is_empty() && lock(&waiting.ports).is_empty() {
        true => Ok(()),
        false => Err(format!("seed {seed}: somebody looks for nobody")),
    }
}

#[test]
fn whoever_waits_is_told_by_exactly_one_who_looks() {
    for seed in 0..SEEDS {
        run(seed, as_it_is).unwrap();
    }
}

#[test]
fn the_scheduler_finds_a_looker_that_ends_while_somebody_comes() {
    assert!((0..SEEDS).any(|seed| run(seed, broken).is_err()));
}
