//! What a process prints: forwarded line by line, and the end of it kept to explain a crash.
//!
//! Owns: the bounds. Must not: interpret the lines.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// So much of the output is kept.
const KEEP_BYTES: usize = 64 * 1024;
/// A longer line is cut into several.
const LINE_BYTES: usize = 8 * 1024;
/// So much goes into an error text.
const REASON_BYTES: usize = 4 * 1024;

/// The last lines of a process, of both streams in the order they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Output {
    fn push(&self, line: String) {
        let mut kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.bytes > KEEP_BYTES {
            let Some(first) = kept.lines.pop_front() else {
                break;
            };
            kept.bytes -= first.len();
        }
    }

    /// The end of the output, at most 4 KiB, whole lines.
    pub(crate) fn tail(&self) -> String {
        let kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        let from = kept
            .lines
            .iter()
            .rev()
            .take_while(|line| {
                bytes += line.len() + 1;
                bytes <= REASON_BYTES
            })
            .count();
        let skip = kept.lines.len() - from;
        let tail: Vec<&str> = kept.lines.iter().skip(skip).map(String::as_str).collect();
        tail.join("\n")
    }

    /// Everything that is kept.
    pub(crate) fn all(&self) -> Vec<String> {
        let kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        kept.lines.iter().cloned().collect()
    }

    /// Reads a stream to its end; `each` sees every line.
    pub(crate) async fn follow(&self, mut stream: impl AsyncRead + Unpin, each: impl Fn(&str)) {
        let mut line = Vec::new();
        let mut buffer = vec![0; 8192];
        loop {
            // A failed read is the end of the output; the exit status says the rest.
            let n = match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            for &byte in &buffer[..n] {
                if byte != b'\n' {
                    line.push(byte);
                }
                if byte == b'\n' || line.len() >= LINE_BYTES {
                    self.line(&mut line, &each);
                }
            }
        }
        if !line.is_empty() {
            self.line(&mut line, &each);
        }
    }

    fn line(&self, line: &mut Vec<u8>, each: impl Fn(&str)) {
        let text = String::from_utf8_lossy(line).into_owned();
        line.clear();
        each(&text);
        self.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_kept_within_bounds() {
        let output = Output::default();
        let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        output.follow(text.as_bytes(), |_| {}).await;
        let tail = output.tail();
        assert!(tail.ends_with("line 19999"));
        assert!(tail.starts_with("line ") && tail.len() <= REASON_BYTES);
        assert!(output.all().iter().map(String::len).sum::<usize>() <= KEEP_BYTES);
    }

    #[tokio::test]
    async fn endless_lines_and_odd_bytes_do_no_harm() {
        let output = Output::default();
        let mut text = vec![b'x'; 100_000];
        text.push(0xff);
        output.follow(&text[..], |_| {}).await;
        assert!(output.tail().ends_with('\u{fffd}'));
        assert!(output.all().iter().all(|line| line.len() <= LINE_BYTES));
    }
}
