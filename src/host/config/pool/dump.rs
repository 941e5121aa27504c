//! A pool as libvirt shows a hostdev network: with the devices that it has now, and how many are in use.
//!
//! What is written here can be read back as a pool's file.
//! Source: libvirt `src/conf/network_conf.c`, `virNetworkDefFormatBuf`.

use super::{OnBusy, PfName, Pool, Vfs};
use model::address::PciAddress;
use quick_xml::escape::escape;
use std::fmt::Write;

impl Pool {
    /// The pool with these members, of which guests have so many.
    pub fn xml(&self, members: &[PciAddress], connections: usize) -> String {
        let root = self.root;
        let on_busy = if self.on_busy == OnBusy::Restart { " on-busy='restart'" } else { "" };
        let mut lines = vec![
            format!("<{root} connections='{connections}'{on_busy}>"),
            format!("  <name>{}</name>", text(&self.name)),
        ];
        lines.extend(self.uuid.iter().map(|uuid| format!("  <uuid>{}</uuid>", text(uuid))));
        lines.push(format!("  <forward mode='hostdev' managed='{}'>", if self.managed { "yes" } else { "no" }));
        lines.extend(self.driver.as_ref().map(|driver| {
            let name = if driver.is_named { " name='vfio'" } else { "" };
            let model = if driver.has_model { " model='vfio-pci'" } else { "" };
            format!("    <driver{name}{model}/>")
        }));
        lines.extend(self.pf_names().map(|(pf, vfs)| {
            let name = match pf {
                PfName::Netdev(name) => format!("dev='{}'", text(name)),
                PfName::Address(address) => format!("address='{address}'"),
            };
            let vfs = match vfs {
                Vfs::Default => String::new(),
                Vfs::Count(count) => format!(" vfs='{count}'"),
                Vfs::Max => " vfs='max'".to_owned(),
            };
            format!("    <pf {name}{vfs}/>")
        }));
        lines.extend(members.iter().map(|member| format!("    {}", member.element())));
        lines.push(format!("  </forward>\n</{root}>\n"));
        lines.join("\n")
    }
}

/// As XML has it, and nothing that a terminal would take for a command.
fn text(text: &str) -> String {
    let mut written = String::new();
    for character in escape(text).chars() {
        if character.is_control() {
            let _ = write!(written, "&#{};", u32::from(character));
        } else {
            written.push(character);
        }
    }
    written
}
