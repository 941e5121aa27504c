//! Hooks of others beside ours: the one that was there before, and those in `qemu.d` of an old libvirt.

use fakehost::{FIRST, Host, SECOND, asking, domain, domain_with, hostdev, vf, wait_until};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

const EARLIER: &str = "etc/libvirt/hooks/qemu.before-vfpool";

/// Installs a hook as the earlier one, or in `qemu.d`, that notes each call in `calls` and then does `more`. The root
/// of the host is `$R`.
fn hook(host: &Host, below: &str, more: &str) {
    let root = host.path("").display().to_string();
    let root = root.trim_end_matches('/');
    let name = below.rsplit('/').next().unwrap();
    host.script(below, &format!("R={root}\nxml=$(cat)\necho \"{name} $*\" >>$R/calls\n{more}"));
}

fn calls(host: &Host) -> Vec<String> {
    let calls = host.get("calls").unwrap_or_default();
    let _ = fs::remove_file(host.path("calls"));
    calls.lines().map(str::to_owned).collect()
}

/// This process, which is the libvirtd of the fake host, has this library mapped.
fn libvirt(host: &Host, library: &str) {
    let line = format!("7f00 r-xp 00000000 08:01 1234 /usr/lib64/{library}\n");
    host.put(&format!("proc/{}/maps", std::process::id()), line);
}

#[test]
fn the_hook_that_was_there_sees_all_that_it_saw_before() {
    let host = Host::with_pair();
    let driver = format!("readlink $R/sys/bus/pci/devices/{SECOND}/driver");
    hook(
        &host,
        EARLIER,
        &format!("basename $({driver}) >>$R/drivers\nprintf '%s\\n' \"$xml\" >$R/xml\necho said >&2; echo printed"),
    );
    let xml = domain_with("my guest", &[FIRST]);
    for operation in ["prepare", "start", "started", "stopped", "release", "reconnect", "attach", "unheard-of"] {
        let outcome = host.hook("my guest", operation, &xml).run().ok();
        assert!(!outcome.stderr.contains("said"), "of one that did well libvirt shows nothing: {}", outcome.stderr);
        let end = if matches!(operation, "stopped" | "release") { "end" } else { "begin" };
        assert_eq!(calls(&host), [format!("qemu.before-vfpool my guest {operation} {end} -")]);
        assert_eq!(host.get("xml").unwrap().trim_end(), xml.trim_end(), "{operation}");
    }
    let drivers = host.get("drivers").unwrap();
    assert!(drivers.starts_with("vfio-pci\n"), "ours comes first: {drivers}");
    let arguments = ["web", "release", "end", "shutdown"];
    host.hook_with(&arguments, xml.as_bytes()).run().ok();
    assert_eq!(calls(&host), ["qemu.before-vfpool web release end shutdown"]);
}

#[test]
fn its_answer_counts_where_libvirt_asks_for_one() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    hook(&host, EARLIER, "echo 'not today' >&2; exit 3");
    for operation in ["prepare", "start", "started", "attach"] {
        let outcome = web.hook(operation).run();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""), "{operation}");
        assert!(outcome.stderr.ends_with("not today\n"), "{operation}: {}", outcome.stderr);
    }
    for operation in ["stopped", "release", "reconnect", "unheard-of"] {
        web.hook(operation).run().ok_saying("not today");
    }
    web.release().ok();
    host.assert_restored(&before, "after the release that libvirt lets follow");
    // What it has not said, we say.
    hook(&host, "etc/libvirt/hooks/silent", "kill -TERM $$");
    fs::rename(host.path("etc/libvirt/hooks/silent"), host.path(EARLIER)).unwrap();
    let outcome = host.hook("web", "start", &domain("web", &[])).run();
    assert_eq!(outcome.code, Some(128 + 15));
    assert!(outcome.stderr.contains("qemu.before-vfpool: signal: 15"), "{}", outcome.stderr);
}

