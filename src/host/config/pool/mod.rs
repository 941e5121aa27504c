//! Pools: named sets of PCI functions that are interchangeable for a guest, `/etc/vfpool/pools.d/*.xml`:
//!
//! ```xml
//! <pool>                                       <!-- or <network>: libvirt's hostdev network as it is -->
//!   <name>passthrough</name>
//!   <forward mode='hostdev' managed='yes'>
//!     <pf dev='eth3' vfs='max'/>               <!-- all VFs of this PF; vfs: how many to make -->
//!     <pf address='0000:04:00.0' vfs='4'/>     <!-- a PF without a network interface -->
//!     <address type='pci' domain='0' bus='0x05' slot='0x10' function='0x2'/>   <!-- a VF or whole function -->
//!   </forward>
//! </pool>
//! ```
//!
//! A file is read without looking at the hardware, which comes and goes: its lines become devices when they are asked
//! for. What is wrong with one line, or one file, is told and leaves the others as they are.
//! Source: libvirt `docs/formatnetwork.rst`, "Using an SR-IOV pool".

mod dump;
pub(crate) mod file;

use crate::files;
use crate::paths::Host;
use crate::pci::sysfs::PciView;
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::{Error, Result};
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;

/// The pools of a host.
pub struct Pools {
    /// Those that can be used, in the order of their file names.
    pub pools: Vec<Pool>,
    /// What is wrong with files or lines. None of it disables another file.
    pub errors: Vec<Error>,
    folder: PathBuf,
    /// Files that are no pool, by name without `.xml`.
    broken: Vec<(String, Error)>,
}

/// One pool.
#[derive(Debug)]
pub struct Pool {
    /// By which guests ask for it.
    pub name: String,
    /// Where it stands.
    pub file: PathBuf,
    /// What happens to a guest whose device is taken.
    pub on_busy: OnBusy,
    /// Whether libvirt is to take a device from its host driver and give it back.
    pub managed: bool,
    /// Of a libvirt network.
    pub uuid: Option<String>,
    /// In file order: first the PFs, then the addresses.
    lines: Vec<Line>,
    /// The lines of the pools before this one: what they have is not in this one too.
    earlier: Vec<Line>,
    /// Its root element: `pool`, or libvirt's `network`.
    root: &'static str,
    /// Whether addresses may stand beside the PF whose VFs they are, as `virsh net-dumpxml` writes them.
    is_dump: bool,
    /// Whether it has libvirt's `<driver name='vfio'/>`, which is what we do anyway.
    names_driver: bool,
}

/// What to do when a guest is started whose device another guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBusy {
    /// Say no; the next try gets a free one.
    #[default]
    Refuse,
    /// Say no, then start the guest again with a free one. Whoever was told no may have started it elsewhere meanwhile.
    Restart,
}

/// How many VFs a PF is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vfs {
    /// As many as there are; all it can have when there are none.
    #[default]
    Default,
    /// This many.
    Count(u32),
    /// All it can have.
    Max,
}

impl Vfs {
    /// How many that is, of a PF that has `now` and can have `totalvfs`. May be more than it can have.
    pub fn wanted(self, now: u32, totalvfs: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Default if now > 0 => now,
            Self::Default | Self::Max => totalvfs,
        }
    }
}

/// A PF of a pool, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pf {
    /// Where it is.
    pub address: PciAddress,
    /// How many VFs it is to have.
    pub vfs: Vfs,
    /// Its network interface, if it is a NIC with a driver.
    pub netdev: Option<String>,
    /// Its line, for messages.
    pub at: Place,
}

/// A line of a pool's file; shown as `<pf dev='eth3'> in FILE line N`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    element: String,
    file: PathBuf,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} line {}", self.element, self.file.display(), self.line)
    }
}

impl Place {
    /// Why this line cannot be used.
    fn error(&self, why: impl fmt::Display) -> Error {
        Error::new(format!("Cannot use {self}: {why}"))
    }
}

