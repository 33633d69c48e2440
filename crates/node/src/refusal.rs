//! Why a start is refused, in nobody's dialect.

/// Why a start is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Of which kind it is, for the dialect's status.
    pub kind: RefusalKind,
    /// The reason and the remedy, for the deployer.
    pub message: String,
}

/// Kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The start makes no sense.
    Invalid,
    /// The start names an image that its caller may not use.
    Image,
    /// The start asks for more than there is for it.
    TooLarge,
    /// There is nothing to start yet, or no room.
    Unavailable,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(RefusalKind::Invalid, message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Refusal {
        Refusal::new(RefusalKind::TooLarge, message)
    }
}
