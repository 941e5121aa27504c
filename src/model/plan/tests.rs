//! The decision about a start as tables of scenes: what there is, and what is taken in which order, or why not.

use super::*;
use crate::host_use::Holder;

/// A scene in one line: functions are separated by `;`, each an address and what is said of it.
///
/// | word | what |
/// |---|---|
/// | `g8` | its IOMMU group |
/// | `on:DRIVER` | its driver; one with vfio in its name gives it to VFIO |
/// | `class:0601` | base class and sub-class |
/// | `port` | a bridge's header |
/// | `vf:PF`, `behind:CONTROLLER` | what it goes with |
/// | `vfs:2` | how many VFs it has |
/// | `silent` | it does not answer |
/// | `web:in-use`, `web:gone`, `web:stopping`, `web:stuck`, `web:ours` | who owns it; `=` behind it: as a sibling |
fn functions(text: &str) -> BTreeMap<PciAddress, Function> {
    let functions = text.split(';').map(str::trim).filter(|text| !text.is_empty()).map(function);
    functions.map(|function| (function.device.address, function)).collect()
}

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

fn function(text: &str) -> Function {
    let mut words = text.split(' ');
    let mut device = PciDevice {
        address: at(words.next().unwrap()),
        id: "8086:10d3".parse().unwrap(),
        class: 0x02_0000,
        answers: true,
        header_type: 0,
        driver: None,
        on_vfio: false,
        in_vfio_use: false,
        driver_override: Some(None),
        group: None,
        physfn: None,
        controller: None,
        numvfs: 0,
        drivers_autoprobe: None,
    };
    let mut owner = None;
    for word in words {
        match word.split_once(':') {
            None if word == "port" => (device.header_type, device.class) = (1, 0x06_0400),
            None if word == "silent" => device.answers = false,
            None => device.group = Some(word[1..].parse().unwrap()),
            Some(("on", driver)) => {
                (device.driver, device.on_vfio) = (Some(driver.to_owned()), driver.contains("vfio"));
            }
            Some(("class", class)) => device.class = u32::from_str_radix(class, 16).unwrap() << 8,
            Some(("vf", pf)) => device.physfn = Some(at(pf)),
            Some(("behind", controller)) => device.controller = Some(at(controller)),
            Some(("vfs", count)) => device.numvfs = count.parse().unwrap(),
            Some((guest, state)) => owner = Some((guest, state)),
        }
    }
    let owner = owner.map(|(guest, state)| {
        let role = if state.ends_with('=') { Role::Sibling } else { Role::Managed };
        let held = HeldDevice { driver: Some("was-on".to_owned()), ..HeldDevice::as_found(&device, role) };
        let state = match state.trim_end_matches('=') {
            "in-use" => OwnerState::InUse,
            "gone" => OwnerState::Gone,
            "stopping" => OwnerState::Stopping,
            "stuck" => OwnerState::Stuck,
            "ours" => OwnerState::Ourselves,
            other => panic!("{other}"),
        };
        Owner { guest: guest.to_owned(), state, held: Some(held) }
    });
    Function { device, owner }
}

/// What a guest asks for: addresses, with `!` for managed='no' and `@` for one of a pool.
fn assigned(text: &str) -> Vec<Assigned> {
    let device = |word: &str| Assigned {
        address: at(word.trim_end_matches(['!', '@'])),
        managed: !word.contains('!'),
        pool: word.contains('@').then(|| "net".to_owned()),
    };
    text.split_whitespace().map(device).collect()
}

/// What the host uses; nothing of what is not named.
type Uses = [(&'static str, HostUse)];

struct Given<'a> {
    asks: &'a str,
    there: &'a str,
    uses: &'a Uses,
    settings: &'a str,
    platform: &'a [(u32, &'a str)],
    iommu_is_on: bool,
}

