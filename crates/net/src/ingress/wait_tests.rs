//! A model: a program that starts, listens or ends at some time, and news of it that may get lost.
//! Time is simulated, and each case has a seed, so that a failure can be run again.

use std::sync::{Arc, Mutex};

use tokio::time::sleep_until;

use super::*;

const BOUND: Duration = Duration::from_secs(2);
const PORT: u16 = 8080;
/// What lost news may cost: the longest pause between two looks, and the clock's millisecond.
const LATE: Duration = Duration::from_millis(17);
const SEEDS: u64 = 500;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn ms(&mut self, limit: u64) -> Duration {
        Duration::from_micros(self.below(limit * 1000))
    }
}

/// When what happens to the program, counted from the arrival of the connection.
#[derive(Debug, Clone, Copy)]
struct Fate {
    starts: Duration,
    listens: Duration,
    ends: Duration,
}

impl Fate {
    fn of(random: &mut Random) -> Self {
        let starts = random.ms(1_500);
        let never = Duration::from_secs(3600);
        let listens = match random.below(4) {
            0 => never,
            1 => starts + random.ms(3),
            _ => starts + random.ms(1_900),
        };
        let ends = match random.below(3) {
            0 => starts + random.ms(3_000),
            _ => never,
        };
        Fate {
            starts,
            listens,
            ends,
        }
    }
}

/// The program, and news that come, come late or get lost.
struct Model {
    began: Instant,
    fate: Fate,
    /// The process's state when it was last asked for.
    known: Duration,
    /// How many of a hundred pieces of news get lost.
    lost: u64,
    random: Arc<Mutex<Random>>,
}

impl Model {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_lost(&self) -> bool {
        self.random.lock().unwrap().below(100) < self.lost
    }
}

impl Behind for Model {
    type Stream = ();

    fn target(&mut self) -> Target {
        self.known = self.now();
        if self.known >= self.fate.ends {
            Target::Ended("exit code 1".into())
        } else if self.known >= self.fate.starts {
            Target::Running((self.began + self.fate.starts).into_std())
        } else {
            Target::Pending
        }
    }

    fn look(&self) -> bool {
        let now = self.now();
        now >= self.fate.listens && now < self.fate.ends
    }

    async fn dial(&mut self) -> io::Result<()> {
        match self.look() {
            true => Ok(()),
            false => Err(ErrorKind::ConnectionRefused.into()),
        }
    }

    async fn news(&mut self) {
        let Fate {
            starts,
            listens,
            ends,
        } = self.fate;
        let mut news = [starts, listens, ends];
        news.sort();
        for at in news {
            if at > self.known && !self.is_lost() {
                return sleep_until(self.began + at).await;
            }
        }
        std::future::pending().await
    }
}

/// Runs one case; what is wrong with how it ended.
async fn run(seed: u64, lost: u64, look_again: fn(Duration) -> Duration) -> Result<(), String> {
    let mut random = Random(seed);
    let fate = Fate::of(&mut random);
    let mut model = Model {
        began: Instant::now(),
        fate,
        known: Duration::ZERO,
        lost,
        random: Arc::new(Mutex::new(random)),
    };
    let outcome = connect(&mut model, PORT, BOUND, look_again).await;
    let now = model.now();
    let due = match &outcome {
        Ok(()) => fate.listens,
        Err(DialError::Ended(_)) => fate.ends,
        Err(DialError::NotListening(_)) => fate.starts + BOUND,
        Err(DialError::Io(error)) => return Err(format!("seed {seed}: {error}")),
    };
    let first = fate.listens.min(fate.ends).min(fate.starts + BOUND);
    if now > first + LATE || now < due {
        return Err(format!("seed {seed}: {outcome:?} after {now:?}, {fate:?}"));
    }
    Ok(())
}

async fn failures(lost: u64, look_again: fn(Duration) -> Duration) -> Vec<String> {
    let mut failures = Vec::new();
    for seed in 0..SEEDS {
        failures.extend(run(seed, lost, look_again).await.err());
    }
    failures
}

#[tokio::test(start_paused = true)]
async fn lost_news_costs_milliseconds() {
    for lost in [0, 1, 50, 100] {
        let failures = failures(lost, hold::look_again).await;
        assert!(
            failures.is_empty(),
            "{lost} % lost, {} failures: {:?}",
            failures.len(),
            &failures[..failures.len().min(3)]
        );
    }
}

/// The model does find what it is there for: a connection that trusts its news is held for too
/// long.
#[tokio::test(start_paused = true)]
async fn the_model_finds_a_connection_that_only_waits_for_news() {
    let never = |_| Duration::from_secs(3600);
    assert_eq!(failures(0, never).await, [""; 0]);
    assert!(!failures(1, never).await.is_empty());
    assert!(failures(100, never).await.len() > SEEDS as usize / 2);
}
