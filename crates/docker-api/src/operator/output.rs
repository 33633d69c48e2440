//! Output of containers: `logs`, kept and as it comes, and `attach`.

use std::io;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use wharf_engine::{Entry, Follower, Owner};

use super::Operator;
use crate::errors::ApiError;
use crate::request::is_true;
use crate::{frames, json, upgrade};

/// Parameters of both.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OutputQuery {
    stdout: Option<String>,
    stderr: Option<String>,
    /// Of `logs`.
    follow: Option<String>,
    timestamps: Option<String>,
    tail: Option<String>,
    since: Option<String>,
    until: Option<String>,
    /// Of `attach`.
    stdin: Option<String>,
    stream: Option<String>,
    logs: Option<String>,
}

/// Which entries are shown, and how.
#[derive(Debug, Clone, Copy)]
struct Shown {
    streams: [bool; 2],
    timestamps: bool,
    since_ms: i64,
    until_ms: i64,
}

impl Shown {
    fn of(query: &OutputQuery) -> Result<Shown, ApiError> {
        let moment = |text: Option<&str>, otherwise| match text.unwrap_or_default() {
            "" | "0" => Ok(otherwise),
            text => unix_ms(text).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "invalid time \"{text}\": it must be seconds since 1970"
                ))
            }),
        };
        Ok(Shown {
            streams: [&query.stdout, &query.stderr].map(|asked| is_true(asked.as_deref())),
            timestamps: is_true(query.timestamps.as_deref()),
            since_ms: moment(query.since.as_deref(), i64::MIN)?,
            until_ms: moment(query.until.as_deref(), i64::MAX)?,
        })
    }

    fn allows(&self, (is_stderr, at_ms, _): &Entry) -> bool {
        self.streams[usize::from(*is_stderr)] && (self.since_ms..=self.until_ms).contains(at_ms)
    }

    /// The frames of those that are shown.
    fn frames(&self, entries: &[Entry]) -> Bytes {
        let mut out = Vec::new();
        for entry in entries.iter().filter(|entry| self.allows(entry)) {
            let (is_stderr, at_ms, bytes) = entry;
            if !self.timestamps {
                frames::push(&mut out, *is_stderr, bytes);
                continue;
            }
            let mut stamped = Vec::new();
            for line in bytes.split_inclusive(|b| *b == b'\n') {
                stamped.extend_from_slice(json::time(Some(*at_ms)).as_bytes());
                stamped.push(b' ');
                stamped.extend_from_slice(line);
            }
            frames::push(&mut out, *is_stderr, &stamped);
        }
        out.into()
    }
}

/// `1700000000.5`
fn unix_ms(text: &str) -> Option<i64> {
    let seconds: f64 = text.parse().ok()?;
    seconds.is_finite().then_some((seconds * 1000.0) as i64)
}

/// The last so many lines of what is shown.
fn last_lines(mut entries: Vec<Entry>, lines: usize) -> Vec<Entry> {
    let mut left = lines;
    let mut at_end = true;
    for n in (0..entries.len()).rev() {
        let bytes = &mut entries[n].2;
        let mut from = bytes.len();
        while from > 0 {
            // A line feed at the very end ends the last line and begins none.
            if bytes[from - 1] == b'\n' && !std::mem::take(&mut at_end) {
                left = left.saturating_sub(1);
                if left == 0 {
                    bytes.drain(..from);
                    return entries.split_off(n);
                }
            }
            at_end = false;
            from -= 1;
        }
    }
    if lines == 0 { Vec::new() } else { entries }
}

