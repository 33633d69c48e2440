//! Entrances for fuzzing; not part of the interface.
//!
//! [`dns`] and [`sniff`] take bytes as they are. The input of [`ingress`] is a script of what both sides do. Each step is a byte: its last two bits say who does what (0 the client sends, 1 the app sends, 2 the
//! client ends its side, 3 the app closes and what it sends next is for its next connection), the rest how many of the following bytes are sent; or, if
//! it is the highest number, that the following byte names one of [`PIECES`].

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::bandwidth::Bandwidth;
use crate::egress::hosts::Hosts;
use crate::ingress::sniff::{self, Verdict};
use crate::ingress::tunnel::{self, Upstream};

/// Far above what any input needs, far below what a person waits for.
const WAIT: Duration = Duration::from_secs(10);
/// For how long a side reads after it has sent everything.
const PATIENCE: Duration = Duration::from_millis(20);

/// Parts of HTTP, which random bytes would not often be.
const PIECES: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
    "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n",
    "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "HTTP/1.1 103 Early\r\n\r\n",
    "HTTP/1.0 200 OK\r\n\r\n",
    "HTTP/1.1 204 No\r\n\r\n",
    "HTTP/1.1 99 x\r\n\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "0\r\nX: y\r\n\r\n",
    "ffffffffffffffff\r\n",
    "hello",
    "\r\n",
    "\0\0",
    "HTTP/1.1",
    " ",
];

/// What a container sends to the DNS answerer, and what a server outside answers it with: two messages, the first one's length in front.
pub fn dns(bytes: &[u8]) {
    crate::dns::fuzz(bytes);
}

/// The first bytes of an outbound connection.
pub fn sniff(bytes: &[u8]) {
    crate::egress::sniff::fuzz(bytes);
}

/// A name, and the host patterns of mappings, one a line. A name of which workerd would find a
/// mapping is never said to have none.
///
/// # Panics
/// It is.
pub fn hosts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut lines = text.lines().map(str::to_owned);
    let name = lines.next().unwrap_or_default();
    let patterns: Vec<String> = lines.collect();
    let hosts = Hosts::new(&patterns);
    let found = hosts.may_match(&name);
    let is_plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    let same = |pattern: &String| pattern.eq_ignore_ascii_case(&name) || pattern == "*";
    let ends = |pattern: &String| {
        let end = pattern.strip_prefix("*.").map(str::to_ascii_lowercase);
        end.is_some_and(|end| {
            let name = name.to_ascii_lowercase();
            let is_literal = !end.contains('*');
            is_literal
                && name
                    .strip_suffix(&end)
                    .is_some_and(|rest| rest.ends_with('.'))
        })
    };
    if is_plain && !name.is_empty() && patterns.iter().any(|p| same(p) || ends(p)) {
        assert!(found, "{name:?} in {patterns:?}");
    }
}

/// What one side does.
#[derive(Debug, Clone)]
enum Step {
    Send(Vec<u8>),
    /// Ends its side (client) or closes (app).
    End,
}

/// Runs one tunnel between the two sides that the bytes describe.
///
/// # Panics
/// The tunnel does not end when both sides have ended, or sends an app what nobody has sent.
pub fn ingress(bytes: &[u8]) {
    static RUNTIME: Mutex<Option<tokio::runtime::Runtime>> = Mutex::new(None);
    let mut runtime = RUNTIME.lock().unwrap_or_else(|e| e.into_inner());
    let runtime = runtime.get_or_insert_with(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap_or_else(|e| panic!("a runtime: {e}"));
        // A fuzz target's main function is not Rust's, which ignores SIGPIPE: a closed socket would
        // end the process.
        let pipe = tokio::signal::unix::SignalKind::pipe();
        let handled = runtime.block_on(async { tokio::signal::unix::signal(pipe).map(drop) });
        handled.unwrap_or_else(|e| panic!("SIGPIPE: {e}"));
        runtime
    });
    let (client, apps) = steps(bytes);
    let ended = runtime.block_on(async { timeout(WAIT, play(client, apps)).await });
    match ended {
        Ok(Ok(())) => {}
        // The kernel keeps ports of connections that ended for a while (TIME_WAIT); with all of
        // them in use, nothing was tried.
        Ok(Err(error)) if error.kind() == io::ErrorKind::AddrInUse => {
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(Err(error)) => panic!("the test's own sockets: {error}"),
        Err(_) => panic!("the tunnel hangs"),
    }
}

/// The client's steps, and those of each of the app's connections.
fn steps(mut bytes: &[u8]) -> (Vec<Step>, Vec<Vec<Step>>) {
    let (mut client, mut apps) = (Vec::new(), vec![Vec::new()]);
    while let [opcode, rest @ ..] = bytes {
        let (who, length) = (opcode & 3, usize::from(opcode >> 2));
        let (piece, rest) = match (who, length, rest) {
            (2 | 3, ..) => (&[][..], rest),
            (_, 63, [index, rest @ ..]) => {
                (PIECES[usize::from(*index) % PIECES.len()].as_bytes(), rest)
            }
            _ => {
                // Mostly short pieces, some of whole kilobytes.
                let length = if length > 48 {
                    (length - 48) * 512
                } else {
                    length
                };
                rest.split_at(length.min(rest.len()))
            }
        };
        let app = apps.len() - 1;
        match who {
            0 => client.push(Step::Send(piece.to_vec())),
            1 => apps[app].push(Step::Send(piece.to_vec())),
            2 => client.push(Step::End),
            _ => {
                apps[app].push(Step::End);
                apps.push(Vec::new());
            }
        }
        bytes = rest;
    }
    (client, apps)
}

