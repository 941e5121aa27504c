//! What tests expect: of a program's answer, and of the host afterwards.

use crate::Host;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is compared: everything below `sys` (files with their text, links with their target), and the drivers' dynamic
/// ids.
pub type Snapshot = BTreeMap<PathBuf, String>;

/// What a program answered.
#[derive(Debug)]
pub struct Outcome {
    /// `None` if it was killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    /// Exit 0 and nothing said to libvirt, which would take it for a new definition.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), ""), "{}", self.stderr);
        self
    }

    /// Exit 0, and a word on stderr.
    #[track_caller]
    pub fn ok_saying(self, part: &str) -> Self {
        let outcome = self.ok();
        assert!(outcome.stderr.contains(part), "{part:?} is not in {:?}", outcome.stderr);
        outcome
    }

    /// Exit 0, and not a word.
    #[track_caller]
    pub fn ok_silently(self) {
        let outcome = self.ok();
        assert_eq!(outcome.stderr, "");
    }

    /// Exit 1 with this reason as the last line; the lines before are the log of what was done and undone.
    #[track_caller]
    pub fn refused(self, reason: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{}", self.stderr);
        assert_eq!(self.stderr.lines().last(), Some(format!("vfpool: {reason}").as_str()), "{}", self.stderr);
    }

    /// Like [`Outcome::refused`], for a reason of which only these parts are sure.
    #[track_caller]
    pub fn refused_saying(self, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{}", self.stderr);
        let reason = self.stderr.lines().last().unwrap_or_default();
        for part in parts {
            assert!(reason.contains(part), "{part:?} is not in {reason:?}");
        }
    }
}

impl Host {
    /// What VFIO asks of a group before QEMU may have it: no endpoint on a host driver.
    #[track_caller]
    pub fn assert_viable(&self, group: u32) {
        self.assert_viable_without("", group);
    }

    /// The same before libvirt has taken this device.
    #[track_caller]
    pub fn assert_viable_without(&self, device: &str, group: u32) {
        for member in self.tree.names(format!("sys/kernel/iommu_groups/{group}/devices")) {
            let driver = self.driver(&member);
            let is_free = matches!(driver.as_deref(), None | Some("vfio-pci" | "pcieport"));
            assert!(is_free || member == device, "group {group} is not viable: {member} is on {driver:?}");
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut found = Snapshot::new();
        for folder in ["sys", "hw/dynids"] {
            self.walk(&self.path(folder), &mut found);
        }
        found
    }

    fn walk(&self, folder: &Path, found: &mut Snapshot) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            let what = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                self.walk(&path, found);
                continue;
            } else {
                String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
            };
            // A driver that never had a dynamic id, and one that has none any more, are the same.
            if !(what.is_empty() && path.starts_with(self.path("hw"))) {
                found.insert(path.strip_prefix(&self.tree.root).unwrap().to_owned(), what);
            }
        }
    }

    /// The host is exactly as it was then.
    #[track_caller]
    pub fn assert_as(&self, before: &Snapshot, when: &str) {
        let now = self.snapshot();
        let paths = before.keys().chain(now.keys().filter(|path| !before.contains_key(*path)));
        let changes = paths.filter(|path| before.get(*path) != now.get(*path));
        let changes: Vec<String> =
            changes.map(|path| format!("{}: {:?} -> {:?}", path.display(), before.get(path), now.get(path))).collect();
        assert!(
            changes.is_empty(),
            "{when}:\n{}\ntrace:\n{}",
            changes.join("\n"),
            self.get("trace").unwrap_or_default()
        );
    }

    /// The guests that have a file in one of the state's folders (`leases`, `claims`, `attention`, `corrupt`).
    pub fn recorded(&self, folder: &str) -> Vec<String> {
        self.tree.names(format!("run/vfpool/{folder}"))
    }

    /// No lease, no claim, nothing to attend to.
    #[track_caller]
    pub fn assert_no_leases(&self, when: &str) {
        for folder in ["leases", "claims", "attention"] {
            assert_eq!(self.recorded(folder), [""; 0], "{when}: {folder}\n{}", self.get("trace").unwrap_or_default());
        }
    }

    /// The host is exactly as it was then, and nobody has a lease.
    #[track_caller]
    pub fn assert_restored(&self, before: &Snapshot, when: &str) {
        self.assert_as(before, when);
        self.assert_no_leases(when);
    }

    /// What the hook and its children changed since the last time this was asked, one call a line.
    pub fn trace(&self) -> Vec<String> {
        let trace = self.get("trace").unwrap_or_default();
        self.tree.unlink("trace");
        trace.lines().map(str::to_owned).collect()
    }
}

/// Waits at most 15 seconds, and far less as a rule, until it is so.
///
/// # Panics
/// If it never is.
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never: {what}");
}
