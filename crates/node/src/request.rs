//! A start, in nobody's dialect.
//!
//! Owns: what a start can ask for. Must not: know whether the caller may have it ([`crate::admission`]
//! decides).

use wharf_engine::{Isolation, Limits, StartOptions};

use crate::environment;
use crate::size::Size;

/// Which image a start names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ImageChoice {
    /// The present image of its application.
    #[default]
    Application,
    /// A reference.
    Named(String),
    /// The name of a container snapshot, with the image that it was taken of.
    Snapshot(String),
}

/// What a start asks for. The default is a start of the application's image that asks for nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StartRequest {
    /// The image.
    pub image: ImageChoice,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command, if not empty.
    pub cmd: Vec<String>,
    /// `K=V`, over the image's.
    pub env: Vec<String>,
    /// User, if not the image's.
    pub user: Option<String>,
    /// Working directory, if not the image's.
    pub working_dir: Option<String>,
    /// Limits; an application's can only be lowered.
    pub limits: Limits,
    /// Limits by the name of a size, or by figures.
    pub size: Option<Size>,
    /// What separates the instance from the machine. Only the operator's start can say it.
    pub isolation: Option<Isolation>,
    /// Whether no program gains privileges when it is executed.
    pub no_new_privileges: bool,
    /// What a Durable Object says with its start.
    pub options: StartOptions,
}

impl StartRequest {
    /// The same start for any other object: without what belongs to one start alone, and without
    /// the platform's variables, which are those of the time when it is used.
    pub fn portable(&self) -> StartRequest {
        StartRequest {
            env: environment::without_platforms(&self.env),
            options: StartOptions::default(),
            ..self.clone()
        }
    }
}