pub(super) async fn logs(
    State(op): State<Operator>,
    Path(name): Path<String>,
    Query(query): Query<OutputQuery>,
) -> Result<Response, ApiError> {
    let shown = Shown::of(&query)?;
    if shown.streams == [false, false] {
        return Err(ApiError::bad_request(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let mut follower = op.engine.follow(&Owner::Operator, &name, false).await?;
    let tail = match query.tail.as_deref() {
        None | Some("" | "all") => None,
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "invalid tail \"{text}\": it must be a number or all"
            ))
        })?),
    };
    let backlog = tokio::task::spawn_blocking(move || {
        let backlog = follower.backlog();
        (follower, backlog)
    });
    let failed = |error: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error);
    let (follower, backlog) = backlog.await.map_err(|e| failed(e.to_string()))?;
    let mut backlog = backlog.map_err(|e| failed(format!("output log: {e}")))?;
    if let Some(lines) = tail {
        backlog.retain(|entry| shown.allows(entry));
        backlog = last_lines(backlog, lines);
    }
    let first = shown.frames(&backlog);
    let media_type = [("content-type", frames::MULTIPLEXED)];
    if !is_true(query.follow.as_deref()) {
        return Ok((media_type, first).into_response());
    }
    let rest = futures_util::stream::unfold(follower, move |follower| next(follower, shown));
    let all =
        futures_util::StreamExt::chain(futures_util::stream::once(async move { Ok(first) }), rest);
    Ok((media_type, Body::from_stream(all)).into_response())
}

/// Frames of the next output, if any comes.
async fn next(mut follower: Follower, shown: Shown) -> Option<(io::Result<Bytes>, Follower)> {
    match follower.next().await {
        Ok(Some(entries)) => Some((Ok(shown.frames(&entries)), follower)),
        Ok(None) => None,
        Err(error) => Some((Err(error), follower)),
    }
}

pub(super) async fn attach(
    State(op): State<Operator>,
    Path(name): Path<String>,
    Query(query): Query<OutputQuery>,
    mut request: Request,
) -> Result<Response, ApiError> {
    if is_true(query.stdin.as_deref()) {
        return Err(ApiError::unsupported("standard input of a container"));
    }
    let shown = Shown::of(&query)?;
    let from_now = !is_true(query.logs.as_deref());
    let follower = op.engine.follow(&Owner::Operator, &name, from_now).await?;
    let follower = is_true(query.stream.as_deref()).then_some(follower);
    let output = futures_util::stream::unfold(follower, move |follower| async move {
        let (frames, follower) = next(follower?, shown).await?;
        Some((frames, Some(follower)))
    });
    let Some(upgrade) = upgrade::asked(&mut request) else {
        let media_type = [("content-type", frames::MULTIPLEXED)];
        return Ok((media_type, Body::from_stream(output)).into_response());
    };
    Ok(upgrade::switch(
        upgrade,
        frames::MULTIPLEXED,
        async move |mut stream| {
            let mut output = std::pin::pin!(output);
            while let Some(frames) = futures_util::StreamExt::next(&mut output).await {
                let sent = match frames {
                    Ok(frames) => stream.write_all(&frames).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = sent {
                    tracing::debug!(%error, "attached client");
                    return;
                }
            }
            // The client may have gone.
            let _ = stream.shutdown().await;
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_over_entries() {
        let entry = |text: &str| (false, 0, text.as_bytes().to_vec());
        let last = |lines, texts: &[&str]| {
            let entries = last_lines(texts.iter().map(|t| entry(t)).collect(), lines);
            let bytes = entries.into_iter().flat_map(|e| e.2).collect();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(last(1, &["a\nb\n"]), "b\n");
        assert_eq!(last(2, &["a\n", "b\n", "c"]), "b\nc");
        assert_eq!(last(1, &["a\nb", "c\n"]), "bc\n");
        assert_eq!(last(9, &["a\nb", "c\n"]), "a\nbc\n");
        assert_eq!(last(0, &["a\n"]), "");
        assert_eq!(last(1, &["a\n", "b\n", "\n"]), "\n");
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(unix_ms("1.5"), Some(1500));
        assert_eq!(unix_ms("x"), None);
        assert_eq!(unix_ms("inf"), None);
    }
}
