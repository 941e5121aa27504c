//! What is handed to the hook, and the files that it finds: anything at all may be in them.

use fakehost::{FIRST, Host, domain_with};

#[test]
fn a_start_with_bad_xml_is_refused() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let good = domain_with("web", &[FIRST]);
    let cut = good.find("</devices>").unwrap();
    let huge = format!("<domain>{}</domain>", "<!-- padding -->".repeat((20 << 20) / 16));
    for (xml, reason) in [
        ("", "The domain XML is empty; libvirt's hook gets the guest's XML on standard input"),
        ("\n", "The domain XML is empty; libvirt's hook gets the guest's XML on standard input"),
        ("<pool/>", "The domain XML is wrong at line 1: it is no libvirt domain but a <pool>"),
        ("no xml", "The XML is no libvirt domain: it has no <domain> element"),
        (&good[..cut], "The domain XML is cut off: <devices> is not closed"),
        (&huge, "The domain XML is larger than 16 MiB; no libvirt writes that"),
    ] {
        for operation in ["prepare", "start", "migrate", "restore"] {
            host.hook("web", operation, xml).run().refused(&format!("guest 'web': {reason}"));
        }
        // These must never fail: libvirt kills the running guest after a failing reconnect.
        for operation in ["started", "reconnect"] {
            host.hook("web", operation, xml).run().ok_saying(&format!("vfpool: guest 'web': {reason}\n"));
        }
        for operation in ["stopped", "release", "attach", "", "%s"] {
            host.hook("web", operation, xml).run().ok_silently();
        }
    }
    host.assert_restored(&before, "after all");
}

#[test]
fn xml_of_15_mib_is_read() {
    let host = Host::with_pair();
    let xml = domain_with("web", &[FIRST]);
    let xml = xml.replace("<devices>", &format!("{}<devices>", "<!-- padding -->".repeat((15 << 20) / 16)));
    host.prepare("web", &xml).ok_saying("0000:02:00.1: e1000e -> vfio-pci");
}

#[test]
fn a_wrong_number_of_arguments_is_told() {
    let host = Host::with_pair();
    let xml = domain_with("web", &[FIRST]);
    for arguments in
        [&[][..], &["web"], &["web", "prepare"], &["web", "prepare", "begin"], &["web", "prepare", "begin", "-", "-"]]
    {
        host.hook_with(arguments, xml.as_bytes()).run().refused(&format!(
            "called with {} arguments; libvirt calls its qemu hook with GUEST OPERATION SUBOPERATION EXTRA",
            arguments.len()
        ));
    }
    host.hook_with(&["web", "reconnect"], xml.as_bytes()).run().ok_saying("called with 2 arguments");
    assert_eq!(host.trace(), [""; 0]);
}

