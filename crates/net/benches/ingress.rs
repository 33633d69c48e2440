//! The ingress beside a direct connection to the same app, in one run. `cargo xtask bench ingress` runs it and shows the figures; here they are JSON.
//!
//! Ways to the app: `direct` (a connection made inside the namespace), `tunnel` (through the ingress, bytes only) and `http` (through the ingress,
//! which understands the messages). Client, ingress and app share the machine, each on threads of its own.

#![allow(clippy::unwrap_used, reason = "a bench may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use wharf_net::{NetConfig, Network, Networks, Target};
use wharf_sandbox::netns;

const WARM_UP: usize = 200;
/// Bytes of a large body.
const LARGE: usize = 256 << 20;
const PIECE: usize = 64 * 1024;
/// The app speaks first there: the ingress carries bytes only.
const BANNER_PORT: u16 = 8081;
const PORT: u16 = 8080;

fn main() {
    let seconds = option("--seconds").unwrap_or(3);
    let rounds = option("--rounds").unwrap_or(3);
    let ingress = Runtime::new().unwrap();
    let network = ingress.block_on(async {
        let networks = Networks::new(NetConfig {
            pool_size: 0,
            hold_ms: 60_000,
            dns_servers: Vec::new(),
            allow_private: false,
        });
        networks.create().await.unwrap()
    });
    network.set_target(Target::Running(Instant::now()));
    let waiting = waiting(&ingress, &network);
    app(&network);
    let mut exchanges = Vec::new();
    for connections in [1, 32] {
        let mut ways = WAYS.map(|way| (way, Vec::new(), Duration::ZERO));
        // In turns: what else the machine does hits all alike.
        for _ in 0..rounds {
            for (way, times, elapsed) in &mut ways {
                let started = Instant::now();
                times.extend(load(&ingress, &network, *way, connections, seconds));
                *elapsed += started.elapsed();
            }
        }
        for (way, mut times, elapsed) in ways {
            times.sort();
            exchanges.push(serde_json::json!({
                "way": way,
                "connections": connections,
                "requests_per_second": times.len() as f64 / elapsed.as_secs_f64(),
                "p50_us": percentile(&times, 0.5),
                "p99_us": percentile(&times, 0.99),
            }));
        }
    }
    let mut bodies = Vec::new();
    for (what, transfer) in [
        ("download", download as fn(&mut Client)),
        ("upload", upload),
    ] {
        let mut ways = WAYS.map(|way| (way, Duration::MAX));
        for _ in 0..rounds {
            for (way, best) in &mut ways {
                let mut client = Client::new(&ingress, &network, *way);
                let started = Instant::now();
                transfer(&mut client);
                *best = started.elapsed().min(*best);
            }
        }
        bodies.extend(ways.map(|(way, best)| {
            let megabytes = LARGE as f64 / 1e6 / best.as_secs_f64();
            serde_json::json!({ "what": what, "way": way, "megabytes_per_second": megabytes })
        }));
    }
    println!(
        "{}",
        serde_json::json!({ "exchanges": exchanges, "bodies": bodies, "waiting": waiting })
    );
}

fn option(name: &str) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|a| a != name).skip(1);
    arguments.next()?.parse().ok()
}

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted[index.min(sorted.len() - 1)].as_secs_f64() * 1e6
}

#[derive(Debug, Clone, Copy, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Direct,
    Tunnel,
    Http,
}

const WAYS: [Way; 3] = [Way::Direct, Way::Tunnel, Way::Http];

/// A minimal HTTP server inside: `GET /` is answered at once, `GET /large` with [`LARGE`] bytes, `POST` with as many when it has read them.
fn app(network: &Network) {
    let ns = network.namespace().unwrap();
    for port in [PORT, BANNER_PORT] {
        let listener = netns::listen_tcp(ns.as_fd(), ([127, 0, 0, 1], port).into()).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(stream, port == BANNER_PORT));
                }
            });
        });
    }
}

