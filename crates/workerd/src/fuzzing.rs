//! Entrances for fuzzing; not part of the interface.

use crate::rpc::{Books, Splitter};

/// Both directions of a connection of Cap'n Proto messages. The first byte says into how many
/// pieces the rest is cut.
///
/// # Panics
/// Bytes in pieces give other messages than all at once, or messages are not the bytes that came.
pub fn rpc(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let whole_fits = Splitter::default().feed(bytes, &mut whole).is_ok();
    let mut splitter = Splitter::default();
    let size = usize::from(how >> 1) + 1;
    let mut cut = bytes.chunks(size);
    let pieces_fit = cut.all(|piece| splitter.feed(piece, &mut pieces).is_ok());
    assert_eq!((whole_fits, &whole), (pieces_fit, &pieces));
    let came: Vec<u8> = whole.iter().flat_map(|m| m.bytes.iter().copied()).collect();
    assert!(bytes.starts_with(&came));
    let mut books = Books::default();
    for (number, message) in whole.iter().enumerate() {
        match (number + usize::from(how & 1)) % 2 {
            0 => books.caller_sent(message),
            _ => books.callee_sent(message),
        }
        let _ = books.idle();
    }
}

#[cfg(test)]
mod tests {
    /// A table of half a billion descriptors without content, in 78 bytes: it took twelve seconds.
    #[test]
    fn what_was_found_stays_mended() {
        let input = "30000000000500000000000000010011020300080066000000020000000000000001000000ff03005c8d8d0093000000000000000004\
            00000000648d4040404040404040404000002c0031080401";
        let bytes: Vec<u8> = (0..input.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&input[at..at + 2], 16).unwrap())
            .collect();
        let (mut messages, mut splitter) = (Vec::new(), crate::rpc::Splitter::default());
        // What it is does not matter; that it ends does.
        let _ = splitter.feed(&bytes[1..], &mut messages);
        super::rpc(&bytes);
    }
}