#[test]
fn a_guest_may_have_any_name() {
    let long = "x".repeat(200);
    for (guest, shown, file) in [
        ("my guest", "my guest", "my guest"),
        ("it's \"x\" $HOME `id` *", "it's \"x\" $HOME `id` *", "it's \"x\" $HOME `id` *"),
        ("a\nb", "a\\nb", "a%0Ab"),
        ("..", "..", "%2E."),
        (".", ".", "%2E"),
        ("a/../b", "a/../b", "a%2F..%2Fb"),
        ("../../../etc/passwd", "../../../etc/passwd", "%2E.%2F..%2F..%2Fetc%2Fpasswd"),
        ("-v", "-v", "-v"),
        ("gäst-日本 🖥", "gäst-日本 🖥", "gäst-日本 🖥"),
        (&long, &long, &long),
    ] {
        let host = Host::with_pair();
        let before = host.snapshot();
        let xml = domain_with("x", &[FIRST]);
        let line = format!("vfpool: 0000:02:00.1: e1000e -> vfio-pci (sibling, guest '{shown}')\n");
        assert_eq!(host.prepare(guest, &xml).ok().stderr, line);
        assert_eq!(host.recorded("leases"), [file]);
        host.prepare("other", &xml).refused_saying(&[&format!("guest '{shown}' has it")]);
        host.release(guest, &xml).ok();
        host.assert_restored(&before, guest);
        for folder in ["etc", "run", "run/libvirt/qemu"] {
            let names: Vec<_> =
                std::fs::read_dir(host.path(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(
                names
                    .iter()
                    .all(|name| ["vfpool", "libvirt", "libvirtd.pid", "qemu"].contains(&name.to_str().unwrap())),
                "{names:?}"
            );
        }
    }
}

#[test]
fn a_state_that_cannot_be_written_refuses_the_start() {
    let host = Host::with_pair();
    host.put("run/vfpool", "a file in its place");
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    let turn = host.path("run/vfpool/turns/web").display().to_string();
    web.prepare().refused(&format!("guest 'web': Cannot open {turn}: Not a directory (os error 20)"));
    for operation in ["started", "reconnect", "stopped", "release"] {
        web.hook(operation).run().ok();
    }
    host.hook("other", "prepare", &domain_with("other", &[])).run().ok_silently();
    host.assert_as(&before, "after all");
}

#[test]
fn a_full_state_file_system_refuses_the_start() {
    for (fault, file) in [
        ("write errno ENOSPC run/vfpool/new", "leases/web"),
        ("create errno ENOSPC run/vfpool/new", "leases/web"),
        ("rename errno ENOSPC run/vfpool/leases/web", "leases/web"),
        ("mkdir errno ENOSPC run/vfpool/leases", "leases"),
        ("mkdir errno ENOSPC run/vfpool/claims", "claims"),
        ("symlink errno ENOSPC run/vfpool/new", "claims/0000:02:00.1"),
        ("rename errno ENOSPC run/vfpool/claims/0000:02:00.1", "claims/0000:02:00.1"),
        ("mkdir errno ENOSPC run/vfpool/turns", "turns"),
        ("create errno ENOSPC run/vfpool/lock", "lock"),
    ] {
        let host = Host::with_pair();
        let before = host.snapshot();
        let web = host.guest("web", FIRST);
        host.faults(fault);
        web.prepare().refused_saying(&[file, "No space left on device (os error 28)"]);
        host.assert_as(&before, fault);
        web.release().ok();
        host.faults("");
        host.assert_no_leases(fault);
        host.guest("db", FIRST).prepare().ok();
    }
}

#[test]
fn a_running_guest_is_not_harmed_by_a_full_file_system() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.qemu_runs("web", 4000);
    host.faults("write errno ENOSPC run/vfpool/new");
    web.hook("started").run().ok_saying("No space left on device");
    web.hook("reconnect").run().ok_saying("No space left on device");
    let running = host.snapshot();
    host.release("db", "").ok();
    assert_eq!(host.recorded("leases"), ["web"]);
    host.assert_as(&running, "after all");
}

#[test]
fn a_corrupt_lease_is_set_aside_and_the_guest_starts() {
    for text in ["", "\0\0\0\0", "<lease", "<lease version=\"1\"/>", "<other/>", "\u{fffd}"] {
        let host = Host::with_pair();
        host.put("run/vfpool/leases/web", text);
        let web = host.guest("web", FIRST);
        let aside = host.path("run/vfpool/corrupt/web").display().to_string();
        let outcome = web.prepare().ok_saying("vfpool: The lease of guest 'web' is corrupt (");
        assert!(
            outcome.stderr.contains(&format!(
                ") and set aside as {aside}; the guest's devices are not reattached automatically\n"
            )),
            "{}",
            outcome.stderr
        );
        assert_eq!(host.get("run/vfpool/corrupt/web").as_deref(), Some(text));
        host.assert_viable_without(FIRST, 8);
        web.release().ok();
        host.assert_no_leases("after release");
    }
}

#[test]
fn a_corrupt_lease_of_a_running_guest_still_protects_it() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    host.put("run/vfpool/leases/web", "<lease");
    let running = host.snapshot();
    for _ in 0..2 {
        host.guest("db", FIRST).prepare().refused_saying(&["guest 'db': ", "is not free: guest 'web' has it"]);
        host.release("db", "").ok();
    }
    host.assert_as(&running, "after the loser's release");
    // libvirtd's next start learns it again.
    web.hook("reconnect").run().ok();
    assert_eq!(host.recorded("leases"), ["web"]);
    host.guest("db", FIRST).prepare().refused_saying(&["guest 'web' has"]);
    host.assert_as(&running, "after all");
}

#[test]
fn a_lease_of_a_later_format_is_not_touched() {
    let host = Host::with_pair();
    let text = "<lease version=\"2\" state=\"active\"/>";
    host.put("run/vfpool/leases/web", text);
    let before = host.snapshot();
    let path = host.path("run/vfpool/leases/web").display().to_string();
    host.guest("web", FIRST).prepare().refused(&format!(
        "guest 'web': Cannot use the lease {path}: it has format 2, this vfpool knows 1. Install the version of \
             vfpool that wrote it; or stop the guest and reboot"
    ));
    host.release("web", "").ok_saying("it has format 2");
    assert_eq!(host.get("run/vfpool/leases/web").as_deref(), Some(text));
    host.assert_as(&before, "after all");
}
