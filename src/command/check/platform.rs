//! Firmware and kernel: IOMMU, interrupt remapping, VFIO.
//! Sources: Linux `Documentation/admin-guide/kernel-parameters.txt`, `Documentation/driver-api/vfio.rst`; Intel VT-d
//! specification, 11.4.3 (extended capabilities); `drivers/vfio/vfio_iommu_type1.c`, `allow_unsafe_interrupts`.

use super::{Finding, Id, Severity, boot};
use host::files;
use host::paths::Host;
use model::step::VFIO_PCI;
use model::text::{self, shell_word};
use std::path::PathBuf;

pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let words = boot::command_line(host);
    let iommu = iommu(host, &words);
    // Without an IOMMU the rest says nothing.
    let is_on = iommu.state == Severity::Ok;
    let interrupts = if is_on { interrupts(host, &words) } else { Vec::new() };
    [iommu].into_iter().chain(interrupts).chain([vfio(host)]).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
    Other,
}

impl Vendor {
    fn of_cpu(host: &Host) -> Self {
        let cpus = files::read(&host.path("proc/cpuinfo")).unwrap_or_default();
        let id = cpus.lines().find_map(|line| line.strip_prefix("vendor_id")?.split_once(':'));
        match id.map_or("", |(_, id)| id.trim()) {
            "GenuineIntel" => Self::Intel,
            "AuthenticAMD" | "HygonGenuine" => Self::Amd,
            _ => Self::Other,
        }
    }

    /// The vendor whose IOMMU the firmware tells of.
    fn of_table(host: &Host) -> Option<Self> {
        let has = |table: &str| tables(host).join(table).exists();
        [("DMAR", Self::Intel), ("IVRS", Self::Amd)].into_iter().find(|(table, _)| has(table)).map(|(_, vendor)| vendor)
    }

    /// What switches the IOMMU on; `iommu=pt` spares the host's own devices the translation.
    fn words(self) -> &'static [&'static str] {
        if self == Self::Intel { &["intel_iommu=on", "iommu=pt"] } else { &["iommu=pt"] }
    }
}

fn tables(host: &Host) -> PathBuf {
    host.path("sys/firmware/acpi/tables")
}

fn iommu(host: &Host, words: &[String]) -> Finding {
    const ID: Id = Id::Iommu;
    let groups = host.path("sys/kernel/iommu_groups");
    let units = files::names(&host.path("sys/class/iommu")).unwrap_or_default();
    match files::names(&groups).unwrap_or_default().len() {
        0 => {}
        count => {
            let units = if units.is_empty() {
                String::new()
            } else {
                format!(", of {}", text::count(units.len() as u64, "unit"))
            };
            return Finding::ok(ID, format!("The IOMMU is on: {}{units}", text::count(count as u64, "group")))
                .shown_by_file(&groups);
        }
    }
    let off = words_of(words, &["intel_iommu=off", "amd_iommu=off", "iommu=off"]);
    let Some(vendor) = Vendor::of_table(host) else {
        let vendor = Vendor::of_cpu(host);
        let name = match vendor {
            Vendor::Intel => "VT-d",
            Vendor::Amd => "AMD-Vi (IOMMU)",
            Vendor::Other => return not_found(host, &off),
        };
        let then = boot::remedy(host, vendor.words(), &off);
        return Finding::failure(ID, "The IOMMU is off: the firmware tells of none")
            .shown_by(format!("{} has neither DMAR (Intel) nor IVRS (AMD)", tables(host).display()))
            .cured_by(format!("Switch {name} on in the firmware's setup. {then}"));
    };
    let line = host.path("proc/cmdline");
    let line = line.display();
    let is_told = vendor.words().iter().all(|word| words.iter().any(|told| told == word));
    if off.is_empty() && is_told {
        return Finding::failure(ID, "The IOMMU is off, although the kernel was told to switch it on")
            .shown_by(format!("{line} has {}, and {} is empty", vendor.words().join(" "), groups.display()))
            .cured_by("See what `dmesg | grep -i -e DMAR -e AMD-Vi` says of it, and update the firmware");
    }
    let why = if off.is_empty() { format!("no {}", vendor.words()[0]) } else { off.join(" ") };
    Finding::failure(ID, "The IOMMU is off: the kernel was not told to switch it on")
        .shown_by(format!("{line} has {why}"))
        .cured_by(boot::remedy(host, vendor.words(), &off))
}

