//! What a start needs to know of the application behind a Durable Object.

use wharf_engine::{Isolation, Limits};

/// What a start needs to know of the application behind a Durable Object.
#[derive(Debug, Clone)]
pub struct ApplicationInfo {
    /// Application id.
    pub id: String,
    /// Name, for error texts.
    pub name: String,
    /// Image reference to start where the start names none.
    pub image: Option<String>,
    /// Image references that a start may name besides.
    pub named_images: Vec<String>,
    /// Limits of a start that names no size.
    pub limits: Limits,
    /// What a start may ask for at most with a size of its own.
    pub largest: Limits,
    /// Most instances at a time.
    pub max_instances: u32,
    /// Instances to keep started ahead; with any, no instance is told its object's id.
    pub min_instances: u32,
    /// What separates its instances from the machine; `None` leaves it to the image's label and
    /// the node.
    pub isolation: Option<Isolation>,
    /// Whether set-user-id programs and file capabilities have no effect in its instances.
    pub no_new_privileges: bool,
    /// Values of the CLOUDFLARE_* variables, to replace workerd's placeholders.
    pub variables: Vec<(String, String)>,
}

impl ApplicationInfo {
    #[cfg(test)]
    pub(crate) fn for_tests() -> ApplicationInfo {
        ApplicationInfo {
            id: "app".into(),
            name: "hello".into(),
            image: Some("hello:1".into()),
            named_images: Vec::new(),
            limits: Limits::default(),
            largest: Limits::default(),
            max_instances: 3,
            min_instances: 0,
            isolation: None,
            no_new_privileges: false,
            variables: Vec::new(),
        }
    }
}
