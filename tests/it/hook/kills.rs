//! SIGKILL before and after every change that the hook makes: whatever is called next brings the host back.

use fakehost::{
    Call, Device, FIRST, Host, Outcome, PF, Snapshot, definition, domain, domain_with, hostdev, hostdev_at, vf,
};

/// A host, and a guest for it.
#[derive(Clone, Copy, Debug)]
enum Case {
    /// One function of a pair, managed.
    Pair,
    /// The same with managed='no', and a sibling that has an override.
    Unmanaged,
    /// The sibling is a PF with VFs.
    Vfs,
    /// A kernel without `driver_override`, and an identical card without a driver.
    OldKernel,
}

impl Case {
    fn host(self) -> Host {
        let host = Host::new();
        match self {
            Self::Pair => return Host::with_pair(),
            Self::Unmanaged => {
                host.add(Device::new(FIRST).group(8).driver("e1000e"));
                host.add(Device::new("0000:02:00.1").group(8).driver("e1000e").driver_override("e1000e"));
            }
            Self::Vfs => {
                host.add(Device::new(FIRST).group(8).driver("e1000e"));
                let places = [("0000:01:10.0", 11), ("0000:01:10.2", 12)];
                host.add(Device::new(PF).id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &places));
                host.make_vfs(PF, &[Some("igbvf"), None]);
            }
            Self::OldKernel => {
                host.add(Device::new(FIRST).group(8).driver("e1000e").without_override());
                host.add(Device::new("0000:02:00.1").group(8).driver("e1000e").without_override());
                host.add(Device::new("0000:03:00.0").group(9).without_override());
            }
        }
        host
    }

    fn xml(self) -> String {
        match self {
            Self::Unmanaged => domain("web", &[hostdev(FIRST, false)]),
            _ => domain_with("web", &[FIRST]),
        }
    }
}

/// What happens after the kill.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// libvirt tells of the end of the failed start, or of the stop once more.
    Release,
    /// The admin starts the guest again, and it runs and stops.
    PrepareAndRelease,
    /// libvirtd is gone, too, and the reconciler finds what is left.
    Reconcile,
    /// libvirtd is gone, and another guest wants the same device.
    AnotherGuest,
}

const ALL: [Then; 4] = [Then::Release, Then::PrepareAndRelease, Then::Reconcile, Then::AnotherGuest];

impl Then {
    fn go(self, host: &Host, xml: &str) {
        match self {
            Self::Release => {
                host.release("web", xml).ok();
            }
            Self::PrepareAndRelease => {
                host.prepare("web", xml).ok();
                host.assert_viable_without(FIRST, 8);
                host.release("web", xml).ok();
            }
            Self::Reconcile => {
                host.libvirtd_dies();
                host.vfpool(&["reconcile"]).ok();
            }
            Self::AnotherGuest => {
                host.libvirtd_dies();
                let db = domain_with("db", &[FIRST]);
                host.prepare("db", &db).ok();
                host.assert_viable_without(FIRST, 8);
                host.release("db", &db).ok();
                // A lease without claims holds nothing, and goes at the next tidying.
                host.vfpool(&["reconcile"]).ok();
            }
        }
    }
}

/// Kills `call` before and after each of its changes, in a fresh host made by `make`.
fn kill_everywhere(case: Case, make: impl Fn() -> (Host, Snapshot), call: impl for<'a> Fn(&'a Host) -> Call<'a>) {
    let (host, _) = make();
    host.trace();
    call(&host).run().ok();
    let changes = host.trace();
    assert!(changes.len() > 5, "{changes:?}");
    for number in 1..=changes.len() {
        for before_it in [true, false] {
            // Each ending for each change of the plain case; in turn for the others.
            let all = matches!(case, Case::Pair);
            for (_, then) in ALL.into_iter().enumerate().filter(|(turn, _)| all || *turn == number % ALL.len()) {
                let (host, before) = make();
                host.trace();
                let call = call(&host);
                let killed = if before_it { call.killed_at(number) } else { call.killed_after(number) };
                let Outcome { code, stderr, .. } = killed.run();
                let place = if before_it { "before" } else { "after" };
                let when = format!("{case:?}: killed {place} change {number} ({}), then {then:?}", changes[number - 1]);
                assert_eq!(code, None, "{when}: {stderr}");
                then.go(&host, &case.xml());
                host.assert_no_leases(&when);
                if has_foreign(&changes[..number - usize::from(before_it)]) {
                    assert_eq!(host.driver(FIRST).as_deref(), Some("e1000e"), "{when}");
                    assert_eq!(host.driver("0000:02:00.1").as_deref(), Some("e1000e"), "{when}");
                } else {
                    host.assert_as(&before, &when);
                }
            }
        }
    }
}