/// What one line makes members of its pool.
#[derive(Debug, Clone)]
struct Line {
    at: Place,
    pool: String,
    members: Members,
}

#[derive(Debug, Clone)]
enum Members {
    VfsOf { pf: PfName, vfs: Vfs },
    Function(PciAddress),
}

/// A PF as the admin named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PfName {
    /// By its network interface.
    Netdev(String),
    /// By its address.
    Address(PciAddress),
}

impl fmt::Display for PfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netdev(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl PfName {
    /// Where it is now; `None` for a network interface that is not there, or belongs to no PCI function.
    fn address(&self, look: &dyn PciView) -> Option<PciAddress> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Netdev(name) => look.function_of(name),
        }
    }
}

impl Line {
    /// Why it cannot be used.
    fn error(&self, why: impl fmt::Display) -> Error {
        Error::new(format!("Cannot use {} (pool '{}'): {why}", self.at, self.pool))
    }

    fn no_function(&self) -> Error {
        self.error("there is no PCI function at this address")
            .remedy("Put the card back, or name one that `lspci -D` shows")
    }

    fn has_member(&self, look: &dyn PciView, device: &PciDevice) -> bool {
        match &self.members {
            Members::VfsOf { pf, .. } => device.physfn.is_some_and(|physfn| pf.address(look) == Some(physfn)),
            Members::Function(address) => device.address == *address,
        }
    }

    /// Whether both lines say the same, as far as can be told without looking at the hardware.
    fn is_same(&self, other: &Self) -> bool {
        match (&self.members, &other.members) {
            (Members::VfsOf { pf: one, .. }, Members::VfsOf { pf: other, .. }) => one == other,
            (Members::Function(one), Members::Function(other)) => one == other,
            _ => false,
        }
    }

    /// The PF of this line as it is now.
    fn pf(&self, look: &dyn PciView) -> Option<Result<Pf>> {
        let Members::VfsOf { pf, vfs } = &self.members else { return None };
        let resolve = || {
            let address = pf.address(look).ok_or_else(|| match pf {
                PfName::Netdev(name) if look.host().netdev(name).exists() => self
                    .error(format_args!("the network interface {name} belongs to no PCI function"))
                    .remedy("Name the interface of the card itself"),
                PfName::Netdev(name) => self
                    .error(format_args!("there is no network interface {name}"))
                    .remedy("Put the card back, or name one that `ip link` shows, or its address"),
                PfName::Address(_) => unreachable!("an address is where it is"),
            })?;
            let folder = look.host().device(address);
            if !folder.exists() {
                return Err(self.no_function());
            }
            if let Some(pf) = look.physfn(address)? {
                return Err(self
                    .error(format_args!("{address} is itself a VF"))
                    .remedy(format!("Name its PF, which is {pf}")));
            }
            if !folder.join("sriov_totalvfs").exists() {
                return Err(self.error(format_args!("{address} has no SR-IOV")).remedy(
                    "Switch it on in the firmware and the card's settings, or list the function as <address>",
                ));
            }
            let netdev = match pf {
                PfName::Netdev(name) => Some(name.clone()),
                PfName::Address(_) => files::names(&folder.join("net"))?.into_iter().min(),
            };
            Ok(Pf { address, vfs: *vfs, netdev, at: self.at.clone() })
        };
        Some(resolve())
    }
}

