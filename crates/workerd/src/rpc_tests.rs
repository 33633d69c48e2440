use super::*;

/// A message as workerd sends it: one segment; root, tag, member with one data word and one pointer, then filler.
fn message(kind: u16, id: u32, filler_words: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&0u32.to_le_bytes());
    out.extend_from_slice(&(5 + filler_words).to_le_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 1, 0, 1, 0]);
    out.extend_from_slice(&u64::from(kind).to_le_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 1, 0, 1, 0]);
    out.extend_from_slice(&u64::from(id).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend(std::iter::repeat_n(0xaa, filler_words as usize * 8));
    out
}

/// A call on a given capability, or on the answer to a question.
fn call(id: u32, on: On, filler_words: u32) -> Vec<u8> {
    let mut out = message(CALL, id, 4 + filler_words);
    let target = out.len() - (4 + filler_words as usize) * 8;
    out[target - 8..target].copy_from_slice(&[0, 0, 0, 0, 1, 0, 1, 0]);
    let (value, tag) = match on {
        On::Given(cap) => (cap, 0u32),
        On::AnswerTo(_) => (0, 1),
    };
    out[target..target + 4].copy_from_slice(&value.to_le_bytes());
    out[target + 4..target + 8].copy_from_slice(&tag.to_le_bytes());
    if let On::AnswerTo(question) = on {
        out[target + 8..target + 16].copy_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
        out[target + 16..target + 24].copy_from_slice(&u64::from(question).to_le_bytes());
    }
    out
}

fn heads(bytes: &[u8]) -> Result<Vec<Head>, Lost> {
    let mut pieces = Vec::new();
    Splitter::default().feed(bytes, &mut pieces)?;
    Ok(pieces.into_iter().filter_map(|p| p.head).collect())
}

/// What a Worker's first call of an entrypoint's method sends, recorded between two workerd processes.
const RECORDED: &str = "\
00000000050000000000000001000100080000000000000000000000010001000000000000000000000000000000000000000000140000000000000001000100\
020000000000000000000000030003000100000000000000e3ad34a3cd4880870000000000000000200000000100010004000000000002000000000000000000\
04000000010003000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000010000000000000001000100\
00000000000000000100000007000000000000000100000000000000110000000000000001000100020000000000000000000000030003000200000009000000\
2d75c15e479706f20000000000000000100000000100010004000000000002000000000000000000fcffffff0000000000000000000000000000000001000000\
00000000010001000100000000000000010000000f00000004000000010000000100000000000000000000001e00000000000000010001000200000000000000\
00000000030003000300000000000000989d2a142565a9a100000000000000003800000001000100040000000000020000000000000000000400000001000400\
410000001700000000000000010000000d000000220000000c00000000000200030000000000000000000000000000006261720000000000050000004a000000\
0000000000000000ff0f4101490224000100000000000000000000000100000000000000010001000200000000000000010000000f0000000400000001000000\
0100000000000000040000000100010001000000000000000000000000000000";

#[test]
fn the_start_of_a_recorded_stream_is_understood() {
    let bytes = hex::decode(RECORDED).unwrap();
    let expected = [
        Head::Bootstrap(0),
        // The bootstrap capability's answer, the event's, and the method itself.
        Head::Call(1, On::AnswerTo(0)),
        Head::Call(2, On::AnswerTo(1)),
        Head::Call(3, On::AnswerTo(2)),
    ];
    assert_eq!(heads(&bytes).unwrap(), expected);
}

#[test]
fn heads_tell_what_a_message_belongs_to() {
    let stream = [
        message(BOOTSTRAP, 3, 0),
        call(4, On::AnswerTo(3), 300),
        call(5, On::Given(9), 0),
        message(RETURN, 7, 1),
        message(FINISH, 4, 0),
        message(6, 1, 0),
    ]
    .concat();
    let expected = [
        Head::Bootstrap(3),
        Head::Call(4, On::AnswerTo(3)),
        Head::Call(5, On::Given(9)),
        Head::Return(7),
        Head::Finish(4),
        Head::Other,
    ];
    assert_eq!(heads(&stream).unwrap(), expected);
    // In any pieces, and nothing is lost or changed.
    for size in [1, 7, 64, 500] {
        let mut splitter = Splitter::default();
        let mut pieces = Vec::new();
        for chunk in stream.chunks(size) {
            splitter.feed(chunk, &mut pieces).unwrap();
        }
        let heads: Vec<Head> = pieces.iter().filter_map(|p| p.head).collect();
        assert_eq!(heads, expected);
        let bytes: Vec<u8> = pieces.into_iter().flat_map(|p| p.bytes).collect();
        assert_eq!(bytes, stream);
    }
}

#[test]
fn a_call_is_in_flight_until_its_return_or_finish() {
    let mut calls = Calls::default();
    calls.client_sent(Head::Bootstrap(0));
    calls.client_sent(Head::Call(1, On::AnswerTo(0)));
    calls.server_sent(Head::Return(0));
    assert!(calls.in_flight());
    calls.server_sent(Head::Return(1));
    assert!(!calls.in_flight());
    calls.client_sent(Head::Call(1, On::Given(0)));
    calls.client_sent(Head::Other);
    assert!(calls.in_flight());
    calls.client_sent(Head::Finish(1));
    assert!(!calls.in_flight());
    // Callbacks, whose ids are apart.
    calls.server_sent(Head::Call(7, On::Given(0)));
    calls.server_sent(Head::Return(7));
    assert!(calls.in_flight());
    calls.client_sent(Head::Return(7));
    assert!(!calls.in_flight());
}

#[test]
fn what_is_no_rpc_is_refused() {
    assert_eq!(heads(&[0xff; 64]), Err(Lost));
    let mut far = message(CALL, 1, 0);
    far[8] = 2;
    assert_eq!(heads(&far), Err(Lost));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_fail(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000)) {
        let _ = heads(&bytes);
        let mut plausible = vec![0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        plausible.extend_from_slice(&bytes);
        let _ = heads(&plausible);
    }
}
