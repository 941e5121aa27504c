//! What stays detached after vfpool is removed.

use crate::records::Records;
use model::error::Result;
use model::lease::Role;
use model::step::VFIO_PCI;
use model::text::one_line;

/// What is not reattached when its guest stops, as our hook is not called any more; with the commands to do it.
pub fn left_behind(store: &Records) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for guest in store.guests()? {
        for held in store.lease_or_none(&guest).iter().flat_map(|lease| &lease.devices) {
            let (address, role) = (held.address, held.role);
            let before = held.driver.as_deref().unwrap_or("no driver");
            let mut remedies = Vec::new();
            if matches!(role, Role::Sibling | Role::Unmanaged) && held.driver.as_deref() != Some(VFIO_PCI) {
                remedies.push(format!("virsh nodedev-reattach {}", address.nodedev_name()));
            }
            if held.numvfs > 0 {
                remedies.push(format!("echo {} >/sys/bus/pci/devices/{address}/sriov_numvfs", held.numvfs));
            }
            if !remedies.is_empty() {
                lines.push(format!(
                    "{address} ({role} of guest '{}', was on {before}) does not come back by itself any more. When the \
                     guest has stopped: {}",
                    one_line(&guest),
                    remedies.join("; ")
                ));
            }
        }
    }
    Ok(lines)
}
