//! What bash completes.

use fakehost::{Device, Host};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What bash offers for the last of these words, in the order in which it does: without bash-completion, and with no
/// program to run.
#[track_caller]
fn completed_in(host: &Host, words: &[&str], before: &str) -> String {
    let script = format!(
        "{before}\n. \"$0\"\nCOMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1))\n_vfpool\n\
         [[ ${{#COMPREPLY[@]}} -eq 0 ]] || printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let mut bash = Command::new("/bin/bash");
    bash.env_clear().env("PATH", "/nonexistent").env("VFPOOL_ROOT", host.path("")).args(["--norc", "-c", &script]);
    let output =
        bash.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/completion.bash")).args(words).output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{words:?}");
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn completed(host: &Host, words: &[&str]) -> String {
    completed_in(host, &[&["vfpool"], words].concat(), "")
}

#[test]
fn guests_pools_and_devices_are_completed() {
    let host = Host::with_vfs(2);
    host.add(Device::new("0000:02:00.0").group(9));
    host.define("web01", "");
    host.define("my guest", "");
    host.put("run/libvirt/qemu/transient.xml", "");
    host.put("run/libvirt/qemu/web01.xml", "");
    host.put("etc/libvirt/qemu/networks/default.xml", "");
    host.put("etc/vfpool/pools.d/file.xml", "<network>\n <name> hostdev net </name>\n</network>");
    host.put("etc/vfpool/pools.d/odd.xml", "<pool>");
    let guests = "my\\ guest\nweb01\ntransient\n";
    let pools = "hostdev\\ net\nnet\n";
    let devices = "0000:01:00.0\n0000:01:10.0\n0000:01:10.1\n0000:02:00.0\n";
    for (words, offered) in [
        (&["start", ""] as &[&str], guests.to_owned()),
        (&["start", "w"], "web01\n".into()),
        (&["start", "W"], String::new()),
        (&["start", "my\\ "], "my\\ guest\n".into()),
        (&["start", "'my"], "my guest\n".into()),
        (&["start", "--pass-fds", ""], String::new()),
        (&["start", "--pass-fds", "3,4", "t"], "transient\n".into()),
        (&["attach", "web01", ""], pools.into()),
        (&["attach", "--rom-off", "web01", "n"], "net\n".into()),
        (&["attach", "web01", "net", "--interface", ""], String::new()),
        (&["attach", "--interface", "52", ":", "54", ":", "00", "web01", "n"], "net\n".into()),
        (&["attach", "web01", "net", "--interface", "=", "52", ":", "54", "--l"], "--live\n".into()),
        (&["attach", "web01", "net", "--live", "--co"], "--config\n".into()),
        (&["attach", "web01", "net", "--live", "--li"], String::new()),
        (&["detach", "web01", "net", ""], devices.into()),
        (&["release", "web01", "01:1"], "10.0\n10.1\n".into()),
        // As bash splits 0000:01:10 and 0000: for us.
        (&["release", "web01", "0000", ":", "01", ":", "10"], "10.0\n10.1\n".into()),
        (&["release", "web01", "0000", ":"], "01:00.0\n01:10.0\n01:10.1\n02:00.0\n".into()),
        (&["adopt", "web01", "net", "pci_0000_02"], "pci_0000_02_00_0\n".into()),
        (&["list", ""], pools.into()),
        (&["list", "net", "h"], "hostdev\\ net\n".into()),
        (&["dumpxml", "--interface", ""], format!("{pools}{devices}")),
        (&["explain", ""], format!("{guests}{devices}eth3\n")),
        (&["explain", "--guest", ""], guests.to_owned()),
        (&["setup", ""], "0000:01:00.0\neth3\n".into()),
        (&["start", "web01", ""], String::new()),
        (&["start", "--", "-"], String::new()),
        (&["nonsense", ""], String::new()),
    ] {
        assert_eq!(completed(&host, words), offered, "{words:?}");
        // In a shell in which somebody has set what scripts trip over.
        let odd = "set -u -f; shopt -s failglob nocasematch dotglob; IFS=e";
        assert_eq!(completed_in(&host, &[&["vfpool"], words].concat(), odd), offered, "{words:?}");
    }
    // Where somebody has told readline to leave colons alone.
    let words = ["vfpool", "release", "web01", "0000:01:10.1"];
    assert_eq!(completed_in(&host, &words, "COMP_WORDBREAKS=' '"), "0000:01:10.1\n");
    // Nothing to be seen, as by those who are not root, is no error, and keeps nothing else from being seen.
    let unprivileged = Host::with_vfs(0);
    for before in ["", "shopt -s failglob"] {
        assert_eq!(completed_in(&unprivileged, &["vfpool", "explain", ""], before), "0000:01:00.0\neth3\n");
    }
    let empty = Host::new();
    fs::remove_dir_all(empty.path("etc/libvirt")).unwrap();
    fs::remove_dir_all(empty.path("sys")).unwrap();
    for words in [&["start", ""], &["list", ""], &["explain", ""], &["setup", ""]] {
        assert_eq!(completed(&empty, words), "");
        assert_eq!(completed_in(&empty, &[&["vfpool"], words.as_slice()].concat(), "shopt -s failglob"), "");
    }
}

#[test]
fn a_name_is_completed_as_one_word_and_never_run() {
    let host = Host::new();
    let trace = host.path("run-by-bash");
    let names =
        [format!("$(:>{})", "run-by-bash"), "`x`".into(), "a\nb".into(), "it's".into(), "*".into(), "a:b".into()];
    for name in &names {
        host.define(name, "");
    }
    host.put("etc/vfpool/pools.d/x.xml", "<pool><name>$(:>run-by-bash) \u{1b}[2J</name></pool>");
    let offered = completed(&host, &["start", ""]);
    assert_eq!(offered.lines().count(), names.len(), "{offered}");
    let pools = completed(&host, &["list", ""]);
    assert_eq!(pools, "$'$(:>run-by-bash) \\E[2J'\n");
    // What is offered is, on a command line, just the name.
    let line = offered.lines().chain(pools.lines()).collect::<Vec<_>>().join(" ");
    let mut bash = Command::new("/bin/bash");
    bash.current_dir(host.path("")).args(["--norc", "-c", &format!("printf '%s\\0' {line}")]);
    let words = String::from_utf8(bash.output().unwrap().stdout).unwrap();
    let words: BTreeSet<&str> = words.split_terminator('\0').collect();
    let expected = names.iter().map(String::as_str).chain(["$(:>run-by-bash) \u{1b}[2J"]);
    assert_eq!(words, expected.collect());
    assert!(!trace.exists());
    // Between quotes, only what means nothing there.
    assert_eq!(completed(&host, &["start", "\""]), "*\na:b\n");
    assert_eq!(completed(&host, &["start", "a", ":"]), "b\n");
}
