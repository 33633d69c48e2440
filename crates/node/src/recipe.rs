//! A start without what is one object's own, and the application that it is of: what can be done
//! ahead.

use crate::request::StartRequest;

/// An application that asks for instances to be started ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyTarget {
    /// Its id.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// The script whose objects get them.
    pub script: String,
    /// Of the Durable Object namespace (contract: workerd, 1.1).
    pub unique_key: String,
    /// How many at least; 0: none, whatever it starts.
    pub min_instances: u32,
    /// It never runs more.
    pub max_instances: u32,
}

/// What is started, but for what is one object's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub(crate) start: StartRequest,
    pub(crate) internet: bool,
}

impl Recipe {
    /// Learns from a start that was seen.
    pub(crate) fn new(start: &StartRequest, internet: bool) -> Self {
        Recipe {
            start: start.portable(),
            internet,
        }
    }

    /// What `@cloudflare/containers` starts where the class says nothing: the image's command, no
    /// variables, with internet.
    pub(crate) fn usual() -> Self {
        Recipe {
            start: StartRequest::default(),
            internet: true,
        }
    }
}
