//! Edits of one guest through virsh: its requests, and one device at a time.

use crate::session::Session;
use crate::virsh::{CONFIG, Failure};
use model::address::PciAddress;
use model::domain::{Domain, NAMESPACE, Request, request_text};

/// The MAC address of the interface that stands in for a device with a boot order while that is moved.
pub(crate) const PLACEHOLDER: &str = "52:54:00:76:66:70";

impl Session<'_> {
    /// Has libvirt replace a guest's requests, and nothing else of the definition, or of the guest as it runs.
    pub(crate) fn set_requests(&self, uuid: &str, which: &str, requests: &[Request]) -> Result<(), Failure> {
        if requests.is_empty() {
            return self.virsh.run(&["metadata", uuid, "--uri", NAMESPACE, which, "--remove"], "");
        }
        let text = request_text(requests);
        self.virsh.run(&["metadata", uuid, "--uri", NAMESPACE, "--key", "vfpool", which, "--set", &text], "")
    }

    /// Has libvirt add this element to a guest's definition.
    pub(crate) fn attach_device(&self, uuid: &str, element: &str) -> Result<(), Failure> {
        self.virsh.run(&["attach-device", uuid, "/dev/stdin", CONFIG], element)
    }

    /// Has libvirt remove this element from a guest's definition.
    pub(crate) fn detach_device(&self, uuid: &str, element: &str) -> Result<(), Failure> {
        self.virsh.run(&["detach-device", uuid, "/dev/stdin", CONFIG], element)
    }

    /// Replaces the device at this address in the guest by `text`: the one way in which a device of a definition is
    /// changed, hostdev or interface. (`update-device` knows no hostdev, and in libvirt 4.5 it frees an interface that
    /// stays in use.)
    ///
    /// libvirt detaches and attaches, each in a call of its own: nothing may be detached before its request, one of
    /// `requests`, holds it, and of several commands in one call each is run, whatever became of the one before.
    /// Everything that this leaves in the definition is tidied up by the reconciler.
    ///
    /// # Errors
    /// What virsh said. The next run of the reconciler goes on.
    pub(crate) fn replace(
        &self,
        domain: &Domain,
        requests: &[Request],
        guest_address: PciAddress,
        text: &str,
    ) -> Result<(), Failure> {
        let is_it = |request: &Request| request.guest_address == guest_address;
        let Some(device) =
            requests.iter().find(|request| is_it(request)).and_then(|request| domain.device_for(request))
        else {
            return Ok(());
        };
        domain.expect_only(device)?;
        self.swap(domain, requests, guest_address, &domain.text_of(device), text)
    }

    /// The same for the element `old`, which need not have a device of its own yet.
    pub(crate) fn swap(
        &self,
        domain: &Domain,
        requests: &[Request],
        guest_address: PciAddress,
        old: &str,
        text: &str,
    ) -> Result<(), Failure> {
        let is_it = |request: &Request| request.guest_address == guest_address;
        let uuid = &domain.uuid;
        let set_moving = |moving: Option<&str>| {
            let mut requests = requests.to_vec();
            for request in requests.iter_mut().filter(|request| is_it(request)) {
                request.moving = moving.map(str::to_owned);
            }
            self.set_requests(uuid, CONFIG, &requests)
        };
        set_moving(Some(text))?;
        // When the last device that has a boot order goes, libvirt sets another one, and takes no such device again.
        if old.contains("<boot ") && !domain.text().contains(PLACEHOLDER) {
            self.attach_device(uuid, &placeholder(domain))?;
        }
        let detached = self.detach_device(uuid, old);
        if let Err(Failure::NotThere(_)) = detached {
            // It was just removed or pointed elsewhere; the next run is not to bring it back.
            set_moving(None)?;
        }
        detached.and_then(|()| self.attach_device(uuid, text))
    }
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
