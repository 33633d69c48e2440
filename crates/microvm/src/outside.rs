//! A process of the guest, as it is outside: its standard streams, its signals and its end are this
//! process's.
//!
//! Owns: the way between descriptors 0 to 2 and a stream of frames. Must not: know what the process
//! is.
//!
//! ```text
//! waiting --Started--> running --Ended--> this process ends alike
//!    \--Refused--> reported, this process ends
//! ```

use std::io;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use wharf_sandbox::TerminalSize;
use wharf_sandbox::microvm::LastWords;

use crate::wire::{CHUNK, Frame, Word, receive_frame, send_frame};

/// Frames under way to the guest.
const UNDER_WAY: usize = 4;

/// How it ended.
pub(crate) enum End {
    /// As the process inside has.
    Ended(LastWords),
    /// The process did not start, which is reported: like a shell's exit code.
    Refused(u8),
}

/// What the process has outside of the machine.
pub(crate) struct Outside<'a> {
    /// Where to tell that it runs, or why not; taken when that is done.
    pub(crate) report: &'a mut Option<OwnedFd>,
    /// Standard input is of use.
    pub(crate) stdin: bool,
    /// Standard input is its terminal.
    pub(crate) terminal: bool,
}

impl Outside<'_> {
    /// Carries both ways until the process inside has ended, and all that it wrote is written.
    ///
    /// # Errors
    /// The stream broke before: what it broke of.
    pub(crate) async fn run<R, W>(self, mut from: R, mut to: W) -> io::Result<End>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (frames, mut queue) = mpsc::channel(UNDER_WAY);
        forward_signals(&frames, self.terminal)?;
        let sender = tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                if send_frame(&mut to, &frame).await.is_err() {
                    break; // The other half tells.
                }
            }
        });
        let (output, error) = (writer(1), writer(2));
        let end = loop {
            match receive_frame(&mut from).await? {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Frame::Word(Word::Started)) => {
                    drop(self.report.take()); // Its end says that it runs.
                    if self.stdin {
                        read_input(frames.clone());
                    }
                }
                Some(Frame::Word(Word::Refused { exit_code, message })) => {
                    let code = u8::try_from(exit_code).unwrap_or(125);
                    if let Some(report) = self.report.take() {
                        refuse(&report, code, &message);
                    }
                    break End::Refused(code);
                }
                Some(Frame::Output(bytes)) => output.put(bytes).await,
                Some(Frame::Error(bytes)) => error.put(bytes).await,
                Some(Frame::Word(Word::Ended(words))) => break End::Ended(words),
                Some(other) => return Err(io::Error::other(format!("unexpected: {other:?}"))),
            }
        };
        output.finish().await;
        error.finish().await;
        sender.abort();
        Ok(end)
    }
}

/// Tells why the program does not run: one byte of exit code, and a message (the sandbox's
/// protocol).
pub(crate) fn refuse(report: &OwnedFd, code: u8, message: &str) {
    let mut text = vec![code];
    text.extend_from_slice(message.as_bytes());
    text.truncate(4096); // PIPE_BUF: at once or not at all.
    let _ = rustix::io::write(report, &text); // Without a reader there is nobody to tell.
}

/// A thread that writes to a descriptor, which may block.
struct Writer {
    queue: mpsc::Sender<Vec<u8>>,
    thread: tokio::task::JoinHandle<()>,
}

fn writer(number: u8) -> Writer {
    let (queue, mut bytes) = mpsc::channel::<Vec<u8>>(UNDER_WAY);
    let thread = tokio::task::spawn_blocking(move || {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let fd = if number == 1 {
            stdout.as_fd()
        } else {
            stderr.as_fd()
        };
        while let Some(bytes) = bytes.blocking_recv() {
            // Nobody reads it any more: as for every process whose reader is gone, but this one
            // must not end of it.
            let _ = write_all(fd, &bytes);
        }
    });
    Writer { queue, thread }
}

impl Writer {
    async fn put(&self, bytes: Vec<u8>) {
        let _ = self.queue.send(bytes).await; // The thread lives as long as the queue.
    }

    async fn finish(self) {
        drop(self.queue);
        let _ = self.thread.await;
    }
}

/// Writes all, waiting where that is needed.
pub(crate) fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    let fd = fd.as_fd();
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [rustix::event::PollFd::new(
                    &fd,
                    rustix::event::PollFlags::OUT,
                )];
                rustix::event::poll(&mut fds, None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A thread that reads standard input to its end. It may never come to that.
fn read_input(frames: mpsc::Sender<Frame>) {
    std::thread::spawn(move || {
        let stdin = io::stdin();
        let mut bytes = vec![0; CHUNK];
        loop {
            match rustix::io::read(&stdin, &mut bytes) {
                Ok(0) | Err(Errno::IO) => break, // EIO: the terminal has hung up.
                Ok(length) => {
                    let frame = Frame::Input(bytes[..length].to_vec());
                    if frames.blocking_send(frame).is_err() {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    eprintln!("wharf: reading standard input: {error}");
                    break;
                }
            }
        }
        let _ = frames.blocking_send(Frame::Word(Word::InputEnds));
    });
}

/// Every signal that a process can be sent, but those that cannot be caught and those that this one
/// gets by its own doing.
fn forward_signals(frames: &mpsc::Sender<Frame>, terminal: bool) -> io::Result<()> {
    const OWN: [i32; 10] = [
        4,  // ILL
        7,  // BUS
        8,  // FPE
        9,  // KILL
        11, // SEGV
        13, // PIPE: nobody reads what the container writes
        17, // CHLD
        19, // STOP
        32, 33, // the C library's
    ];
    const WINCH: i32 = 28;
    for number in (1..=64).filter(|number| !OWN.contains(number)) {
        let mut signals = signal(SignalKind::from_raw(number))?;
        let frames = frames.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let word = match terminal_size() {
                    Some(size) if number == WINCH && terminal => Word::Resize(size),
                    _ => Word::Signal(number),
                };
                if frames.send(Frame::Word(word)).await.is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}

/// Size of the terminal that standard input is.
pub(crate) fn terminal_size() -> Option<TerminalSize> {
    let size = rustix::termios::tcgetwinsize(io::stdin()).ok()?;
    Some(TerminalSize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}