/// Other architectures than x86: the kernel uses an SMMU without being told to, if firmware or device tree describe it.
fn not_found(host: &Host, off: &[&str]) -> Finding {
    let remedy = "Switch the IOMMU (Arm calls it SMMU) on in the firmware's setup, or update the firmware; \
                  `dmesg | grep -i -e iommu -e smmu` says what the kernel has found";
    Finding::failure(Id::Iommu, "The IOMMU is off: the kernel has found none")
        .shown_by_file(host.path("sys/kernel/iommu_groups"))
        .cured_by(if off.is_empty() { remedy.to_owned() } else { boot::remedy(host, &[], off) })
}

/// Those of these words that the kernel was booted with.
fn words_of<'a>(words: &[String], searched: &[&'a str]) -> Vec<&'a str> {
    searched.iter().copied().filter(|searched| words.iter().any(|word| word == searched)).collect()
}

/// Without remapping, a device of a guest can send the host any interrupt, so VFIO gives none away unless it is told
/// that this may be.
fn interrupts(host: &Host, words: &[String]) -> Vec<Finding> {
    const ID: Id = Id::InterruptRemapping;
    const RISK: &str = "a guest can send interrupts to the host and to other guests through its device";
    let parameter = host.path("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
    let is_unsafe = files::read(&parameter).is_ok_and(|value| value == "Y");
    let file = host.path("proc/interrupts");
    let table = files::read(&file).unwrap_or_default();
    if let Some(chip) = table.split_whitespace().find(|word| word.starts_with("IR-")) {
        let ok = Finding::ok(ID, "Interrupts are remapped").shown_by(format!("{} has {chip}", file.display()));
        let needless = is_unsafe.then(|| {
            let what =
                format!("VFIO would go on without interrupt remapping, where {RISK}; this host has no need of that");
            Finding::warning(Id::UnsafeInterrupts, what)
                .shown_by(format!("{} is Y", parameter.display()))
                .cured_by(refuse_unsafe(host, words))
        });
        return [ok].into_iter().chain(needless).collect();
    }
    if Vendor::of_cpu(host) == Vendor::Other {
        // Others than x86 have no such table, and no such weakness that could be told from here.
        return Vec::new();
    }
    let off = words_of(words, &["intremap=off", "nointremap"]);
    let is_able = ecaps(host).iter().all(|ecap| ecap & ECAP_IR != 0);
    let remedy = if !off.is_empty() {
        boot::remedy(host, &[], &off)
    } else if is_able {
        "See what `dmesg | grep -i remap` says of it, and update the firmware".to_owned()
    } else {
        let conf = host.path("etc/modprobe.d/vfpool.conf");
        format!(
            "Use other hardware. If all guests are trusted, run `echo 'options vfio_iommu_type1 \
             allow_unsafe_interrupts=1' >{}; modprobe vfio_iommu_type1; echo 1 >{}`",
            conf.display(),
            parameter.display()
        )
    };
    let shown = if off.is_empty() { "no chip whose name starts with IR-" } else { off[0] };
    let shown_in = if off.is_empty() { file } else { host.path("proc/cmdline") };
    let finding = if is_unsafe {
        Finding::warning(ID, format!("Interrupts are not remapped, and VFIO was told to go on: {RISK}"))
    } else {
        Finding::failure(ID, "Interrupts are not remapped, so VFIO gives guests no devices")
    };
    vec![finding.shown_by(format!("{} has {shown}", shown_in.display())).cured_by(remedy)]
}

/// Interrupt remapping, in a VT-d unit's extended capabilities.
const ECAP_IR: u64 = 1 << 3;

fn ecaps(host: &Host) -> Vec<u64> {
    let units = host.path("sys/class/iommu");
    let read = |unit: &String| files::read(&units.join(unit).join("intel-iommu/ecap")).ok();
    let ecaps = files::names(&units).unwrap_or_default();
    ecaps.iter().filter_map(read).filter_map(|ecap| u64::from_str_radix(&ecap, 16).ok()).collect()
}

/// Now, and wherever it was set for the next time.
fn refuse_unsafe(host: &Host, words: &[String]) -> String {
    let parameter = host.path("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
    let files = settings_with(host, &|line| line.contains("allow_unsafe_interrupts"));
    let edits = files.iter().map(|file| format!("sed -i /allow_unsafe_interrupts/d {}", shell_word(file)));
    let steps: Vec<String> = edits.chain([format!("echo N >{}", parameter.display())]).collect();
    let remedy = format!("Run `{}`", steps.join(" && "));
    match words.iter().find(|word| word.contains("allow_unsafe_interrupts")) {
        Some(word) => format!("{remedy}. {}", boot::remedy(host, &[], &[word])),
        None => remedy,
    }
}

/// Files of modprobe.d(5), of those that are the admin's, with such a line.
fn settings_with(host: &Host, is_it: &dyn Fn(&str) -> bool) -> Vec<String> {
    let folder = host.path("etc/modprobe.d");
    let mut files = files::names(&folder).unwrap_or_default();
    files.retain(|file| file.strip_suffix(".conf").is_some());
    files.retain(|file| files::read(&folder.join(file)).is_ok_and(|text| text.lines().any(is_it)));
    files.sort_unstable();
    files.iter().map(|file| folder.join(file).display().to_string()).collect()
}

fn vfio(host: &Host) -> Finding {
    const ID: Id = Id::Vfio;
    let driver = host.driver(VFIO_PCI);
    if driver.exists() {
        return Finding::ok(ID, format!("{VFIO_PCI} is loaded")).shown_by_file(&driver);
    }
    let release = files::read(&host.path("proc/sys/kernel/osrelease")).unwrap_or_default();
    let modules = host.path("lib/modules").join(&release);
    let is_it = |path: &str| {
        let file = path.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        file.starts_with("vfio-pci.ko") || file.starts_with("vfio_pci.ko")
    };
    let lists = |file: &str| files::read(&modules.join(file)).is_ok_and(|text| text.lines().any(is_it));
    if !lists("modules.dep") && !lists("modules.builtin") {
        return Finding::failure(ID, format!("This kernel has no {VFIO_PCI}, which gives devices to guests"))
            .shown_by(format!("{} does not list it", modules.join("modules.dep").display()))
            .cured_by(format!(
                "Install the package with the rest of the modules of kernel {release}, or boot a kernel that has \
                 {VFIO_PCI}"
            ));
    }
    // As `modprobe -b` obeys them.
    let forbids = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_ours = |module: &str| module.replace('-', "_") == "vfio_pci";
        matches!(words.as_slice(), ["blacklist", module] | ["install", module, ..] if is_ours(module))
    };
    let files = settings_with(host, &forbids);
    if let Some(file) = files.first() {
        let edit = r"sed -i -E '/^\s*(blacklist|install)\s+vfio[-_]pci(\s|$)/d'";
        let files: Vec<String> = files.iter().map(|file| shell_word(file)).collect();
        return Finding::failure(ID, format!("{VFIO_PCI} is kept from being loaded"))
            .shown_by_file(file)
            .cured_by(format!("Run `{edit} {}`", files.join(" ")));
    }
    Finding::ok(ID, format!("{VFIO_PCI} is loaded when it is needed")).shown_by_file(modules.join("modules.dep"))
}
