//! The Debian package's scripts, with programs that only record their calls. On a real Debian:
//! `lab/scenarios/082-deb.sh`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const MASKED: &str = "var/lib/systemd/deb-systemd-helper-masked/vfpool-setup.service";

/// What postinst does: the calls that matter here, in order.
fn postinst(arguments: &[&str], was_removed: bool) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    let put = |below: &str, text: &str| {
        let path = root.path().join(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let calls = root.path().join("calls");
    let record = format!("#!/bin/sh\necho \"${{0##*/}} $*\" >>{}\n", calls.display());
    for program in ["systemctl", "systemd-tmpfiles", "udevadm"] {
        put(&format!("bin/{program}"), &record);
    }
    put("usr/sbin/vfpool", &record);
    put("bin/deb-systemd-helper", "#!/bin/sh\n");
    put("bin/deb-systemd-invoke", &record);
    if was_removed {
        put(MASKED, "");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/debian/postinst");
    let script = fs::read_to_string(script).unwrap();
    let below = |path: &str| format!("{}{path}", root.path().display());
    let script = script.replace("/usr/sbin/vfpool", &below("/usr/sbin/vfpool"));
    let script = script.replace("/var/lib/systemd", &below("/var/lib/systemd"));
    let path = format!("{}:/bin:/usr/bin", root.path().join("bin").display());
    let done = Command::new("/bin/sh").args(["-c", &script, "postinst"]).args(arguments).env("PATH", path).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let calls = fs::read_to_string(calls).unwrap_or_default();
    let matters = |line: &&str| line.contains("start ") || line.starts_with("vfpool") || line.contains(" reload ");
    calls.lines().filter(matters).map(str::to_owned).collect()
}

#[test]
fn an_upgrade_brings_back_nothing_that_the_admin_has_removed() {
    let paths: Vec<String> = ["setup", "reconcile", "definitions"]
        .map(|unit| format!("deb-systemd-invoke start vfpool-{unit}.path"))
        .to_vec();
    let new = [
        "vfpool hook install",
        "systemctl reload libvirtd.service",
        "systemctl reload virtqemud.service",
        "systemctl start --no-block vfpool-setup.service",
    ];
    for (what, arguments, was_removed, is_new) in [
        ("first installation", &["configure", ""][..], false, true),
        ("upgrade", &["configure", "0.1.0-1"], false, false),
        ("installation after a removal", &["configure", "0.1.0-1"], true, true),
        ("another step", &["abort-upgrade", "0.1.0-1"], false, false),
    ] {
        let calls = postinst(arguments, was_removed);
        let expected: Vec<&str> = if arguments[0] == "configure" {
            paths.iter().map(String::as_str).chain(new.into_iter().filter(|_| is_new)).collect()
        } else {
            Vec::new()
        };
        assert_eq!(calls, expected, "{what}");
    }
    // deb-systemd-invoke does not start what is disabled; setup also runs at boot, and is started only by a first
    // installation.
    let script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/debian/postinst")).unwrap();
    let started: Vec<&str> = script.lines().filter(|line| line.contains("systemctl start")).collect();
    assert_eq!(started, ["systemctl start --no-block vfpool-setup.service >/dev/null 2>&1 || :"]);
}
