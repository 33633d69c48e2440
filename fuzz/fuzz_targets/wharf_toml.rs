//! The configuration file.

#![no_main]

// The executable's own module: it has no library.
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../crates/wharf/src/config.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match toml::from_str::<config::Config>(text) {
        Ok(config) => {
            let _ = (config.containers.ids(), config.socket(), config.guest_dir());
        }
        // For a person: it says something.
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
