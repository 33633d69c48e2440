//! Reads tar archives: ustar, GNU and PAX, with every length bounded.
//!
//! The `tar` crate's own iterator divides PAX records at line ends, which loses file capabilities and other binary attributes, and reads
//! extended names of any length into memory. So the headers' layout is taken from that crate, and the walk over them is here.

use std::io::Read;

use crate::error::{ImageError, Result};

/// Most bytes of a GNU long name or of one set of PAX records.
const MAX_EXTENSION: u64 = 1024 * 1024;
/// Most pieces of one sparse file.
const MAX_SEGMENTS: usize = 1 << 20;
const BLOCK: usize = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an earlier member.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One member. Paths are as written.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub path: Vec<u8>,
    /// Of a link: where it points to.
    pub link: Vec<u8>,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Unix seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Of the file once it is unpacked, bytes.
    pub size: u64,
    /// Major, minor.
    pub device: (u32, u32),
    /// Extended attributes by full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of each piece of the file that is in the archive, in order.
    pub segments: Vec<(u64, u64)>,
}

impl Entry {
    /// No metadata and no content.
    pub fn bare(kind: Kind, path: Vec<u8>) -> Entry {
        Entry {
            kind,
            path,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            device: (0, 0),
            xattrs: Vec::new(),
            segments: Vec::new(),
        }
    }
}

/// An archive. Read each entry's data before asking for the next entry; what is not read is skipped.
#[derive(Debug)]
pub struct TarReader<R> {
    source: R,
    /// Of the present entry: bytes of data, then of padding, that are still to come.
    data: u64,
    padding: u64,
}

pub(crate) fn bad(why: impl std::fmt::Display) -> ImageError {
    ImageError::Invalid(format!("bad archive: {why}"))
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_version: (Option<u64>, Option<u64>),
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Option<Vec<u8>>,
    sparse_old: bool,
}

impl<R: Read> TarReader<R> {
    /// Of an uncompressed stream.
    pub fn new(source: R) -> Self {
        Self {
            source,
            data: 0,
            padding: 0,
        }
    }

    pub(crate) fn into_inner(self) -> R {
        self.source
    }

