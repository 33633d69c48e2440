use super::*;

/// A Worker's first call of another Worker's entrypoint, `bar(1)`, recorded between two workerd processes: who sent, what.
const RECORDED: [(&str, &str); 5] = [
    (
        "caller",
        "\
00000000050000000000000001000100080000000000000000000000010001000000000000000000000000000000000000000000140000000000000001000100\
020000000000000000000000030003000100000000000000e3ad34a3cd4880870000000000000000200000000100010004000000000002000000000000000000\
04000000010003000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000010000000000000001000100\
00000000000000000100000007000000000000000100000000000000110000000000000001000100020000000000000000000000030003000200000009000000\
2d75c15e479706f20000000000000000100000000100010004000000000002000000000000000000fcffffff0000000000000000000000000000000001000000\
00000000010001000100000000000000010000000f00000004000000010000000100000000000000000000001e00000000000000010001000200000000000000\
00000000030003000300000000000000989d2a142565a9a100000000000000003800000001000100040000000000020000000000000000000400000001000400\
410000001700000000000000010000000d000000220000000c00000000000200030000000000000000000000000000006261720000000000050000004a000000\
0000000000000000ff0f4101490224000100000000000000000000000100000000000000010001000200000000000000010000000f0000000400000001000000\
0100000000000000040000000100010001000000000000000000000000000000",
    ),
    (
        "callee",
        "\
000000000b0000000000000001000100030000000000000000000000020001000000000000000000000000000000000000000000000002000300000000000000\
0100000017000000040000000100010001000000000000000000000000000000000000000c000000000000000100010003000000000000000000000002000100\
01000000010000000000000000000000000000000000020004000000000001000500000017000000030000000000000004000000010001000100000001000000\
0000000000000000000000000f000000000000000100010003000000000000000000000002000100020000000100000000000000000000000000000000000200\
04000000000002000900000027000000030000000000000003000000010000000800000001000100010000000200000000000000000000000200000003000000\
00000000000000000000000013000000000000000100010003000000000000000000000002000100030000000100000000000000000000000000000000000200\
040000000100030021000000170000000000000000000000080000000000020003000000000000000000000000000000050000007a0000000000000000000000\
ff0f220b666f6f317b2261223a317d00040000000100010001000000040000000000000000000000",
    ),
    (
        "caller",
        "\
00000000040000000000000001000100040000000000000000000000010000000000000003000000000000000400000000000000010001000400000000000000\
00000000010000000100000003000000000000000400000000000000010001000400000000000000000000000100000002000000030000000000000004000000\
00000000010001000600000000000000000000000100000002000000010000000000000004000000000000000100010004000000000000000000000001000000\
03000000030000000000000004000000000000000100010006000000000000000000000001000000040000000100000000000000040000000000000001000100\
06000000000000000000000001000000030000000100000000000000040000000000000001000100060000000000000000000000010000000100000001000000",
    ),
    (
        "callee",
        "\
00000000040000000000000001000100060000000000000000000000010000000000000001000000000000000700000000000000010001000500000000000000\
00000000010001000300000000000000000000000100010001000000020000000000000000000000",
    ),
    (
        "caller",
        "\
00000000040000000000000001000100060000000000000000000000010000000200000001000000",
    ),
];

fn messages(bytes: &[u8]) -> Result<Vec<Message>, Lost> {
    let mut out = Vec::new();
    Splitter::default().feed(bytes, &mut out)?;
    Ok(out)
}

fn recorded() -> Vec<(&'static str, Vec<Message>)> {
    RECORDED
        .iter()
        .map(|(who, text)| (*who, messages(&hex::decode(text).unwrap()).unwrap()))
        .collect()
}

#[test]
fn a_recorded_call_is_understood() {
    let heads: Vec<Vec<Head>> = recorded()
        .iter()
        .map(|(_, messages)| messages.iter().map(|m| m.head).collect())
        .collect();
    let expected = vec![
        vec![
            Head::Bootstrap(0),
            // The event on the bootstrap capability, the session on the event, the method on the session.
            Head::Call(1, On::AnswerTo(0)),
            Head::Call(2, On::AnswerTo(1)),
            Head::Call(3, On::AnswerTo(2)),
        ],
        vec![
            Head::Return(0),
            Head::Return(1),
            Head::Return(2),
            Head::Return(3),
        ],
        vec![
            Head::Finish(0),
            Head::Finish(1),
            Head::Finish(2),
            Head::Other,
            Head::Finish(3),
            Head::Other,
            Head::Other,
            Head::Other,
        ],
        vec![Head::Other, Head::Other],
        vec![Head::Other],
    ];
    assert_eq!(heads, expected);
}

#[test]
fn a_connection_is_idle_when_calls_and_capabilities_are_let_go() {
    let mut books = Books::default();
    let all: Vec<(&str, Message)> = recorded()
        .into_iter()
        .flat_map(|(who, messages)| messages.into_iter().map(move |m| (who, m)))
        .collect();
    for (i, (who, message)) in all.iter().enumerate() {
        match *who {
            "caller" => books.caller_sent(message),
            _ => books.callee_sent(message),
        }
        // Before the last two, the callee tells what became of a promise that the caller has let go already.
        let expected = i == all.len() - 3 || i == all.len() - 1;
        assert_eq!(books.idle(), expected, "after message {i}");
    }
}

