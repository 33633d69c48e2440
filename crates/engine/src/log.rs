//! The kept output of one instance: two segment files, `log.0` (being written) and `log.1` (the one
//! before), each at most half of the bound. Whoever reads it while it is written
//! ([`crate::follow`]) is told how far it has grown.
//!
//! An entry is one byte for the stream (1 out, 2 err), eight for the time (unix ms, little endian),
//! four for the length, and the bytes. A torn last entry (the machine stopped in the midst of a
//! write) is cut off when the file is opened again.
//!
//! Whoever has a segment open holds a shared lock on it (flock(2)): one that nobody has open may
//! become another instance's ([`recycle`]).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::net::unix::pipe;
use tokio::sync::watch;

/// The segment that is written.
pub(crate) const CURRENT: &str = "log.0";
/// The one before it.
pub(crate) const BEFORE: &str = "log.1";
const HEADER: usize = 13;
/// After so long without output its file is closed: an idle container is to hold few descriptors.
const SILENT: std::time::Duration = std::time::Duration::from_secs(2);
/// The most bytes that are read from a pipe at a time.
const CHUNK: usize = 16 * 1024;

/// A piece of output: whether it is from standard error, when it came (unix ms), and its bytes.
pub type Entry = (bool, i64, Vec<u8>);

/// How far an instance's log has grown since this daemon has the instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Grown {
    /// Counts segments; the current one.
    pub(crate) segment: u64,
    /// Bytes in it; 0 if nothing was written yet.
    pub(crate) length: u64,
}

/// Appends entries. The files are made with the first one.
#[derive(Debug)]
pub(crate) struct Writer {
    dir: PathBuf,
    segment_bytes: u64,
    current: Option<(File, u64)>,
    /// How long the current segment was when it was closed: with the same length it needs no look
    /// into it.
    closed: Option<u64>,
    grown: watch::Sender<Grown>,
}

impl Writer {
    pub(crate) fn new(dir: &Path, log_bytes: u64, grown: watch::Sender<Grown>) -> Self {
        Writer {
            dir: dir.to_owned(),
            // A bound of less than two chunks would drop everything at once.
            segment_bytes: (log_bytes / 2).max(CHUNK as u64 * 2),
            current: None,
            closed: None,
            grown,
        }
    }

    pub(crate) fn append(&mut self, is_stderr: bool, unix_ms: i64, bytes: &[u8]) -> io::Result<()> {
        let mut entry = Vec::with_capacity(HEADER + bytes.len());
        entry.push(if is_stderr { 2 } else { 1 });
        entry.extend_from_slice(&unix_ms.to_le_bytes());
        entry.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        entry.extend_from_slice(bytes);
        let path = self.dir.join(CURRENT);
        let (mut file, mut length) = match self.current.take() {
            Some(open) => open,
            None => open_append(&path, self.closed.take())?,
        };
        if length > 0 && length + entry.len() as u64 > self.segment_bytes {
            fs::rename(&path, self.dir.join(BEFORE))?;
            self.grown.send_modify(|grown| {
                *grown = Grown {
                    segment: grown.segment + 1,
                    length: 0,
                };
            });
            (file, length) = open_append(&path, None)?;
        }
        file.write_all(&entry)?;
        length += entry.len() as u64;
        self.grown.send_modify(|grown| grown.length = length);
        self.current = Some((file, length));
        Ok(())
    }

    /// Closes the file until the next entry.
    fn rest(&mut self) {
        self.closed = self.current.take().map(|(_, length)| length);
    }
}

/// `known`: a length at which it is known to be whole.
fn open_append(path: &Path, known: Option<u64>) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    file.lock_shared()?;
    let length = file.metadata()?.len();
    if length == 0 || known == Some(length) {
        return Ok((file, length));
    }
    let (_, good) = parse(&fs::read(path)?);
    if good < length {
        file.set_len(good)?;
    }
    Ok((file, good))
}

