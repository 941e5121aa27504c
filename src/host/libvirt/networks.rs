//! The hostdev networks that libvirt itself keeps, in so far as they have the same devices as pools.

use crate::config::pool::file::{AddressXml, PfXml};
use crate::config::pool::{Pool, Pools};
use crate::files;
use crate::libvirt::{definitions, runtime};
use crate::paths::Host;
use crate::pci::{ports, sysfs};
use model::domain::Domain;
use model::error::Error;
use model::text::shell_word;
use serde::{Deserialize, Serialize};
use std::fs;

/// What counts here of a network; libvirt's own parser has seen to the rest.
#[derive(Deserialize)]
struct Network {
    name: String,
    forward: Forward,
    vlan: Option<Vlan>,
    #[serde(default)]
    portgroup: Vec<Portgroup>,
}

#[derive(Deserialize)]
struct Portgroup {
    #[serde(rename = "@name")]
    name: String,
    #[serde(rename = "@default", default)]
    default: String,
    vlan: Option<Vlan>,
}

/// libvirt `docs/formatnetwork.rst`, "Setting VLAN tag".
#[derive(Deserialize, Serialize)]
#[serde(rename = "vlan")]
struct Vlan {
    #[serde(rename = "@trunk", skip_serializing_if = "Option::is_none")]
    trunk: Option<String>,
    tag: Vec<Tag>,
}

#[derive(Deserialize, Serialize)]
struct Tag {
    #[serde(rename = "@id")]
    id: String,
    #[serde(rename = "@nativeMode", skip_serializing_if = "Option::is_none")]
    native: Option<String>,
}

/// What a pool has to know of the network in whose place it is used.
pub struct Replaced {
    /// The `<vlan>` of the network, or of the port group, with which libvirt sets up an interface.
    pub vlan: Option<String>,
}

/// The network of this name, if it has devices of this pool.
pub fn replaced(host: &Host, name: &str, portgroup: Option<&str>, pool: &Pool) -> Option<Replaced> {
    // libvirt allows no slash in a name.
    let file = host.path("etc/libvirt/qemu/networks").join(format!("{name}.xml"));
    let text = fs::read_to_string(file).ok().filter(|_| !name.contains('/'))?;
    let network: Network = quick_xml::de::from_str(&text).ok()?;
    network.shares(pool, host)?;
    let is_it = |group: &&Portgroup| portgroup.map_or(group.default == "yes", |name| group.name == name);
    let group = network.portgroup.iter().find(is_it).and_then(|group| group.vlan.as_ref());
    let vlan = group.or(network.vlan.as_ref()).and_then(|vlan| quick_xml::se::to_string(vlan).ok());
    Some(Replaced { vlan })
}

/// The guests that have an interface on this network by their definitions, and those of them that run.
fn users(host: &Host, network: &str) -> (Vec<String>, Vec<String>) {
    let names = definitions::names(host).unwrap_or_default();
    let has_interface = |guest: &String| {
        let domain = definitions::read(host, guest).and_then(|xml| Domain::parse(&xml));
        domain.is_ok_and(|domain| domain.network_interfaces().iter().any(|interface| interface.network == network))
    };
    let users: Vec<String> = names.into_iter().filter(has_interface).collect();
    let running = users.iter().filter(|guest| runtime::qemu(host, guest).is_some()).cloned().collect();
    (users, running)
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
            let undefine = format!("{destroy}virsh net-undefine {shell_word}");
            let (users, running) = users(host, name);
            let word = |guest: &String| self::shell_word(guest);
            let adopt: Vec<String> = users
                .iter()
                .map(|guest| format!("vfpool adopt {} {}", word(guest), self::shell_word(&pool.name)))
                .collect();
            let instead = match (adopt.as_slice(), running.as_slice()) {
                ([], _) => format!("run `{undefine}`"),
                (adopt, []) => format!("run `{} && {undefine}`", adopt.join(" && ")),
                (adopt, running) => format!(
                    "run `{}`, and when {} stopped, `{undefine}`",
                    adopt.join(" && "),
                    match running {
                        [guest] => format!("guest '{guest}' has"),
                        guests => format!("guests '{}' have", guests.join("', '")),
                    }
                ),
            };
            warnings.push(Error::new(format!(
                "libvirt's network '{name}' and pool '{}' both have {shared}, so a guest of one may get what a guest \
                 of the other is to have",
                pool.name
            ))
            .remedy(format!(
                "Use the pool in the network's place and {instead}, or remove {shared} from {}",
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
