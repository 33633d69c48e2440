//! What a person sees while something takes time: a spinner with the elapsed time on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, how often a step that still runs says so.
const STILL_RUNNING: Duration = Duration::from_secs(15);
/// Lines of a failed command's output that are shown.
const LINES_SHOWN: usize = 30;

/// Runs `work` as a named step and prints how long it took.
///
/// # Errors
/// Those of `work`, with the step's name.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        let result = work();
        bar.finish_and_clear();
        result
    } else {
        eprintln!("  ... {name}");
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Ends when the sender is dropped.
                while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                    is_done.recv_timeout(STILL_RUNNING)
                {
                    eprintln!("  ... {name} ({} s)", start.elapsed().as_secs());
                }
            });
            let result = work();
            drop(done);
            result
        })
    };
    match &result {
        Ok(_) => eprintln!("  ok  {name} ({:.1} s)", start.elapsed().as_secs_f32()),
        Err(_) => eprintln!("  --  {name}: failed"),
    }
    result.with_context(|| name.to_owned())
}

/// Runs a command to its end and returns what it wrote to its output.
///
/// # Errors
/// When it can't be started, or ends with another code than 0: with the last lines that it wrote.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} can't be started"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = text + &String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = all.lines().collect();
        let from = lines.len().saturating_sub(LINES_SHOWN);
        let command = std::iter::once(program.as_str().into())
            .chain(command.get_args().map(|arg| arg.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ");
        bail!(
            "{command}\n{}\n({})",
            lines[from..].join("\n"),
            output.status
        );
    }
    Ok(text)
}
