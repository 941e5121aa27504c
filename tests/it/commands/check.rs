//! `vfpool check`: every finding, its state, and the remedy for this host.

use fakehost::{Device, Host, PF, Systemd, asking, definition, hostdev_at, vf};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A host on which nothing is missing: RHEL 7 on Intel, with a pool of three VFs, and libvirtd, which runs.
pub(crate) fn ready() -> Host {
    let host = Host::with_vfs(3);
    host.put(
        "etc/os-release",
        "NAME=\"Red Hat Enterprise Linux\"\nID=\"rhel\"\nID_LIKE=\"fedora\"\nVERSION_ID=\"7.9\"\n",
    );
    host.put("proc/cmdline", "root=/dev/sda1 quiet intel_iommu=on iommu=pt\n");
    host.put("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\n");
    host.put(
        "proc/interrupts",
        "  CPU0\n 16:  0  IR-IO-APIC  16-fasteoi  ehci_hcd\n 24:  0  DMAR-MSI  0-edge  dmar0\n",
    );
    host.put("proc/net/unix", "Num RefCount Protocol Flags Type St Inode Path\n");
    host.put("sys/firmware/acpi/tables/DMAR", "");
    host.put("sys/class/iommu/dmar0/intel-iommu/ecap", "f020df\n");
    let hook = fs::read_link(host.path("etc/libvirt/hooks/qemu")).unwrap();
    fs::create_dir_all(host.path("usr/sbin")).unwrap();
    symlink(hook, host.path("usr/sbin/vfpool-hook")).unwrap();
    for unit in ["vfpool-setup.service", "vfpool-setup.path", "vfpool-reconcile.path", "vfpool-definitions.path"] {
        host.put(&format!("usr/lib/systemd/system/{unit}"), "");
        host.put(&format!("etc/systemd/system/multi-user.target.wants/{unit}"), "");
    }
    host.put("usr/lib/systemd/system/vfpool-definitions.service", "");
    host.put("etc/systemd/system/libvirtd.service.wants/vfpool-definitions.service", "");
    host.put("usr/lib/udev/rules.d/60-vfpool.rules", "");
    host.put("usr/lib/udev/vfpool-device", "");
    mode(&host, "usr/lib/udev/vfpool-device", 0o755);
    for folder in ["run/vfpool", "run/vfpool/queue/setup", "run/vfpool/queue/reconcile"] {
        fs::create_dir_all(host.path(folder)).unwrap();
        mode(&host, folder, 0o700);
    }
    symlink("sbin", host.path("bin")).unwrap();
    libvirtd(&host, "libvirtd");
    host.vfpool(&["setup"]).ok();
    host
}

fn mode(host: &Host, below: &str, mode: u32) {
    fs::set_permissions(host.path(below), fs::Permissions::from_mode(mode)).unwrap();
}

/// This daemon starts now.
fn libvirtd(host: &Host, name: &str) {
    host.process(700, 1, 50);
    host.put("proc/700/comm", format!("{name}\n"));
    host.put(&format!("run/{name}.pid"), "700");
}

/// A finding as the JSON tells it.
#[derive(Debug, Clone, PartialEq)]
struct Finding {
    id: String,
    state: String,
    what: String,
    evidence: String,
    remedy: String,
}

/// What is found, with paths as they are on a host; the exit code has to fit.
#[track_caller]
fn all(host: &Host) -> Vec<Finding> {
    let outcome = host.vfpool(&["check", "--json"]);
    assert_eq!(outcome.stderr, "");
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["version"], 1);
    let root = host.path("").display().to_string();
    let root = root.trim_end_matches('/');
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().replace(root, "");
    let findings = report["findings"].as_array().unwrap().iter();
    let findings: Vec<Finding> = findings
        .map(|finding| Finding {
            id: text(&finding["id"]),
            state: text(&finding["state"]),
            what: text(&finding["what"]),
            evidence: text(&finding["evidence"]),
            remedy: text(&finding["remedy"]),
        })
        .collect();
    let has = |state: &str| findings.iter().any(|finding| finding.state == state);
    let (state, code) = if has("failure") {
        ("failure", 1)
    } else if has("warning") {
        ("warning", 3)
    } else {
        ("ok", 0)
    };
    assert_eq!((report["state"].as_str(), outcome.code), (Some(state), Some(code)), "{findings:?}");
    findings
}

/// What is found and not ok, one line a finding.
#[track_caller]
fn wrong(host: &Host) -> Vec<String> {
    let wrong = all(host).into_iter().filter(|finding| finding.state != "ok");
    wrong
        .map(|Finding { id, state, what, evidence, remedy }| format!("{state} {id}: {what} | {evidence} | {remedy}"))
        .collect()
}

#[track_caller]
fn expect(host: &Host, findings: &[&str]) {
    assert_eq!(wrong(host), findings);
}

