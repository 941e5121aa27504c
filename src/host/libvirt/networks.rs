//! The hostdev networks that libvirt itself keeps, in so far as they have the same devices as pools.

use crate::config::pool::file::{AddressXml, PfXml};
use crate::config::pool::{Pool, Pools};
use crate::files;
use crate::paths::Host;
use crate::pci::{ports, sysfs};
use model::error::Error;
use model::text::shell_word;
use serde::Deserialize;
use std::fs;

/// What counts here of a network; libvirt's own parser has seen to the rest.
#[derive(Deserialize)]
struct Network {
    name: String,
    forward: Forward,
}

#[derive(Deserialize)]
struct Forward {
    #[serde(rename = "@mode")]
    mode: String,
    #[serde(default)]
    pf: Vec<PfXml>,
    #[serde(default)]
    address: Vec<AddressXml>,
}

/// A warning for each of libvirt's networks that has a device of a pool: libvirt hands it out without asking whose it
/// is.
pub fn shared_with(pools: &Pools, host: &Host) -> Vec<Error> {
    let folder = host.path("etc/libvirt/qemu/networks");
    let mut warnings = Vec::new();
    let mut files = files::names(&folder).unwrap_or_default();
    files.sort_unstable();
    for file in files.iter().filter(|file| file.strip_suffix(".xml").is_some()) {
        // Networks of other modes, and what libvirt itself would not take, are none of these.
        let Ok(text) = fs::read_to_string(folder.join(file)) else { continue };
        let Ok(network) = quick_xml::de::from_str::<Network>(&text) else { continue };
        for pool in &pools.pools {
            let Some(shared) = network.shares(pool, host) else { continue };
            let (name, shell_word) = (&network.name, shell_word(&network.name));
            let is_active = host.path("run/libvirt/network").join(file).exists();
            let destroy = if is_active { format!("virsh net-destroy {shell_word} && ") } else { String::new() };
            warnings.push(Error::new(format!(
                "libvirt's network '{name}' and pool '{}' both have {shared}, so a guest of one may get what a guest \
                 of the other is to have",
                pool.name
            ))
            .remedy(format!(
                "Use the pool in the network's place and run `{destroy}virsh net-undefine {shell_word}`, or take \
                 {shared} out of {}",
                pool.file.display()
            )));
        }
    }
    warnings
}

impl Network {
    /// The first that both have.
    fn shares(&self, pool: &Pool, host: &Host) -> Option<String> {
        if self.forward.mode != "hostdev" {
            return None;
        }
        let pf = self.forward.pf.iter().filter_map(|pf| pf.dev.as_ref()).find_map(|dev| {
            let address = ports::function_of(host, dev)?;
            let is_vf = |vf| sysfs::identity(host, vf).is_ok_and(|vf| vf.is_some_and(|vf| vf.physfn == Some(address)));
            let has_vf = || pool.functions(host).into_iter().flatten().any(is_vf);
            (pool.has_pf(host, address) || has_vf()).then(|| format!("VFs of the PF {dev}"))
        });
        pf.or_else(|| {
            let addresses = self.forward.address.iter().filter_map(AddressXml::address);
            let mut devices = addresses.filter_map(|address| sysfs::identity(host, address).ok().flatten());
            devices.find(|device| pool.has_member(host, device)).map(|device| device.address.to_string())
        })
    }
}
