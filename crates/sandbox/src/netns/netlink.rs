//! Netlink messages: built into one buffer, sent at once, each one's answer checked.
//!
//! Owns: the byte layout (netlink(7)) and the exchange. Must not: know what the messages mean.

use std::io;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_HEADER: usize = 16;
const NLA_F_NESTED: u16 = 0x8000;

/// This message asks the kernel to do something.
pub(super) const NLM_F_REQUEST: u16 = 0x1;
/// Answer also when all went well.
pub(super) const NLM_F_ACK: u16 = 0x4;
/// Make it if it does not exist.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// Put it behind those that exist.
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// A row of messages, sent with one system call. Sequence numbers are indexes into `names`.
#[derive(Default)]
pub(super) struct Messages {
    buffer: Vec<u8>,
    names: Vec<&'static str>,
    acks: usize,
}

impl Messages {
    /// Appends a message: `header` is the fixed part behind nlmsghdr, `body` writes the attributes.
    /// `name` says what it does, for errors.
    pub(super) fn push(
        &mut self,
        name: &'static str,
        kind: u16,
        flags: u16,
        header: &[u8],
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.buffer.len();
        let sequence = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name);
        if flags & NLM_F_ACK != 0 {
            self.acks += 1;
        }
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer
            .extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(header);
        pad(&mut self.buffer);
        body(&mut Attributes(&mut self.buffer));
        let length = u32::try_from(self.buffer.len() - start).unwrap_or(u32::MAX);
        self.buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sends all of them and collects the answers; the first refusal is the result. No protocol
    /// means NETLINK_ROUTE, which is 0.
    pub(super) fn exchange(self, protocol: Option<Protocol>) -> io::Result<()> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(|e| named("opening a netlink socket", e.into()))?;
        let sent = rustix::net::send(&socket, &self.buffer, SendFlags::empty())
            .map_err(|e| named("sending netlink messages", e.into()))?;
        if sent != self.buffer.len() {
            return Err(io::Error::other(
                "the kernel took only a part of the netlink messages",
            ));
        }
        let mut acks = 0;
        let mut reply = vec![0u8; 32 * 1024];
        while acks < self.acks {
            // The kernel answers within the send, so there is nothing to wait for.
            let (length, _) = rustix::net::recv(&socket, &mut reply[..], RecvFlags::DONTWAIT)
                .map_err(|e| named("awaiting netlink answers", e.into()))?;
            acks += self.check(&reply[..length])?;
        }
        Ok(())
    }

    /// How many messages are acknowledged in one datagram of answers.
    fn check(&self, mut reply: &[u8]) -> io::Result<usize> {
        let mut acks = 0;
        while reply.len() >= NLMSG_HEADER {
            let length = read_u32(reply, 0) as usize;
            if length < NLMSG_HEADER || length > reply.len() {
                return Err(io::Error::other("a netlink answer has a wrong length"));
            }
            let kind = u16::from_ne_bytes([reply[4], reply[5]]);
            if kind == NLMSG_ERROR && length >= NLMSG_HEADER + 4 {
                // The sequence number in the answer's own header is that of the request.
                let sequence = read_u32(reply, 8) as usize;
                let code = read_u32(reply, NLMSG_HEADER).cast_signed();
                if code != 0 {
                    let name = self.names.get(sequence).copied().unwrap_or("netlink");
                    return Err(named(name, io::Error::from_raw_os_error(-code)));
                }
                acks += 1;
            }
            reply = &reply[length.next_multiple_of(4).min(reply.len())..];
        }
        Ok(acks)
    }
}

/// Writes attributes (type, length, value; values may be attributes again).
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// An attribute with these bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.start(kind);
        self.0.extend_from_slice(value);
        self.finish(start);
        self
    }

    /// A 32-bit number in network order, which nf_tables wants everywhere.
    pub(super) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its closing NUL.
    pub(super) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.start(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.finish(start);
        self
    }

    /// Attributes within an attribute.
    pub(super) fn nested(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let start = self.start(kind | NLA_F_NESTED);
        body(&mut Attributes(self.0));
        self.finish(start);
        self
    }

    fn start(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&0u16.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn finish(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(self.0);
    }
}

fn pad(buffer: &mut Vec<u8>) {
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The error with what was being done in front.
pub(super) fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
