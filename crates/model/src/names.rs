//! Names that workerd's configuration, the prelude in front of a Worker and the dialect that
//! workerd speaks to the engine must agree on.

/// The `imageName` that workerd's configuration names for each container class: the present image
/// of its application.
pub const APPLICATION_IMAGE: &str = "wharf:application";

/// The variable in which a Worker's prelude sends the options of a start. The container never sees
/// it.
pub const START_VARIABLE: &str = "__WHARF_START";