impl<'a> Given<'a> {
    fn new(asks: &'a str, there: &'a str) -> Self {
        Self { asks, there, uses: &[], settings: "<host/>", platform: &[], iommu_is_on: true }
    }

    /// The answer in words, the guard's questions answered on the way.
    fn decided(&self) -> Result<String, Refusal> {
        let (assigned, settings) = (assigned(self.asks), Settings::parse(self.settings).unwrap());
        let not_members = BTreeMap::new();
        let mut scene = Scene {
            assigned: &assigned,
            functions: functions(self.there),
            missing: BTreeMap::new(),
            uses: BTreeMap::new(),
            platform: self.platform.iter().map(|(group, text)| (*group, vec![(*text).to_owned()])).collect(),
            iommu_is_on: self.iommu_is_on,
            settings: &settings,
            not_members: &not_members,
            settings_error: None,
        };
        loop {
            return Ok(match plan(&scene)? {
                Answer::FindUses(addresses) => {
                    for address in addresses {
                        let found = self.uses.iter().find(|(used, _)| at(used) == address);
                        scene.uses.insert(address, found.map(|(_, found)| found.clone()));
                    }
                    continue;
                }
                Answer::Recover(guest) => format!("recover {guest}"),
                Answer::Detach(devices) => {
                    let device = |held: &HeldDevice| format!("{} {}", &held.address.to_string()[5..], held.role);
                    devices.iter().map(device).collect::<Vec<_>>().join(", ")
                }
            });
        }
    }

    #[track_caller]
    fn takes(&self, expected: &str) {
        let decided = self.decided().map_err(|refusal| refusal.why.to_string());
        assert_eq!(decided.as_deref(), Ok(expected), "{} of {}", self.asks, self.there);
    }

    /// Refused for this reason, because of this device of the guest.
    #[track_caller]
    fn refused(&self, cause: &Cause, device: &str, reason: &str) {
        let refusal = self.decided().expect_err(self.there);
        assert_eq!(refusal.why.reason(), reason, "{} of {}", self.asks, self.there);
        assert_eq!((&refusal.cause, refusal.device), (cause, Some(at(device))), "{reason}");
        assert!(refusal.why.what_to_do().is_some(), "{reason}");
    }
}

#[test]
fn what_is_taken_in_which_order() {
    for (asks, there, expected) in [
        ("02:00.0", "02:00.0 g8 on:e1000e", "02:00.0 managed"),
        ("02:00.0!", "02:00.0 g8 on:e1000e", "02:00.0 unmanaged"),
        // Siblings before the guest's own, which are the first to go back.
        (
            "02:00.0",
            "02:00.0 g8 on:e1000e; 02:00.1 g8 on:e1000e; 02:00.2 g8",
            "02:00.1 sibling, 02:00.2 sibling, 02:00.0 managed",
        ),
        ("02:00.1 02:00.0", "02:00.0 g8 on:e1000e; 02:00.1 g8 on:e1000e", "02:00.1 managed, 02:00.0 managed"),
        // Of two groups.
        (
            "02:00.0 03:00.0",
            "02:00.0 g8; 02:00.1 g8; 03:00.0 g9; 03:00.1 g9; 04:00.0 g10",
            "02:00.1 sibling, 03:00.1 sibling, 02:00.0 managed, 03:00.0 managed",
        ),
        // Bridges stay; a host bridge without a driver, or on pci-stub, does not keep VFIO from the group.
        ("02:00.0", "00:02.0 g8 port on:pcieport; 02:00.0 g8 on:e1000e", "02:00.0 managed"),
        ("02:00.0", "00:1f.0 g8 class:0601; 02:00.0 g8 on:e1000e", "02:00.0 managed"),
        ("02:00.0", "00:1f.0 g8 class:0601 on:pci-stub; 02:00.0 g8 on:e1000e", "02:00.0 managed"),
        // An NVSwitch is of base class 6, too, and an endpoint like any other.
        ("02:00.0", "02:00.0 g8 class:0680; 02:00.1 g8 class:0680 on:nvidia", "02:00.1 sibling, 02:00.0 managed"),
        // VFs go first, with a PF that leaves its driver, wherever their groups are.
        (
            "01:00.0",
            "01:00.0 g8 on:igb vfs:2; 01:10.0 g9 vf:01:00.0 on:igbvf; 01:10.2 g8 vf:01:00.0",
            "01:10.0 vf, 01:10.2 vf, 01:00.0 managed",
        ),
        ("01:00.0", "01:00.0 g8 on:vfio-pci; 02:00.0 g9", "01:00.0 managed"),
        ("01:10.0", "01:00.0 g8 on:igb vfs:2; 01:10.0 g9 vf:01:00.0", "01:10.0 managed"),
        // What is behind a controller is found again by its driver: nothing is recorded of it.
        ("00:0e.0", "00:0e.0 g8 on:vmd; 10000:e1:00.0 g8 behind:00:0e.0 on:nvme", ":e1:00.0 sibling, 00:0e.0 managed"),
    ] {
        Given::new(asks, there).takes(expected);
    }
}

