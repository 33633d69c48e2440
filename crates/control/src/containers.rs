//! Container applications as `wrangler deploy` and `wrangler containers` speak of them (contract: wrangler, sections 3 and 6).

pub(crate) mod applications;
pub(crate) mod checks;
pub(crate) mod images;
pub(crate) mod registry;
pub(crate) mod rollouts;
