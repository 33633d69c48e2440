//! Capabilities (capabilities(7)).

use rustix::io::{Errno, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// No capability.
pub(super) const NONE: CapabilitySet = CapabilitySet::empty();

/// Drops everything but `keep` from the bounding set, for good.
pub(super) fn bound(keep: CapabilitySet) -> Result<()> {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            Err(Errno::INVAL) => break, // Beyond the kernel's last one.
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Permitted and effective become `keep` (as far as they are held), inheritable and ambient empty.
pub(super) fn limit(keep: CapabilitySet) -> Result<()> {
    clear_ambient_capability_set()?;
    let held = capabilities(None)?.permitted & keep;
    set_capabilities(
        None,
        CapabilitySets {
            effective: held,
            permitted: held,
            inheritable: NONE,
        },
    )
}
