//! Pools: named sets of PCI functions that are interchangeable for a guest, `/etc/vfpool/pools.d/*.xml`:
//!
//! ```xml
//! <pool>                                       <!-- or <network>: libvirt's hostdev network as it is -->
//!   <name>passthrough</name>
//!   <forward mode='hostdev' managed='yes'>
//!     <pf dev='eth3' vfs='max'/>               <!-- all VFs of this PF; vfs: how many to create -->
//!     <pf address='0000:04:00.0' vfs='4'/>     <!-- a PF without a network interface -->
//!     <address type='pci' domain='0' bus='0x05' slot='0x10' function='0x2'/>   <!-- a VF or whole function -->
//!   </forward>
//! </pool>
//! ```
//!
//! A file is read without looking at the hardware, which comes and goes: its lines become devices when they are asked
//! for. What is wrong with one line, or one file, is reported and leaves the others as they are.
//! Source: libvirt `docs/formatnetwork.rst`, "Using an SR-IOV pool".

mod dump;
pub(crate) mod file;
mod line;

use crate::files;
use crate::paths::Host;
use crate::pci::sysfs::PciView;
use line::{Line, Members, overlap};
pub use line::{Pf, PfName, Place};
use model::address::PciAddress;
use model::device::PciDevice;
use model::domain::Assigned;
use model::error::{Error, Result};
use serde::Deserialize;
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
    /// Whether libvirt is to take a device from its host driver and reattach it.
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
    /// libvirt's `<driver name='vfio' model='vfio-pci'/>`: what we do anyway.
    driver: Option<Driver>,
}

/// Which attributes a pool's `<driver>` has.
#[derive(Debug)]
struct Driver {
    is_named: bool,
    has_model: bool,
}

/// What to do when a guest is started whose device another guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBusy {
    /// Say no; the next try gets a free one.
    #[default]
    Refuse,
    /// Refuse, then start the guest again with a free one. An HA manager may have started it elsewhere by then.
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

impl Pool {
    /// One of its devices as a guest that asks for it has it.
    pub fn assigned(&self, address: PciAddress) -> Assigned {
        Assigned { address, managed: self.managed, pool: Some(self.name.clone()) }
    }

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

    /// Its members as they are now, each once: the VFs in the order of the PFs and of their own numbers, then the
    /// explicit addresses. Beside them, what is wrong with its lines.
    pub fn members(&self, look: &dyn PciView) -> (Vec<PciAddress>, Vec<Error>) {
        let (mut members, mut errors) = (Vec::new(), Vec::new());
        for pf in self.pfs(look) {
            match pf.and_then(|pf| self.vfs(look, &pf)) {
                Ok((vfs, _)) => members.extend(vfs),
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

    /// The VFs of one of its PFs that are members, and how many are not: an earlier pool may have single ones by their
    /// addresses, so that two pools share a PF.
    pub fn vfs(&self, look: &dyn PciView, pf: &Pf) -> Result<(Vec<PciAddress>, usize)> {
        let vfs = look.vfs_of(pf.address)?;
        let is_member = |vf: &PciAddress| !self.earlier.iter().any(|line| line.is_function(*vf));
        let (members, others): (Vec<_>, Vec<_>) = vfs.into_iter().partition(is_member);
        Ok((members, others.len()))
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

#[cfg(test)]
mod tests;