#[test]
fn messages_may_come_in_any_pieces_and_are_not_changed() {
    let stream = hex::decode(RECORDED[0].1).unwrap();
    for size in [1, 7, 64, 500] {
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        for chunk in stream.chunks(size) {
            splitter.feed(chunk, &mut out).unwrap();
        }
        assert_eq!(out.len(), 4);
        let bytes: Vec<u8> = out.into_iter().flat_map(|m| m.bytes).collect();
        assert_eq!(bytes, stream);
    }
}

/// A message by hand: its parts are all there is to it.
fn made(head: Head, gives: &[u32], lets_go: Option<(u32, u32)>, frees: bool) -> Message {
    Message {
        bytes: Vec::new(),
        head,
        gives: gives.to_vec(),
        lets_go,
        frees,
    }
}

#[test]
fn callbacks_and_calls_given_up_early_are_counted_right() {
    let mut books = Books::default();
    let mut bootstrap = || {
        books = Books::default();
        books.caller_sent(&made(Head::Bootstrap(0), &[], None, false));
        books.callee_sent(&made(Head::Return(0), &[0], None, false));
        books.caller_sent(&made(Head::Finish(0), &[], None, false));
        assert!(books.idle());
        std::mem::take(&mut books)
    };
    // The callee calls back on a function that the caller passed.
    let mut books = bootstrap();
    books.caller_sent(&made(Head::Call(1, On::Given(0)), &[5], None, false));
    books.callee_sent(&made(Head::Call(1, On::Given(5)), &[], None, false));
    books.callee_sent(&made(Head::Return(1), &[], None, false));
    books.caller_sent(&made(Head::Finish(1), &[], None, false));
    assert!(!books.idle(), "the callback runs");
    books.caller_sent(&made(Head::Return(1), &[], None, false));
    books.callee_sent(&made(Head::Finish(1), &[], None, false));
    assert!(!books.idle(), "the function is still held");
    books.callee_sent(&made(Head::Other, &[], Some((5, 1)), false));
    assert!(books.idle());

    // An answer that frees what the call gave.
    let mut books = bootstrap();
    books.caller_sent(&made(Head::Call(1, On::Given(0)), &[5], None, false));
    books.callee_sent(&made(Head::Return(1), &[], None, true));
    books.caller_sent(&made(Head::Finish(1), &[], None, false));
    assert!(books.idle());

    // The caller gives up; the answer, already on its way, has a capability that is freed with it.
    let mut books = bootstrap();
    books.caller_sent(&made(Head::Call(1, On::Given(0)), &[], None, false));
    books.caller_sent(&made(Head::Finish(1), &[], None, true));
    assert!(!books.idle(), "the answer is still to come");
    books.callee_sent(&made(Head::Return(1), &[7], None, false));
    assert!(books.idle());

    // The caller frees what an answer had.
    let mut books = bootstrap();
    books.caller_sent(&made(Head::Call(1, On::Given(0)), &[], None, false));
    books.callee_sent(&made(Head::Return(1), &[7], None, false));
    assert!(!books.idle());
    books.caller_sent(&made(Head::Finish(1), &[], None, true));
    assert!(books.idle());
}

#[test]
fn what_is_no_rpc_is_refused() {
    assert!(messages(&[0xff; 64]).is_err());
    let mut far = hex::decode(RECORDED[0].1).unwrap();
    far[8] = 2;
    assert!(
        messages(&far).is_err(),
        "a far pointer to a segment that is not there"
    );
}

/// A capability table in a second segment, behind a far pointer, as in a large answer.
#[test]
fn far_pointers_are_followed() {
    fn words(list: &[u64]) -> Vec<u8> {
        list.iter().flat_map(|w| w.to_le_bytes()).collect()
    }
    let pointer = |offset: u64, data: u64, pointers: u64| offset << 2 | data << 32 | pointers << 48;
    let first = words(&[
        pointer(0, 1, 1),
        u64::from(RETURN),
        pointer(0, 2, 1),
        9 | 1 << 32, // answer 9, parameters not freed
        0,
        pointer(0, 0, 2), // results: content, capability table
        0,
        2 | 1 << 32, // far: segment 1, word 0
    ]);
    let second = words(&[
        1 | 7 << 32 | 2 << 35, // a list of structs, two words
        pointer(1, 1, 1),      // one element of one data word and one pointer
        1 | 42 << 32,          // senderHosted 42
        0,
    ]);
    let mut bytes = Vec::new();
    for number in [1u32, 8, 4, 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend(first);
    bytes.extend(second);
    let all = messages(&bytes).unwrap();
    assert_eq!(all[0].head, Head::Return(9));
    assert_eq!(all[0].gives, [42]);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_fail(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000), at in 0usize..600) {
        let _ = messages(&bytes);
        let mut plausible = hex::decode(RECORDED[0].1).unwrap();
        for (to, from) in plausible[at..].iter_mut().zip(&bytes) {
            *to = *from;
        }
        let _ = messages(&plausible);
    }
}