/// Runs what stands in backquotes, on the fake host: its programs, its paths.
#[track_caller]
fn carry_out(host: &Host, id: &str) {
    let outcome = host.vfpool(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let is_it = |finding: &&serde_json::Value| finding["id"] == id && finding["state"] != "ok";
    let found = report["findings"].as_array().unwrap().iter().find(is_it).expect(id);
    let command = found["remedy"].as_str().unwrap().split('`').nth(1).expect("a command");
    let path = format!("{}:/bin:/usr/bin", host.path("sbin").display());
    let status = std::process::Command::new("/bin/sh").args(["-c", command]).env("PATH", path).status();
    assert!(status.unwrap().success(), "{command}");
}

#[test]
fn a_ready_host_changes_in_nothing() {
    let host = ready();
    host.trace();
    let before = host.snapshot();
    let outcome = host.vfpool(&["check"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{}", outcome.stdout);
    let root = host.path("").display().to_string();
    assert_eq!(
        outcome.stdout.replace(root.trim_end_matches('/'), ""),
        "\
ok       The IOMMU is on: 4 groups, of 1 unit
         shown by: /sys/kernel/iommu_groups
ok       Interrupts are remapped
         shown by: /proc/interrupts has IR-IO-APIC
ok       vfio-pci is loaded
         shown by: /sys/bus/pci/drivers/vfio-pci
ok       libvirtd runs
         shown by: /run/libvirtd.pid
ok       The hook is installed, and the running libvirt knows it
         shown by: /etc/libvirt/hooks/qemu
ok       The units are enabled
         shown by: /etc/systemd/system/multi-user.target.wants
ok       udev's rule is installed
         shown by: /usr/lib/udev/rules.d/60-vfpool.rules
ok       Leases have their place
         shown by: /run/vfpool
ok       Pool 'net': 3 devices, each for a guest of its own
         shown by: /etc/vfpool/pools.d/net.xml
ready
"
    );
    host.assert_as(&before, "after a check");
    assert_eq!(host.trace(), [""; 0]);
    assert!(!host.path("run/vfpool/lock").exists());
}

#[test]
fn verdicts() {
    let host = ready();
    host.put("sys/class/net/eth3/flags", "0x1002\n");
    mode(&host, "run/vfpool", 0o755);
    symlink("/dev/null", host.path("etc/systemd/system/vfpool-setup.path")).unwrap();
    host.put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    let outcome = host.vfpool(&["check"]);
    assert_eq!((outcome.code, outcome.stdout.lines().last()), (Some(1), Some("not ready: 3 failures and 1 warning")));
    let host = ready();
    host.put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    let outcome = host.vfpool(&["check"]);
    assert_eq!((outcome.code, outcome.stdout.lines().last()), (Some(3), Some("ready, with 1 warning")));
    assert_eq!(host.vfpool(&["check", "--jason"]).code, Some(2));
}

/// A host whose IOMMU is off, with this on the kernel's line.
fn without_iommu(words: &str) -> Host {
    let host = ready();
    fs::remove_dir_all(host.path("sys/kernel/iommu_groups")).unwrap();
    host.put("proc/cmdline", format!("root=/dev/sda1 {words}\n"));
    host
}

#[track_caller]
fn iommu(host: &Host) -> Finding {
    all(host).into_iter().find(|finding| finding.id == "iommu").unwrap()
}

#[test]
fn the_iommu_is_switched_on_as_this_distribution_does_it() {
    let rhel7 = "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX intel_iommu=on iommu=pt\"' >>/etc/default/grub && \
                 grub2-mkconfig";
    let grubby = "grubby --update-kernel=ALL --args='intel_iommu=on iommu=pt'";
    for (release, is_uefi, command) in [
        ("ID=\"rhel\"\nVERSION_ID=\"7.9\"", false, format!("{rhel7} -o /boot/grub2/grub.cfg")),
        ("ID=\"rhel\"\nVERSION_ID=\"7.9\"", true, format!("{rhel7} -o /boot/efi/EFI/redhat/grub.cfg")),
        (
            "ID=\"centos\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"7\"",
            true,
            format!("{rhel7} -o /boot/efi/EFI/centos/grub.cfg"),
        ),
        ("ID=\"rhel\"\nVERSION_ID=\"8.10\"", true, grubby.to_owned()),
        ("ID='rocky'\nID_LIKE='rhel centos fedora'\nVERSION_ID='9.4'", false, grubby.to_owned()),
        ("ID=fedora\nVERSION_ID=42", false, grubby.to_owned()),
        ("ID=debian\nVERSION_ID=\"12\"", true, rhel7.replace("grub2-mkconfig", "update-grub")),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"", false, rhel7.replace("grub2-mkconfig", "update-grub")),
        ("ID=\"sles\"\nID_LIKE=\"suse\"\nVERSION_ID=\"15.6\"", false, format!("{rhel7} -o /boot/grub2/grub.cfg")),
    ] {
        let host = without_iommu("quiet");
        host.put("etc/os-release", format!("NAME=x\n{release}\n"));
        if is_uefi {
            fs::create_dir_all(host.path("sys/firmware/efi")).unwrap();
        }
        let found = iommu(&host);
        assert_eq!(found.remedy, format!("Run `{command}`, then reboot"), "{release}");
        assert_eq!(
            (found.state.as_str(), found.what.as_str(), found.evidence.as_str()),
            (
                "failure",
                "The IOMMU is off: the kernel was not told to switch it on",
                "/proc/cmdline has no intel_iommu=on"
            )
        );
    }
    let host = without_iommu("quiet");
    host.put("etc/os-release", "ID=gentoo\n");
    assert_eq!(
        iommu(&host).remedy,
        "Add 'intel_iommu=on iommu=pt' to the kernel's command line in the boot loader's configuration, then reboot"
    );
    // One file alone is there.
    let host = without_iommu("quiet");
    fs::remove_file(host.path("etc/os-release")).unwrap();
    host.put("usr/lib/os-release", "ID=\"rhel\"\nVERSION_ID=\"9\"\n");
    assert_eq!(iommu(&host).remedy, format!("Run `{grubby}`, then reboot"));
}

#[test]
fn what_switches_the_iommu_off_goes() {
    for (release, words, evidence, remedy) in [
        (
            "ID=rhel\nVERSION_ID=9",
            "intel_iommu=off iommu=off",
            "intel_iommu=off iommu=off",
            "Run `grubby --update-kernel=ALL --remove-args='intel_iommu=off iommu=off' --args='intel_iommu=on \
             iommu=pt'`, then reboot",
        ),
        (
            "ID=debian",
            "intel_iommu=on iommu=pt intel_iommu=off",
            "intel_iommu=off",
            "Run `sed -i 's/\\bintel_iommu=off\\b//g' /etc/default/grub && echo \
             'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX intel_iommu=on iommu=pt\"' >>/etc/default/grub && update-grub`, \
             then reboot",
        ),
        (
            "ID=gentoo",
            "iommu=off",
            "iommu=off",
            "Take 'iommu=off' out of, and add 'intel_iommu=on iommu=pt' to, the kernel's command line in the boot \
             loader's configuration, then reboot",
        ),
    ] {
        let host = without_iommu(words);
        host.put("etc/os-release", release);
        let found = iommu(&host);
        assert_eq!((found.evidence, found.remedy), (format!("/proc/cmdline has {evidence}"), remedy.to_owned()));
    }
}

#[test]
fn amd_and_firmware_that_has_it_off() {
    let host = without_iommu("quiet");
    let table = host.path("sys/firmware/acpi/tables/DMAR");
    fs::rename(&table, table.with_file_name("IVRS")).unwrap();
    host.put("etc/os-release", "ID=rhel\nVERSION_ID=8");
    let found = iommu(&host);
    assert_eq!(found.evidence, "/proc/cmdline has no iommu=pt");
    assert_eq!(found.remedy, "Run `grubby --update-kernel=ALL --args='iommu=pt'`, then reboot");
    host.put("proc/cmdline", "amd_iommu=off iommu=pt");
    assert_eq!(
        iommu(&host).remedy,
        "Run `grubby --update-kernel=ALL --remove-args='amd_iommu=off' --args='iommu=pt'`, then reboot"
    );
    host.put("proc/cmdline", "iommu=pt");
    let found = iommu(&host);
    assert_eq!(found.what, "The IOMMU is off, although the kernel was told to switch it on");
    assert_eq!(found.remedy, "See what `dmesg | grep -i -e DMAR -e AMD-Vi` says of it, and update the firmware");

    fs::remove_file(table.with_file_name("IVRS")).unwrap();
    for (vendor, switch, words) in
        [("AuthenticAMD", "AMD-Vi (IOMMU)", "iommu=pt"), ("GenuineIntel", "VT-d", "intel_iommu=on iommu=pt")]
    {
        host.put("proc/cpuinfo", format!("vendor_id\t: {vendor}\n"));
        let found = iommu(&host);
        assert_eq!(found.what, "The IOMMU is off: the firmware tells of none");
        assert_eq!(found.evidence, "/sys/firmware/acpi/tables has neither DMAR (Intel) nor IVRS (AMD)");
        let command = format!("grubby --update-kernel=ALL --args='{words}'");
        assert_eq!(found.remedy, format!("Switch {switch} on in the firmware's setup. Run `{command}`, then reboot"));
    }
}

/// Words for x86 would lead nowhere.
#[test]
fn the_iommu_of_arm() {
    let host = without_iommu("quiet");
    fs::remove_file(host.path("sys/firmware/acpi/tables/DMAR")).unwrap();
    host.put("proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\n");
    let found = iommu(&host);
    assert_eq!(found.what, "The IOMMU is off: the kernel has found none");
    assert!(
        found.remedy.starts_with("Switch the IOMMU (Arm calls it SMMU) on in the firmware's setup"),
        "{}",
        found.remedy
    );
    assert!(!found.remedy.contains("grub") && !found.remedy.contains("DMAR"), "{}", found.remedy);
    host.put("etc/os-release", "ID=rhel\nVERSION_ID=9");
    host.put("proc/cmdline", "iommu=off");
    assert_eq!(iommu(&host).remedy, "Run `grubby --update-kernel=ALL --remove-args='iommu=off'`, then reboot");
}

#[test]
fn interrupts_that_are_not_remapped() {
    const UNSAFE: &str = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    let host = ready();
    host.put("proc/interrupts", " 16:  0  IO-APIC  16-fasteoi  ehci_hcd\n");
    let table = "/proc/interrupts has no chip whose name starts with IR-";
    let failure = "failure interrupt_remapping: Interrupts are not remapped, so VFIO gives guests no devices";
    let dmesg = "See what `dmesg | grep -i remap` says of it, and update the firmware";
    expect(&host, &[&format!("{failure} | {table} | {dmesg}")]);
    host.put("proc/cmdline", "intel_iommu=on iommu=pt intremap=off");
    let back = "Run `sed -i 's/\\bintremap=off\\b//g' /etc/default/grub && grub2-mkconfig -o /boot/grub2/grub.cfg`, \
                then reboot";
    expect(&host, &[&format!("{failure} | /proc/cmdline has intremap=off | {back}")]);
    // Hardware without it.
    host.put("proc/cmdline", "intel_iommu=on iommu=pt");
    host.put("sys/class/iommu/dmar0/intel-iommu/ecap", "f020d7\n");
    host.put(UNSAFE, "N\n");
    fs::create_dir_all(host.path("etc/modprobe.d")).unwrap();
    let allow = "Use other hardware. If all guests are trusted, run `echo 'options vfio_iommu_type1 \
                 allow_unsafe_interrupts=1' >/etc/modprobe.d/vfpool.conf; modprobe vfio_iommu_type1; echo 1 \
                 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts`";
    expect(&host, &[&format!("{failure} | {table} | {allow}")]);
    host.put(UNSAFE, "Y\n");
    let risk = "a guest can send interrupts to the host and to other guests through its device";
    expect(
        &host,
        &[&format!(
            "warning interrupt_remapping: Interrupts are not remapped, and VFIO was told to go on: {risk} | {table} | \
             {allow}"
        )],
    );
    // Allowed without need.
    host.put("proc/interrupts", " 16:  0  IR-IO-APIC-fasteoi  ehci_hcd\n");
    host.put("etc/modprobe.d/x.conf", "options vfio_iommu_type1 allow_unsafe_interrupts=1\nblacklist floppy\n");
    expect(
        &host,
        &[&format!(
            "warning unsafe_interrupts: VFIO would go on without interrupt remapping, where {risk}; this host has no \
             need of that | /{UNSAFE} is Y | Run `sed -i /allow_unsafe_interrupts/d /etc/modprobe.d/x.conf && echo N \
             >/{UNSAFE}`"
        )],
    );
    carry_out(&host, "unsafe_interrupts");
    expect(&host, &[]);
    assert_eq!(host.get("etc/modprobe.d/x.conf").as_deref(), Some("blacklist floppy"));
    // What is no x86 has other chips.
    host.put("proc/cpuinfo", "CPU implementer : 0x41\n");
    host.put("proc/interrupts", " 16:  0  GICv3  16  arch_timer\n");
    expect(&host, &[]);
}

#[test]
fn vfio_that_cannot_be_loaded() {
    let host = ready();
    host.vfio_is_a_module("load");
    host.put("proc/sys/kernel/osrelease", "3.10.0-1160.el7\n");
    expect(
        &host,
        &["failure vfio: This kernel has no vfio-pci, which gives devices to guests | \
           /lib/modules/3.10.0-1160.el7/modules.dep does not list it | Install the package with the rest of the \
           modules of kernel 3.10.0-1160.el7, or boot a kernel that has vfio-pci"],
    );
    let modules = "lib/modules/3.10.0-1160.el7";
    host.put(&format!("{modules}/modules.dep"), "kernel/vfio/pci/vfio-pci.ko.xz: kernel/vfio/vfio.ko.xz\n");
    expect(&host, &[]);
    host.put("etc/modprobe.d/no vfio.conf", "# blacklist vfio-pci\n blacklist  vfio_pci\ninstall vfio /bin/true\n");
    expect(
        &host,
        &["failure vfio: vfio-pci is kept from being loaded | /etc/modprobe.d/no vfio.conf | Run `sed -i -E \
           '/^\\s*(blacklist|install)\\s+vfio[-_]pci(\\s|$)/d' '/etc/modprobe.d/no vfio.conf'`"],
    );
    carry_out(&host, "vfio");
    expect(&host, &[]);
    assert_eq!(
        host.get("etc/modprobe.d/no vfio.conf").as_deref(),
        Some("# blacklist vfio-pci\ninstall vfio /bin/true")
    );
    host.put(&format!("{modules}/modules.dep"), "kernel/vfio/pci/vfio-pci-core.ko:\n");
    host.put(&format!("{modules}/modules.builtin"), "kernel/drivers/vfio/pci/vfio-pci.ko\n");
    expect(&host, &[]);
}

#[test]
fn libvirtd_asleep_and_down() {
    let host = ready();
    fs::remove_file(host.path("run/libvirtd.pid")).unwrap();
    let down = "failure libvirtd: libvirtd is down: no guest can be started; the rest was checked without it | \
                /proc/net/unix has no socket of libvirt that is listened on | Run `systemctl start libvirtd`";
    expect(&host, &[down]);
    // The pid of somebody else.
    host.put("run/libvirtd.pid", "700");
    host.put("proc/700/comm", "bash\n");
    expect(&host, &[down]);
    host.put("proc/net/unix", "0000: 00000002 00000000 00010000 0001 01 124 /var/run/libvirt/libvirt-sock\n");
    expect(&host, &[]);
    let about = |host: &Host| all(host).into_iter().find(|found| found.id == "libvirtd").unwrap().what;
    assert_eq!(about(&host), "libvirtd is started when it is called");
    // Modular daemons: libvirt's old socket is a proxy's.
    host.append("proc/net/unix", "0000: 00000002 00000000 00010000 0001 01 125 /run/libvirt/virtqemud-sock\n");
    assert_eq!(about(&host), "virtqemud is started when it is called");
    libvirtd(&host, "virtqemud");
    assert_eq!(about(&host), "virtqemud runs");
}

const HOOK: &str = "etc/libvirt/hooks/qemu";

#[test]
fn a_hook_that_is_not_run() {
    let host = ready();
    let own = fs::read_link(host.path(HOOK)).unwrap();
    fs::remove_file(host.path(HOOK)).unwrap();
    let gone = "failure hook: libvirt has no hook, so that a guest's devices are taken without us | \
                /etc/libvirt/hooks/qemu is not there, or leads nowhere | Run `mkdir -p /etc/libvirt/hooks && ln -sfn \
                /usr/sbin/vfpool-hook /etc/libvirt/hooks/qemu && systemctl reload libvirtd`";
    expect(&host, &[gone]);
    symlink("/nonexistent/hook", host.path(HOOK)).unwrap();
    expect(&host, &[gone]);
    // A libvirtd that does not run looks when it starts.
    fs::remove_file(host.path("run/libvirtd.pid")).unwrap();
    assert_eq!(wrong(&host)[1], gone.replace(" && systemctl reload libvirtd", ""));
    carry_out(&host, "hook");
    libvirtd(&host, "libvirtd");
    expect(&host, &[]);
    // A copy that cannot be run.
    for file in [HOOK, "usr/sbin/vfpool-hook"] {
        fs::remove_file(host.path(file)).unwrap();
    }
    fs::copy(own, host.path("usr/sbin/vfpool-hook")).unwrap();
    symlink(host.path("usr/sbin/vfpool-hook"), host.path(HOOK)).unwrap();
    mode(&host, "usr/sbin/vfpool-hook", 0o644);
    expect(
        &host,
        &["failure hook: The hook is not executable, so that libvirt does not run it | mode 644 of \
           /usr/sbin/vfpool-hook | Run `chmod 755 /usr/sbin/vfpool-hook && systemctl reload libvirtd`"],
    );
    fs::remove_file(host.path("usr/sbin/vfpool-hook")).unwrap();
    expect(
        &host,
        &["failure hook: The hook's program is not there | /usr/sbin/vfpool-hook | Install vfpool again with `yum \
           reinstall -y vfpool`"],
    );
}

/// What `cp` and `wget -O` do where the hook is a link: they write its target.
#[test]
fn a_hook_that_is_written_through_the_link() {
    for earlier in [None, Some("the same"), Some("another")] {
        let host = ready();
        let own = fs::read_link(host.path("usr/sbin/vfpool-hook")).unwrap();
        fs::remove_file(host.path("usr/sbin/vfpool-hook")).unwrap();
        fs::copy(&own, host.path("usr/sbin/vfpool-hook")).unwrap();
        fs::remove_file(host.path(HOOK)).unwrap();
        symlink("/usr/sbin/vfpool-hook", host.path(HOOK)).unwrap();
        let script = "#!/bin/sh\ntouch \"$VFPOOL_ROOT/called\"\n";
        fs::write(host.path("usr/sbin/vfpool-hook"), script).unwrap();
        let kept = "etc/libvirt/hooks/qemu.before-vfpool";
        if let Some(earlier) = earlier {
            host.put(kept, if earlier == "another" { "#!/bin/sh\n" } else { script });
        }
        let finding = "failure hook: Another hook was written over vfpool's program | /usr/sbin/vfpool-hook is no \
                       program of vfpool's | Run `vfpool hook install`, which keeps that hook to be called after it. \
                       Install vfpool again with `yum reinstall -y vfpool`";
        assert!(wrong(&host).contains(&finding.to_owned()), "{:?}", wrong(&host));
        let outcome = host.vfpool(&["hook", "install"]);
        if earlier == Some("another") {
            assert_eq!(outcome.code, Some(1));
            assert!(outcome.stderr.contains("Make one of the two"), "{}", outcome.stderr);
            continue;
        }
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert_eq!(host.get(kept).as_deref(), Some(script.trim_end()));
        assert_eq!(host.get("usr/sbin/vfpool-hook").as_deref(), Some(script.trim_end()), "libvirt needs one");
        // The package is installed again.
        fs::remove_file(host.path("usr/sbin/vfpool-hook")).unwrap();
        fs::copy(&own, host.path("usr/sbin/vfpool-hook")).unwrap();
        assert!(!wrong(&host).contains(&finding.to_owned()));
        if earlier.is_none() {
            mode(&host, kept, 0o755);
            let xml = fakehost::domain_with("web", &[]);
            host.hook("web", "started", &xml).run().ok();
            assert!(host.path("called").exists(), "it is called after vfpool's");
        }
    }
}

#[test]
fn a_hook_of_somebody_else() {
    let host = ready();
    fs::remove_file(host.path(HOOK)).unwrap();
    host.put(HOOK, "#!/bin/sh\nexit 0\n");
    mode(&host, HOOK, 0o755);
    expect(
        &host,
        &["failure hook: libvirt's hook is another one, so that a guest's devices are taken without us | \
           /etc/libvirt/hooks/qemu is not /usr/sbin/vfpool-hook | Run `vfpool hook install && systemctl reload \
           libvirtd`: that one is kept, and called after it"],
    );
    host.put(HOOK, "#!/bin/sh\nexec /usr/sbin/vfpool-hook \"$@\"\n");
    mode(&host, HOOK, 0o755);
    libvirtd(&host, "libvirtd");
    // Its program is run as any in /usr/sbin.
    host.put("sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\n");
    expect(&host, &["note hook: libvirt's hook is another one, which names ours | /etc/libvirt/hooks/qemu | "]);
    mode(&host, HOOK, 0o600);
    assert!(wrong(&host)[1].contains("not executable"), "{:?}", wrong(&host));
}

/// A systemd that says this of libvirtd's last reload, and this of our units.
fn systemd(host: &Host, reload: &str, units: &str) {
    let _ = fs::remove_file(host.path("sbin/systemctl"));
    let reload = format!("ExecReload={{ path=/bin/kill ; start_time=[{reload}] ; stop_time=[n/a] ; pid=0 }}");
    host.program("systemctl", &format!("printf '{reload}\\nId=libvirtd.service\\nActiveState=active\\n\\n{units}'"));
}

#[test]
fn a_hook_that_came_after_libvirtd() {
    let unknown = "failure hook: The running libvirtd does not know the hook: it looks for it only when it starts | \
                   /run/libvirtd.pid is older than /etc/libvirt/hooks/qemu | Run `systemctl reload libvirtd`";
    let host = ready();
    let own = fs::read_link(host.path(HOOK)).unwrap();
    fs::remove_file(host.path(HOOK)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    symlink(own, host.path(HOOK)).unwrap();
    expect(&host, &[unknown]);
    systemd(&host, "n/a", "");
    expect(&host, &[unknown]);
    for before in ["Wed 2012-02-29 23:59:59 UTC", "Fri 1999-12-31 00:00:00 UTC", "gibberish", ""] {
        systemd(&host, before, "");
        expect(&host, &[unknown]);
    }
    // As systemd writes it.
    let now = std::process::Command::new("date").args(["-u", "+%a %Y-%m-%d %H:%M:%S UTC"]).output().unwrap();
    let now = String::from_utf8(now.stdout).unwrap().trim().to_owned();
    systemd(&host, &now, "");
    expect(&host, &[]);
    // After `systemctl daemon-reload`.
    systemd(&host, &format!("n/a]\\nStateChangeTimestamp={now}\\nX=["), "");
    expect(&host, &[]);
    systemd(&host, "n/a", "");
    libvirtd(&host, "libvirtd");
    expect(&host, &[]);
}

#[test]
fn a_hook_that_is_confined() {
    let host = ready();
    host.put("sys/kernel/security/apparmor/profiles", "man (enforce)\nlibvirtd (complain)\n");
    expect(&host, &[]);
    for profile in ["libvirtd", "/usr/sbin/libvirtd"] {
        host.put("sys/kernel/security/apparmor/profiles", format!("man (enforce)\n{profile} (enforce)\n"));
        let found = wrong(&host);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0]
                .starts_with("failure hook: AppArmor keeps the hook from its work: it may only stand in /usr/sbin | ")
                && found[0].contains(&format!("profiles has {profile} (enforce), and the hook is ")),
            "{found:?}"
        );
    }
    // Where it belongs.
    let own = fs::read_link(host.path(HOOK)).unwrap();
    fs::remove_file(host.path("usr/sbin/vfpool-hook")).unwrap();
    fs::copy(own, host.path("usr/sbin/vfpool-hook")).unwrap();
    fs::remove_file(host.path(HOOK)).unwrap();
    fs::hard_link(host.path("usr/sbin/vfpool-hook"), host.path(HOOK)).unwrap();
    libvirtd(&host, "libvirtd");
    assert!(wrong(&host)[0].ends_with(" | Run `ln -sfn /usr/sbin/vfpool-hook /etc/libvirt/hooks/qemu`"));
    carry_out(&host, "hook");
    libvirtd(&host, "libvirtd");
    expect(&host, &[]);
}

#[test]
fn a_hook_with_a_wrong_label() {
    let host = ready();
    let says = "[ \"$1\" = -nv ] && echo \"Would relabel $2 from unconfined_u:object_r:user_tmp_t:s0 to \
                system_u:object_r:virt_hook_exec_t:s0\"";
    host.program("restorecon", says);
    expect(&host, &[]);
    host.put("sys/fs/selinux/enforce", "1");
    expect(
        &host,
        &["failure hook: The hook has a label with which SELinux may keep libvirt from running it | restorecon -nv: \
           Would relabel /etc/libvirt/hooks/qemu from unconfined_u:object_r:user_tmp_t:s0 to \
           system_u:object_r:virt_hook_exec_t:s0 | Run `restorecon -v /etc/libvirt/hooks/qemu /usr/sbin/vfpool-hook`"],
    );
    fs::remove_file(host.path("sbin/restorecon")).unwrap();
    host.program("restorecon", "true");
    expect(&host, &[]);
}

#[test]
fn units_that_do_not_work() {
    let host = ready();
    let wants = "etc/systemd/system/multi-user.target.wants";
    fs::remove_file(host.path(&format!("{wants}/vfpool-setup.service"))).unwrap();
    fs::remove_file(host.path("usr/lib/systemd/system/vfpool-setup.path")).unwrap();
    fs::remove_file(host.path("etc/systemd/system/libvirtd.service.wants/vfpool-definitions.service")).unwrap();
    symlink("/dev/null", host.path("etc/systemd/system/vfpool-reconcile.path")).unwrap();
    let unit =
        |name: &str, state: &str, result: &str| format!("Id={name}\\nActiveState={state}\\nResult={result}\\n\\n");
    let units = [
        unit("vfpool-definitions.path", "inactive", "success"),
        unit("vfpool-setup.service", "inactive", "success"),
        unit("vfpool-reconcile.service", "failed", "exit-code"),
    ];
    systemd(&host, "n/a", &units.concat());
    expect(
        &host,
        &[
            "failure units: vfpool-setup.service is not enabled | \
             /etc/systemd/system/multi-user.target.wants/vfpool-setup.service | Run `systemctl enable --now \
             vfpool-setup.service`",
            "failure units: vfpool-setup.path is not installed | /usr/lib/systemd/system/vfpool-setup.path | Install \
             vfpool again with `yum reinstall -y vfpool`",
            "failure units: vfpool-reconcile.path is masked | /etc/systemd/system/vfpool-reconcile.path | Run \
             `systemctl unmask vfpool-reconcile.path && systemctl enable --now vfpool-reconcile.path`",
            "failure units: vfpool-definitions.path is enabled but not active | systemctl: ActiveState=inactive | \
             Run `systemctl enable --now vfpool-definitions.path`",
            "failure units: vfpool-definitions.service is not enabled | \
             /etc/systemd/system/libvirtd.service.wants/vfpool-definitions.service | Run `systemctl enable --now \
             vfpool-definitions.service`",
            "warning units: The last run of vfpool-reconcile.service failed | systemctl: Result=exit-code | Read \
             `journalctl -u vfpool-reconcile.service`, mend what it tells, then run `systemctl start \
             vfpool-reconcile.service`",
        ],
    );
}

/// Each version of systemd tells of all units, and the remedy cures.
#[test]
fn what_systemd_tells() {
    for version in [Systemd::V219, Systemd::Later] {
        let host = ready();
        host.systemctl(version);
        let reload = "ExecReload={ path=/bin/kill ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 }";
        host.unit("libvirtd.service", &["ActiveState=active", "Result=success", reload]);
        for unit in ["vfpool-setup.path", "vfpool-reconcile.path"] {
            host.unit(unit, &["ActiveState=active", "Result=success"]);
        }
        host.unit("vfpool-definitions.path", &["ActiveState=failed", "Result=unit-start-limit-hit"]);
        for unit in ["vfpool-setup.service", "vfpool-definitions.service"] {
            host.unit(unit, &["ActiveState=inactive", "Result=success"]);
        }
        host.unit("vfpool-reconcile.service", &["ActiveState=failed", "Result=exit-code"]);
        // The hook came after libvirtd, and systemd has reloaded it since.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let own = fs::read_link(host.path(HOOK)).unwrap();
        fs::remove_file(host.path(HOOK)).unwrap();
        symlink(own, host.path(HOOK)).unwrap();
        let ids = |host: &Host| -> Vec<String> {
            wrong(host).iter().map(|line| line.split(" | ").next().unwrap().to_owned()).collect()
        };
        let units = [
            "failure units: vfpool-definitions.path is enabled but not active",
            "warning units: The last run of vfpool-reconcile.service failed",
        ];
        let unknown = "failure hook: The running libvirtd does not know the hook: it looks for it only when it starts";
        assert_eq!(ids(&host), [&[unknown][..], &units].concat(), "{version:?}");
        carry_out(&host, "hook");
        assert_eq!(ids(&host), units, "{version:?}");
    }
}

#[test]
fn udev_that_does_not_tell() {
    let host = ready();
    mode(&host, "usr/lib/udev/vfpool-device", 0o644);
    expect(
        &host,
        &["failure udev: udev cannot run our helper | /usr/lib/udev/vfpool-device is not executable | Run `chmod 755 \
           /usr/lib/udev/vfpool-device`"],
    );
    carry_out(&host, "udev");
    expect(&host, &[]);
    fs::create_dir_all(host.path("etc/udev/rules.d")).unwrap();
    symlink("/dev/null", host.path("etc/udev/rules.d/60-vfpool.rules")).unwrap();
    expect(
        &host,
        &["failure udev: Another file takes the place of our rule, so that udev tells us nothing | \
           /etc/udev/rules.d/60-vfpool.rules | Run `rm /etc/udev/rules.d/60-vfpool.rules && udevadm control --reload`"],
    );
    fs::remove_file(host.path("usr/lib/udev/rules.d/60-vfpool.rules")).unwrap();
    expect(
        &host,
        &["failure udev: udev does not tell us of new PFs and VFs | /usr/lib/udev/rules.d/60-vfpool.rules is not \
           there | Install vfpool again with `yum reinstall -y vfpool`, then run `udevadm control --reload`"],
    );
}

#[test]
fn the_states_folder() {
    let host = ready();
    let cure = "Run `systemd-tmpfiles --create vfpool.conf`";
    mode(&host, "run/vfpool/queue/setup", 0o770);
    expect(
        &host,
        &[&format!("failure state: /run/vfpool/queue/setup is open to others than root | its mode is 770 | {cure}")],
    );
    fs::remove_dir_all(host.path("run/vfpool/queue")).unwrap();
    expect(
        &host,
        &[&format!(
            "failure state: /run/vfpool/queue/setup is not there: leases and work to do have no place | No such file \
             or directory (os error 2) | {cure}"
        )],
    );
    fs::remove_dir_all(host.path("run/vfpool")).unwrap();
    symlink("/tmp", host.path("run/vfpool")).unwrap();
    expect(
        &host,
        &["failure state: /run/vfpool is no folder | /run/vfpool | Run `rm /run/vfpool && systemd-tmpfiles --create \
             vfpool.conf`"],
    );
    let host = ready();
    host.put("run/vfpool/attention/we\nb", "0000:01:10.0 is stuck");
    fs::rename(host.path("run/vfpool/attention/we\nb"), host.path("run/vfpool/attention/we%0Ab")).unwrap();
    expect(
        &host,
        &["warning leases: Not all devices of guest 'we\\nb' could be reattached: 0000:01:10.0 is stuck |  | \
           Run `vfpool reconcile`"],
    );
}

#[test]
fn pfs_and_vfs() {
    let host = ready();
    let line = "<pf dev='eth3'> in /etc/vfpool/pools.d/net.xml line 1";
    let folder = format!("/sys/bus/pci/devices/{PF}");
    host.put("sys/class/net/eth3/flags", "0x1002\n");
    expect(
        &host,
        &[&format!(
            "failure pf: PF {PF} is down (eth3), so its VFs have no link | /sys/class/net/eth3/flags | Run \
             `vfpool setup {PF}`"
        )],
    );
    host.put("sys/class/net/eth3/flags", "0x1003\n");
    host.move_to(&vf(1), Some("igbvf"));
    host.move_to(&vf(2), None);
    expect(
        &host,
        &[&format!(
            "warning vfs: 2 of the 3 VFs of PF {PF} are not on vfio-pci; {} is on igbvf | \
             /sys/bus/pci/devices/{}/driver | Run `vfpool setup {PF}`",
            vf(1),
            vf(1)
        )],
    );
    // Those of guests are where these want them.
    host.prepare("web", &fakehost::domain_with("web", &[&vf(1), &vf(2)])).ok();
    expect(&host, &[]);
    host.release("web", "").ok();
    host.vfpool(&["setup"]).ok();

    for (vfs, state) in [("2", "warning"), ("max", "ok"), ("70", "failure")] {
        host.pool("net", &format!("<pf dev='eth3' vfs='{vfs}'/>"));
        let line = line.replace("'eth3'", &format!("'eth3' vfs='{vfs}'"));
        let expected = match vfs {
            "2" => vec![format!(
                "{state} vfs: PF {PF} has 3 VFs, and {line} asks for 2 | {folder}/sriov_numvfs is 3 | Run `vfpool \
                 setup {PF}`"
            )],
            "70" => vec![format!(
                "{state} vfs: PF {PF} cannot have 70 VFs, as {line} asks for | {folder}/sriov_totalvfs is 3 | Ask for \
                 vfs='max' there, or allow more in the card's firmware, then run `vfpool setup {PF}`"
            )],
            _ => Vec::new(),
        };
        assert_eq!(wrong(&host), expected);
    }
    // A driver that creates other numbers than it is asked for: no remedy that changes nothing.
    for (answers, vfs, now, state) in [("vfs-at-most 2", 3, 2, "failure"), ("vfs-at-least 3", 2, 3, "warning")] {
        let host = ready();
        host.driver_answers("igb", answers);
        host.remove_vfs(PF);
        host.pool("net", &format!("<pf dev='eth3' vfs='{vfs}'/>"));
        host.vfpool(&["setup"]);
        host.reconcile();
        expect(
            &host,
            &[&format!(
                "{state} vfs: PF {PF} has {now} VFs: its driver was asked for {vfs}, by <pf dev='eth3' vfs='{vfs}'> in \
                 /etc/vfpool/pools.d/net.xml line 1 | {folder}/sriov_numvfs is {now} | See `dmesg` for the reason. If \
                 it cannot have others, ask for vfs='{now}' there"
            )],
        );
        host.pool("net", &format!("<pf dev='eth3' vfs='{now}'/>"));
        expect(&host, &[]);
    }
    // No VFs yet: a pool that asks for nothing gets all.
    let host = ready();
    host.make_vfs(PF, &[]);
    expect(
        &host,
        &[&format!(
            "failure vfs: PF {PF} has 0 VFs, and {line} asks for 3 | {folder}/sriov_numvfs is 0 | Run `vfpool setup \
             {PF}`"
        )],
    );
    host.move_to(PF, None);
    let used = "; eth3 is up | /sys/bus/pci/devices/0000:01:00.0/driver | Take eth3 down, then bind it";
    assert!(wrong(&host)[0].contains(used), "{:?}", wrong(&host));
    host.put("sys/class/net/eth3/flags", "0x1002\n");
    let found = wrong(&host);
    assert_eq!(
        found[0],
        format!(
            "failure pf: PF {PF} is on no driver, and only its own driver creates VFs | {folder}/driver | Run `[ ! -e \
             {folder}/driver_override ] || echo >{folder}/driver_override; echo {PF} >/sys/bus/pci/drivers_probe; \
             udevadm settle; vfpool setup {PF}`"
        )
    );
    host.move_to(PF, Some("vfio-pci"));
    assert!(
        wrong(&host)[0].contains(&format!("; echo {PF} >{folder}/driver/unbind; echo {PF} >")),
        "{:?}",
        wrong(&host)
    );
    // One that a guest has.
    let host = ready();
    host.guest("web", PF).prepare().ok();
    host.libvirt_detaches(PF);
    expect(&host, &[&format!("note pf: PF {PF} is with guest 'web', and its VFs with it ({line}) |  | ")]);
}

#[test]
fn lines_and_files_of_pools() {
    let host = ready();
    host.add(Device::new("0000:02:00.0").group(9).driver("e1000e"));
    host.pool("other", "<pf address='01:00.0'/>");
    host.put("etc/vfpool/pools.d/broken.xml", "<pool");
    host.pool("third", "<pf address='02:00.0'/>");
    host.put("etc/vfpool/host.xml", "<host><alow/></host>");
    let found = wrong(&host);
    let starts = [
        "failure settings: Cannot use /etc/vfpool/host.xml: ",
        "failure pool: Cannot use /etc/vfpool/pools.d/broken.xml: it is no XML at line 1: ",
        "failure pool: Cannot use <pf address='01:00.0'> in /etc/vfpool/pools.d/other.xml line 1 (pool 'other'): \
         0000:01:00.0 is listed already by <pf dev='eth3'> in /etc/vfpool/pools.d/net.xml line 1 of pool 'net' | \
         /etc/vfpool/pools.d/other.xml | Remove one of the two",
        "failure pool: Cannot use <pf address='02:00.0'> in /etc/vfpool/pools.d/third.xml line 1 (pool 'third'): \
         0000:02:00.0 has no SR-IOV | /etc/vfpool/pools.d/third.xml | Enable it in the firmware",
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (found, start) in found.iter().zip(starts) {
        assert!(found.starts_with(start), "{found}");
    }
    assert!(found[0].ends_with("| Mend /etc/vfpool/host.xml, or remove it if nothing has to be set"), "{}", found[0]);
    let host = ready();
    fs::remove_file(host.path("etc/vfpool/pools.d/net.xml")).unwrap();
    expect(
        &host,
        &["note pool: There are no pools; guests have the devices that they name, and nothing more | \
             /etc/vfpool/pools.d is empty | "],
    );
}

#[test]
fn groups_that_are_shared() {
    let acs = "Put the card into a slot whose port has ACS (`lspci -vv` shows it)";
    let host = ready();
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.add_pair("0000:02:00", 30);
    let at = |function: u8| format!("<address type='pci' bus='2' slot='0' function='{function}'/>");
    host.pool("pair", &(at(0) + &at(1)));
    expect(
        &host,
        &[&format!(
            "warning group: Pool 'pair' can serve one guest only at a time: its 2 devices share 1 IOMMU group, as no \
             port between them has ACS, and a group goes to one guest | /sys/kernel/iommu_groups/30/devices | {acs}, \
             or live with that"
        )],
    );
    // A sibling that the host needs; what the pool has, libvirt takes although it has an address.
    host.netdev("0000:02:00.1", "em2", true, &["192.0.2.7"]);
    assert!(wrong(&host)[0].starts_with("warning group"), "{:?}", wrong(&host));
    host.pool("pair", &at(0));
    let refused = "failure group: No guest can have 0000:02:00.0 of pool 'pair': Cannot detach 0000:02:00.1 (sibling \
                   of 0000:02:00.0): em2 is up and has the address 192.0.2.7 | /sys/kernel/iommu_groups/30/devices | \
                   Take em2 down or its address away, or allow it with <allow address='0000:02:00.1' id='8086:10d3'/> \
                   in /etc/vfpool/host.xml";
    expect(&host, &[refused]);
    host.settings("<allow address='02:00.1'/>");
    expect(&host, &[]);
    // A host bridge in the group.
    host.add(Device::new("0000:02:00.2").group(30).class(0x06_0100).driver("e1000e"));
    expect(
        &host,
        &["failure group: No guest can have 0000:02:00.0 of pool 'pair': 0000:02:00.0 cannot be assigned to a guest: \
             the host's bridge 0000:02:00.2 is on e1000e in the same IOMMU group 30, and VFIO accepts no group with \
             such a device on a host driver | /sys/kernel/iommu_groups/30/devices | Put the card into another slot, or \
             use another device"],
    );
    // PF and VFs in one.
    let host = ready();
    let places = [("0000:03:10.0", 40), ("0000:03:10.2", 40)];
    host.add(Device::new("0000:03:00.0").id("8086:10c9").driver("igb").group(40).vfs("8086:10ca", &places));
    host.pool("one", "<pf address='03:00.0'/>");
    host.vfpool(&["setup"]).ok();
    expect(
        &host,
        &["failure group: No guest can have 0000:03:10.0 and 1 more of pool 'one': 0000:03:10.0 cannot be assigned \
             to a guest: its PF 0000:03:00.0 is detached with it, and without the PF's driver the VF vanishes | \
             /sys/kernel/iommu_groups/40/devices | Put the card into a slot with ACS, so that each VF has an IOMMU \
             group of its own, or give the guest 0000:03:00.0 alone"],
    );
}

#[test]
fn networks_of_libvirt_with_the_same_devices() {
    let host = ready();
    host.put(
        "etc/libvirt/qemu/networks/it's.xml",
        "<network><name>it's</name><forward mode='hostdev'><pf dev='eth3'/></forward></network>",
    );
    let warning = |command: &str| {
        format!(
            "warning network: libvirt's network 'it's' and pool 'net' both have VFs of the PF eth3, so a guest of one \
             may get what a guest of the other is to have | /etc/libvirt/qemu/networks | Use the pool in the network's \
             place and run `{command}`, or remove VFs of the PF eth3 from /etc/vfpool/pools.d/net.xml"
        )
    };
    let undefine = r"virsh net-undefine 'it'\''s'";
    expect(&host, &[&warning(undefine)]);
    host.put("run/libvirt/network/it's.xml", "");
    expect(&host, &[&warning(&format!(r"virsh net-destroy 'it'\''s' && {undefine}"))]);
}

#[test]
fn requests_of_guests() {
    let host = ready();
    host.define("g1", &asking("g1", &vf(0)));
    expect(&host, &[]);
    host.define("g2", &definition("g2", &[("no ne", 0)], &[hostdev_at(&vf(1), 0, "")]));
    host.define("g3", &definition("g3", &[("net", 4)], &[]));
    host.define("g4", &asking("g4", "0000:77:00.0"));
    let moving = definition("g5", &[("net", 0)], &[])
        .replace("0000:00:05.0\"/>", "0000:00:05.0\">&lt;hostdev/&gt;</vfpool:device>");
    host.define("g5", &moving);
    host.define("g6", "<domain><devices>");
    let file = |guest: &str| format!("/etc/libvirt/qemu/{guest}.xml");
    expect(
        &host,
        &[
            &format!(
                "failure request: Guest 'g2' cannot start: it asks for a device of pool 'no ne'. There is no pool 'no \
                 ne': /etc/vfpool/pools.d has 'net' | {} | Make that pool in /etc/vfpool/pools.d, or take the device \
                 away: run `vfpool detach g2 'no ne' 0000:00:05.0 --config`",
                file("g2")
            ),
            &format!(
                "warning request: Guest 'g3' asks pool 'net' for a device at 0000:00:09.0, where it has none | {} | \
                 Run `vfpool detach g3 net 0000:00:09.0 --config`",
                file("g3")
            ),
            &format!(
                "warning request: Guest 'g4' points at 0000:77:00.0, which is no device of pool 'net' on this host | \
                 {} | Run `vfpool reconcile`",
                file("g4")
            ),
            &format!(
                "warning request: Guest 'g5': its device of pool 'net' was not pointed at a free one to the end | {} | \
                 Run `vfpool reconcile`",
                file("g5")
            ),
            "warning guest: The definition of guest 'g6' cannot be read: The domain XML is cut off: <devices> is not \
             closed |  | Mend it with `virsh edit g6`",
        ],
    );
}

#[test]
fn devices_that_guests_name() {
    let host = ready();
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.add_pair("0000:02:00", 30);
    host.netdev("0000:02:00.0", "em1", true, &["192.0.2.6"]);
    host.netdev("0000:02:00.1", "em2", true, &["192.0.2.7"]);
    // Told once, however many of its group the guest has.
    host.add(Device::new("0000:02:00.2").behind("0000:00:02.0").group(30));
    host.define(
        "web",
        &definition("web", &[], &[hostdev_at("0000:02:00.0", 0, ""), hostdev_at("0000:02:00.2", 1, "")]),
    );
    assert_eq!(wrong(&host).len(), 1, "{:?}", wrong(&host));
    host.remove("0000:02:00.2");
    host.define(
        "web",
        &definition("web", &[], &[hostdev_at("0000:02:00.0", 0, ""), hostdev_at("0000:66:00.0", 1, "")]),
    );
    let sibling = "failure guest: Guest 'web' cannot start: Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0): em2 \
                   is up and has the address 192.0.2.7 | /etc/libvirt/qemu/web.xml | Take em2 down or its address \
                   away, or allow it with <allow address='0000:02:00.1' id='8086:10d3'/> in /etc/vfpool/host.xml";
    let missing = "failure guest: Guest 'web' cannot start: there is no PCI device 0000:66:00.0 on this host | \
                   /etc/libvirt/qemu/web.xml | See `lspci -D`, and correct it with \
                   `virsh edit web`";
    expect(&host, &[missing, sibling]);
    // As the hook says.
    host.define("web", &definition("web", &[], &[hostdev_at("0000:02:00.0", 0, "")]));
    expect(&host, &[sibling]);
    assert!(host.prepare("web", &host.definition("web")).stderr.contains("Take em2 down or its address away"));
    host.settings("<allow address='02:00.1'/>");
    expect(&host, &[]);
    host.prepare("web", &host.definition("web")).ok();
    // What the guest asks for itself must not be the host's way out.
    host.release("web", "").ok();
    host.route("0.0.0.0/0", 100, &["em1"]);
    assert!(
        wrong(&host)[0].contains("Cannot detach 0000:02:00.0: it carries the default route (em1)"),
        "{:?}",
        wrong(&host)
    );
    host.qemu_runs("web", 4242);
    expect(&host, &[]);
}

#[test]
fn memory_that_cannot_be_locked() {
    let host = ready();
    let with = |limit: &str| {
        let tuned = format!(
            "<memory unit='KiB'>65536</memory>\n<memtune><hard_limit unit='KiB'>{limit}</hard_limit></memtune>"
        );
        definition("web", &[], &[hostdev_at(&vf(0), 0, "")]).replace("<memory unit='KiB'>65536</memory>", &tuned)
    };
    let cure = "Run `virsh memtune web --hard-limit 1114112 --config`";
    for (limit, what) in [
        (
            "65535",
            "failure memory: Guest 'web': it cannot start with its PCI device, which needs all of the guest's memory \
             locked",
        ),
        (
            "65536",
            "warning memory: Guest 'web': QEMU may not start with its PCI device, which needs more locked than the \
             guest's memory",
        ),
    ] {
        host.define("web", &with(limit));
        expect(
            &host,
            &[&format!("{what} | /etc/libvirt/qemu/web.xml: <hard_limit> is {limit} KiB, <memory> 65536 KiB | {cure}")],
        );
    }
    host.define("web", &with("1114112"));
    expect(&host, &[]);
    // Without a device it may be as small as the admin wants.
    host.define("web", &with("100").replace("hostdev", "other"));
    expect(&host, &[]);
}
