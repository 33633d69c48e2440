//! The operator socket: images, builds, containers, for `wharf docker` and Docker clients.
