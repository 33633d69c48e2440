//! The name in a ClientHello (RFC 8446, 4.1.2 and 5.1). More lenient than a TLS library: what a server might accept must not hide a name.

use super::Sniffed;

/// The content type of records that carry handshake messages.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What a look at the bytes can end with, other than with what is looked for.
enum Stop {
    /// They end too early.
    More,
    /// They are not what they should be.
    Malformed,
}

/// Looks at bytes that begin with [`HANDSHAKE`].
pub(super) fn sniff(bytes: &[u8]) -> Sniffed {
    let mut handshake = Vec::new();
    match unwrap_records(bytes, &mut handshake) {
        Ok(()) => {}
        // A beginning may show already that this is something else.
        Err(Stop::More) => {
            return match handshake.first() {
                Some(&first) if first != CLIENT_HELLO => Sniffed::Other,
                _ => Sniffed::More,
            };
        }
        Err(Stop::Malformed) => return Sniffed::Other,
    }
    match server_name(&handshake) {
        Ok(name) => Sniffed::Tls(name),
        Err(_) => Sniffed::Other,
    }
}

/// Puts together the first handshake message, which may lie in several records.
fn unwrap_records(bytes: &[u8], message: &mut Vec<u8>) -> Result<(), Stop> {
    let mut rest = bytes;
    loop {
        if let Some([_, a, b, c]) = message.first_chunk() {
            let length = 4 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if message[0] != CLIENT_HELLO {
                return Err(Stop::Malformed);
            }
            if message.len() >= length {
                message.truncate(length);
                return Ok(());
            }
        }
        if rest.first().is_some_and(|&kind| kind != HANDSHAKE)
            || rest.get(1).is_some_and(|&major| major != 3)
        {
            return Err(Stop::Malformed);
        }
        let Some([_, _, _, high, low]) = rest.first_chunk() else {
            return Err(Stop::More);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 {
            return Err(Stop::Malformed);
        }
        let body = &rest[5..];
        message.extend_from_slice(&body[..length.min(body.len())]);
        if body.len() < length {
            // What is there of the record may be all of the message.
            rest = &[];
        } else {
            rest = &body[length..];
        }
    }
}

/// The first host name in a whole ClientHello.
fn server_name(message: &[u8]) -> Result<Option<String>, Stop> {
    let mut hello = Reader(message);
    // Type and length; version; random.
    hello.take(4 + 2 + 32)?;
    let session = hello.byte()?;
    hello.take(session.into())?;
    let suites = hello.number()?;
    hello.take(suites.into())?;
    let compression = hello.byte()?;
    hello.take(compression.into())?;
    if hello.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = hello.part()?;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let mut content = extensions.part()?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = content.part()?;
        while !names.0.is_empty() {
            let kind = names.byte()?;
            let name = names.part()?;
            if kind == HOST_NAME {
                return Ok(host_name(name.0));
            }
        }
    }
    Ok(None)
}

fn host_name(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()))
        .then(|| name.to_ascii_lowercase())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Stop::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u16, Stop> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A part with its length in front.
    fn part(&mut self) -> Result<Reader<'a>, Stop> {
        let length = self.number()?;
        Ok(Reader(self.take(length.into())?))
    }
}
