//! Reads along on a Cap'n Proto connection: which message begins where, and which calls are in flight.
//!
//! Owns: the framing of messages and the few fields of `rpc.capnp` that say which call a message begins, belongs to or ends
//! (<https://capnproto.org/encoding.html>, <https://capnproto.org/rpc.html>). Must not: change bytes, do I/O.
//!
//! Two workerd processes keep one such connection open for all JS RPC between them. To replace one of them without the other
//! noticing, the relay must know when nothing is in flight and what would begin something new.

use std::collections::HashSet;

/// So much of a message's first segment is looked at; the fields are always near its start.
const LOOK_BYTES: usize = 512;
/// More segments than this are no sane message.
const MOST_SEGMENTS: u32 = 4096;

const CALL: u16 = 2;
const RETURN: u16 = 3;
const FINISH: u16 = 4;
const BOOTSTRAP: u16 = 8;

/// What a message is, as far as the relay cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// Asks for the connection's main capability; the question's id.
    Bootstrap(u32),
    /// A call; the question's id and what it is made on.
    Call(u32, On),
    /// The answer to a question of the other side.
    Return(u32),
    /// The asker is done with the answer, or does not want it any more.
    Finish(u32),
    /// Anything else: belongs to what is there already.
    Other,
}

/// What a call is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// A capability the other side has given out, by its id there.
    Given(u32),
    /// What will come out of an earlier question.
    AnswerTo(u32),
}

/// A part of the stream that belongs to one message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// On the first piece of a message.
    pub(crate) head: Option<Head>,
    /// The bytes as they came.
    pub(crate) bytes: Vec<u8>,
}

/// The bytes are not what they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Cap'n Proto RPC stream")]
pub(crate) struct Lost;

/// Splits one direction into messages.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// The segment table and the start of the first segment, as far as they have come.
    start: Vec<u8>,
    /// Bytes of the message after that.
    rest: u64,
}

impl Splitter {
    /// Takes bytes; what is complete enough to be understood goes out.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<Piece>) -> Result<(), Lost> {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let n = usize::try_from(self.rest).map_or(bytes.len(), |r| r.min(bytes.len()));
                self.rest -= n as u64;
                out.push(Piece {
                    head: None,
                    bytes: bytes[..n].to_vec(),
                });
                bytes = &bytes[n..];
                continue;
            }
            let (want, after) = self.wanted()?;
            let n = (want - self.start.len()).min(bytes.len());
            self.start.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if let Some(after) = after
                && self.start.len() == want
            {
                let table = table_bytes(&self.start)?;
                let head = head(&self.start[table..])?;
                out.push(Piece {
                    head: Some(head),
                    bytes: std::mem::take(&mut self.start),
                });
                self.rest = after;
            }
        }
        Ok(())
    }

    /// How long `start` shall become, and, once the table is there, how many bytes of the message follow it.
    fn wanted(&self) -> Result<(usize, Option<u64>), Lost> {
        if self.start.len() < 8 {
            return Ok((8, None));
        }
        let table = table_bytes(&self.start)?;
        if self.start.len() < table {
            return Ok((table, None));
        }
        let first = u64::from(word(&self.start, 4)?) * 8;
        let mut total = 0u64;
        for at in (4..4 + 4 * segments(&self.start)?).step_by(4) {
            total += u64::from(word(&self.start, at)?) * 8;
        }
        if first < 8 {
            return Err(Lost);
        }
        let look = usize::try_from(first.min(LOOK_BYTES as u64)).map_err(|_| Lost)?;
        Ok((table + look, Some(total - look as u64)))
    }
}

fn segments(start: &[u8]) -> Result<usize, Lost> {
    let more = word(start, 0)?;
    if more >= MOST_SEGMENTS {
        return Err(Lost);
    }
    Ok(more as usize + 1)
}

