//! The little of DNS messages that a forwarder must understand (RFC 1035, 4.1). Pure, for bytes of any kind.

use std::net::IpAddr;

const HEADER: usize = 12;
const MAX_NAME: usize = 255;
/// For how many seconds an address that stands for a name may be remembered: mappings come and go while the container runs.
const TTL: u32 = 60;
const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// Response codes that the answerer gives itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The name exists.
    NoError = 0,
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

    /// The name that is asked for, as text: lower case, without a dot at its end. Bytes that are no text become something that matches nothing.
    pub(crate) fn name(&self) -> Option<String> {
        let mut name = String::new();
        let mut rest = self.packet.get(HEADER..self.question_end?)?;
        loop {
            let (&length, after) = rest.split_first()?;
            let (label, after) = after.split_at_checked(length.into())?;
            if label.is_empty() {
                return Some(name);
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(&String::from_utf8_lossy(label).to_lowercase());
            rest = after;
        }
    }

    /// Whether it asks for IPv6 addresses.
    pub(crate) fn is_for_ipv6(&self) -> bool {
        let kind = self
            .question_end
            .and_then(|end| self.packet.get(end - 4..end - 2));
        kind.is_some_and(|kind| *kind == TYPE_AAAA.to_be_bytes())
    }

    /// An answer that says that the name exists and, if it is asked for addresses, has those of `addresses` that are of the right kind.
    pub(crate) fn answer_with(&self, addresses: &[IpAddr]) -> Vec<u8> {
        let Some(end) = self.question_end else {
            return self.answer(Code::FormatError);
        };
        let mut answer = self.answer(Code::NoError);
        let [.., a, b, c, d] = self.packet[..end] else {
            return answer;
        };
        let (kind, class) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        for address in addresses {
            let bytes = match address {
                IpAddr::V4(v4) if kind == TYPE_A => v4.octets().to_vec(),
                IpAddr::V6(v6) if kind == TYPE_AAAA => v6.octets().to_vec(),
                _ => continue,
            };
            if class != CLASS_IN {
                continue;
            }
            answer[7] += 1;
            // The name: what the question has.
            answer.extend_from_slice(&[0xc0, HEADER as u8]);
            answer.extend_from_slice(&[a, b, c, d]);
            answer.extend_from_slice(&TTL.to_be_bytes());
            answer.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            answer.extend_from_slice(&bytes);
        }
        answer
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

/// Whether an answer says that the name does not exist.
pub(crate) fn is_no_such_name(message: &[u8]) -> bool {
    has_code(message, Code::NoSuchName)
}

/// Whether an answer says that the name exists.
pub(crate) fn is_no_error(message: &[u8]) -> bool {
    has_code(message, Code::NoError)
}

fn has_code(message: &[u8], code: Code) -> bool {
    message.get(3).is_some_and(|b| b & 0xf == code as u8)
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
    use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn addresses_are_given_to_those_who_ask_for_their_kind() {
        let addresses = ["11.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        for (kind, found) in [
            (RecordType::A, Some("11.0.0.1")),
            (RecordType::AAAA, Some("fd00::1")),
            (RecordType::HTTPS, None),
        ] {
            let mut packet = query("My.Kv.");
            let at = packet.len() - 4;
            packet[at..at + 2].copy_from_slice(&u16::from(kind).to_be_bytes());
            let query = Query::parse(&packet).unwrap();
            assert_eq!(query.name().unwrap(), "my.kv");
            let answer = query.answer_with(&addresses);
            assert!(query.is_answered_by(&answer));
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            let texts: Vec<_> = answer.answers.iter().map(|r| r.data.to_string()).collect();
            assert_eq!(texts, Vec::from_iter(found.map(str::to_owned)));
            for record in &answer.answers {
                assert_eq!(record.ttl, 60);
                assert_eq!(record.name.to_ascii(), "My.Kv.");
            }
        }
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
                query.name();
                query.is_for_ipv6();
                query.answer_with(&[IpAddr::from([11, 0, 0, 1])]);
            }
            is_failure(&other);
            is_no_such_name(&other);
        }

        /// Damage to a query is never a panic either, which random bytes alone would hardly reach.
        #[test]
        fn damaged_queries(at in 0usize..33, value: u8, cut in 0usize..33) {
            let mut packet = query("www.example.com.");
            packet[at] = value;
            packet.truncate(cut.max(at));
            if let Some(query) = Query::parse(&packet) {
                query.name();
                prop_assert!(Message::from_vec(&query.answer_with(&[IpAddr::from([11, 0, 0, 1])])).is_ok() || query.forwardable().is_none());
                let answer = query.answer(Code::ServerFailure);
                prop_assert!(query.forwardable().is_none() || query.is_answered_by(&answer));
            }
        }
    }
}