/// The app: its listener, and how many connections it still takes.
struct App {
    listener: TcpListener,
    left: AtomicUsize,
    bandwidth: Bandwidth,
}

struct Way(Arc<App>);

impl Upstream for Way {
    async fn dial(&self) -> io::Result<TcpStream> {
        let one_less = |left: usize| left.checked_sub(1);
        match self
            .0
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
        {
            Ok(_) => TcpStream::connect(self.0.listener.local_addr()?).await,
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    fn is_listening(&self) -> bool {
        self.0.left.load(Ordering::Relaxed) > 0
    }

    fn bandwidth(&self) -> &Bandwidth {
        &self.0.bandwidth
    }
}

async fn play(client: Vec<Step>, apps: Vec<Vec<Step>>) -> io::Result<()> {
    let sent: Vec<u8> = client
        .iter()
        .filter_map(|step| match step {
            Step::Send(bytes) => Some(bytes.as_slice()),
            Step::End => None,
        })
        .flatten()
        .copied()
        .collect();
    let app = Arc::new(App {
        listener: TcpListener::bind("127.0.0.1:0").await?,
        left: AtomicUsize::new(apps.len()),
        bandwidth: Bandwidth::default(),
    });
    let served = tokio::spawn({
        let app = app.clone();
        async move {
            let mut connections = tokio::task::JoinSet::new();
            for steps in apps {
                let (stream, _) = app.listener.accept().await?;
                connections.spawn(act(stream, steps));
            }
            let got = connections.join_all().await;
            Ok::<_, io::Error>(got)
        }
    });
    let front = TcpListener::bind("127.0.0.1:0").await?;
    let (outer, inner) = tokio::try_join!(TcpStream::connect(front.local_addr()?), async {
        Ok(front.accept().await?.0)
    })?;
    let way = Way(app.clone());
    let first = way.dial().await?;
    let client = tokio::spawn(act(outer, client));
    // An error is one of the outcomes.
    let _ = tunnel::carry(inner, BytesMut::new(), first, way).await;
    let _ = client.await;
    // Connections that were never asked for.
    while app.left.load(Ordering::Relaxed) > 0 {
        drop(Way(app.clone()).dial().await?);
    }
    for got in served.await.map_err(io::Error::other)?? {
        let is_raw = sent.starts_with(&got);
        assert!(
            is_raw || sniff::verdict(&got) != Verdict::Other,
            "an app was sent {}",
            got.escape_ascii()
        );
    }
    Ok(())
}

/// Does the steps, and meanwhile and afterwards reads what comes; returns it. A broken connection is an end.
async fn act(stream: TcpStream, steps: Vec<Step>) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let sending = async move {
        for step in steps {
            match step {
                Step::Send(bytes) => {
                    if write.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                Step::End => break,
            }
            tokio::task::yield_now().await;
        }
        drop(write);
    };
    let mut got = Vec::new();
    // Whoever only waits for the other makes way in the end.
    let reading = timeout(PATIENCE, read.read_to_end(&mut got));
    let _ = tokio::join!(sending, reading);
    got
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const FOUND: &[&[u8]] = &[
        // An answer that is none, to a request that is not whole.
        b"\xfc\x21\xfc\x7a\x01\xca\xfd\xfd\xfb\x7b\xfd",
        b"\xfc\x21\xfc\x7a\x01\0\0\0\x41\0\0\0\x0c\xff",
        // An answer before the end of a request that then turns out to be malformed.
        b"\x03\xfc\x98\xfc\xa6\xfd\x3b\xfc\0",
    ];

    fn script() -> impl Strategy<Value = Vec<u8>> {
        let step = prop_oneof![
            6 => (0u8..2, any::<u8>()).prop_map(|(who, piece)| vec![63 << 2 | who, piece]),
            1 => (0u8..2, prop::collection::vec(any::<u8>(), 0..48)).prop_map(|(who, piece)| {
                [&[(piece.len() as u8) << 2 | who], piece.as_slice()].concat()
            }),
            1 => (2u8..4).prop_map(|end| vec![end]),
        ];
        prop::collection::vec(step, 0..24).prop_map(|steps| steps.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn whatever_both_sides_send_the_tunnel_ends(script in script()) {
            super::ingress(&script);
        }

        /// Inputs that once found something.
        #[test]
        fn what_was_found_stays_mended(script in prop::sample::select(FOUND)) {
            super::ingress(script);
        }

        #[test]
        fn any_bytes_will_do(script in prop::collection::vec(any::<u8>(), 0..512)) {
            super::ingress(&script);
        }
    }
}