/// A segment, to be read. `None`: there is none (any more).
pub(crate) fn open(dir: &Path, name: &str) -> io::Result<Option<File>> {
    let path = dir.join(name);
    let found = || -> io::Result<File> {
        let file = File::open(&path)?;
        file.lock_shared()?;
        // Before the lock it may have become another's, which then has another path.
        match fs::metadata(&path)?.ino() == file.metadata()?.ino() {
            true => Ok(file),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    };
    match found() {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All entries kept, oldest first.
pub(crate) fn read(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for name in [BEFORE, CURRENT] {
        let mut bytes = Vec::new();
        let Some(mut file) = open(dir, name)? else {
            continue;
        };
        file.read_to_end(&mut bytes)?;
        entries.extend(parse(&bytes).0);
    }
    Ok(entries)
}

/// Makes the log in `dir` an empty one, for another instance; `dir` has left the path where it is
/// looked for. A segment that somebody still has open is removed instead, and ends with them.
pub(crate) fn recycle(dir: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(dir.join(BEFORE)))?;
    let path = dir.join(CURRENT);
    let current = match OpenOptions::new().write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match current.try_lock() {
        Ok(()) => current.set_len(0),
        Err(TryLockError::WouldBlock) => gone(fs::remove_file(path)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whole entries, and how many bytes they take.
pub(crate) fn parse(mut bytes: &[u8]) -> (Vec<Entry>, u64) {
    let (mut entries, mut good) = (Vec::new(), 0);
    while let Some((head, rest)) = bytes.split_at_checked(HEADER) {
        let mut time = [0; 8];
        time.copy_from_slice(&head[1..9]);
        let mut length = [0; 4];
        length.copy_from_slice(&head[9..13]);
        let Some((body, rest)) = rest.split_at_checked(u32::from_le_bytes(length) as usize) else {
            break;
        };
        if !matches!(head[0], 1 | 2) {
            break;
        }
        entries.push((head[0] == 2, i64::from_le_bytes(time), body.to_vec()));
        good += (HEADER + body.len()) as u64;
        bytes = rest;
    }
    (entries, good)
}

/// Carries both pipes into the log until both are at their end. Whatever goes wrong with the disk,
/// the pipes are still emptied: a full log must not stop the program that writes it.
pub(crate) async fn pump(mut writer: Writer, stdout: OwnedFd, stderr: OwnedFd) {
    let mut pipes = [receiver(stdout), receiver(stderr)];
    let mut complained = false;
    loop {
        let [out, err] = &pipes;
        let is_stderr = tokio::select! {
            () = readable(out.as_ref()), if out.is_some() => false,
            () = readable(err.as_ref()), if err.is_some() => true,
            () = tokio::time::sleep(SILENT), if writer.current.is_some() && (out.is_some() || err.is_some()) => {
                writer.rest();
                continue;
            }
            else => return,
        };
        // Allocated only while there is something to read: most instances are silent most of the
        // time.
        let mut bytes = vec![0; CHUNK];
        let slot = &mut pipes[usize::from(is_stderr)];
        let Some(pipe) = slot else { continue };
        match pipe.try_read(&mut bytes) {
            Ok(0) => *slot = None,
            Ok(length) => {
                let written = writer.append(is_stderr, crate::now_ms(), &bytes[..length]);
                if let Err(error) = written
                    && !std::mem::replace(&mut complained, true)
                {
                    tracing::warn!(dir = %writer.dir.display(), %error, "output of an instance cannot be kept");
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(dir = %writer.dir.display(), %error, "output of an instance cannot be read");
                *slot = None;
            }
        }
    }
}

fn receiver(fd: OwnedFd) -> Option<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd)
        .inspect_err(|error| tracing::warn!(%error, "output of an instance is no pipe"))
        .ok()
}

async fn readable(pipe: Option<&pipe::Receiver>) {
    if let Some(pipe) = pipe
        // An error shows again in the read that follows.
        && pipe.readable().await.is_ok()
    {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_output_is_kept_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let bound = 4 * CHUNK as u64;
        let mut writer = Writer::new(dir.path(), bound, watch::Sender::default());
        for n in 0..1000i64 {
            let line = format!("{n:0>1000}\n");
            writer.append(n % 2 == 1, n, line.as_bytes()).unwrap();
        }
        let kept = read(dir.path()).unwrap();
        let bytes: usize = kept.iter().map(|e| HEADER + e.2.len()).sum();
        assert!(bytes as u64 <= bound && bytes as u64 > bound / 2 - 2000);
        assert_eq!(kept.last().unwrap().1, 999);
        assert!(
            kept.iter()
                .zip(kept.iter().skip(1))
                .all(|(a, b)| a.1 + 1 == b.1)
        );
        assert!(kept.iter().all(|e| e.0 == (e.1 % 2 == 1)));
    }

    #[test]
    fn a_log_that_was_closed_while_nothing_came_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), 1 << 20, watch::Sender::default());
        for n in 0..3 {
            writer.append(false, n, b"more").unwrap();
            writer.rest();
        }
        assert_eq!(read(dir.path()).unwrap().len(), 3);
        // Something else has touched it meanwhile: then it is looked into.
        let mut file = OpenOptions::new()
            .append(true)
            .open(dir.path().join(CURRENT))
            .unwrap();
        file.write_all(b"torn").unwrap();
        writer.append(false, 3, b"more").unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 4);
    }

    #[test]
    fn a_torn_entry_is_cut_off_and_writing_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), 1 << 20, watch::Sender::default());
        writer.append(false, 1, b"whole").unwrap();
        writer.append(false, 2, b"torn").unwrap();
        drop(writer);
        let path = dir.path().join("log.0");
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length - 2)
            .unwrap();
        let mut writer = Writer::new(dir.path(), 1 << 20, watch::Sender::default());
        writer.append(true, 3, b"after").unwrap();
        assert_eq!(
            read(dir.path()).unwrap(),
            vec![(false, 1, b"whole".to_vec()), (true, 3, b"after".to_vec())]
        );
    }

    #[test]
    fn what_somebody_has_open_never_becomes_another_instances() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        fs::create_dir(&first).unwrap();
        let write = |dir: &Path, text: &[u8]| {
            let mut writer = Writer::new(dir, 1 << 20, watch::Sender::default());
            writer.append(false, 1, text).unwrap();
            writer
        };
        let inode = |dir: &Path| fs::metadata(dir.join(CURRENT)).map(|file| file.ino()).ok();

        drop(write(&first, b"secret"));
        let made = inode(&first);
        fs::rename(&first, &second).unwrap();
        recycle(&second).unwrap();
        assert_eq!(
            (inode(&second), read(&second).unwrap()),
            (made, vec![]),
            "it is used again"
        );
        assert!(open(&first, CURRENT).unwrap().is_none());

        let late = write(&second, b"mine");
        fs::rename(&second, &first).unwrap();
        recycle(&first).unwrap();
        assert_eq!(inode(&first), None, "its writer may write more");
        drop(late);

        drop(write(&first, b"mine"));
        let mut reader = open(&first, CURRENT).unwrap().unwrap();
        fs::rename(&first, &second).unwrap();
        recycle(&second).unwrap();
        drop(write(&second, b"not for the reader"));
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(parse(&bytes).0, [(false, 1, b"mine".to_vec())]);
    }

    #[tokio::test]
    async fn both_pipes_are_read_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let (out_read, out_write) = io::pipe().unwrap();
        let (err_read, err_write) = io::pipe().unwrap();
        let task = tokio::spawn(pump(
            Writer::new(dir.path(), 1 << 20, watch::Sender::default()),
            out_read.into(),
            err_read.into(),
        ));
        { err_write }.write_all(b"oops").unwrap();
        let mut out = out_write;
        out.write_all(b"one").unwrap();
        tokio::task::yield_now().await;
        out.write_all(b"two").unwrap();
        drop(out);
        task.await.unwrap();
        let kept = read(dir.path()).unwrap();
        let text = |stderr: bool| -> Vec<u8> {
            kept.iter()
                .filter(|e| e.0 == stderr)
                .flat_map(|e| e.2.clone())
                .collect()
        };
        assert_eq!(
            (text(false), text(true)),
            (b"onetwo".to_vec(), b"oops".to_vec())
        );
    }
}