#[test]
fn what_is_known_of_a_device_is_kept() {
    let given = Given::new("02:00.0", "02:00.0 g8 on:vfio-pci web:ours; 02:00.1 g8 on:e1000e");
    given.takes("02:00.1 sibling, 02:00.0 managed");
    let assigned = assigned(given.asks);
    let settings = Settings::default();
    let scene = Scene {
        assigned: &assigned,
        functions: functions(given.there),
        missing: BTreeMap::new(),
        uses: BTreeMap::from([(at("02:00.1"), None)]),
        platform: BTreeMap::new(),
        iommu_is_on: true,
        settings: &settings,
        not_members: &BTreeMap::new(),
        settings_error: None,
    };
    let Ok(Answer::Detach(devices)) = plan(&scene) else { panic!() };
    let drivers: Vec<Option<&str>> = devices.iter().map(|held| held.driver.as_deref()).collect();
    assert_eq!(drivers, [Some("e1000e"), Some("was-on")]);
}

#[test]
fn what_others_have() {
    let db = Cause::Guest("db".to_owned());
    for (asks, there, device, reason) in [
        ("02:00.0", "02:00.0 g8 on:vfio-pci db:in-use", "02:00.0", "0000:02:00.0 is not free: guest 'db' has it"),
        (
            "02:00.1",
            "02:00.0 g8 on:vfio-pci db:in-use; 02:00.1 g8 on:vfio-pci db:in-use=",
            "02:00.1",
            "0000:02:00.1 is not free: guest 'db' has 0000:02:00.0 of the same IOMMU group 8, and a group goes to one \
             guest as a whole",
        ),
        (
            "02:00.0",
            "02:00.0 g8 db:stopping",
            "02:00.0",
            "0000:02:00.0 is not free yet: guest 'db' is just being stopped",
        ),
        (
            "01:00.0",
            "01:00.0 g8 on:igb vfs:1; 01:10.0 g9 vf:01:00.0 on:vfio-pci db:in-use",
            "01:00.0",
            "0000:01:10.0 (VF that goes with 0000:01:00.0) is not free: guest 'db' has it",
        ),
        // Of a PF that is a sibling, too, it is the guest's own device that the refusal is about.
        (
            "01:00.1",
            "01:00.0 g8 on:igb vfs:1; 01:00.1 g8 on:igb; 01:10.0 g9 vf:01:00.0 on:vfio-pci db:in-use",
            "01:00.1",
            "0000:01:10.0 (VF that goes with 0000:01:00.0) is not free: guest 'db' has it",
        ),
        (
            "00:0e.1",
            "00:0e.0 g8 on:vmd; 00:0e.1 g8; 10000:e1:00.0 g9 behind:00:0e.0 on:vfio-pci db:in-use",
            "00:0e.1",
            "10000:e1:00.0 (goes with 0000:00:0e.0) is not free: guest 'db' has it",
        ),
        (
            "00:0e.0",
            "00:0e.0 g8 on:vmd; 10000:e1:00.0 g9 behind:00:0e.0 on:vfio-pci db:in-use",
            "00:0e.0",
            "10000:e1:00.0 (goes with 0000:00:0e.0) is not free: guest 'db' has it",
        ),
        // What is wrong with a device that another guest has is not ours to judge.
        (
            "02:00.0",
            "02:00.0 g8 silent on:vfio-pci db:in-use",
            "02:00.0",
            "0000:02:00.0 is not free: guest 'db' has it",
        ),
    ] {
        let given = Given::new(asks, there);
        let refusal = given.decided().expect_err(there);
        assert_eq!((refusal.why.reason(), &refusal.cause), (reason, &db), "{there}");
        assert_eq!(refusal.device, Some(at(device)), "{there}");
    }
    for there in ["02:00.0 g8 db:gone", "02:00.0 g8; 02:00.1 g8 db:gone"] {
        Given::new("02:00.0", there).takes("recover db");
    }
    // Reattaching it failed; this start takes it over.
    Given::new("02:00.0", "02:00.0 g8 on:vfio-pci db:stuck").takes("02:00.0 managed");
}

