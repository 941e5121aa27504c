//! The persistent definitions of the guests, read where libvirt keeps them: that costs no call, and tells by a file's
//! stamp whether anything changed. Only libvirt writes them.

use crate::virsh::Virsh;
use model::address::PciAddress;
use model::domain::{Domain, NAMESPACE, Request, request_text};
use model::error::Result;

/// virsh's option for the definition.
pub const CONFIG: &str = "--config";
/// virsh's option for the guest as it runs.
pub const LIVE: &str = "--live";

/// Has libvirt replace a guest's requests, and nothing else of the definition, or of the guest as it runs.
///
/// # Errors
/// What virsh said.
pub fn set_requests(virsh: &Virsh, uuid: &str, which: &str, requests: &[Request]) -> Result<()> {
    if requests.is_empty() {
        return virsh.run(&["metadata", uuid, "--uri", NAMESPACE, which, "--remove"], "");
    }
    let text = request_text(requests);
    virsh.run(&["metadata", uuid, "--uri", NAMESPACE, "--key", "vfpool", which, "--set", &text], "")
}

/// Has libvirt attach, detach or update one device of a guest's definition: this element. `command` is virsh's.
///
/// # Errors
/// What virsh said.
pub fn edit_device(virsh: &Virsh, command: &str, uuid: &str, element: &str) -> Result<()> {
    virsh.run(&[command, uuid, "/dev/stdin", CONFIG], element)
}

/// What virsh says when a device that is to be detached is not in the definition (`VIR_ERR_DEVICE_MISSING`).
pub const NOT_THERE: &str = "device not found";

/// The interface that keeps per-device boot order alive while the only device that has one is moved: its MAC address.
pub const PLACEHOLDER: &str = "52:54:00:76:66:70";

/// Detaches the hostdev at this address in the guest and attaches it as `text`. Each step is a call of its own: nothing may be
/// detached before its request, one of `requests`, holds it, and of several commands in one call each is run, whatever became
/// of the one before. The reconciler tidies up.
///
/// # Errors
/// What virsh said. The next run of the reconciler goes on.
pub fn replace(
    virsh: &Virsh,
    domain: &Domain,
    requests: &[Request],
    guest_address: PciAddress,
    text: &str,
) -> Result<()> {
    let is_it = |request: &Request| request.guest_address == guest_address;
    let Some(device) = requests.iter().find(|request| is_it(request)).and_then(|request| domain.device_for(request))
    else {
        return Ok(());
    };
    domain.expect_only(device)?;
    let (uuid, old) = (&domain.uuid, domain.text_of(device));
    let set_moving = |moving: Option<&str>| {
        let mut requests = requests.to_vec();
        for request in requests.iter_mut().filter(|request| is_it(request)) {
            request.moving = moving.map(str::to_owned);
        }
        set_requests(virsh, uuid, CONFIG, &requests)
    };
    set_moving(Some(text))?;
    // When the last device that has a boot order goes, libvirt sets another one, and takes no such device again.
    if old.contains("<boot ") && !domain.text().contains(PLACEHOLDER) {
        edit_device(virsh, "attach-device", uuid, &placeholder(domain))?;
    }
    if let Err(error) = edit_device(virsh, "detach-device", uuid, &old) {
        if error.to_string().contains(NOT_THERE) {
            // Somebody has just taken it away, or pointed it elsewhere; the next run is not to bring it back.
            set_moving(None)?;
        }
        return Err(error);
    }
    edit_device(virsh, "attach-device", uuid, text)
}

/// An interface for the place of a device that has a boot order, where the guest has none yet.
fn placeholder(domain: &Domain) -> String {
    let text = domain.text();
    let is_used = |slot: &u32| text.contains(&format!("bus='0x00' slot='0x{slot:02x}'"));
    let slot = (2..=0x1e).rev().find(|slot| !is_used(slot)).unwrap_or(0x1e);
    format!(
        "<interface type='user'><mac address='{PLACEHOLDER}'/><model type='virtio'/><boot order='9999'/>\
         <address type='pci' domain='0x0000' bus='0x00' slot='0x{slot:02x}' function='0x0'/></interface>"
    )
}
