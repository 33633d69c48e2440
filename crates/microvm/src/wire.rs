//! What outside and inside say to each other.
//!
//! Owns: the first message of each stream, and the frames in streams of processes. Must not: do
//! anything.
//!
//! ```text
//! stream:   message, then what the stream is for: a process: frames; a connection: bytes;
//!           the ports: messages; a name's resolution: one datagram each way
//! message:  length (4 bytes, little-endian), JSON
//! frame:    kind (1 byte), length (4 bytes, little-endian), content
//! ```

use std::io;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wharf_sandbox::TerminalSize;
use wharf_sandbox::microvm::{ExecRequest, LastWords, Request};

/// Both sides are of the same version, or do not speak.
pub(crate) const VERSION: u32 = 1;

/// The longest message, bytes: arguments and environment are megabytes at most (execve(2)).
const LONGEST: usize = 16 << 20;
/// The longest frame, bytes.
pub(crate) const CHUNK: usize = 32 << 10;

/// The first message of a stream that the outside opens.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToGuest {
    /// The container; once, and first.
    Main { version: u32, request: Request },
    /// There is a way out by IPv6.
    Ipv6,
    /// A process in it.
    Exec {
        request: ExecRequest,
        stdin: bool,
        terminal: Option<TerminalSize>,
    },
    /// A connection to a port on which it listens.
    Port(u16),
}

/// The first message of a stream that the guest opens.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromGuest {
    /// A connection to the outside.
    Connect(SocketAddr),
    /// A question about a name, as a message after this one; the answer is one, too.
    Resolve,
    /// The ports on which the container listens, as messages: all of them, whenever they have
    /// changed.
    Ports,
}

/// A message about a process. What is written to it, and what it writes, is in frames of their own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// To it: the end of its standard input.
    InputEnds,
    /// To it.
    Signal(i32),
    /// To it: its terminal has another size.
    Resize(TerminalSize),
    /// From the guest: the process runs.
    Started,
    /// From the guest: the process does not run.
    Refused { exit_code: i32, message: String },
    /// From the guest, last: how the process ended.
    Ended(LastWords),
}

/// What travels in a stream of a process.
#[derive(Debug)]
pub(crate) enum Frame {
    Word(Word),
    Input(Vec<u8>),
    Output(Vec<u8>),
    Error(Vec<u8>),
}

/// Sends a message.
pub(crate) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes()).await?;
    to.write_all(&text).await?;
    to.flush().await
}

/// Receives a message.
pub(crate) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let text = content(from, LONGEST).await?;
    Ok(serde_json::from_slice(&text)?)
}

/// Sends a frame.
pub(crate) async fn send_frame(
    to: &mut (impl AsyncWrite + Unpin),
    frame: &Frame,
) -> io::Result<()> {
    let word;
    let (kind, content) = match frame {
        Frame::Word(it) => {
            word = serde_json::to_vec(it)?;
            (0, &word)
        }
        Frame::Input(bytes) => (1, bytes),
        Frame::Output(bytes) => (2, bytes),
        Frame::Error(bytes) => (3, bytes),
    };
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let mut head = [kind; 5];
    head[1..].copy_from_slice(&length.to_le_bytes());
    to.write_all(&head).await?;
    to.write_all(content).await?;
    to.flush().await
}

/// Receives a frame. `None`: there is none any more.
pub(crate) async fn receive_frame(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<Frame>> {
    let kind = match from.read_u8().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        kind => kind?,
    };
    let bytes = content(from, LONGEST).await?;
    Ok(Some(match kind {
        0 => Frame::Word(serde_json::from_slice(&bytes)?),
        1 => Frame::Input(bytes),
        2 => Frame::Output(bytes),
        3 => Frame::Error(bytes),
        other => return Err(io::Error::other(format!("a frame of kind {other}"))),
    }))
}

async fn content(from: &mut (impl AsyncRead + Unpin), longest: usize) -> io::Result<Vec<u8>> {
    let length = from.read_u32_le().await? as usize;
    if length > longest {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut bytes = Vec::new();
    // Grows as it comes: the other side may be hostile.
    from.take(length as u64).read_to_end(&mut bytes).await?;
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_is_received_and_the_end_is_an_end_only_between_frames() {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        let frames = [
            Frame::Word(Word::Signal(15)),
            Frame::Input(vec![7; 100_000]),
            Frame::Output(Vec::new()),
            Frame::Error(b"e".to_vec()),
        ];
        for frame in &frames {
            send_frame(&mut ours, frame).await.unwrap();
        }
        // One that breaks off in the middle.
        ours.write_all(&[1, 10, 0, 0, 0, b'x']).await.unwrap();
        drop(ours);
        for frame in &frames {
            let received = receive_frame(&mut theirs).await.unwrap().unwrap();
            assert_eq!(format!("{received:?}"), format!("{frame:?}"));
        }
        let broken = receive_frame(&mut theirs).await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::UnexpectedEof);
        assert!(receive_frame(&mut theirs).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_a_hostile_guest_may_send_is_an_error() {
        let too_long = [&[2][..], &u32::MAX.to_le_bytes()].concat();
        let unknown = [9, 0, 0, 0, 0].to_vec();
        let no_word = [0, 1, 0, 0, 0, b'{'].to_vec();
        for bytes in [too_long, unknown, no_word] {
            receive_frame(&mut bytes.as_slice()).await.unwrap_err();
        }
        let message = [&4u32.to_le_bytes()[..], b"nope"].concat();
        receive::<FromGuest>(&mut message.as_slice())
            .await
            .unwrap_err();
    }
}
