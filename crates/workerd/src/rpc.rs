//! Reads along on a Cap'n Proto connection: which message begins where, which calls are in flight, which capabilities are held.
//!
//! Owns: the framing of messages and the few fields of `rpc.capnp` that say what a message asks, answers, gives or lets go
//! (<https://capnproto.org/encoding.html>, <https://capnproto.org/rpc.html>). Must not: change bytes, do I/O.
//!
//! Two workerd processes keep one such connection open for all JS RPC between them. To replace one of them without the other
//! noticing, the relay must know when the connection has no state, and what would begin something new.

use std::collections::{HashMap, HashSet};

/// workerd's own limit for a message is 32 MiB.
const MOST_BYTES: u64 = 48 << 20;
/// More segments than this are no sane message.
const MOST_SEGMENTS: u32 = 4096;

const CALL: u16 = 2;
const RETURN: u16 = 3;
const FINISH: u16 = 4;
const RESOLVE: u16 = 5;
const RELEASE: u16 = 6;
const BOOTSTRAP: u16 = 8;

/// What a message is about.
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

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// As it came, with its segment table.
    pub(crate) bytes: Vec<u8>,
    /// What it is about.
    pub(crate) head: Head,
    /// Capabilities of the sender that the receiver holds from now on, once per mention.
    gives: Vec<u32>,
    /// A capability of the receiver that the sender lets go so many times.
    lets_go: Option<(u32, u32)>,
    /// A `Finish` that also lets go what the answer gave, or a `Return` that lets go what the call gave.
    frees: bool,
}

/// The bytes are not what they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Cap'n Proto RPC stream that is understood")]
pub(crate) struct Lost;

/// Splits one direction into messages.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// The message that is coming.
    bytes: Vec<u8>,
}

impl Splitter {
    /// Takes bytes; complete messages go out.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<Message>) -> Result<(), Lost> {
        while !bytes.is_empty() {
            let (want, complete) = self.wanted()?;
            let n = (want - self.bytes.len()).min(bytes.len());
            self.bytes.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if complete && self.bytes.len() == want {
                out.push(Message::read(std::mem::take(&mut self.bytes))?);
            }
        }
        Ok(())
    }

    /// How long `bytes` shall become, and whether the message is complete then.
    fn wanted(&self) -> Result<(usize, bool), Lost> {
        if self.bytes.len() < 8 {
            return Ok((8, false));
        }
        let table = table_bytes(&self.bytes)?;
        if self.bytes.len() < table {
            return Ok((table, false));
        }
        let mut total = 0u64;
        for number in 0..segment_count(&self.bytes)? {
            total += u64::from(word(&self.bytes, 4 + 4 * number)?) * 8;
        }
        if total == 0 || total > MOST_BYTES {
            return Err(Lost);
        }
        Ok((table + usize::try_from(total).map_err(|_| Lost)?, true))
    }
}

fn segment_count(bytes: &[u8]) -> Result<usize, Lost> {
    let more = word(bytes, 0)?;
    if more >= MOST_SEGMENTS {
        return Err(Lost);
    }
    Ok(more as usize + 1)
}

/// The table: number of segments less one, size of each in words, padded to a whole word.
fn table_bytes(bytes: &[u8]) -> Result<usize, Lost> {
    Ok((4 + 4 * segment_count(bytes)?).next_multiple_of(8))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Lost> {
    let field = at
        .checked_add(4)
        .and_then(|end| bytes.get(at..end))
        .ok_or(Lost)?;
    let field: [u8; 4] = field.try_into().map_err(|_| Lost)?;
    Ok(u32::from_le_bytes(field))
}

/// A message's segments.
struct Segments<'a>(Vec<&'a [u8]>);

/// Place of a pointer.
#[derive(Clone, Copy)]
struct At {
    segment: usize,
    byte: usize,
}

/// A struct: where its data begins, and how long that is.
struct Struct {
    at: At,
    data_words: usize,
    pointers: usize,
}