/// Whether, after these changes, vfio-pci has an id and devices that are none of the guest's. A kill just then leaves
/// them there: the kernel shows no list of its ids, so nobody can tell ours from one that the admin gave.
fn has_foreign(changes: &[String]) -> bool {
    let has = |part| changes.iter().any(|line| line.contains(part));
    has("vfio-pci/new_id") && !has("vfio-pci/unbind 0000:03:00.0")
}

fn kill_prepare(case: Case) {
    let make = || {
        let host = case.host();
        let before = host.snapshot();
        (host, before)
    };
    kill_everywhere(case, make, |host| host.hook("web", "prepare", &case.xml()));
}

fn kill_release(case: Case) {
    let make = || {
        let host = case.host();
        let before = host.snapshot();
        host.prepare("web", &case.xml()).ok();
        (host, before)
    };
    kill_everywhere(case, make, |host| host.hook("web", "release", &case.xml()));
}

#[test]
fn prepare_of_a_pair() {
    kill_prepare(Case::Pair);
}

#[test]
fn release_of_a_pair() {
    kill_release(Case::Pair);
}

#[test]
fn prepare_of_an_unmanaged_device() {
    kill_prepare(Case::Unmanaged);
}

#[test]
fn release_of_an_unmanaged_device() {
    kill_release(Case::Unmanaged);
}

#[test]
fn prepare_of_a_pf_with_vfs() {
    kill_prepare(Case::Vfs);
}

#[test]
fn release_of_a_pf_with_vfs() {
    kill_release(Case::Vfs);
}

#[test]
fn prepare_on_an_old_kernel() {
    kill_prepare(Case::OldKernel);
}

#[test]
fn release_on_an_old_kernel() {
    kill_release(Case::OldKernel);
}

#[test]
fn a_choice_that_was_killed_is_made_again_or_forgotten() {
    let xml = definition("web", &[("net", 0), ("net", 1)], &[hostdev_at(&vf(9), 0, ""), hostdev_at(&vf(9), 1, "")]);
    let changes = {
        let host = Host::with_vfs(2);
        host.trace();
        assert_eq!(host.hook("web", "restore", &xml).run().code, Some(0));
        host.trace().len()
    };
    for number in 1..=changes {
        let host = Host::with_vfs(2);
        let before = host.snapshot();
        host.trace();
        assert_eq!(host.hook("web", "restore", &xml).killed_after(number).run().code, None);
        // At once, another guest gets what the record does not have yet; none of them hangs.
        let other = host.hook("db", "restore", &xml).run().code;
        assert!(matches!(other, Some(0 | 1)));
        host.uptime(2000);
        assert_eq!(host.hook("web", "restore", &xml).run().code, Some(0), "killed after {number} of {changes}");
        assert_eq!(host.recorded("claims"), [vf(0), vf(1)]);
        host.uptime(3000);
        host.reconcile().ok();
        host.assert_no_leases("in time");
        host.assert_as(&before, "nothing was touched");
    }
}

#[test]
fn a_release_that_was_killed_is_finished_while_libvirtd_lives() {
    let host = Case::Pair.host();
    let before = host.snapshot();
    host.prepare("web", &Case::Pair.xml()).ok();
    host.trace();
    host.hook("web", "release", "").run().ok();
    let first_write = host.trace().iter().position(|line| line.contains(" sys/")).unwrap() + 1;
    host.prepare("web", &Case::Pair.xml()).ok();
    host.trace();
    assert_eq!(host.hook("web", "release", "").killed_after(first_write).run().code, None);
    // The start's record says that it is under way; only the release can have told otherwise.
    host.vfpool(&["reconcile"]).ok();
    host.assert_restored(&before, "after reconcile");
}