/// The table: number of segments less one, size of each in words, padded to a whole word.
fn table_bytes(start: &[u8]) -> Result<usize, Lost> {
    Ok((4 + 4 * segments(start)?).next_multiple_of(8))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Lost> {
    let field = bytes.get(at..at + 4).ok_or(Lost)?;
    let field: [u8; 4] = field.try_into().map_err(|_| Lost)?;
    Ok(u32::from_le_bytes(field))
}

/// A struct within the first segment: where its data and its pointers begin.
struct Struct {
    data: usize,
    data_words: usize,
}

impl Struct {
    /// The one that the pointer at `at` names.
    fn follow(segment: &[u8], at: usize) -> Result<Self, Lost> {
        let (low, high) = (word(segment, at)?, word(segment, at + 4)?);
        // Only plain struct pointers (kind 0) forward within the segment; a far pointer in an RPC header has not been seen.
        let words = low >> 2;
        if low & 3 != 0 || words >= 1 << 20 || (low == 0 && high == 0) {
            return Err(Lost);
        }
        Ok(Self {
            data: at + 8 + words as usize * 8,
            data_words: (high & 0xffff) as usize,
        })
    }

    /// A data field of four bytes; fields beyond the data are zero.
    fn field(&self, segment: &[u8], offset: usize) -> Result<u32, Lost> {
        if offset >= self.data_words * 8 {
            return Ok(0);
        }
        word(segment, self.data + offset)
    }

    /// Position of a pointer.
    fn pointer(&self, number: usize) -> usize {
        self.data + (self.data_words + number) * 8
    }
}

/// `Message` is a union: its tag is the first data field, its member the first pointer. In `Call`, `Return`, `Finish` and `Bootstrap`
/// the first data field is the question's id; a call's first pointer is its `MessageTarget`.
fn head(segment: &[u8]) -> Result<Head, Lost> {
    let root = Struct::follow(segment, 0)?;
    let kind = (root.field(segment, 0)? & 0xffff) as u16;
    if !matches!(kind, CALL | RETURN | FINISH | BOOTSTRAP) {
        return Ok(Head::Other);
    }
    let member = Struct::follow(segment, root.pointer(0))?;
    let id = member.field(segment, 0)?;
    Ok(match kind {
        BOOTSTRAP => Head::Bootstrap(id),
        RETURN => Head::Return(id),
        FINISH => Head::Finish(id),
        _ => {
            let target = Struct::follow(segment, member.pointer(0))?;
            let on = match target.field(segment, 4)? & 0xffff {
                0 => On::Given(target.field(segment, 0)?),
                1 => {
                    let answer = Struct::follow(segment, target.pointer(0))?;
                    On::AnswerTo(answer.field(segment, 0)?)
                }
                _ => return Err(Lost),
            };
            Head::Call(id, on)
        }
    })
}

/// Questions that were asked and not answered, both ways.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    by_client: HashSet<u32>,
    by_server: HashSet<u32>,
}

impl Calls {
    /// Notes a message of the side that connected.
    pub(crate) fn client_sent(&mut self, head: Head) {
        note(&mut self.by_client, &mut self.by_server, head);
    }

    /// Notes a message of the side that was connected to.
    pub(crate) fn server_sent(&mut self, head: Head) {
        note(&mut self.by_server, &mut self.by_client, head);
    }

    /// Whether any is open.
    pub(crate) fn in_flight(&self) -> bool {
        !self.by_client.is_empty() || !self.by_server.is_empty()
    }
}

fn note(own: &mut HashSet<u32>, other: &mut HashSet<u32>, head: Head) {
    match head {
        Head::Bootstrap(id) | Head::Call(id, _) => {
            own.insert(id);
        }
        // A question that is finished early gets no answer any more.
        Head::Finish(id) => {
            own.remove(&id);
        }
        Head::Return(id) => {
            other.remove(&id);
        }
        Head::Other => {}
    }
}

#[cfg(test)]
#[path = "rpc_tests.rs"]
mod tests;
