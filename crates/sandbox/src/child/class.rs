//! Isolation classes: what separates a container from the machine. Each class is a module that
//! answers every question below with the function of the same name; what holds for all classes is
//! outside of here.
//!
//! | question | |
//! |---|---|
//! | `root_of` | where the root of a running container is |
//! | `limits` | what its cgroup is held to at first |
//! | `filter` | the system call filter of its first process |
//! | `enter_root` | how its file system becomes `/` |
//! | `become_program` | from the namespaces to exec: the first process, and those that join |
//! | `signal` | how a signal reaches a process of it |
//! | `exec_report` | what the report of a process that joins says |
//! | `has_last_words` | whether it tells more of its end than an exit code |
//! | `is_on_host_kernel` | whether its processes are the host kernel's own |
//!
//! Owns: the dispatch. Must not: allocate between clone and exec; so these are enums, without
//! trait objects.
//!
//! A new class is a module here, a variant of [`IsolationSpec`] and of [`IsolationClass`], and a
//! line for each question: the compiler names those that are missing.

mod gvisor;
mod microvm;
mod namespace;
mod outer;

use std::cell::Cell;
use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::mounts::Parts;
use super::stage::Stage;
use super::{Failure, Plan};
use crate::seccomp::Profile;
use crate::spec::{IsolationSpec, Limits, Root};

/// The class of a container, without what it is made of ([`IsolationSpec`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsolationClass {
    /// [`IsolationSpec::Namespace`].
    Namespace,
    /// [`IsolationSpec::Gvisor`].
    Gvisor,
    /// [`IsolationSpec::Microvm`].
    Microvm,
}

/// Which process of a container a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalTarget {
    /// The first one.
    Main,
    /// A process that joined, by its number inside.
    Inside(i32),
}

/// How a signal reaches a process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SignalRoute {
    /// The host's kernel delivers it.
    Kernel,
    /// A program of the class does, with these arguments, at [`super::Place::Beside`]; or why it
    /// cannot.
    Program(Result<Vec<String>, String>),
}

/// What a process that joins a container reports of its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExecReport {
    /// The report says nothing: exec closes the pipe.
    Closed,
    /// Its number inside, as text.
    Number,
}

impl IsolationSpec {
    /// The class, without the host's files that it needs.
    pub fn class(&self) -> IsolationClass {
        match self {
            IsolationSpec::Namespace => IsolationClass::Namespace,
            IsolationSpec::Gvisor { .. } => IsolationClass::Gvisor,
            IsolationSpec::Microvm(_) => IsolationClass::Microvm,
        }
    }

    /// What the cgroup is held to at first, where these limits were asked for. A limit of CPU that
    /// is missing here comes with the program's start.
    pub(crate) fn limits(&self, asked: &Limits) -> Limits {
        match self {
            IsolationSpec::Namespace => namespace::limits(asked),
            IsolationSpec::Gvisor { .. } => gvisor::limits(asked),
            IsolationSpec::Microvm(machine) => microvm::limits(asked, machine),
        }
    }

    /// Makes the file system and makes it `/`. `ahead`: what was made of it before it was known
    /// whose it is; only for a class with [`IsolationClass::is_on_host_kernel`].
    pub(super) fn enter_root(
        &self,
        parts: &Parts<'_>,
        plan: &Plan<'_>,
        ahead: Option<Stage>,
    ) -> Result<(), Failure> {
        match self {
            IsolationSpec::Namespace => namespace::enter_root(parts, plan, ahead),
            IsolationSpec::Gvisor { runsc } => gvisor::enter_root(parts, runsc, plan),
            IsolationSpec::Microvm(machine) => microvm::enter_root(parts, machine, plan),
        }
    }
}

impl IsolationClass {
    /// Whether the container's processes are the host kernel's own. Only such processes can inherit
    /// descriptors, begin from a process image, be made ahead, or run without a container.
    pub fn is_on_host_kernel(self) -> bool {
        match self {
            IsolationClass::Namespace => true,
            IsolationClass::Gvisor => false,
            IsolationClass::Microvm => false,
        }
    }

    /// Where the root of a running container is, given by its main process: with its mounts, and
    /// without those that another kernel makes.
    pub fn root_of(self, pid: i32) -> PathBuf {
        match self {
            IsolationClass::Namespace => namespace::root_of(pid),
            IsolationClass::Gvisor => gvisor::root_of(pid),
            IsolationClass::Microvm => microvm::root_of(pid),
        }
    }

    /// The filter of the first process.
    pub(crate) fn filter(self, root: &Root) -> Profile {
        match self {
            IsolationClass::Namespace => namespace::filter(root),
            IsolationClass::Gvisor => gvisor::filter(),
            IsolationClass::Microvm => microvm::filter(),
        }
    }

    /// Ends in exec, or with the step that failed.
    pub(super) fn become_program(
        self,
        plan: &Plan<'_>,
        report: &Cell<BorrowedFd<'_>>,
    ) -> Result<Infallible, Failure> {
        match self {
            IsolationClass::Namespace => namespace::become_program(plan, report),
            IsolationClass::Gvisor => gvisor::become_program(plan, report),
            IsolationClass::Microvm => microvm::become_program(plan, report),
        }
    }

    /// How a signal reaches a process that runs.
    pub(crate) fn signal(self, target: SignalTarget, signal: i32) -> SignalRoute {
        match self {
            IsolationClass::Namespace => SignalRoute::Kernel,
            IsolationClass::Gvisor => gvisor::signal(target, signal),
            // The agent hands it on.
            IsolationClass::Microvm => SignalRoute::Kernel,
        }
    }

    /// What the report of a process that joins says.
    pub(crate) fn exec_report(self) -> ExecReport {
        match self {
            IsolationClass::Namespace => ExecReport::Closed,
            IsolationClass::Gvisor => ExecReport::Number,
            IsolationClass::Microvm => ExecReport::Closed,
        }
    }

    /// Whether the first process tells how the container ended ([`crate::microvm::LastWords`]).
    pub(crate) fn has_last_words(self) -> bool {
        match self {
            IsolationClass::Namespace => false,
            IsolationClass::Gvisor => false,
            IsolationClass::Microvm => true,
        }
    }
}
