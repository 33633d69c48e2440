//! What is tried, and what must be seen.

use anyhow::Result;
use futures_util::future::LocalBoxFuture;
use wharf_sandbox::weak::Wall;

use crate::class::Class;
use crate::world::{Setup, World};

/// With the walls, or without those that a case names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Held,
    Weak,
}

/// Walls, and whether containers have user namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Walls {
    pub(crate) down: Vec<Wall>,
    pub(crate) users: bool,
}

impl Walls {
    pub(crate) const ALL: Walls = Walls {
        down: Vec::new(),
        users: true,
    };

    pub(crate) fn without(down: &[Wall]) -> Walls {
        let mut down = down.to_vec();
        down.sort_unstable();
        Walls { down, users: true }
    }

    /// Root inside is the host's root, with all capabilities and system calls.
    pub(crate) fn privileged(more: &[Wall]) -> Walls {
        let mut all = vec![Wall::Seccomp, Wall::Capabilities];
        all.extend_from_slice(more);
        Walls {
            users: false,
            ..Walls::without(&all)
        }
    }
}

type Arguments = fn(&World, Side) -> Vec<String>;
type Change = fn(&World, Side, &mut Setup) -> Result<()>;
pub(crate) type Outside = for<'a> fn(&'a World, Side) -> LocalBoxFuture<'a, Result<String>>;

/// A probe of the hostile program in one container.
pub(crate) struct Inside {
    /// Its name there.
    pub(crate) probe: &'static str,
    pub(crate) arguments: Arguments,
    pub(crate) held: Walls,
    pub(crate) weak: Walls,
    pub(crate) change: Change,
}

pub(crate) enum How {
    Inside(Inside),
    /// More than that.
    Outside(Outside),
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) how: How,
    /// One of these must be seen behind the walls.
    pub(crate) expected: Vec<&'static str>,
    /// The walls that must be gone, in words.
    pub(crate) weakening: &'static str,
    /// One of these must be seen without them.
    pub(crate) succeeds: Vec<&'static str>,
    /// A kernel of the container's own may do this inside, for itself: then only the host is looked at.
    pub(crate) emulated: bool,
    /// It must do what it does, in every class: else the others might hold because nothing works.
    pub(crate) control: bool,
    /// What the kernel says where it has no such thing; then success cannot be shown here.
    pub(crate) lacking: Option<&'static str>,
    /// Why it is not tried at all.
    pub(crate) skipped: Option<String>,
    /// Why success cannot be shown, here or anywhere.
    pub(crate) unshown: Option<String>,
}

impl Case {
    /// A probe that the hostile program has under the same name.
    pub(crate) fn inside(name: &'static str, about: &'static str) -> Case {
        Case {
            name,
            about,
            how: How::Inside(Inside {
                probe: name,
                arguments: |_, _| Vec::new(),
                held: Walls::ALL,
                weak: Walls::ALL,
                change: |_, _, _| Ok(()),
            }),
            expected: vec!["EPERM"],
            weakening: "",
            succeeds: vec!["worked"],
            emulated: false,
            control: false,
            lacking: None,
            skipped: None,
            unshown: None,
        }
    }

    pub(crate) fn outside(name: &'static str, about: &'static str, how: Outside) -> Case {
        Case {
            how: How::Outside(how),
            ..Case::inside(name, about)
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Inside)) -> Case {
        if let How::Inside(inside) = &mut self.how {
            change(inside);
        }
        self
    }

    pub(crate) fn probe(self, probe: &'static str) -> Case {
        self.with(|inside| inside.probe = probe)
    }

    pub(crate) fn arguments(self, arguments: Arguments) -> Case {
        self.with(|inside| inside.arguments = arguments)
    }

    pub(crate) fn change(self, change: Change) -> Case {
        self.with(|inside| inside.change = change)
    }

    /// Walls that are down in both runs: to see the one behind them.
    pub(crate) fn held(self, walls: Walls) -> Case {
        self.with(|inside| inside.held = walls)
    }

    pub(crate) fn expect(mut self, seen: &[&'static str]) -> Case {
        self.expected = seen.to_vec();
        self
    }

    /// What must go, in words, and what must be seen then.
    pub(crate) fn weak(
        mut self,
        weakening: &'static str,
        walls: Walls,
        seen: &[&'static str],
    ) -> Case {
        self.weakening = weakening;
        self.succeeds = seen.to_vec();
        self.with(|inside| inside.weak = walls)
    }

    /// The same where no wall of the sandbox's own goes.
    pub(crate) fn without(self, weakening: &'static str, seen: &[&'static str]) -> Case {
        self.weak(weakening, Walls::ALL, seen)
    }

    pub(crate) fn emulated(mut self) -> Case {
        self.emulated = true;
        self
    }

    pub(crate) fn may_lack(mut self, seen: &'static str) -> Case {
        self.lacking = Some(seen);
        self
    }

    /// Success cannot be shown on any machine.
    pub(crate) fn unshown(mut self, reason: &str) -> Case {
        self.unshown = Some(reason.to_owned());
        self
    }

    /// What must work everywhere.
    pub(crate) fn control(mut self, seen: &[&'static str]) -> Case {
        self.control = true;
        self.expect(seen)
            .unshown("it is a control, which must work behind all walls")
    }

    /// It is about a wall that older kernels do not have.
    pub(crate) fn since_linux(mut self, major: u32, minor: u32) -> Case {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release
            .split(['.', '-'])
            .map(|n| n.parse::<u32>().unwrap_or(0));
        let own = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if own < (major, minor) {
            self.skipped = Some(format!(
                "not tried: this is about Linux {major}.{minor} and later"
            ));
        }
        self
    }

    /// Success takes a file that not every kernel has.
    pub(crate) fn needs(self, path: &str) -> Case {
        match std::path::Path::new(path).exists() {
            true => self,
            false => self.unshown(&format!("this kernel has no {path}")),
        }
    }

    /// Success takes a capability, which this machine's root may lack.
    pub(crate) fn needs_capability(self, name: &str, bit: u32) -> Case {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
        let held = u64::from_str_radix(line.unwrap_or_default().trim(), 16).unwrap_or(0);
        match held & 1 << bit {
            0 => self.unshown(&format!("root has no {name} on this machine")),
            _ => self,
        }
    }

    /// Whether what was seen is what must be in this class.
    pub(crate) fn holds(&self, class: Class, seen: &str) -> bool {
        match class {
            _ if self.control => self.expected.contains(&seen),
            Class::Namespace => self.expected.contains(&seen),
            // It has other words for a refusal.
            Class::Gvisor | Class::Microvm => {
                !seen.starts_with("error:") && (self.emulated || !self.succeeds.contains(&seen))
            }
        }
    }
}
