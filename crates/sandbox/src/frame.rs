//! Frames on a Unix stream socket: what daemon, spawner and the processes made ahead say to each
//! other.
//!
//! A frame is two little-endian u32 (length of the payload, number of descriptors), then the
//! payload (JSON). Descriptors travel with the frame's first byte, so they arrive before the frame
//! is complete, and in order. Must not: know any message.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Arguments and environment may hold megabytes (execve(2)); this is above what exec takes.
pub(crate) const MAX_PAYLOAD: usize = 16 * 1024 * 1024;
/// SCM_MAX_FD (unix(7)).
pub(crate) const MAX_DESCRIPTORS: usize = 253;
const HEADER: usize = 8;

/// A frame to send.
#[derive(Debug)]
pub(crate) struct Frame {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    sent: usize,
}

impl Frame {
    pub(crate) fn new(message: &impl Serialize, descriptors: Vec<OwnedFd>) -> io::Result<Frame> {
        let mut bytes = vec![0; HEADER];
        serde_json::to_writer(&mut bytes, message)?;
        let length = bytes.len() - HEADER;
        if length > MAX_PAYLOAD || descriptors.len() > MAX_DESCRIPTORS {
            let text = format!(
                "a request of {length} bytes and {} descriptors; at most {MAX_PAYLOAD} and {MAX_DESCRIPTORS}",
                descriptors.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[4..HEADER].copy_from_slice(&(descriptors.len() as u32).to_le_bytes());
        Ok(Frame {
            bytes,
            descriptors,
            sent: 0,
        })
    }

    /// Bytes, its head included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Frames on their way out.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: VecDeque<Frame>,
}

impl Outbox {
    pub(crate) fn push(&mut self, frame: Frame) {
        self.frames.push_back(frame);
    }

    pub(crate) fn extend(&mut self, frames: impl IntoIterator<Item = Frame>) {
        self.frames.extend(frames);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Sends as much as the socket takes. WouldBlock when something is left.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(frame) = self.frames.front_mut() {
            let rest = [IoSlice::new(&frame.bytes[frame.sent..])];
            let borrowed: Vec<BorrowedFd<'_>> = frame.descriptors.iter().map(AsFd::as_fd).collect();
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if frame.sent == 0 && !borrowed.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            match sendmsg(
                socket,
                &rest,
                &mut control,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(sent) => {
                    frame.sent += sent;
                    if frame.sent == frame.bytes.len() {
                        self.frames.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The most bytes that are received at a time. Few pages: they are on the stack, and after each
/// fork the spawner copies each page that it writes to.
const CHUNK: usize = 4096;

/// Bytes and descriptors on their way in.
///
/// A stream socket never gives the descriptors of two messages at once (unix(7)), so each batch is
/// that of one frame, and a batch that did not arrive whole spoils that frame alone.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    batches: VecDeque<Vec<OwnedFd>>,
}

/// A frame that has arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// To be read by [`parse`].
    pub(crate) payload: Vec<u8>,
    /// What came with it, or that some of it is lost.
    pub(crate) descriptors: Result<Vec<OwnedFd>, Lost>,
}

/// Descriptors of a message were lost, because this process can have no more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of file descriptors (RLIMIT_NOFILE)")]
pub(crate) struct Lost;

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> io::Error {
        io::Error::other(lost)
    }
}

impl Inbox {
    /// Receives once. `Ok(false)` at the end of the stream; WouldBlock when nothing is there.
    pub(crate) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut chunk = [0u8; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut chunk)],
                &mut control,
                flags,
            ) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let mut batch = Vec::new();
        let mut came = received.flags.contains(ReturnFlags::CTRUNC);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                came = true;
                batch.extend(descriptors);
            }
        }
        if came {
            self.batches.push_back(batch);
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes > 0)
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> io::Result<Option<Arrived>> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, e, f, g, h] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let count = u32::from_le_bytes([e, f, g, h]) as usize;
        if length > MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame is too long",
            ));
        }
        if self.bytes.len() < HEADER + length {
            return Ok(None);
        }
        let descriptors = match count {
            0 => Vec::new(),
            _ => self.batches.pop_front().ok_or_else(|| {
                let text = "a frame came without its descriptors";
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
        };
        let whole = descriptors.len() == count;
        let payload = self.bytes[HEADER..HEADER + length].to_vec();
        self.bytes.drain(..HEADER + length);
        if self.bytes.is_empty() {
            // One big request must not stay in the spawner's memory.
            self.bytes.shrink_to(64 * 1024);
        }
        Ok(Some(Arrived {
            payload,
            descriptors: if whole { Ok(descriptors) } else { Err(Lost) },
        }))
    }
}

/// Reads a payload.
pub(crate) fn parse<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> io::Result<T> {
    serde_json::from_slice(payload).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn big_frames_and_their_descriptors_arrive_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        let mut readers = Vec::new();
        for n in 0..20u8 {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let text = "x".repeat(usize::from(n) * 30_000);
            outbox.push(Frame::new(&(n, text), vec![OwnedFd::from(writer)]).unwrap());
            outbox.push(Frame::new(&"no descriptors", vec![]).unwrap());
            readers.push(move |mut writer: std::fs::File| {
                writer.write_all(&[n]).unwrap();
                drop(writer);
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes, [n]);
            });
        }
        let mut readers = readers.into_iter();
        let mut seen = 0;
        while seen < 40 {
            let flushed = outbox.flush(ours.as_fd());
            assert!(flushed.is_ok() || flushed.unwrap_err().kind() == io::ErrorKind::WouldBlock);
            inbox.fill(theirs.as_fd()).unwrap();
            while let Some(Arrived {
                payload,
                descriptors,
            }) = inbox.next().unwrap()
            {
                let descriptors = descriptors.unwrap();
                if seen % 2 == 0 {
                    let (n, text): (u8, String) = parse(&payload).unwrap();
                    assert_eq!(usize::from(n), seen / 2);
                    assert_eq!(text.len(), usize::from(n) * 30_000);
                    let [fd] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
                    readers.next().unwrap()(fd.into());
                } else {
                    assert!(descriptors.is_empty());
                }
                seen += 1;
            }
        }
        assert!(outbox.is_empty());
        drop(ours);
        assert!(!inbox.fill(theirs.as_fd()).unwrap());
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut inbox = Inbox {
            bytes: vec![0xff; 16],
            batches: VecDeque::new(),
        };
        assert!(inbox.next().is_err());
        let mut inbox = Inbox {
            bytes: vec![0, 0, 0, 0, 1, 0, 0, 0],
            batches: VecDeque::new(),
        };
        assert!(inbox.next().is_err(), "a missing descriptor");
    }
}