#[test]
fn what_is_not_there() {
    let assigned = assigned("01:10.0");
    let settings = Settings::default();
    let not_members = BTreeMap::new();
    let decided = |state: Option<OwnerState>| {
        let owner = state.map(|state| Owner { guest: "db".to_owned(), state, held: None });
        plan(&Scene {
            assigned: &assigned,
            functions: BTreeMap::new(),
            missing: owner.into_iter().map(|owner| (at("01:10.0"), owner)).collect(),
            uses: BTreeMap::new(),
            platform: BTreeMap::new(),
            iommu_is_on: true,
            settings: &settings,
            not_members: &not_members,
            settings_error: None,
        })
    };
    let why = |state| decided(state).map_err(|refusal| (refusal.why.reason().to_owned(), refusal.cause));
    let db = || Cause::Guest("db".to_owned());
    let with_pf = "0000:01:10.0 is not there as long as guest 'db' has the PF that it belongs to";
    assert_eq!(why(Some(OwnerState::InUse)), Err((with_pf.to_owned(), db())));
    assert_eq!(why(Some(OwnerState::Gone)), Ok(Answer::Recover("db".to_owned())));
    let stopping = "0000:01:10.0 is not free yet: guest 'db' is just being stopped";
    assert_eq!(why(Some(OwnerState::Stopping)), Err((stopping.to_owned(), db())));
    let nothing = "there is no PCI device 0000:01:10.0 on this host";
    for state in [None, Some(OwnerState::Stuck)] {
        assert_eq!(why(state), Err((nothing.to_owned(), Cause::Missing)));
    }
}