async fn serve(mut stream: tokio::net::TcpStream, banner: bool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    if banner {
        stream.write_all(b"\n").await?;
    }
    let piece = vec![b'x'; PIECE];
    let mut buffer = Vec::with_capacity(PIECE);
    loop {
        while !buffer.windows(4).any(|w| w == b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        if buffer.starts_with(b"POST") {
            let head = buffer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            let mut left = LARGE - (buffer.len() - head);
            let mut sink = vec![0; PIECE];
            while left > 0 {
                left -= stream.read(&mut sink).await?;
            }
        }
        if buffer.starts_with(b"GET /large") {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..LARGE / PIECE {
                stream.write_all(&piece).await?;
            }
        } else {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
                .await?;
        }
        buffer.clear();
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(runtime: &Runtime, network: &Network, way: Way) -> Self {
        let stream = match way {
            Way::Direct => {
                let stream = runtime.block_on(network.dial(PORT)).unwrap();
                let stream = stream.into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                stream
            }
            Way::Tunnel | Way::Http => TcpStream::connect(network.ingress()).unwrap(),
        };
        stream.set_nodelay(true).unwrap();
        let mut client = Self(BufReader::with_capacity(PIECE, stream));
        let port = match way {
            Way::Direct => return client,
            Way::Tunnel => BANNER_PORT,
            Way::Http => PORT,
        };
        client.send(&format!(
            "CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n"
        ));
        assert!(client.head().starts_with("HTTP/1.1 200"));
        if matches!(way, Way::Tunnel) {
            client.0.read_exact(&mut [0]).unwrap();
        }
        client
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0);
        }
        head
    }

    fn exchange(&mut self) {
        self.send("GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
        assert!(self.head().starts_with("HTTP/1.1 200"));
        self.0.read_exact(&mut [0; 5]).unwrap();
    }
}

fn download(client: &mut Client) {
    client.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n");
    client.head();
    let mut left = LARGE;
    while left > 0 {
        let n = client.0.fill_buf().unwrap().len();
        assert_ne!(n, 0);
        client.0.consume(n);
        left -= n;
    }
}

fn upload(client: &mut Client) {
    client.send(&format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\n\r\n"
    ));
    let piece = vec![b'x'; PIECE];
    for _ in 0..LARGE / PIECE {
        client.0.get_mut().write_all(&piece).unwrap();
    }
    client.head();
}

/// Times of exchanges.
fn load(
    runtime: &Runtime,
    network: &Network,
    way: Way,
    connections: usize,
    seconds: u64,
) -> Vec<Duration> {
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let mut client = Client::new(runtime, network, way);
            let stop = stop.clone();
            std::thread::spawn(move || {
                for _ in 0..WARM_UP / connections {
                    client.exchange();
                }
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    client.exchange();
                    times.push(started.elapsed());
                }
                times
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(seconds));
    stop.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .flat_map(|t| t.join().unwrap())
        .collect()
}

/// What it costs to wait for a port, and how soon it is noticed. Nothing listens yet.
fn waiting(runtime: &Runtime, network: &Network) -> serde_json::Value {
    let hold = |n: usize| {
        (0..n)
            .map(|_| {
                let mut stream = TcpStream::connect(network.ingress()).unwrap();
                let request = b"CONNECT 127.0.0.1:9999 HTTP/1.1\r\nHost: x\r\n\r\n";
                stream.write_all(request).unwrap();
                stream
            })
            .collect::<Vec<_>>()
    };
    let mut load = Vec::new();
    for (connections, age) in [(1, 0), (100, 0), (1, 20), (100, 20)] {
        let start = Instant::now()
            .checked_sub(Duration::from_secs(age))
            .unwrap();
        network.set_target(Target::Running(start));
        let held = hold(connections);
        // The first looks are closer together, for some milliseconds.
        std::thread::sleep(Duration::from_millis(100));
        let (before, started) = (processor_time(), Instant::now());
        std::thread::sleep(Duration::from_secs(3));
        let share = (processor_time() - before).as_secs_f64() / started.elapsed().as_secs_f64();
        load.push(serde_json::json!({
            "connections": connections, "running_for_s": age, "percent_of_a_core": share * 100.0,
        }));
        drop(held);
        std::thread::sleep(Duration::from_millis(50));
    }
    let ns = network.namespace().unwrap();
    let mut noticed = Vec::new();
    for (age_ms, n) in [(5, 40), (200, 40), (20_000, 40)] {
        let mut times: Vec<Duration> = (0..n)
            .map(|i| {
                let start = Instant::now() - Duration::from_millis(age_ms);
                network.set_target(Target::Running(start));
                let mut held = hold(1).remove(0);
                std::thread::sleep(Duration::from_micros(5_000 + i * 137));
                let listener = netns::listen_tcp(ns.as_fd(), ([127, 0, 0, 1], 9999).into());
                let listened = Instant::now();
                held.read_exact(&mut [0; 12]).unwrap();
                let time = listened.elapsed();
                drop(listener);
                time
            })
            .collect();
        times.sort();
        noticed.push(serde_json::json!({
            "running_for_ms": age_ms, "p50_us": percentile(&times, 0.5), "max_us": percentile(&times, 1.0),
        }));
    }
    let _ = runtime;
    serde_json::json!({ "load": load, "noticed": noticed })
}

/// Of this process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.cast_unsigned(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}
