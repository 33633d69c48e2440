//! What memory the machine has (proc_meminfo(5)).

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) total: u64,
    /// What can be had without swapping.
    pub(super) available: u64,
}

/// `None` if the kernel does not say.
pub(super) fn read() -> Option<Machine> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(text: &str) -> Option<Machine> {
    let figure = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Machine {
        total: figure("MemTotal:")?,
        available: figure("MemAvailable:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_it() {
        let machine = read().unwrap();
        assert!(machine.available <= machine.total && machine.total > 0);
        let text = "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\n";
        let (total, available) = (2 << 20, 1 << 20);
        assert_eq!(parse(text), Some(Machine { total, available }));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
    }
}
