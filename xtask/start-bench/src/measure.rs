//! Starts, one after the other: who, how often, in which order, and what is kept of each.
//!
//! The runtimes take turns, some starts each, again and again: whatever else happens on the machine meets all of them.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::class::Class;
use crate::report::Row;
use crate::runtime::Runtime;
use crate::{interrupt, look};

/// Quiet time before an isolated start; where the one before took less than that, there is one start every 150 ms.
const ISOLATED: Duration = Duration::from_millis(150);
/// Starts before the first that counts.
const WARM_UP: usize = 3;

/// How the starts follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One every 150 ms: caches cold, nothing in flight.
    Isolated,
    /// The next as soon as the last is gone.
    BackToBack,
}

impl Mode {
    pub(crate) const ALL: [Mode; 2] = [Mode::Isolated, Mode::BackToBack];

    fn name(self) -> &'static str {
        match self {
            Mode::Isolated => "isolated",
            Mode::BackToBack => "back-to-back",
        }
    }
}

/// One runtime in the measurement, or why it can't be in it.
pub(crate) struct Subject {
    /// Its level, for the case that it is not there.
    pub(crate) level: &'static str,
    /// Its name.
    pub(crate) name: &'static str,
    /// Starts to measure, per mode.
    pub(crate) n: usize,
    /// Itself.
    pub(crate) runtime: Result<Box<dyn Runtime>, String>,
}

impl Subject {
    pub(crate) fn new(runtime: impl Runtime + 'static, n: usize) -> Subject {
        Subject {
            level: runtime.level(),
            name: runtime.name(),
            n,
            runtime: Ok(Box::new(runtime)),
        }
    }

    pub(crate) fn broken(
        level: &'static str,
        name: &'static str,
        n: usize,
        error: &anyhow::Error,
    ) -> Subject {
        Subject {
            level,
            name,
            n,
            runtime: Err(format!("{error:#}")),
        }
    }
}

#[derive(Default)]
struct Series {
    times: Vec<Duration>,
    teardowns: Vec<Duration>,
    failed: usize,
    reason: Option<String>,
}

impl Series {
    fn fail(&mut self, error: &anyhow::Error) {
        self.failed += 1;
        self.reason.get_or_insert_with(|| format!("{error:#}"));
    }
}

/// Measures one class with every subject, in these modes.
pub(crate) fn class(
    class: &Class,
    subjects: &mut [Subject],
    rounds: usize,
    modes: &[Mode],
) -> Result<Vec<Row>> {
    let mut number = 0;
    let mut isolation = vec![None; subjects.len()];
    let mut broken: Vec<Option<String>> = Vec::new();
    eprintln!("{}:", class.name);
    for (i, subject) in subjects.iter_mut().enumerate() {
        let warmed = match &mut subject.runtime {
            Ok(runtime) => warm_up(&mut **runtime, class, &mut number),
            Err(reason) => Err(anyhow::anyhow!("{reason}")),
        };
        interrupt::check()?;
        match warmed {
            Ok(walls) => {
                isolation[i] = Some(walls);
                broken.push(None);
            }
            Err(error) => {
                eprintln!("  {} {}: {error:#}", subject.level, subject.name);
                broken.push(Some(format!("{error:#}")));
            }
        }
    }
    let mut rows = Vec::new();
    for &mode in modes {
        let mut series: Vec<Series> = subjects.iter().map(|_| Series::default()).collect();
        for round in 0..rounds {
            for (i, subject) in subjects.iter_mut().enumerate() {
                let share = subject.n * (round + 1) / rounds - subject.n * round / rounds;
                match (&broken[i], &mut subject.runtime) {
                    (None, Ok(runtime)) => {
                        for _ in 0..share {
                            one(&mut **runtime, class, mode, &mut number, &mut series[i])?;
                        }
                    }
                    (reason, _) => {
                        series[i].failed += share;
                        series[i].reason.clone_from(reason);
                    }
                }
            }
            eprintln!("  {} {}/{rounds}", mode.name(), round + 1);
        }
        for (i, (subject, mut series)) in subjects.iter().zip(series).enumerate() {
            series.times.sort();
            series.teardowns.sort();
            rows.push(Row {
                class: class.name.clone(),
                level: subject.level.to_owned(),
                mode: mode.name().to_owned(),
                runtime: subject.name.to_owned(),
                n: subject.n,
                p50_ms: percentile(&series.times, 0.5),
                p99_ms: percentile(&series.times, 0.99),
                max_ms: percentile(&series.times, 1.0),
                failed: series.failed,
                teardown_p50_ms: percentile(&series.teardowns, 0.5),
                teardown_max_ms: percentile(&series.teardowns, 1.0),
                isolation: isolation[i].clone(),
                reason: series.reason,
            });
        }
    }
    Ok(rows)
}

