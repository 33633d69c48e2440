//! A version's way in: read the multipart upload, check its metadata, resolve its bindings, and make a version of it
//! (contract: wrangler, section 5).
//!
//! Reading stores module by module, so that memory holds one at a time; what a refused upload stored is collected later.

pub(crate) mod bindings;
pub(crate) mod exports;
pub(crate) mod metadata;
pub(crate) mod migrations;
pub(crate) mod multipart;
pub(crate) mod prepare;