impl<'a> Segments<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Lost> {
        let mut rest = bytes.get(table_bytes(bytes)?..).ok_or(Lost)?;
        let mut segments = Vec::new();
        for number in 0..segment_count(bytes)? {
            let size = word(bytes, 4 + 4 * number)? as usize * 8;
            let (segment, after) = rest.split_at_checked(size).ok_or(Lost)?;
            segments.push(segment);
            rest = after;
        }
        Ok(Self(segments))
    }

    fn word(&self, at: At, offset: usize) -> Result<u32, Lost> {
        let segment = self.0.get(at.segment).ok_or(Lost)?;
        word(segment, at.byte.checked_add(offset).ok_or(Lost)?)
    }

    /// The two halves of a pointer that is not far, and its place; `None` for a null pointer.
    fn pointer(&self, at: At) -> Result<Option<(u32, u32, At)>, Lost> {
        let (low, high) = (self.word(at, 0)?, self.word(at, 4)?);
        if low & 3 != 2 {
            return Ok((low != 0 || high != 0).then_some((low, high, at)));
        }
        // Far: the pointer itself is in another segment. The form with two words there has never been seen in these messages.
        if low & 4 != 0 {
            return Err(Lost);
        }
        let there = At {
            segment: high as usize,
            byte: (low >> 3) as usize * 8,
        };
        let (low, high) = (self.word(there, 0)?, self.word(there, 4)?);
        if low & 3 == 2 {
            return Err(Lost);
        }
        Ok((low != 0 || high != 0).then_some((low, high, there)))
    }

    /// Where a pointer leads.
    fn target(low: u32, at: At) -> Result<At, Lost> {
        // The offset is signed, but writers only go forward.
        let words = low >> 2;
        if words >= 1 << 29 {
            return Err(Lost);
        }
        Ok(At {
            segment: at.segment,
            byte: at.byte + 8 + words as usize * 8,
        })
    }

    /// The struct behind a pointer.
    fn follow(&self, at: At) -> Result<Option<Struct>, Lost> {
        let Some((low, high, at)) = self.pointer(at)? else {
            return Ok(None);
        };
        if low & 3 != 0 {
            return Err(Lost);
        }
        Ok(Some(Struct {
            at: Self::target(low, at)?,
            data_words: (high & 0xffff) as usize,
            pointers: (high >> 16) as usize,
        }))
    }

    /// A data field of four bytes; fields beyond the data are zero.
    fn field(&self, of: &Struct, offset: usize) -> Result<u32, Lost> {
        if offset >= of.data_words * 8 {
            return Ok(0);
        }
        self.word(of.at, offset)
    }

    /// The struct behind one of a struct's pointers.
    fn member(&self, of: &Struct, number: usize) -> Result<Option<Struct>, Lost> {
        match of.pointer(number) {
            Some(at) => self.follow(at),
            None => Ok(None),
        }
    }

    /// Adds what a `Payload` gives: its second pointer is a list of `CapDescriptor`.
    fn payload(&self, payload: Option<Struct>, gives: &mut Vec<u32>) -> Result<(), Lost> {
        let Some(table) = payload.and_then(|p| p.pointer(1)) else {
            return Ok(());
        };
        let Some((low, high, at)) = self.pointer(table)? else {
            return Ok(());
        };
        // A list (1) of structs (7): first a word like a struct pointer whose offset is the number of elements.
        if low & 3 != 1 || high & 7 != 7 {
            return Err(Lost);
        }
        let tag = Self::target(low, at)?;
        let (count, sizes) = (self.word(tag, 0)? >> 2, self.word(tag, 4)?);
        let (data_words, pointers) = ((sizes & 0xffff) as usize, (sizes >> 16) as usize);
        let size = (data_words + pointers) * 8;
        if size == 0 {
            // They take no room, so that a few bytes could name half a billion; and none gives
            // anything.
            return Ok(());
        }
        if count as usize * size > MOST_BYTES as usize {
            return Err(Lost);
        }
        for number in 0..count as usize {
            let element = Struct {
                at: At {
                    segment: tag.segment,
                    byte: tag.byte + 8 + number * size,
                },
                data_words,
                pointers,
            };
            self.capability(&element, gives)?;
        }
        Ok(())
    }

    /// Adds what a `CapDescriptor` gives.
    fn capability(&self, descriptor: &Struct, gives: &mut Vec<u32>) -> Result<(), Lost> {
        match self.field(descriptor, 0)? & 0xffff {
            // none, receiverHosted, receiverAnswer
            0 | 3 | 4 => {}
            // senderHosted, senderPromise
            1 | 2 => gives.push(self.field(descriptor, 4)?),
            _ => return Err(Lost),
        }
        Ok(())
    }
}

impl Struct {
    fn pointer(&self, number: usize) -> Option<At> {
        (number < self.pointers).then_some(At {
            segment: self.at.segment,
            byte: self.at.byte + (self.data_words + number) * 8,
        })
    }
}

