//! /proc/<pid>/smaps and maps (proc_pid_maps(5)), as far as images need them.

use std::io;

/// A mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    /// PROT_*.
    pub(super) protection: i32,
    pub(super) shared: bool,
    /// A path, `[heap]`, or nothing.
    pub(super) name: String,
    /// madvise(2), MADV_WIPEONFORK: zeros for a child.
    pub(super) wiped_on_fork: bool,
    /// MADV_DONTFORK: not there for a child.
    pub(super) not_forked: bool,
}

impl Mapping {
    /// vdso(7) and the data that it reads: the same pages in every process.
    pub(super) fn is_vdso(&self) -> bool {
        self.name == "[vdso]" || self.name.starts_with("[vvar")
    }

    /// At the same place in every process, and beyond what mmap(2) reaches.
    pub(super) fn is_vsyscall(&self) -> bool {
        self.name == "[vsyscall]"
    }

    pub(super) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.end
    }
}

/// What the kernel believes of where things are (proc_pid_stat(5)); the C library's malloc relies
/// on the break.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Areas {
    /// Start and end each.
    pub(super) code: (u64, u64),
    pub(super) data: (u64, u64),
    pub(super) break_start: u64,
    pub(super) stack: u64,
    pub(super) arguments: (u64, u64),
    pub(super) environment: (u64, u64),
}

pub(super) fn areas(pid: i32) -> io::Result<Areas> {
    parse_areas(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::other("a line of stat has too few fields"))
}

fn parse_areas(text: &str) -> Option<Areas> {
    // The name, in parentheses, may hold anything; it is the second field.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(Areas {
        code: (field(26)?, field(27)?),
        stack: field(28)?,
        data: (field(45)?, field(46)?),
        break_start: field(47)?,
        arguments: (field(48)?, field(49)?),
        environment: (field(50)?, field(51)?),
    })
}

/// The mappings of a process, in order of addresses. `flags`: also what it advised, for which the
/// kernel walks all of its pages.
pub(super) fn of(pid: i32, flags: bool) -> io::Result<Vec<Mapping>> {
    let file = if flags { "smaps" } else { "maps" };
    parse(&std::fs::read_to_string(format!("/proc/{pid}/{file}"))?)
}

fn parse(text: &str) -> io::Result<Vec<Mapping>> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = all.last_mut() {
                last.wiped_on_fork = flags.split_whitespace().any(|flag| flag == "wf");
                last.not_forked = flags.split_whitespace().any(|flag| flag == "dc");
            }
            continue;
        }
        let mut words = line.splitn(6, ' ');
        let (Some(range), Some(mode)) = (words.next(), words.next()) else {
            continue;
        };
        // Other lines of smaps: `Size:  4 kB`.
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let number = |text: &str| {
            u64::from_str_radix(text, 16)
                .map_err(|_| io::Error::other(format!("a line of maps: {line:?}")))
        };
        let mode = mode.as_bytes();
        let has = |at: usize, letter: u8| mode.get(at) == Some(&letter);
        let mut protection = libc::PROT_NONE;
        for (at, letter, bit) in [
            (0, b'r', libc::PROT_READ),
            (1, b'w', libc::PROT_WRITE),
            (2, b'x', libc::PROT_EXEC),
        ] {
            if has(at, letter) {
                protection |= bit;
            }
        }
        all.push(Mapping {
            start: number(start)?,
            end: number(end)?,
            protection,
            shared: has(3, b's'),
            name: words.nth(3).unwrap_or_default().trim().to_owned(),
            wiped_on_fork: false,
            not_forked: false,
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let text = "\
55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
Rss:                   4 kB
VmFlags: rd wr mr mw me ac wf
7f1000000000-7f1000001000 r-xs 00002000 fd:00 1234                       /usr/lib/a b.so (deleted)
VmFlags: rd dc
7ffff7fc1000-7ffff7fc5000 r--p 00000000 00:00 0 [vvar_vclock]
7f2000000000-7f2000001000 ---p 00000000 00:00 0 
";
        let maps = parse(text).unwrap();
        assert_eq!(maps.len(), 4);
        assert_eq!(
            (maps[0].start, maps[0].end),
            (0x55d0_c0a0_0000, 0x55d0_c0a2_1000)
        );
        assert!(maps[0].wiped_on_fork && !maps[0].shared && maps[0].name == "[heap]");
        assert!(
            maps[1].shared && maps[1].not_forked && maps[1].name == "/usr/lib/a b.so (deleted)"
        );
        assert_eq!(maps[1].protection, libc::PROT_READ | libc::PROT_EXEC);
        assert!(maps[2].is_vdso() && !maps[2].is_vsyscall());
        assert_eq!(
            (maps[3].protection, maps[3].name.as_str()),
            (libc::PROT_NONE, "")
        );
    }
}
