//! The network interfaces of a PCI function.
//! Sources: Linux `Documentation/networking/switchdev.rst` (representors), `Documentation/ABI/testing/sysfs-class-net`
//! (`phys_port_name`, `phys_switch_id`), `net/devlink/port.c`, `__devlink_port_phys_port_name_get`.

use crate::files;
use crate::paths::Host;
use model::address::PciAddress;
use model::error::Result;
use std::fs;
use std::path::Path;

/// The PCI function that a network interface belongs to, if it is there and belongs to one: the nearest one above it,
/// as a virtio network card has a virtio device between the two.
pub fn function_of(host: &Host, netdev: &str) -> Option<PciAddress> {
    let device = host.netdev(netdev).join("device");
    let name = files::link_name(&device).ok()??;
    name.parse().ok().or_else(|| {
        let device = fs::canonicalize(device).ok()?;
        device.ancestors().find_map(|above| above.file_name()?.to_str()?.parse().ok())
    })
}

/// The interfaces through which a function itself reaches the network, sorted: each of its ports. A representor is none
/// of them: it stands for the end of a VF's link in the switch of the card.
pub fn ports_of(host: &Host, function: PciAddress) -> Result<Vec<String>> {
    let folder = host.device(function);
    let mut ports = files::names(&folder.join("net"))?;
    if ports.is_empty() {
        for bus in files::names(&folder)?.iter().filter(|name| name.starts_with("virtio")) {
            ports.extend(files::names(&folder.join(bus).join("net"))?);
        }
    }
    ports.retain(|port| !is_representor(&host.netdev(port)));
    ports.sort_unstable();
    Ok(ports)
}

/// By the name of its port: `pf0vf1`, `c1pf0vf1`, `pf0sf3`, `c1pf0`. Older drivers (mlx5) only give the number of the
/// VF. A port of the card itself is `p0`, or has no such name.
fn is_representor(netdev: &Path) -> bool {
    // Most drivers have no such name, and reading it fails.
    let read = |name: &str| files::read(&netdev.join(name)).unwrap_or_default();
    let name = read("phys_port_name");
    let number = |text: &str| text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    if !name.is_empty() && number(&name) == name.len() {
        return !read("phys_switch_id").is_empty();
    }
    let name = match name.strip_prefix('c') {
        Some(rest) if number(rest) > 0 => &rest[number(rest)..],
        _ => &name,
    };
    name.strip_prefix("pf").is_some_and(|rest| number(rest) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn representors_are_known_by_their_ports_name() {
        for (name, switch, is_it) in [
            ("", "", false),
            ("p0", "e41d2d", false),
            ("p0s1", "e41d2d", false),
            ("pf0", "e41d2d", true),
            ("pf0vf1", "e41d2d", true),
            ("pf1sf88", "e41d2d", true),
            ("c1pf0vf3", "e41d2d", true),
            ("c1pf0", "e41d2d", true),
            ("1", "e41d2d", true),
            ("1", "", false),
            ("cpf0", "", false),
            ("pfx", "", false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("phys_port_name"), format!("{name}\n")).unwrap();
            fs::write(folder.path().join("phys_switch_id"), format!("{switch}\n")).unwrap();
            assert_eq!(is_representor(folder.path()), is_it, "{name}, {switch}");
        }
        assert!(!is_representor(Path::new("/nonexistent")));
    }
}