    /// Data of the present entry.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.read_some(&mut buffer[..most])?;
        if n == 0 {
            return Err(bad("it ends in the middle of a file"));
        }
        self.data -= n as u64;
        Ok(n)
    }

    /// The next member; `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut pax = None;
        let mut long_name = None;
        let mut long_link = None;
        loop {
            let Some(header) = self.header()? else {
                return if pax.is_some() || long_name.is_some() || long_link.is_some() {
                    Err(bad("it ends after an extended header"))
                } else {
                    Ok(None)
                };
            };
            let old = header.as_old();
            let size = unsigned(&old.size, "size")?;
            self.set_data(size)?;
            match old.linkflag[0] {
                b'L' => long_name = Some(self.extension()?),
                b'K' => long_link = Some(self.extension()?),
                b'x' => pax = Some(parse_pax(&self.extension()?)?),
                b'g' => {}
                flag => {
                    let pax = pax.unwrap_or_default();
                    let path = pax
                        .sparse_name
                        .clone()
                        .or(pax.path.clone())
                        .or(long_name)
                        .unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = pax
                        .link
                        .clone()
                        .or(long_link)
                        .unwrap_or_else(|| until_nul(&old.linkname).to_vec());
                    return self.entry(&header, flag, path, link, pax, size).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        flag: u8,
        path: Vec<u8>,
        link: Vec<u8>,
        pax: Pax,
        header_size: u64,
    ) -> Result<Entry> {
        if path.contains(&0) || link.contains(&0) {
            return Err(bad("a name has a NUL in it"));
        }
        let kind = match flag {
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(bad(format!(
                    "\"{}\" has type '{}', which is not supported",
                    lossy(&path),
                    other.escape_ascii()
                )));
            }
        };
        let old = header.as_old();
        let stored = if kind == Kind::File {
            pax.size.unwrap_or(header_size)
        } else {
            // Only files have data; some writers give links the size of what they point to.
            0
        };
        self.set_data(stored)?;
        let mut entry = Entry {
            kind,
            mode: (signed(&old.mode, "mode")? & 0o7777) as u32,
            uid: owner(pax.uid, &old.uid, "uid")?,
            gid: owner(pax.gid, &old.gid, "gid")?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (signed(&old.mtime, "mtime")?, 0),
            },
            size: stored,
            device: (0, 0),
            xattrs: pax.xattrs,
            segments: vec![(0, stored)],
            path,
            link,
        };
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            let raw = header.as_bytes();
            let number = |field: &[u8]| {
                u32::try_from(unsigned(field, "device number")?)
                    .map_err(|_| bad("a device number is too large"))
            };
            entry.device = (number(&raw[329..337])?, number(&raw[337..345])?);
        }
        if flag == b'S' {
            self.gnu_sparse(header, &mut entry)?;
        } else if pax.sparse_version == (Some(1), Some(0)) {
            let size = pax
                .sparse_size
                .ok_or_else(|| bad("a sparse file without its size"))?;
            let map = self.sparse_map_1_0()?;
            entry.size = size;
            entry.segments = map;
        } else if let Some(map) = &pax.sparse_map {
            let numbers = map
                .split(|b| *b == b',')
                .map(decimal)
                .collect::<Result<Vec<_>>>()?;
            entry.size = pax
                .sparse_size
                .ok_or_else(|| bad("a sparse file without its size"))?;
            entry.segments = pairs(&numbers)?;
        } else if pax.sparse_old || pax.sparse_version != (None, None) {
            return Err(bad(format!(
                "\"{}\" is a sparse file in a format that is not supported; write the archive without --sparse",
                lossy(&entry.path)
            )));
        }
        check_segments(&entry, self.data)?;
        Ok(entry)
    }

    fn set_data(&mut self, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(bad("a file's size is too large"));
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// One header, after whatever is left of the entry before. `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<tar::Header>> {
        let mut left = self.data + self.padding;
        let mut sink = [0; 8192];
        while left > 0 {
            let most = left.min(sink.len() as u64) as usize;
            let n = self.read_some(&mut sink[..most])?;
            if n == 0 {
                return Err(bad("it ends in the middle of a file"));
            }
            left -= n as u64;
        }
        (self.data, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let n = self.read_some(&mut block[filled..])?;
            if n == 0 {
                break;
            }
            filled += n;
        }
        match filled {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(bad("it ends in the middle of a header")),
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|b| u32::from(*b))
            .sum::<u32>()
            + 8 * u32::from(b' ');
        if unsigned(&header.as_old().cksum, "checksum")? != u64::from(sum) {
            return Err(bad(
                "a header's checksum is wrong; is this a tar archive, plain or compressed with gzip or zstd?",
            ));
        }
        Ok(Some(header))
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.source.read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.map_err(|e| bad(format!("cannot read on: {e}"))),
            }
        }
    }

    fn extension(&mut self) -> Result<Vec<u8>> {
        if self.data > MAX_EXTENSION {
            return Err(bad(format!(
                "an extended header has {} bytes, the most is {MAX_EXTENSION}",
                self.data
            )));
        }
        let mut bytes = vec![0; self.data as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read_data(&mut bytes[filled..])?;
        }
        if let Some(end) = bytes.iter().rposition(|b| *b != 0) {
            bytes.truncate(end + 1);
        }
        Ok(bytes)
    }

    /// The old GNU format: four pieces in the header, more in blocks that follow it.
    fn gnu_sparse(&mut self, header: &tar::Header, entry: &mut Entry) -> Result<()> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| bad("a sparse file without a GNU header"))?;
        let mut numbers = Vec::new();
        let mut add = |fields: &[tar::GnuSparseHeader]| -> Result<()> {
            for field in fields.iter().take_while(|f| f.numbytes[0] != 0) {
                numbers.push(unsigned(&field.offset, "sparse offset")?);
                numbers.push(unsigned(&field.numbytes, "sparse length")?);
            }
            if numbers.len() / 2 > MAX_SEGMENTS {
                return Err(bad("a sparse file has too many pieces"));
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.isextended[0] != 0;
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            let mut filled = 0;
            while filled < BLOCK {
                let n = self.read_some(&mut block.as_mut_bytes()[filled..])?;
                if n == 0 {
                    return Err(bad("it ends in the middle of a sparse file's map"));
                }
                filled += n;
            }
            add(&block.sparse)?;
            more = block.isextended[0] != 0;
        }
        entry.size = unsigned(&gnu.realsize, "sparse size")?;
        entry.segments = pairs(&numbers)?;
        Ok(())
    }

    /// PAX format 1.0: the map is text before the data, padded to a block.
    fn sparse_map_1_0(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                let n = self.read_data(&mut block[filled..])?;
                if n == 0 {
                    return Err(bad("a sparse file's map is cut short"));
                }
                filled += n;
            }
            for byte in block {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(bad("a sparse file's map is not numbers"));
                    }
                    continue;
                }
                numbers.push(decimal(&digits)?);
                digits.clear();
                if numbers[0] > MAX_SEGMENTS as u64 {
                    return Err(bad("a sparse file has too many pieces"));
                }
                if numbers.len() as u64 == 1 + 2 * numbers[0] {
                    return pairs(&numbers[1..]);
                }
            }
        }
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MAX_SEGMENTS {
        return Err(bad("a sparse file's map is not pairs of numbers"));
    }
    Ok(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

/// The pieces must be in order, inside the file, and together be exactly the data that is there.
fn check_segments(entry: &Entry, data: u64) -> Result<()> {
    let mut at = 0u64;
    let mut sum = 0u64;
    for (offset, length) in &entry.segments {
        let end = offset.checked_add(*length);
        if *offset < at || end.is_none_or(|end| end > entry.size) {
            return Err(bad(format!(
                "the pieces of the sparse file \"{}\" overlap or lie outside it",
                lossy(&entry.path)
            )));
        }
        at = offset + length;
        sum += length;
    }
    if sum != data {
        return Err(bad(format!(
            "the pieces of the sparse file \"{}\" are not the data that is there",
            lossy(&entry.path)
        )));
    }
    Ok(())
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// A numeric field: octal digits, or GNU's base 256 (first bit set), two's complement. Blank is 0.
fn signed(field: &[u8], what: &str) -> Result<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| bad(format!("a {what} is out of range")));
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => Ok((value << 3) | i64::from(digit - b'0')),
        _ => Err(bad(format!("a {what} is not a number"))),
    })
}

