//! Much output, and many at once.

use std::fs::read_to_string;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use wharf_testkit::eventually;

use crate::client::{frame, frames};
use crate::dialect::idle;

/// Bytes that a process has written so far.
fn written(pid: i64) -> u64 {
    let io = read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|l| l.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

/// Waits until a process neither runs nor writes any more; what it has written.
pub(crate) async fn stalled(pid: i64) -> u64 {
    let mut before = (0, 0);
    eventually("the process waits for its reader", async || {
        let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let now = written(pid);
        let steady = if stat.contains(") S ") && now > 0 && now == before.0 {
            before.1 + 1
        } else {
            0
        };
        before = (now, steady);
        (steady == 20).then_some(now)
    })
    .await
}

/// A line of /proc/<pid>/status, bytes.
pub(crate) fn memory(pid: u32, line: &str) -> u64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let kib = kib.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// From now on, the peak is counted anew (proc_pid_clear_refs(5)).
pub(crate) fn reset_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    memory(std::process::id(), "VmHWM")
}

#[tokio::test]
async fn a_slow_reader_slows_the_process_and_fills_no_memory() {
    const BLOCKS: u64 = 32 << 10;
    const ALL: u64 = BLOCKS << 16;
    let (world, daemon, socket) = idle().await;
    let before = reset_peak();
    let id = socket
        .sh(&format!(
            "exec dd if=/dev/zero bs=64k count={BLOCKS} status=none"
        ))
        .await;
    let mut stream = socket.start(&id, json!({})).await;
    let pid = socket.inspect(&id).await["Pid"].as_i64().unwrap();
    let mut read = 0;
    for _ in 0..3 {
        let ahead = stalled(pid).await.saturating_sub(read);
        assert!(ahead < 1 << 20, "{ahead} bytes ahead of the reader");
        for _ in 0..100 {
            read += frame(&mut stream).await.unwrap().1.len() as u64;
        }
    }
    while let Some((number, bytes)) = frame(&mut stream).await {
        assert_eq!(number, 1);
        read += bytes.len() as u64;
    }
    assert_eq!((read, socket.code(&id).await), (ALL, 0));
    let grown = memory(std::process::id(), "VmHWM").saturating_sub(before);
    assert!(grown < 32 << 20, "the daemon grew by {grown} bytes");
    let spawner = memory(daemon.spawner.pid(), "RssAnon");
    assert!(spawner < 2 << 20, "{spawner}");
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn much_input_waits_for_the_process() {
    let (world, daemon, socket) = idle().await;
    let before = reset_peak();
    let id = socket.sh("sleep 0.2; wc -c").await;
    let mut stream = socket.start(&id, json!({})).await;
    let chunk = vec![0; 1 << 20];
    for _ in 0..512 {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let [out, _] = frames(&mut stream).await;
    assert_eq!(out.trim(), (512 << 20).to_string());
    let grown = memory(std::process::id(), "VmHWM").saturating_sub(before);
    assert!(grown < 32 << 20, "the daemon grew by {grown} bytes");
    socket.close().await;
    world.end(daemon).await;
}

#[tokio::test]
async fn a_hundred_at_once() {
    let (world, daemon, socket) = idle().await;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert_eq!(socket.run("true").await.2, 0);
    // What is made ahead has been made.
    let mut before = open();
    eventually("pools are full", async || {
        let last = std::mem::replace(&mut before, open());
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        (open() == last && last == before).then_some(())
    })
    .await;
    let mut tasks = tokio::task::JoinSet::new();
    let socket = std::sync::Arc::new(socket);
    for n in 0..100 {
        let socket = socket.clone();
        tasks.spawn(async move {
            let script = format!("head -c 100000 /dev/zero; echo {n} >&2; exit {n}");
            (n, socket.run(&script).await)
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, (out, err, code)) = done.unwrap();
        assert_eq!((out.len(), err, code), (100_000, format!("{n}\n"), n));
    }
    eventually("no descriptor is left", async || {
        (open() <= before).then_some(())
    })
    .await;
    std::sync::Arc::into_inner(socket).unwrap().close().await;
    world.end(daemon).await;
}