#[test]
fn filters_work_on_each_others_output() {
    let host = Host::with_vfs(3);
    libvirt(&host, "libvirt.so.0.4005.0");
    host.prepare("db", &asking("db", &vf(0))).ok();
    let (given, resolved) = (asking("web", &vf(0)), asking("web", &vf(1)));
    for operation in ["migrate", "restore"] {
        let outcome = host.hook("web", operation, &given).run();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), resolved.as_str()), "ours alone");
    }
    hook(&host, EARLIER, "printf '%s\\n' \"$xml\" >$R/xml");
    let outcome = host.hook("web", "migrate", &given).run();
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), resolved.as_str()),
        "printing nothing changes nothing"
    );
    assert_eq!(host.get("xml").unwrap().trim_end(), resolved.trim_end());
    hook(&host, "etc/libvirt/hooks/qemu.d/1", "printf '%s\\n' \"$xml\" | sed s/x.qcow2/y.qcow2/");
    hook(&host, "etc/libvirt/hooks/qemu.d/2", "printf '%s\\n' \"$xml\" | sed s/y.qcow2/z.qcow2/");
    let outcome = host.hook("web", "restore", &given).run();
    assert_eq!(outcome.stdout.trim_end(), resolved.replace("x.qcow2", "z.qcow2").trim_end());
    assert_eq!(
        calls(&host)[1..],
        ["qemu.before-vfpool web restore begin -", "1 web restore begin -", "2 web restore begin -"]
    );
    // With nothing of ours to change, too.
    let outcome = host.hook("dns", "restore", &domain("dns", &[])).run();
    assert!(outcome.stdout.contains("z.qcow2"), "{}", outcome.stdout);
    // The first failure is the end, and nothing stays reserved.
    hook(&host, "etc/libvirt/hooks/qemu.d/0", "exit 4");
    let outcome = host.hook("web", "restore", &given).run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""));
    assert_eq!(calls(&host).len(), 5);
    assert_eq!(host.recorded("leases"), ["db"]);
}

#[test]
fn the_directory_is_ours_to_call_only_where_libvirt_does_not() {
    let host = Host::new();
    hook(&host, "etc/libvirt/hooks/qemu.d/20-second", "");
    hook(&host, "etc/libvirt/hooks/qemu.d/10-first", "");
    // As tools keep them for single guests.
    hook(&host, "etc/libvirt/hooks/qemu.d/web/prepare/begin/own.sh", "");
    host.put("etc/libvirt/hooks/qemu.d/README", "not executable");
    let prepare = || host.prepare("web", &domain("web", &[])).ok_silently();
    for (library, is_old) in [
        ("libvirt.so.0.4005.0", true),
        ("libvirt.so.0.6004.0", true),
        ("libvirt.so.0.6005.0", false),
        ("libvirt.so.0.9000.0", false),
        ("libvirt.so.0.11003.0", false),
        ("libc.so.6", false),
    ] {
        libvirt(&host, library);
        prepare();
        let expected = ["10-first web prepare begin -", "20-second web prepare begin -"];
        assert_eq!(calls(&host), expected[..if is_old { 2 } else { 0 }], "{library}");
    }
    // An upgrade puts a new library there; the libvirtd that runs is still the old one.
    libvirt(&host, "libvirt.so.0.4005.0 (deleted)");
    prepare();
    assert_eq!(calls(&host).len(), 2);
}

#[test]
fn one_that_hangs_is_ended() {
    let host = Host::with_pair();
    let before = host.snapshot();
    host.settings("<hook seconds='1'/>");
    hook(&host, EARLIER, "sleep 1000 & echo $! >$R/child; sleep 1000");
    let web = host.guest("web", FIRST);
    let outcome = web.prepare();
    assert!(outcome.took < Duration::from_secs(15), "{:?}", outcome.took);
    outcome.refused(&format!("{}: it has not ended for 1 s", host.path(EARLIER).display()));
    let child = host.get("child").unwrap();
    // The kernel ends a process some time after the signal.
    let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    wait_until("what it has started ends with it", || state().is_empty() || state().contains(") Z "));
    web.hook("reconnect").run().ok();
    web.release().ok();
    host.assert_as(&before, "after it");
}