#[test]
fn what_no_guest_can_have() {
    for (asks, there, device, reason) in [
        (
            "00:02.0",
            "00:02.0 g7 port on:pcieport",
            "00:02.0",
            "0000:00:02.0 is a bridge, and only endpoints can be assigned to a guest",
        ),
        (
            "00:1f.0",
            "00:1f.0 g7 class:0601 on:lpc_ich",
            "00:1f.0",
            "0000:00:1f.0 is a bridge, and only endpoints can be assigned to a guest",
        ),
        (
            "00:1f.3",
            "00:1f.0 g7 class:0601 on:lpc_ich; 00:1f.3 g7 on:snd_hda_intel",
            "00:1f.3",
            "0000:00:1f.3 cannot be assigned to a guest: the host's bridge 0000:00:1f.0 is on lpc_ich in the same \
             IOMMU group 7, and VFIO accepts no group with such a device on a host driver",
        ),
        (
            "01:10.0",
            "01:00.0 g8 on:igb vfs:2; 01:10.0 g8 vf:01:00.0",
            "01:10.0",
            "0000:01:10.0 cannot be assigned to a guest: its PF 0000:01:00.0 is detached with it, and without the PF's \
             driver the VF vanishes",
        ),
        (
            "10000:e1:00.0",
            "00:0e.0 g8 on:vmd; 10000:e1:00.0 g8 behind:00:0e.0 on:nvme",
            "10000:e1:00.0",
            "10000:e1:00.0 cannot be assigned to a guest: the controller 0000:00:0e.0 that it is behind is of the same \
             IOMMU group and detached with it, and without its driver vmd the device vanishes",
        ),
        (
            "02:00.0",
            "02:00.0 g8 silent on:amdgpu",
            "02:00.0",
            "0000:02:00.0 does not answer: its configuration space reads all ones",
        ),
        // As a sibling it would be moved, too.
        (
            "02:00.1",
            "02:00.0 g8 silent on:amdgpu; 02:00.1 g8",
            "02:00.1",
            "0000:02:00.0 does not answer: its configuration space reads all ones",
        ),
        (
            "02:00.0",
            "02:00.0 on:e1000e",
            "02:00.0",
            "0000:02:00.0 has no IOMMU group: the IOMMU is on, but does not translate for this device",
        ),
    ] {
        Given::new(asks, there).refused(&Cause::Unusable, device, reason);
    }
    let off = Given { iommu_is_on: false, ..Given::new("02:00.0", "02:00.0 on:e1000e") };
    off.refused(&Cause::Unusable, "02:00.0", "0000:02:00.0 has no IOMMU group: the IOMMU is off");
    let platform =
        Given { platform: &[(8, "fff51000.dma is on xgene-dma")], ..Given::new("02:00.0", "02:00.0 g8 on:e1000e") };
    platform.refused(
        &Cause::Unusable,
        "02:00.0",
        "0000:02:00.0 cannot be assigned to a guest: fff51000.dma is on xgene-dma in the same IOMMU group 8, and VFIO \
         accepts no group with such a device on a host driver",
    );
}

#[test]
fn what_the_host_uses() {
    let holder = || Holder { pid: 5, comm: "fio".to_owned(), guest: None };
    let root = HostUse::Mounted { disk: "sda1".to_owned(), at: "/".to_owned() };
    let up = HostUse::Up { netdev: "eth0".to_owned() };
    let vfio = HostUse::InVfio { by: holder() };
    let named = "02:00.0 g8 on:e1000e";
    let pair = "02:00.0 g8 on:e1000e; 02:00.1 g8 on:e1000e";
    let vf = "01:00.0 g7 on:igb vfs:1; 01:10.0 g8 vf:01:00.0 on:igbvf";
    for (asks, there, used, by, allowed, expected) in [
        // Named by the guest: as libvirt does it, unless the host cannot be without it.
        ("02:00.0", named, "02:00.0", &up, "", None),
        ("02:00.0", named, "02:00.0", &root, "", Some("Cannot detach 0000:02:00.0: sda1 is mounted at /")),
        // Not named: with managed='no' it is detached here; and a VF of a pool is chosen among many.
        ("02:00.0!", named, "02:00.0", &up, "", Some("Cannot detach 0000:02:00.0: eth0 is up")),
        ("02:00.0@", named, "02:00.0", &up, "", None),
        ("01:10.0@", vf, "01:10.0", &up, "", Some("Cannot detach 0000:01:10.0: eth0 is up")),
        ("01:10.0", vf, "01:10.0", &up, "", None),
        ("02:00.0", pair, "02:00.1", &up, "", Some("Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0): eth0 is up")),
        ("02:00.0 02:00.1", pair, "02:00.1", &up, "", None),
        // Allowed: not even asked.
        ("02:00.0", pair, "02:00.1", &up, "02:00.1", None),
        (
            "02:00.0",
            pair,
            "02:00.1",
            &up,
            "02:00.0",
            Some("Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0): eth0 is up"),
        ),
        ("02:00.0", named, "02:00.0", &root, "02:00.0", None),
        // What has no driver uses nothing; what VFIO has is asked about, allowed or not, unless a lease tells for whom.
        ("02:00.0", "02:00.0 g8", "02:00.0", &root, "", None),
        (
            "02:00.0",
            "02:00.0 g8 on:vfio-pci",
            "02:00.0",
            &vfio,
            "02:00.0",
            Some("0000:02:00.0 is not free: process 5 (fio) uses it through VFIO"),
        ),
        ("02:00.0", "02:00.0 g8 on:vfio-pci web:ours", "02:00.0", &vfio, "", None),
        // VFs that would vanish are asked about, whatever they are on.
        (
            "01:00.0",
            vf,
            "01:10.0",
            &up,
            "",
            Some("Cannot detach 0000:01:10.0 (VF that goes with 0000:01:00.0): eth0 is up"),
        ),
    ] {
        let settings = format!(
            "<host>{}</host>",
            if allowed.is_empty() { String::new() } else { format!("<allow address='{allowed}'/>") }
        );
        let uses = [(used, by.clone())];
        let given = Given { uses: &uses, settings: &settings, ..Given::new(asks, there) };
        let refusal = given.decided().err();
        assert_eq!(
            refusal.as_ref().map(|refusal| refusal.why.reason()),
            expected,
            "{asks} of {there}, {by}, allowed {allowed}"
        );
        assert!(refusal.is_none_or(|refusal| refusal.cause == Cause::InUse(Box::new(by.clone()))), "{there}");
    }
}