fn name(number: &mut usize) -> String {
    *number += 1;
    format!("b{}-{}-{number}", std::process::id(), unique())
}

/// A name is never used again, also not by another class.
fn unique() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Starts that do not count; returns the walls that were seen around the first.
fn warm_up(runtime: &mut dyn Runtime, class: &Class, number: &mut usize) -> Result<String> {
    let mut walls = String::new();
    for i in 0..WARM_UP {
        interrupt::check()?;
        runtime.prepare(class)?;
        let started = runtime.start(class, &name(number));
        if started.is_ok() && i == 0 {
            walls = look::isolation(runtime.pid()?);
        }
        let stopped = runtime.stop();
        started?;
        stopped?;
    }
    Ok(walls)
}

/// `n` isolated starts of one runtime, after some that do not count.
pub(crate) fn isolated(
    runtime: &mut dyn Runtime,
    class: &Class,
    n: usize,
) -> Result<Vec<Duration>> {
    let (mut number, mut series) = (0, Series::default());
    warm_up(runtime, class, &mut number)?;
    for _ in 0..n {
        one(runtime, class, Mode::Isolated, &mut number, &mut series)?;
    }
    match series.reason {
        None => Ok(series.times),
        Some(reason) => anyhow::bail!("{reason}"),
    }
}

fn one(
    runtime: &mut dyn Runtime,
    class: &Class,
    mode: Mode,
    number: &mut usize,
    series: &mut Series,
) -> Result<()> {
    interrupt::check()?;
    if mode == Mode::Isolated {
        std::thread::sleep(ISOLATED);
    }
    if let Err(error) = runtime.prepare(class) {
        series.fail(&error);
        return Ok(());
    }
    let name = name(number);
    let start = Instant::now();
    match runtime.start(class, &name) {
        Ok(first_byte) => series.times.push(first_byte - start),
        Err(error) => {
            series.fail(&error);
            // What did not start may have left something to remove, or nothing.
            let _ = runtime.stop();
            return Ok(());
        }
    }
    let gone = runtime.pid().and_then(|pid| {
        let cgroups = look::cgroups(pid);
        let start = Instant::now();
        runtime.stop()?;
        look::wait_gone(pid, &cgroups)?;
        Ok(start.elapsed())
    });
    match gone {
        Ok(time) => series.teardowns.push(time),
        Err(error) => {
            series.reason.get_or_insert_with(|| format!("{error:#}"));
            let _ = runtime.stop();
        }
    }
    Ok(())
}

/// Milliseconds; none of nothing. The smallest time that at least this share of all does not exceed (nearest rank).
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let time = sorted.get(rank.clamp(1, sorted.len().max(1)) - 1)?;
    Some((time.as_secs_f64() * 1e6).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<_> = (1..=300).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 0.5), Some(150.0));
        assert_eq!(percentile(&times, 0.99), Some(297.0));
        assert_eq!(percentile(&times, 1.0), Some(300.0));
        assert_eq!(percentile(&times[..1], 0.5), Some(1.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