#[test]
fn what_it_leaves_in_the_background_holds_nobody_up() {
    let host = Host::new();
    hook(&host, EARLIER, "sleep 5 & exit 0");
    let outcome = host.prepare("web", &domain("web", &[])).ok();
    assert!(outcome.took < Duration::from_secs(4), "{:?}", outcome.took);
    // One that reads nothing, of a large definition, and prints a lot.
    let large = domain("web", &vec!["<!-- a comment that makes it long -->\n".to_owned(); 10_000]);
    host.script("etc/libvirt/hooks/other", "head -c 1000000 /dev/zero; exit 0");
    fs::rename(host.path("etc/libvirt/hooks/other"), host.path(EARLIER)).unwrap();
    host.prepare("web", &large).ok_silently();
}

#[test]
fn what_is_not_executable_is_no_hook() {
    let host = Host::new();
    let web = host.guest_of("web", domain("web", &[]));
    host.put(EARLIER, "#!/bin/sh\nexit 1\n");
    web.prepare().ok_silently();
    fs::remove_file(host.path(EARLIER)).unwrap();
    symlink("nowhere", host.path(EARLIER)).unwrap();
    web.prepare().ok_silently();
    fs::remove_file(host.path(EARLIER)).unwrap();
    fs::create_dir(host.path(EARLIER)).unwrap();
    web.prepare().ok_silently();
}

#[test]
fn of_a_start_that_is_refused_it_sees_nothing() {
    let host = Host::with_pair();
    hook(&host, EARLIER, "");
    host.guest("db", FIRST).prepare().ok();
    calls(&host);
    let web = host.guest("web", FIRST);
    web.prepare().refused_saying(&["guest 'db' has it"]);
    web.hook("stopped").run().ok();
    web.release().ok();
    assert_eq!(calls(&host), [""; 0], "it might take from 'db' what it thinks 'web' has had");
    host.release("db", "").ok();
    for operation in ["prepare", "stopped", "release"] {
        web.hook(operation).run().ok();
    }
    assert_eq!(calls(&host).len(), 4);
    assert_eq!(host.recorded("refused"), [""; 0]);
}

#[test]
fn one_that_calls_ours_calls_it_once() {
    let host = Host::new();
    let ours = env!("CARGO_BIN_EXE_vfpool-hook");
    hook(&host, EARLIER, &format!("printf '%s\\n' \"$xml\" | {ours} \"$@\""));
    host.prepare("web", &domain("web", &[])).ok_silently();
    assert_eq!(calls(&host), ["qemu.before-vfpool web prepare begin -"]);
}

#[test]
fn ours_is_installed_and_removed() {
    let host = Host::new();
    let (hook, earlier) = ("etc/libvirt/hooks/qemu", EARLIER);
    let _ = fs::remove_file(host.path(hook));
    let link = |below: &str| fs::read_link(host.path(below)).ok().map(|link| link.display().to_string());
    let says = |action: &str, said: &str| {
        let words: Vec<&str> = ["hook"].into_iter().chain(action.split(' ')).collect();
        let outcome = host.vfpool(&words);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(outcome.stdout.contains(said), "{said}: {}", outcome.stdout);
    };
    says("remove", "qemu is not vfpool's; not touched");
    says("install", "qemu -> /usr/sbin/vfpool-hook; libvirt learns of it by `systemctl reload libvirtd`\n");
    says("install", "is vfpool's already");
    assert_eq!(link(hook).as_deref(), Some("/usr/sbin/vfpool-hook"));
    says("remove", "qemu is removed");
    assert_eq!(host.recorded("../../etc/libvirt/hooks"), [""; 0]);

    host.put(hook, "#!/bin/sh\n");
    says("install", "what was there is");
    assert_eq!(
        (link(hook).as_deref(), host.get(earlier).as_deref()),
        (Some("/usr/sbin/vfpool-hook"), Some("#!/bin/sh"))
    );
    // Killed between the two steps.
    fs::remove_file(host.path(hook)).unwrap();
    fs::hard_link(host.path(earlier), host.path(hook)).unwrap();
    says("install --dry-run", "what was there is");
    assert_eq!(link(hook), None);
    says("install", "what was there is");
    says("remove --dry-run", "is the hook again");
    assert_eq!(link(hook).as_deref(), Some("/usr/sbin/vfpool-hook"));
    // Somebody wants another one in its place. It stays, and nothing is lost.
    fs::remove_file(host.path(hook)).unwrap();
    host.put(hook, "#!/bin/bash\n");
    host.vfpool(&["hook", "install"]).refused_saying(&["is another hook, and so is", "Make one of the two"]);
    says("remove", "not touched");
    assert_eq!((host.get(hook).as_deref(), host.get(earlier).as_deref()), (Some("#!/bin/bash"), Some("#!/bin/sh")));
    fs::remove_file(host.path(hook)).unwrap();
    says("install", "-> /usr/sbin/vfpool-hook");
    says("remove", "is the hook again that was there before vfpool");
    assert_eq!((host.get(hook).as_deref(), host.get(earlier)), (Some("#!/bin/sh"), None));

    // Our link went away; theirs comes back all the same.
    says("install", "what was there is");
    fs::remove_file(host.path(hook)).unwrap();
    says("remove", "is the hook again that was there before vfpool");
    assert_eq!((host.get(hook).as_deref(), host.get(earlier)), (Some("#!/bin/sh"), None));

    // A link, to wherever it may lead, is kept as the link that it is.
    fs::remove_file(host.path(hook)).unwrap();
    symlink("../scripts/mine", host.path(hook)).unwrap();
    says("install", "what was there is");
    assert_eq!(link(earlier).as_deref(), Some("../scripts/mine"));
    says("remove", "is the hook again");
    assert_eq!(link(hook).as_deref(), Some("../scripts/mine"));
}