impl Message {
    /// `Message` is a union: its tag is the first data field, its member the first pointer.
    fn read(bytes: Vec<u8>) -> Result<Self, Lost> {
        let segments = Segments::new(&bytes)?;
        let start = At {
            segment: 0,
            byte: 0,
        };
        let root = segments.follow(start)?.ok_or(Lost)?;
        let kind = (segments.field(&root, 0)? & 0xffff) as u16;
        let mut gives = Vec::new();
        let mut lets_go = None;
        let mut frees = false;
        let mut head = Head::Other;
        if matches!(kind, CALL | RETURN | FINISH | RESOLVE | RELEASE | BOOTSTRAP) {
            let member = segments.member(&root, 0)?.ok_or(Lost)?;
            // The first data field is the id of a question (or of a capability, in Release and Resolve).
            let id = segments.field(&member, 0)?;
            let flags = segments.field(&member, 4)?;
            match kind {
                BOOTSTRAP => head = Head::Bootstrap(id),
                CALL => {
                    let target = segments.member(&member, 0)?.ok_or(Lost)?;
                    head = Head::Call(id, on(&segments, &target)?);
                    segments.payload(segments.member(&member, 1)?, &mut gives)?;
                }
                RETURN => {
                    head = Head::Return(id);
                    // `releaseParamCaps`, stored inverted.
                    frees = flags & 1 == 0;
                    if flags >> 16 == 0 {
                        segments.payload(segments.member(&member, 0)?, &mut gives)?;
                    }
                }
                FINISH => {
                    head = Head::Finish(id);
                    // `releaseResultCaps`, stored inverted.
                    frees = flags & 1 == 0;
                }
                RELEASE => lets_go = Some((id, flags)),
                _ => {
                    if flags & 0xffff == 0
                        && let Some(descriptor) = segments.member(&member, 0)?
                    {
                        segments.capability(&descriptor, &mut gives)?;
                    }
                }
            }
        }
        Ok(Self {
            bytes,
            head,
            gives,
            lets_go,
            frees,
        })
    }
}

/// A `MessageTarget`: the tag is at byte 4.
fn on(segments: &Segments<'_>, target: &Struct) -> Result<On, Lost> {
    match segments.field(target, 4)? & 0xffff {
        0 => Ok(On::Given(segments.field(target, 0)?)),
        1 => {
            let answer = segments.member(target, 0)?.ok_or(Lost)?;
            Ok(On::AnswerTo(segments.field(&answer, 0)?))
        }
        _ => Err(Lost),
    }
}

/// What one side has asked and given.
#[derive(Debug, Default)]
struct Side {
    /// Questions without an answer.
    open: HashSet<u32>,
    /// Questions without a `Finish`.
    unfinished: HashSet<u32>,
    /// Questions whose answer is freed when it comes.
    unwanted: HashSet<u32>,
    /// What the answers to unfinished questions gave.
    answers: HashMap<u32, Vec<u32>>,
    /// What calls without an answer gave.
    parameters: HashMap<u32, Vec<u32>>,
    /// Capabilities this side has given, and how often the other side still holds each.
    given: HashMap<u32, u64>,
}

impl Side {
    fn let_go(&mut self, capability: u32, times: u64) {
        if let Some(held) = self.given.get_mut(&capability) {
            *held = held.saturating_sub(times);
            if *held == 0 {
                self.given.remove(&capability);
            }
        }
    }

    fn quiet(&self) -> bool {
        self.open.is_empty() && self.unfinished.is_empty()
    }
}

/// What is in flight and held on a connection.
#[derive(Debug, Default)]
pub(crate) struct Books {
    caller: Side,
    callee: Side,
}

impl Books {
    /// Notes a message of the side that connected.
    pub(crate) fn caller_sent(&mut self, message: &Message) {
        note(&mut self.caller, &mut self.callee, message);
    }

    /// Notes a message of the side that was connected to.
    pub(crate) fn callee_sent(&mut self, message: &Message) {
        note(&mut self.callee, &mut self.caller, message);
    }

    /// Whether nothing is in flight and nothing is held but, by the caller, the bootstrap capability.
    pub(crate) fn idle(&self) -> bool {
        self.caller.quiet()
            && self.callee.quiet()
            && self.caller.given.is_empty()
            && self.callee.given.len() <= 1
            && self.callee.given.values().all(|held| *held == 1)
    }
}

fn note(sender: &mut Side, receiver: &mut Side, message: &Message) {
    let mut gives: &[u32] = &message.gives;
    match message.head {
        Head::Bootstrap(id) | Head::Call(id, _) => {
            sender.open.insert(id);
            sender.unfinished.insert(id);
            if !gives.is_empty() {
                sender.parameters.insert(id, gives.to_vec());
            }
        }
        Head::Finish(id) => {
            sender.unfinished.remove(&id);
            let gave = sender.answers.remove(&id).unwrap_or_default();
            if message.frees {
                for capability in gave {
                    receiver.let_go(capability, 1);
                }
                if sender.open.contains(&id) {
                    sender.unwanted.insert(id);
                }
            }
        }
        Head::Return(id) => {
            receiver.open.remove(&id);
            let gave = receiver.parameters.remove(&id).unwrap_or_default();
            if message.frees {
                for capability in gave {
                    receiver.let_go(capability, 1);
                }
            }
            if receiver.unwanted.remove(&id) {
                gives = &[];
            } else if receiver.unfinished.contains(&id) {
                receiver.answers.insert(id, gives.to_vec());
            }
        }
        Head::Other => {}
    }
    for capability in gives {
        *sender.given.entry(*capability).or_default() += 1;
    }
    if let Some((capability, times)) = message.lets_go {
        receiver.let_go(capability, u64::from(times));
    }
}

#[cfg(test)]
#[path = "rpc_tests.rs"]
mod tests;
