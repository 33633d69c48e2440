//! The little of DNS messages that a forwarder must understand (RFC 1035, 4.1). Pure, for bytes of any kind.

const HEADER: usize = 12;
const MAX_NAME: usize = 255;

/// Response codes that the answerer gives itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The query makes no sense.
    FormatError = 1,
    /// No upstream server answered.
    ServerFailure = 2,
    /// The name does not exist: clients give up at once, where they would try again after a refusal.
    NoSuchName = 3,
}

/// A query as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    packet: &'a [u8],
    /// Where the question ends; `None` if there is none to be read.
    question_end: Option<usize>,
}

impl<'a> Query<'a> {
    /// Reads a query. `None` for what deserves no answer: no whole header, or itself an answer.
    pub(crate) fn parse(packet: &'a [u8]) -> Option<Self> {
        if packet.len() < HEADER || packet[2] & 0x80 != 0 {
            return None;
        }
        let count = u16::from_be_bytes([packet[4], packet[5]]);
        let question_end = if count == 1 {
            question_end(packet)
        } else {
            None
        };
        Some(Self {
            packet,
            question_end,
        })
    }

    /// The whole message, if it has exactly one question, as every query has.
    pub(crate) fn forwardable(&self) -> Option<&'a [u8]> {
        self.question_end.map(|_| self.packet)
    }

    /// An answer without records.
    pub(crate) fn answer(&self, code: Code) -> Vec<u8> {
        let question = &self.packet[HEADER..self.question_end.unwrap_or(HEADER)];
        let mut answer = Vec::with_capacity(HEADER + question.len());
        answer.extend_from_slice(&self.packet[..2]);
        // An answer; opcode and "recursion desired" as asked; recursion available.
        answer.push(0x80 | (self.packet[2] & 0x79));
        answer.push(0x80 | code as u8);
        answer.extend_from_slice(&u16::from(!question.is_empty()).to_be_bytes());
        answer.extend_from_slice(&[0; 6]);
        answer.extend_from_slice(question);
        answer
    }

    /// Whether a message from an upstream server answers this query.
    pub(crate) fn is_answered_by(&self, message: &[u8]) -> bool {
        let Some(end) = self.question_end else {
            return false;
        };
        if message.len() < HEADER || message[..2] != self.packet[..2] || message[2] & 0x80 == 0 {
            return false;
        }
        if u16::from_be_bytes([message[4], message[5]]) == 0 {
            // Servers that understand nothing leave the question out.
            return message[3] & 0xf != 0;
        }
        let (ours, kind) = self.packet[HEADER..end].split_at(end - HEADER - 4);
        let theirs = message.get(HEADER..end);
        theirs.is_some_and(|theirs| {
            let (name, their_kind) = theirs.split_at(ours.len());
            name.eq_ignore_ascii_case(ours) && their_kind == kind
        })
    }
}

/// Whether another server might do better: it failed, or will not.
pub(crate) fn is_failure(message: &[u8]) -> bool {
    message.get(3).is_none_or(|b| matches!(b & 0xf, 2 | 4 | 5))
}

/// Where the first question ends: labels, a zero, type and class.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => at += length,
            // Nothing to point to stands before the first name.
            _ => return None,
        }
        if at - HEADER > MAX_NAME {
            return None;
        }
    }
    let end = at + 4;
    (end <= packet.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(hickory_proto::op::Query::query(
            Name::from_ascii(name).unwrap(),
            RecordType::A,
        ));
        message.to_vec().unwrap()
    }

    #[test]
    fn its_own_answers_are_understood_by_a_resolver() {
        let packet = query("www.example.com.");
        let answer = Query::parse(&packet).unwrap().answer(Code::NoSuchName);
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.id, 4711);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.queries[0].name().to_ascii(), "www.example.com.");
    }

    #[test]
    fn only_the_right_answer_counts() {
        let packet = query("www.example.com.");
        let asked = Query::parse(&packet).unwrap();
        let right = asked.answer(Code::NoSuchName);
        assert!(asked.is_answered_by(&right));
        assert!(!asked.is_answered_by(&packet), "a query is no answer");
        let mut other_id = right.clone();
        other_id[0] ^= 1;
        assert!(!asked.is_answered_by(&other_id));
        let other = query("www.example.org.");
        let other = Query::parse(&other).unwrap().answer(Code::NoSuchName);
        assert!(!asked.is_answered_by(&other));
        let mut shouting = right.clone();
        shouting[HEADER + 1] = b'W';
        assert!(asked.is_answered_by(&shouting));
    }

    proptest! {
        /// Bytes of any kind are read without a panic, and what comes back is an answer with the same id.
        #[test]
        fn any_bytes(packet in proptest::collection::vec(any::<u8>(), 0..600), other in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(query) = Query::parse(&packet) {
                let answer = query.answer(Code::FormatError);
                prop_assert_eq!(&answer[..2], &packet[..2]);
                prop_assert!(answer.len() <= packet.len());
                query.is_answered_by(&other);
            }
            is_failure(&other);
        }

        /// Damage to a query is never a panic either, which random bytes alone would hardly reach.
        #[test]
        fn damaged_queries(at in 0usize..33, value: u8, cut in 0usize..33) {
            let mut packet = query("www.example.com.");
            packet[at] = value;
            packet.truncate(cut.max(at));
            if let Some(query) = Query::parse(&packet) {
                let answer = query.answer(Code::ServerFailure);
                prop_assert!(query.forwardable().is_none() || query.is_answered_by(&answer));
            }
        }
    }
}
