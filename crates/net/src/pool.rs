//! Namespaces made ahead.