#[test]
fn without_others_nothing_is_noted() {
    let host = Host::with_pair();
    host.guest("db", FIRST).prepare().ok();
    host.guest("web", FIRST).prepare().refused_saying(&["guest 'db' has it"]);
    assert_eq!(host.recorded("refused"), [""; 0]);
}

#[test]
fn what_is_still_detached_is_told_with_the_way_back() {
    let host = Host::with_pair();
    let _ = fs::remove_file(host.path("etc/libvirt/hooks/qemu"));
    assert_eq!(host.vfpool(&["hook", "install"]).code, Some(0));
    host.guest("web", FIRST).prepare().ok();
    let outcome = host.vfpool(&["hook", "remove"]);
    let lines: Vec<&str> = outcome.stdout.lines().skip(1).collect();
    assert_eq!(
        lines,
        ["0000:02:00.1 (sibling of guest 'web', was on e1000e) does not come back by itself any more. When the \
             guest has stopped: virsh nodedev-reattach pci_0000_02_00_1"]
    );
}

#[test]
fn what_frees_a_device_of_managed_no_comes_before_it_is_detached_and_after_it_is_back() {
    let host = Host::with_pair();
    let before = host.snapshot();
    // As one that ends the host's desktop, so that its GPU can be detached.
    let driver = format!("readlink $R/sys/bus/pci/devices/{FIRST}/driver");
    hook(&host, EARLIER, &format!("echo $2 $(basename $({driver})) >>$R/drivers"));
    let web = host.guest_of("web", domain("web", &[hostdev(FIRST, false)]));
    web.prepare().ok();
    assert_eq!(host.driver(FIRST).as_deref(), Some("vfio-pci"));
    web.hook("stopped").run().ok();
    web.release().ok();
    host.assert_restored(&before, "after the end");
    let drivers = host.get("drivers").unwrap();
    assert_eq!(drivers, "prepare e1000e\nstopped vfio-pci\nrelease e1000e");
    // It sees the end of a start that it has seen begin.
    calls(&host);
    host.faults("write errno EIO e1000e/unbind");
    web.prepare().refused_saying(&["Input/output error"]);
    host.faults("");
    web.hook("stopped").run().ok();
    web.release().ok();
    let seen = ["prepare begin", "stopped end", "release end"];
    assert_eq!(calls(&host), seen.map(|operation| format!("qemu.before-vfpool web {operation} -")));
    // If it refuses, nothing is touched.
    hook(&host, EARLIER, "exit 3");
    assert_eq!(web.prepare().code, Some(3));
    host.assert_as(&before, "refused");
    assert_eq!(host.recorded("leases"), [""; 0]);
}