impl Pools {
    /// Reads all pools. Files that are hidden or do not end in `.xml` are none.
    pub fn load(host: &Host) -> Self {
        let folder = host.pools();
        let mut pools = Self { pools: Vec::new(), errors: Vec::new(), broken: Vec::new(), folder };
        let mut names = files::names(&pools.folder).unwrap_or_else(|error| {
            pools.errors.push(error);
            Vec::new()
        });
        names.sort_unstable();
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            let Some(stem) = name.strip_suffix(".xml") else { continue };
            match file::read(&pools.folder.join(name)) {
                Ok(pool) => pools.add(pool, stem),
                Err(error) => pools.refuse(stem, error),
            }
        }
        pools
    }

    fn refuse(&mut self, stem: &str, error: Error) {
        self.broken.push((stem.to_owned(), error.clone()));
        self.errors.push(error);
    }

    /// Adds a pool after those that there are. What they have already, they keep.
    fn add(&mut self, mut pool: Pool, stem: &str) {
        if let Some(other) = self.pools.iter().find(|other| other.name == pool.name) {
            let (file, name, other) = (pool.file.display(), &pool.name, other.file.display());
            let error = Error::new(format!("Cannot use {file}: {other} is the pool '{name}' already"));
            return self.refuse(stem, error.remedy("Give one of them another <name>"));
        }
        if let Some(before) = self.pools.last() {
            pool.earlier = before.earlier.iter().chain(&before.lines).cloned().collect();
        }
        let earlier = &pool.earlier;
        let errors = &mut self.errors;
        pool.lines.retain(|line| match earlier.iter().find(|other| other.is_same(line)) {
            Some(other) => {
                errors.push(overlap(line, "it", other));
                false
            }
            None => true,
        });
        self.pools.push(pool);
    }

    /// The pool of this name.
    pub fn find(&self, name: &str) -> Result<&Pool> {
        if let Some(pool) = self.pools.iter().find(|pool| pool.name == name) {
            return Ok(pool);
        }
        let names: Vec<String> = self.pools.iter().map(|pool| format!("'{}'", pool.name)).collect();
        let folder = self.folder.display();
        let known = match names.as_slice() {
            [] => format!("{folder} has none; make one there"),
            names => format!("{folder} has {}", names.join(", ")),
        };
        let broken = self.broken.iter().find(|(stem, _)| stem == name);
        let broken = broken.map_or(String::new(), |(_, error)| format!(". {error}"));
        Err(Error::new(format!("There is no pool '{name}': {known}{broken}")))
    }
}

/// Two lines have the same member: what to tell of the later one.
fn overlap(line: &Line, what: impl fmt::Display, other: &Line) -> Error {
    let pool = if line.pool == other.pool { String::new() } else { format!(" of pool '{}'", other.pool) };
    line.error(format_args!("{what} is listed already by {}{pool}", other.at)).remedy("Remove one of the two")
}

impl Pool {
    /// Its PFs as they are now, in file order.
    pub fn pfs(&self, look: &dyn PciView) -> Vec<Result<Pf>> {
        let resolved: Vec<(&Line, Result<Pf>)> =
            self.lines.iter().filter_map(|line| Some((line, line.pf(look)?))).collect();
        let checked = resolved.into_iter().map(|(line, pf)| {
            let pf = pf?;
            let before = self.lines.iter().take_while(|other| other.at != line.at);
            match self.earlier.iter().chain(before).find(|other| other.is_pf(look, pf.address)) {
                Some(other) => Err(overlap(line, pf.address, other)),
                None => Ok(pf),
            }
        });
        checked.collect()
    }

    /// Whether a device is in this pool now. Looks at each line once, and at no other device.
    pub fn has_member(&self, look: &dyn PciView, device: &PciDevice) -> bool {
        let has = |lines: &[Line]| lines.iter().any(|line| line.has_member(look, device));
        has(&self.lines) && !has(&self.earlier)
    }

    /// Whether the VFs of this PF are in this pool.
    pub fn has_pf(&self, look: &dyn PciView, address: PciAddress) -> bool {
        self.lines.iter().any(|line| line.is_pf(look, address))
    }

    /// Its PFs as the file names them, in the order of [`Pool::pfs`], and how many VFs each is to have.
    pub fn pf_names(&self) -> impl Iterator<Item = (&PfName, Vfs)> {
        self.lines.iter().filter_map(|line| match &line.members {
            Members::VfsOf { pf, vfs } => Some((pf, *vfs)),
            Members::Function(_) => None,
        })
    }