#[test]
fn the_guard_is_asked_about_all_at_once_and_only_what_matters() {
    let (assigned, settings) = (assigned("02:00.0"), Settings::default());
    let not_members = BTreeMap::new();
    let scene = Scene {
        assigned: &assigned,
        functions: functions(
            "00:1c.0 g8 port on:pcieport; 02:00.0 g8 on:e1000e; 02:00.1 g8 on:e1000e; 02:00.2 g8; 03:00.0 g9 on:e1000e",
        ),
        missing: BTreeMap::new(),
        uses: BTreeMap::new(),
        platform: BTreeMap::new(),
        iommu_is_on: true,
        settings: &settings,
        not_members: &not_members,
        settings_error: None,
    };
    assert_eq!(plan(&scene), Ok(Answer::FindUses(vec![at("02:00.1"), at("02:00.0")])));
}

#[test]
fn what_the_guest_may_not_ask_for() {
    let settings = Settings::parse("<host><devices max='1'/></host>").unwrap();
    let assigned = assigned("02:00.0 02:00.1");
    let error = Error::new("Cannot use host.xml");
    let not_members = BTreeMap::from([(at("02:00.1"), Error::new("0000:02:00.1 is no device of pool 'net'"))]);
    let scene = |settings| Scene {
        assigned: &assigned,
        functions: functions("02:00.0 g8; 02:00.1 g9"),
        missing: BTreeMap::new(),
        uses: BTreeMap::new(),
        platform: BTreeMap::new(),
        iommu_is_on: true,
        settings,
        not_members: &not_members,
        settings_error: Some(&error),
    };
    let many = plan(&scene(&settings)).unwrap_err();
    assert_eq!((many.device, many.cause), (None, Cause::Other));
    assert_eq!(
        many.why.to_string(),
        "it has 2 assigned PCI devices, and 1 is the most a guest may have. Remove some, or raise the limit with \
         <devices max='2'/> in /etc/vfpool/host.xml. Cannot use host.xml"
    );
    let stranger = plan(&scene(&Settings::default())).unwrap_err();
    assert_eq!((stranger.device, stranger.cause), (Some(at("02:00.1")), Cause::Other));
    assert_eq!(stranger.why.reason(), "0000:02:00.1 is no device of pool 'net'");
}
