//! How this distribution changes the kernel's command line, and has packages installed again.
//! Sources: os-release(5); RHEL 7 Virtualization Deployment and Administration Guide, 16.1; RHEL 8 "Managing,
//! monitoring and updating the kernel", "Configuring kernel command-line parameters".

use host::files;
use host::paths::Host;

/// What the kernel was booted with, word by word.
pub(super) fn command_line(host: &Host) -> Vec<String> {
    let line = files::read(&host.path("proc/cmdline")).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

/// How to have these words on the kernel's command line from the next boot on, and those not any more.
pub(super) fn remedy(host: &Host, add: &[&str], remove: &[&str]) -> String {
    let release = Release::read(host);
    let (add, removed) = (add.join(" "), remove.join(" "));
    let command = match release.family() {
        Family::Grubby => {
            let options = [("--remove-args", &removed), ("--args", &add)];
            let options = options.iter().filter(|(_, words)| !words.is_empty());
            let options: Vec<String> = options.map(|(option, words)| format!("{option}='{words}'")).collect();
            format!("grubby --update-kernel=ALL {}", options.join(" "))
        }
        family => {
            let generate = match family {
                Family::Rhel7 if host.path("sys/firmware/efi").exists() => {
                    let vendor = if release.id == "centos" { "centos" } else { "redhat" };
                    format!("grub2-mkconfig -o /boot/efi/EFI/{vendor}/grub.cfg")
                }
                Family::Rhel7 | Family::Suse => "grub2-mkconfig -o /boot/grub2/grub.cfg".to_owned(),
                Family::Debian => "update-grub".to_owned(),
                Family::Grubby | Family::Other => return by_hand(&add, &removed),
            };
            let file = host.path("etc/default/grub");
            let file = file.display();
            // A shell reads the file, so this works however the line in it is written.
            let added =
                (!add.is_empty()).then(|| format!("echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {add}\"' >>{file}"));
            let removals = remove.iter().map(|word| format!("sed -i 's/\\b{word}\\b//g' {file}"));
            let steps: Vec<String> = removals.chain(added).chain([generate]).collect();
            steps.join(" && ")
        }
    };
    format!("Run `{command}`, then reboot")
}

fn by_hand(add: &str, removed: &str) -> String {
    let edit = match (add, removed) {
        (add, "") => format!("Add '{add}' to"),
        ("", removed) => format!("Take '{removed}' out of"),
        (add, removed) => format!("Take '{removed}' out of, and add '{add}' to,"),
    };
    format!("{edit} the kernel's command line in the boot loader's configuration, then reboot")
}

/// How to have all of our own files as they were.
pub(super) fn reinstall(host: &Host) -> String {
    match Release::read(host).family() {
        Family::Rhel7 => "Install vfpool again with `yum reinstall -y vfpool`".to_owned(),
        Family::Grubby => "Install vfpool again with `dnf reinstall -y vfpool`".to_owned(),
        Family::Debian | Family::Suse | Family::Other => "Install vfpool again, as it was installed".to_owned(),
    }
}

/// Distributions that do it alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// RHEL 7 and those made from it.
    Rhel7,
    /// Later ones, and Fedora: each kernel's line is in an entry of its own, which grubby edits.
    Grubby,
    Debian,
    Suse,
    Other,
}

/// What os-release(5) says.
struct Release {
    id: String,
    like: String,
    version: String,
}

impl Release {
    fn read(host: &Host) -> Self {
        let files = ["etc/os-release", "usr/lib/os-release"];
        let text = files.iter().find_map(|file| files::read(&host.path(file)).ok()).unwrap_or_default();
        let value = |key: &str| {
            let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        Self { id: value("ID"), like: value("ID_LIKE"), version: value("VERSION_ID") }
    }

    fn family(&self) -> Family {
        let is = |name: &str| self.id == name || self.like.split_whitespace().any(|like| like == name);
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if self.id == "fedora" {
            Family::Grubby
        } else if is("rhel") || is("fedora") {
            if major.is_some_and(|major| major <= 7) { Family::Rhel7 } else { Family::Grubby }
        } else if is("debian") || is("ubuntu") {
            Family::Debian
        } else if is("suse") || self.id.starts_with("opensuse") || self.id == "sles" {
            Family::Suse
        } else {
            Family::Other
        }
    }
}