    /// Its members as they are now, each once: the VFs in the order of the PFs and of their own numbers, then the explicit
    /// addresses. Beside them, what is wrong with its lines.
    pub fn members(&self, look: &dyn PciView) -> (Vec<PciAddress>, Vec<Error>) {
        let (mut members, mut errors) = (Vec::new(), Vec::new());
        for pf in self.pfs(look) {
            match pf.and_then(|pf| self.vfs(look, &pf, &mut errors)) {
                Ok(vfs) => members.extend(vfs),
                Err(error) => errors.push(error),
            }
        }
        for function in self.functions(look) {
            match function {
                Ok(address) => members.push(address),
                Err(error) => errors.push(error),
            }
        }
        (members, errors)
    }

    /// The VFs of one of its PFs that are members.
    pub fn vfs(&self, look: &dyn PciView, pf: &Pf, errors: &mut Vec<Error>) -> Result<Vec<PciAddress>> {
        let mut vfs = look.vfs_of(pf.address)?;
        // An earlier pool may have single ones.
        vfs.retain(|vf| match self.earlier.iter().find(|line| line.is_function(*vf)) {
            Some(line) => {
                let what =
                    format!("{vf} is a VF of a PF of pool '{}', too; it is in pool '{}' only", self.name, line.pool);
                errors.push(line.error(what).remedy("Remove one of the two lines"));
                false
            }
            None => true,
        });
        Ok(vfs)
    }

    /// The explicit addresses that make members.
    pub fn functions(&self, look: &dyn PciView) -> Vec<Result<PciAddress>> {
        self.listed(look).into_iter().map(|(address, is_member)| is_member.map(|()| address)).collect()
    }

    /// The same with the address also of one that makes no member, and why.
    pub fn listed(&self, look: &dyn PciView) -> Vec<(PciAddress, Result<()>)> {
        let function = |line: &Line| match line.members {
            Members::Function(address) => match self.function(look, line, address) {
                Ok(is_member) => is_member.then_some((address, Ok(()))),
                Err(error) => Some((address, Err(error))),
            },
            Members::VfsOf { .. } => None,
        };
        self.lines.iter().filter_map(function).collect()
    }

    /// Whether an explicit address makes a member; `Ok(false)`: it is one without that.
    fn function(&self, look: &dyn PciView, line: &Line, address: PciAddress) -> Result<bool> {
        let Some(device) = look.identity(address)? else {
            return Err(line.no_function());
        };
        if let Some(other) = self.earlier.iter().find(|other| other.has_member(look, &device)) {
            return Err(overlap(line, address, other));
        }
        let is_vf_of =
            |other: &&Line| matches!(other.members, Members::VfsOf { .. }) && other.has_member(look, &device);
        match self.lines.iter().find(is_vf_of) {
            Some(_) if self.is_dump => Ok(false),
            Some(other) => Err(overlap(line, address, other)),
            None => Ok(true),
        }
    }
}

impl Line {
    fn is_pf(&self, look: &dyn PciView, address: PciAddress) -> bool {
        matches!(&self.members, Members::VfsOf { pf, .. } if pf.address(look) == Some(address))
    }

