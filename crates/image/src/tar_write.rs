//! Writes tar archives: ustar headers, with PAX records only where a field does not fit. Equal entries give equal bytes.

use std::io::{self, Read, Write};

use crate::tar_read::{Entry, Kind};

/// What seven octal digits hold.
const SMALL: u64 = 0o7_777_777;
/// What eleven octal digits hold.
const LARGE: u64 = 0o77_777_777_777;

/// An archive on its way out.
#[derive(Debug)]
pub struct TarWriter<W: Write>(W);

impl<W: Write> TarWriter<W> {
    /// To this stream.
    pub fn new(to: W) -> Self {
        Self(to)
    }

    /// Appends a member; of a file, `data` must have exactly `entry.size` bytes.
    pub fn append(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(match entry.kind {
            Kind::File => tar::EntryType::Regular,
            Kind::HardLink => tar::EntryType::Link,
            Kind::Symlink => tar::EntryType::Symlink,
            Kind::CharDevice => tar::EntryType::Char,
            Kind::BlockDevice => tar::EntryType::Block,
            Kind::Directory => tar::EntryType::Directory,
            Kind::Fifo => tar::EntryType::Fifo,
        });
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut path = entry.path.clone();
        if entry.kind == Kind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        {
            let old = header.as_old_mut();
            let mut name = |field: &mut [u8; 100], key: &str, value: &[u8]| {
                let fits = value.len().min(field.len());
                field[..fits].copy_from_slice(&value[..fits]);
                if fits < value.len() {
                    records.push((key.into(), value.to_vec()));
                }
            };
            name(&mut old.name, "path", &path);
            name(&mut old.linkname, "linkpath", &entry.link);
        }
        header.set_mode(entry.mode);
        let mut number = |key: &str, value: u64, most: u64| {
            if value > most {
                records.push((key.into(), value.to_string().into_bytes()));
                0
            } else {
                value
            }
        };
        header.set_uid(number("uid", entry.uid.into(), SMALL));
        header.set_gid(number("gid", entry.gid.into(), SMALL));
        let size = if entry.kind == Kind::File {
            entry.size
        } else {
            0
        };
        header.set_size(number("size", size, LARGE));
        let (seconds, nanos) = entry.mtime;
        match u64::try_from(seconds) {
            Ok(seconds) if nanos == 0 && seconds <= LARGE => header.set_mtime(seconds),
            _ => {
                header.set_mtime(u64::try_from(seconds).unwrap_or(0).min(LARGE));
                records.push(("mtime".into(), pax_time(seconds, nanos)));
            }
        }
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            header.set_device_major(entry.device.0)?;
            header.set_device_minor(entry.device.1)?;
        }
        for (name, value) in &entry.xattrs {
            records.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()));
        }
        header.set_cksum();

        if !records.is_empty() {
            let mut body = Vec::new();
            for (key, value) in &records {
                pax_record(&mut body, key, value);
            }
            let mut extended = tar::Header::new_ustar();
            extended.set_entry_type(tar::EntryType::XHeader);
            extended.as_old_mut().name[..10].copy_from_slice(b"PaxHeaders");
            extended.set_mode(0o644);
            extended.set_uid(0);
            extended.set_gid(0);
            extended.set_mtime(0);
            extended.set_size(body.len() as u64);
            extended.set_cksum();
            self.0.write_all(extended.as_bytes())?;
            self.0.write_all(&body)?;
            self.pad(body.len() as u64)?;
        }
        self.0.write_all(header.as_bytes())?;
        let copied = io::copy(&mut data.take(size), &mut self.0)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        self.pad(size)
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let padding = written.next_multiple_of(512) - written;
        self.0.write_all(&[0; 512][..padding as usize])
    }

    /// Writes the end of the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.0.write_all(&[0; 1024])?;
        Ok(self.0)
    }
}

/// `<length> <key>=<value>\n`, the length counting itself.
fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn pax_time(seconds: i64, nanos: u32) -> Vec<u8> {
    let (sign, seconds, nanos) = if seconds >= 0 {
        ("", seconds.unsigned_abs(), nanos)
    } else if nanos == 0 {
        ("-", seconds.unsigned_abs(), 0)
    } else {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    };
    if nanos == 0 {
        format!("{sign}{seconds}").into_bytes()
    } else {
        format!("{sign}{seconds}.{nanos:09}")
            .trim_end_matches('0')
            .as_bytes()
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tar_read::TarReader;

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            path in proptest::collection::vec(1..=255u8, 1..300), link in proptest::collection::vec(1..=255u8, 0..300),
            mode in 0..0o10000u32, uid in 0..u32::MAX, gid in 0..u32::MAX,
            seconds in -10_000_000_000i64..100_000_000_000, nanos in 0..1_000_000_000u32,
            name in "[a-z.]{1,20}", value: Vec<u8>, data: Vec<u8>,
        ) {
            // A trailing slash means a directory.
            prop_assume!(path.last() != Some(&b'/'));
            let entry = Entry {
                kind: Kind::File, path, link, mode, uid, gid, mtime: (seconds, nanos), size: data.len() as u64,
                device: (0, 0), xattrs: vec![(name.into_bytes(), value)], segments: vec![(0, data.len() as u64)],
            };
            let mut writer = TarWriter::new(Vec::new());
            writer.append(&entry, &mut data.as_slice()).unwrap();
            let bytes = writer.finish().unwrap();
            prop_assert_eq!(bytes.len() % 512, 0);
            let mut reader = TarReader::new(bytes.as_slice());
            let again = reader.next_entry().unwrap().unwrap();
            let mut content = vec![0; data.len()];
            let mut filled = 0;
            while filled < content.len() { filled += reader.read_data(&mut content[filled..]).unwrap(); }
            prop_assert_eq!(content, data);
            prop_assert_eq!(format!("{again:?}"), format!("{entry:?}"));
            prop_assert!(reader.next_entry().unwrap().is_none());
        }
    }
}