fn unsigned(field: &[u8], what: &str) -> Result<u64> {
    u64::try_from(signed(field, what)?).map_err(|_| bad(format!("a {what} is negative")))
}

fn owner(pax: Option<u64>, field: &[u8], what: &str) -> Result<u32> {
    let value = match pax {
        Some(value) => value,
        None => unsigned(field, what)?,
    };
    // The last one means "leave it as it is" to the kernel.
    u32::try_from(value)
        .ok()
        .filter(|v| *v != u32::MAX)
        .ok_or_else(|| bad(format!("a {what} is out of range")))
}

fn decimal(text: &[u8]) -> Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| bad("an extended header has a number that is none"))
}

/// `seconds[.fraction]`, maybe negative, to whole seconds (rounded down) and nanoseconds.
fn pax_time(text: &[u8]) -> Result<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    let seconds =
        i64::try_from(decimal(whole)?).map_err(|_| bad("a modification time is out of range"))?;
    let mut nanos = 0;
    for at in 0..9 {
        let digit = fraction.get(at).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return Err(bad("a modification time is not a number"));
        }
        nanos = nanos * 10 + u32::from(digit - b'0');
    }
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// Records are `<length> <key>=<value>\n`; the value may hold any byte.
fn parse_pax(mut bytes: &[u8]) -> Result<Pax> {
    let malformed = || bad("an extended header is malformed");
    let mut pax = Pax::default();
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .take(20)
            .position(|b| *b == b' ')
            .ok_or_else(malformed)?;
        let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| malformed())?;
        let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
        bytes = &bytes[length..];
        let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record
            .iter()
            .position(|b| *b == b'=')
            .ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => pax.path = Some(value.to_vec()),
            b"linkpath" => pax.link = Some(value.to_vec()),
            b"size" => pax.size = Some(decimal(value)?),
            b"uid" => pax.uid = Some(decimal(value)?),
            b"gid" => pax.gid = Some(decimal(value)?),
            b"mtime" => pax.mtime = Some(pax_time(value)?),
            b"GNU.sparse.major" => pax.sparse_version.0 = Some(decimal(value)?),
            b"GNU.sparse.minor" => pax.sparse_version.1 = Some(decimal(value)?),
            b"GNU.sparse.name" => pax.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                pax.sparse_size = Some(decimal(value)?);
            }
            b"GNU.sparse.map" => pax.sparse_map = Some(value.to_vec()),
            b"GNU.sparse.offset" => pax.sparse_old = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(pax)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(bytes: &[u8]) -> Result<Vec<Entry>> {
        let mut reader = TarReader::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    #[test]
    fn numbers_in_all_their_spellings() {
        assert_eq!(signed(b"0000644\0", "x").unwrap(), 0o644);
        assert_eq!(signed(b"   644 \0", "x").unwrap(), 0o644);
        assert_eq!(signed(b"\0\0\0\0", "x").unwrap(), 0);
        assert_eq!(signed(b"\x80\0\0\0\x01\0\0\0", "x").unwrap(), 1 << 24);
        assert_eq!(
            signed(b"\xff\xff\xff\xff\xff\xff\xff\xfe", "x").unwrap(),
            -2
        );
        assert!(signed(b"9", "x").is_err());
        assert!(unsigned(b"\xff\xff\xff\xff\xff\xff\xff\xfe", "x").is_err());
        assert_eq!(pax_time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(pax_time(b"-1.25").unwrap(), (-2, 750_000_000));
    }

    #[test]
    fn a_huge_extended_header_is_refused_before_it_is_read() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = drain(header.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("the most is"), "{error}");
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_and_never_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), fix in any::<bool>()
        ) {
            if fix && bytes.len() >= BLOCK {
                // A right checksum gets further in.
                let mut header = tar::Header::from_byte_slice(&bytes[..BLOCK]).clone();
                header.set_cksum();
                bytes[..BLOCK].copy_from_slice(header.as_bytes());
            }
            let _ = drain(&bytes);
        }
        #[test]
        fn hostile_pax_records_are_an_error_and_never_a_panic(bytes: Vec<u8>, text in "[0-9]{1,3} [a-zGNU.]{0,9}=?\\PC{0,9}\n") {
            let _ = parse_pax(&bytes);
            let _ = parse_pax(text.as_bytes());
        }
    }
}