    fn is_function(&self, address: PciAddress) -> bool {
        matches!(self.members, Members::Function(function) if function == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// A host with the PFs 0000:01:00.0 (eth3, VFs 01:10.0 and 01:10.2) and 0000:04:00.0 (VF 04:00.1), the plain NIC
    /// 0000:02:00.0 (eth4), a bridge br0, and these files.
    fn host(files: &[(&str, &str)]) -> (TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        for address in ["01:00.0", "01:10.0", "01:10.2", "02:00.0", "04:00.0", "04:00.1"] {
            let device = host.device(address.parse().unwrap());
            fs::create_dir_all(&device).unwrap();
            for (name, text) in [("vendor", "0x8086"), ("device", "0x10c9"), ("class", "0x020000")] {
                fs::write(device.join(name), text).unwrap();
            }
            fs::write(device.join("config"), [0; 64]).unwrap();
        }
        let device = |address: &str| host.device(address.parse().unwrap());
        for (pf, vfs) in [("01:00.0", ["01:10.0", "01:10.2"].as_slice()), ("04:00.0", &["04:00.1"])] {
            fs::write(device(pf).join("sriov_totalvfs"), "7").unwrap();
            for (index, vf) in vfs.iter().enumerate() {
                symlink(format!("../0000:{pf}"), device(vf).join("physfn")).unwrap();
                symlink(format!("../0000:{vf}"), device(pf).join(format!("virtfn{index}"))).unwrap();
            }
        }
        for (name, address) in [("eth3", "01:00.0"), ("eth4", "02:00.0")] {
            fs::create_dir_all(host.netdev(name)).unwrap();
            symlink(format!("../../../0000:{address}"), host.netdev(name).join("device")).unwrap();
        }
        fs::create_dir_all(host.netdev("br0")).unwrap();
        fs::create_dir_all(host.pools()).unwrap();
        for (name, text) in files {
            fs::write(host.pools().join(name), text).unwrap();
        }
        (folder, host)
    }

    fn pool(name: &str, lines: &str) -> String {
        format!("<pool>\n<name>{name}</name>\n<forward mode='hostdev' managed='yes'>\n{lines}\n</forward>\n</pool>\n")
    }

    fn address(bus: &str, slot: &str, function: &str) -> String {
        format!("<address type='pci' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>")
    }

    fn texts(errors: &[Error], host: &Host) -> Vec<String> {
        let folder = format!("{}/", host.pools().display());
        errors.iter().map(|error| error.to_string().replace(&folder, "")).collect()
    }

    /// The members of the pools of these files, and all errors, with file names without their folder.
    fn members(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let (_folder, host) = host(files);
        let pools = Pools::load(&host);
        let mut errors = pools.errors.clone();
        let members = pools.pools.iter().map(|pool| {
            let (members, wrong) = pool.members(&host);
            errors.extend(wrong);
            for address in ["01:00.0", "01:10.0", "01:10.2", "02:00.0", "04:00.0", "04:00.1"] {
                let device = host.identity(address.parse().unwrap()).unwrap().unwrap();
                let is_member = members.contains(&device.address);
                assert_eq!(pool.has_member(&host, &device), is_member, "{address} in '{}'", pool.name);
            }
            let members: Vec<String> = members.iter().map(ToString::to_string).collect();
            format!("{}: {}", pool.name, members.join(" "))
        });
        (members.collect(), texts(&errors, &host))
    }

    #[test]
    fn libvirts_network_is_a_pool_as_it_is() {
        let guide = "<network>\n  <name>passthrough</name>\n  <forward mode='hostdev' managed='yes'>\n    <pf dev='eth3'/>\n  \
                     </forward>\n</network>\n";
        let dumped = "<!-- kept by virsh -->\n<network connections='1'>\n  <name>passthrough</name>\n  \
                      <uuid>a6b49429-d353-d7ad-3185-4451cc786437</uuid>\n  <forward mode='hostdev' managed='yes'>\n    \
                      <driver name='vfio'/>\n    <pf dev='eth3'/>\n    <address type='pci' domain='0x0000' bus='0x01' \
                      slot='0x10' function='0x0'/>\n  </forward>\n</network>\n";
        for text in [guide, dumped] {
            let (members, errors) = members(&[("any name.xml", text)]);
            assert_eq!((members, errors), (vec!["passthrough: 0000:01:10.0 0000:01:10.2".to_owned()], vec![]));
        }
    }

    #[test]
    fn members_stand_in_file_order() {
        let lines =
            format!("{}<pf address='04:00.0' vfs='max'/>{}<pf dev='eth3' vfs='2'/>", address("02", "0", "0"), "");
        let text = pool("all", &lines).replace("<pool>", "<pool on-busy='restart'>");
        let (_folder, host) = host(&[("b.xml", &text), (".hidden.xml", "<"), ("b.xml.rpmnew", "<"), ("README", "<")]);
        let pools = Pools::load(&host);
        assert_eq!(pools.errors, []);
        let all = pools.find("all").unwrap();
        assert_eq!((all.on_busy, all.managed), (OnBusy::Restart, true));
        let (members, errors) = all.members(&host);
        let members: Vec<String> = members.iter().map(ToString::to_string).collect();
        assert_eq!(members, ["0000:04:00.1", "0000:01:10.0", "0000:01:10.2", "0000:02:00.0"]);
        assert_eq!(errors, []);
        let pfs: Vec<Pf> = all.pfs(&host).into_iter().map(Result::unwrap).collect();
        assert_eq!((pfs[0].vfs, pfs[0].netdev.as_deref()), (Vfs::Max, None));
        assert_eq!((pfs[1].vfs, pfs[1].netdev.as_deref()), (Vfs::Count(2), Some("eth3")));
        assert_eq!(
            pfs[1].at.to_string(),
            format!("<pf dev='eth3' vfs='2'> in {}/b.xml line 4", host.pools().display())
        );
    }

    #[test]
    fn a_bad_file_is_told_with_its_line() {
        let with = |line: &str| pool("x", line);
        for (text, message) in [
            (String::new(), "Cannot use x.xml: it is empty. Write a <pool> into it, or remove it"),
            ("pool".into(), "Cannot use the text 'pool' in x.xml line 1: no text stands here. Remove it"),
            ("<domain/>".into(), "Cannot use <domain> in x.xml line 1: this element is not known here; the root is a"),
            (
                "<pool/>".into(),
                "Cannot use <pool> in x.xml line 1: <name>, by which guests ask for it, is missing. Add it",
            ),
            ("<pool><name>x</name></pool>".into(), "<forward mode='hostdev' managed='yes'> is missing. Add it"),
            (
                with("<pf dev='eth3'/>").replace("<name>x</name>", "<name> </name>"),
                "Cannot use <pool> in x.xml line 1: <name>, by",
            ),
            (with(""), "Cannot use <pool> in x.xml line 1: each <pf> and <address>, which would"),
            (with("<pf dev='eth3'/>").replace("</name>", "</name><name>y</name>"), "line 2: it is there twice. Remove"),
            (with("<pf dev='eth3'/>").replace("<pool>", "<pool onbusy='restart'>"), "line 1: unknown field `onbusy`"),
            (with("<pf dev='eth3'/>").replace("<pool>", "<pool on-busy='wait'>"), "unknown variant `wait`, expected"),
            (with("<pf dev='eth3'/>").replace("hostdev", "nat"), "line 3: unknown variant `nat`, expected `hostdev`"),
            (with("<pf dev='eth3'/>").replace("mode='hostdev' ", ""), "line 3: missing field `mode`"),
            (with("<pf dev='eth3'/>").replace("'yes'", "'maybe'"), "unknown variant `maybe`, expected `yes` or `no`"),
            (with("<driver name='kvm'/>"), "unknown variant `kvm`, expected `vfio`"),
            (with("\n<interface dev='eth3'/>"), "<interface dev='eth3'> in x.xml line 5: this element is not known"),
            (
                with("<pf  vf='7'\n dev='eth3'/>"),
                "<pf vf='7' dev='eth3'> in x.xml line 4: unknown field `vf`, expected",
            ),
            (with("<pf dev='eth3' vfs='0'/>"), "vfs='0' is neither a number from 1 on nor 'max'"),
            (with("<pf dev='eth3' vfs='many'/>"), "vfs='many' is neither"),
            (with("<pf/>"), "line 4: a PF has either dev='eth3' (its network interface) or address="),
            (with("<pf dev='eth3' address='01:00.0'/>"), "a PF has either"),
            (with("<pf dev='../eth3'/>"), "a PF has either"),
            (with("<pf address='1:0.0'/>"), "'1:0.0' is no PCI address; write it as 0000:02:00.1"),
            (with("<pf dev='eth3'><vf/></pf>"), "<vf> in x.xml line 4: this element is not known here; nothing stands"),
            (with("<pf dev='eth3'/>\n\n  eth4"), "Cannot use the text 'eth4' in x.xml line 6: no text stands here"),
            (with("<address bus='1' slot='0' function='0'/>"), "line 4: missing field `type`"),
            (with("<address type='usb' bus='1' slot='0' function='0'/>"), "unknown variant `usb`, expected `pci`"),
            (with("<address type='pci' bus='1' slot='zero' function='0'/>"), "'zero' is no number"),
            (with(&address("01", "20", "0")), "line 4: its numbers are no PCI address"),
            (
                with("<pf dev='eth3'/>\n<pf dev='eth3' vfs='2'/>"),
                "Cannot use <pf dev='eth3' vfs='2'> in x.xml line 5 (pool 'x'): it is listed already by <pf dev='eth3'> in x.xml line 4. \
                 Remove one of the two",
            ),
            (
                with("<pf address='01:00.0'/>\n<pf address='0000:01:00.0'/>"),
                "line 5 (pool 'x'): it is listed already by",
            ),
            (
                with(&format!("{0}\n{0}", address("01", "10", "0"))),
                "line 5 (pool 'x'): it is listed already by <address",
            ),
            (
                with("<pf dev='eth3'/>") + "<pool/>",
                "<pool> in x.xml line 7: this element is not known here; one file is",
            ),
            ("<pool>\n<name>x".into(), "Cannot use x.xml: it is no XML at line"),
            (
                "<pool>\n<name>x</name>".into(),
                "Cannot use x.xml: it is no XML at line 2: it ends before its elements do",
            ),
            ("<pool>\n</name>".into(), "it is no XML at line 2"),
            (with("<pf dev='eth3'"), "line 4: error while parsing attribute"),
            (with("<pf dev='eth3' vfs=7/>"), "line 4: "),
        ] {
            let (members, errors) = members(&[("x.xml", &text), ("z.xml", &pool("good", "<pf dev='eth3'/>"))]);
            assert_eq!(members, ["good: 0000:01:10.0 0000:01:10.2"], "{text}");
            assert_eq!(errors.len(), 1, "{text}: {errors:?}");
            assert!(errors[0].contains(message), "{message} is not in {}", errors[0]);
        }
    }

    #[test]
    fn what_the_hardware_does_not_have_is_told_and_the_rest_counts() {
        let taken = "0000:01:10.0 0000:01:10.2";
        for (line, message, rest) in [
            (
                "<pf dev='eth9'/>".to_owned(),
                "there is no network interface eth9. Put the card back, or name one",
                taken,
            ),
            (
                "<pf dev='br0'/>".into(),
                "the network interface br0 belongs to no PCI function. Name the interface",
                taken,
            ),
            ("<pf address='09:00.0'/>".into(), "there is no PCI function at this address. Put the card back", taken),
            ("<pf dev='eth4'/>".into(), "0000:02:00.0 has no SR-IOV. Switch it on in the firmware", taken),
            (
                "<pf address='04:00.1'/>".into(),
                "0000:04:00.1 is itself a VF. Name its PF, which is 0000:04:00.0",
                taken,
            ),
            (
                "<pf address='01:00.0'/>".into(),
                "0000:01:00.0 is listed already by <pf dev='eth3'> in x.xml line 4",
                taken,
            ),
            (address("09", "0", "0"), "there is no PCI function at this address", taken),
            (
                address("01", "10", "2"),
                "0000:01:10.2 is listed already by <pf dev='eth3'> in x.xml line 4. Remove one",
                taken,
            ),
        ] {
            let (members, errors) = members(&[("x.xml", &pool("x", &format!("<pf dev='eth3'/>\n{line}")))]);
            assert_eq!(members, [format!("x: {rest}")], "{line}");
            assert_eq!(errors.len(), 1, "{line}: {errors:?}");
            let (text, at) = (&errors[0], "in x.xml line 5 (pool 'x'): ");
            assert!(text.contains(message) && text.contains(at), "{message} is not in {text}");
        }
    }

    #[test]
    fn of_two_pools_with_the_same_member_the_first_has_it() {
        let both = |one: &str, other: &str| members(&[("a.xml", &pool("a", one)), ("b.xml", &pool("b", other))]);
        let vf = address("01", "10", "0");
        let nvme = "<pf address='04:00.0'/>";
        for (one, other, found, message) in [
            (
                "<pf dev='eth3'/>",
                format!("{nvme}\n<pf dev='eth3'/>"),
                ["a: 0000:01:10.0 0000:01:10.2", "b: 0000:04:00.1"],
                "Cannot use <pf dev='eth3'> in b.xml line 5 (pool 'b'): it is listed already by <pf dev='eth3'> in a.xml line 4 of pool 'a'",
            ),
            (
                "<pf dev='eth3'/>",
                format!("{nvme}\n<pf address='01:00.0'/>"),
                ["a: 0000:01:10.0 0000:01:10.2", "b: 0000:04:00.1"],
                "<pf address='01:00.0'> in b.xml line 5 (pool 'b'): 0000:01:00.0 is listed already by <pf dev='eth3'> in a.xml line 4",
            ),
            (
                "<pf dev='eth3'/>",
                format!("{nvme}\n{vf}"),
                ["a: 0000:01:10.0 0000:01:10.2", "b: 0000:04:00.1"],
                "in b.xml line 5 (pool 'b'): 0000:01:10.0 is listed already by <pf dev='eth3'> in a.xml line 4",
            ),
            (
                &vf,
                format!("{nvme}\n<pf dev='eth3'/>"),
                ["a: 0000:01:10.0", "b: 0000:04:00.1 0000:01:10.2"],
                "0000:01:10.0 is a VF of a PF of pool 'b', too; it is in pool 'a' only. Remove one of the two lines",
            ),
            (
                &vf,
                format!("{nvme}\n{vf}"),
                ["a: 0000:01:10.0", "b: 0000:04:00.1"],
                "b.xml line 5 (pool 'b'): it is listed already by <address",
            ),
        ] {
            let (members, errors) = both(one, &other);
            assert_eq!(members, found);
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(message), "{message} is not in {}", errors[0]);
        }
    }

    #[test]
    fn a_pool_is_found_by_its_name() {
        let (_folder, host) = host(&[
            ("a.xml", &pool("net", "<pf dev='eth3'/>")),
            ("b.xml", &pool("net", "<pf address='04:00.0'/>")),
            ("disk.xml", "<pool>"),
        ]);
        let pools = Pools::load(&host);
        assert_eq!(pools.find("net").unwrap().file, host.pools().join("a.xml"));
        let folder = host.pools().display().to_string();
        let errors = texts(&pools.errors, &host);
        assert_eq!(errors[0], "Cannot use b.xml: a.xml is the pool 'net' already. Give one of them another <name>");
        let unknown = |name: &str| pools.find(name).unwrap_err().to_string();
        assert_eq!(unknown("x"), format!("There is no pool 'x': {folder} has 'net'"));
        assert_eq!(unknown("disk"), format!("There is no pool 'disk': {folder} has 'net'. {}", pools.errors[1]));
        let none = Pools::load(&Host::new("/nonexistent"));
        assert_eq!(
            none.find("x").unwrap_err().to_string(),
            "There is no pool 'x': /nonexistent/etc/vfpool/pools.d has none; make one there"
        );
    }
}
