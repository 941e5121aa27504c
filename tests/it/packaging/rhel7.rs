//! What RHEL 7 has that no emulated host has: Linux 3.10, libvirt 4.5, and systemd with udev 219.

use fakehost::{Device, Host, NVME, PF, asking, domain_with};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const VF: &str = "0000:01:10.0";
/// A NIC and an NVMe disk that have SR-IOV and a NIC without, before they have drivers; the first two are in pools.
fn host(change: fn(Device) -> Device) -> Host {
    let host = Host::new();
    host.add(change(Device::new(PF).id("8086:10c9").group(8).vfs("8086:10ca", &[(VF, 11), ("0000:01:10.2", 12)])));
    let nvme = Device::new(NVME).id("1b36:0010").class(0x01_0802).group(20);
    host.add(change(nvme.vfs("1b36:0010", &[("0000:06:00.1", 21)])));
    host.add(change(Device::new("0000:02:00.0").group(9)));
    host.pool("net", "<pf dev='eth3'/>");
    host.pool("disks", "<pf address='06:00.0'/>");
    host.ip_works();
    host
}

fn old_kernel(device: Device) -> Device {
    device.without_override().without_autoprobe()
}

/// One `KEY{argument}operator"value"` of a rule.
struct Token {
    key: String,
    argument: String,
    operator: String,
    value: String,
}

impl Token {
    fn parse(text: &str) -> Self {
        let (left, value) = text.split_once('"').unwrap();
        let name = left.trim_end_matches(['=', '!', '+']);
        let (key, argument) = name.split_once('{').map_or((name, ""), |(key, rest)| (key, rest.trim_end_matches('}')));
        let value = value.strip_suffix('"').unwrap();
        Self { key: key.into(), argument: argument.into(), operator: left[name.len()..].into(), value: value.into() }
    }

    /// As fnmatch(3), with what our rules use of it: alternatives, `?*`, `[1-9]*`, and `*` at the end.
    fn is_like(&self, found: &str) -> bool {
        self.value.split('|').any(|pattern| match pattern {
            "?*" => !found.is_empty(),
            "[1-9]*" => found.starts_with(|c| ('1'..='9').contains(&c)),
            _ => match pattern.strip_suffix('*') {
                Some(start) => found.starts_with(start),
                None => found == pattern,
            },
        })
    }
}

/// What udev would run, and set in its database, at an event of the device in this folder of `/sys`: as systemd v219
/// reads our rules (`src/udev/udev-rules.c`). A key that it does not have, or that this does not know, panics.
fn udev(host: &Host, action: &str, device: &str) -> Vec<String> {
    let rules = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("udev/60-vfpool.rules")).unwrap();
    let device = fs::canonicalize(host.path(device)).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let link = |path: &Path| fs::canonicalize(path).map(|target| name(&target)).unwrap_or_default();
    let attribute = |path: &Path| fs::read_to_string(path).map(|text| text.trim_end().to_owned()).unwrap_or_default();
    let (mut done, mut label) = (Vec::new(), None);
    'rules: for rule in rules.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let tokens: Vec<Token> = rule.split(", ").map(Token::parse).collect();
        if label.as_ref().is_some_and(|label| !tokens.iter().any(|token| token.key == "LABEL" && token.value == *label))
        {
            continue;
        }
        label = None;
        // Those of which all parents' keys of the rule are true.
        let mut parents: Vec<PathBuf> =
            device.ancestors().filter(|path| path.join("subsystem").exists()).map(Path::to_owned).collect();
        for token in &tokens {
            let text = token.value.replace("$kernel", &name(&device));
            let text = text.replace("$id", &parents.first().map(|path| name(path)).unwrap_or_default());
            let holds = match (token.key.as_str(), token.operator.as_str()) {
                ("ACTION", "==" | "!=") => token.is_like(action),
                ("SUBSYSTEM", "==" | "!=") => token.is_like(&link(&device.join("subsystem"))),
                ("DRIVER", "==" | "!=") => token.is_like(&link(&device.join("driver"))),
                ("ATTR", "==" | "!=") => token.is_like(&attribute(&device.join(&token.argument))),
                ("TEST", "==" | "!=") => match text.strip_prefix('/') {
                    Some(below) => host.path(below).exists(),
                    None => device.join(&text).exists(),
                },
                ("SUBSYSTEMS", "==") => {
                    parents.retain(|path| token.is_like(&link(&path.join("subsystem"))));
                    !parents.is_empty()
                }
                ("ATTRS", "==") => {
                    parents.retain(|path| token.is_like(&attribute(&path.join(&token.argument))));
                    !parents.is_empty()
                }
                ("PROGRAM", "==") => host.udev(&text.split(' ').skip(1).collect::<Vec<_>>()).code == Some(0),
                ("RUN", "+=") => {
                    done.push(text.strip_prefix("/usr/lib/udev/vfpool-device ").unwrap().to_owned());
                    true
                }
                ("ENV", "=") => {
                    done.push(format!("{}={text}", token.argument));
                    true
                }
                ("GOTO", "=") => {
                    label = Some(text);
                    continue 'rules;
                }
                ("LABEL", "=") => true,
                other => panic!("{other:?} in {rule}"),
            };
            if holds == (token.operator == "!=") {
                continue 'rules;
            }
        }
    }
    done
}

/// The kernel's events from a card's appearance on, and what our rules make of them.
#[test]
fn without_bind_events_a_pf_is_known_by_its_interface() {
    let device = |address: &str| format!("sys/bus/pci/devices/{address}");
    for (kernel, change) in [("3.10", old_kernel as fn(Device) -> Device), ("later", |device| device)] {
        let host = host(change);
        // A driver comes after the event of the device itself, which so finds none.
        for address in [PF, NVME, "0000:02:00.0"] {
            assert_eq!(udev(&host, "add", &device(address)), [""; 0], "{kernel}, {address}");
        }
        host.move_to(PF, Some("igb"));
        host.move_to(NVME, Some("nvme"));
        host.move_to("0000:02:00.0", Some("e1000e"));
        host.netdev(PF, "eth3", false, &[]);
        host.netdev("0000:02:00.0", "eth4", false, &[]);
        if kernel == "later" {
            assert_eq!(udev(&host, "bind", &device(NVME)), [NVME]);
            assert_eq!(udev(&host, "bind", &device(PF)), [""; 0], "its interface has no name yet");
        }
        assert_eq!(udev(&host, "add", "sys/class/net/eth3"), [PF], "{kernel}");
        assert_eq!(udev(&host, "add", "sys/class/net/eth4"), [""; 0], "{kernel}");
        // At boot udev goes through what was there before it, when it has its driver: a PF without an interface, too.
        assert_eq!(udev(&host, "add", &device(NVME)), [NVME], "{kernel}");
        assert_eq!(udev(&host, "remove", &device(NVME)), [""; 0], "{kernel}");

        // Somebody makes VFs by hand.
        host.make_vfs(PF, &[Some("igbvf")]);
        host.netdev(VF, "eth5", false, &[]);
        assert_eq!(udev(&host, "add", &device(VF)), [VF], "{kernel}");
        assert_eq!(udev(&host, "add", "sys/class/net/eth5"), ["NM_UNMANAGED=1"], "{kernel}");
        host.put("run/vfpool/making-vfs", "");
        assert_eq!(udev(&host, "add", &device(VF)), [""; 0], "{kernel}: what the setup makes, it binds");
    }
}

/// A virtio VF has its interface below a device of the virtio bus.
#[test]
fn networkmanager_leaves_the_interface_of_a_virtio_vf_alone() {
    let host = host(old_kernel);
    host.move_to(PF, Some("virtio-pci"));
    host.netdev(PF, "eth3", false, &[]);
    host.make_vfs(PF, &[Some("virtio-pci"), None]);
    host.virtio_netdev(VF, "eth5", false);
    host.virtio_netdev("0000:02:00.0", "eth6", false);
    for action in ["add", "change", "move"] {
        assert_eq!(udev(&host, action, "sys/class/net/eth5"), ["NM_UNMANAGED=1"], "{action}");
        assert_eq!(udev(&host, action, "sys/class/net/eth6"), [""; 0], "{action}: it is no VF");
    }
    // One of no pool is the host's.
    host.pool("net", "<pf dev='eth9'/>");
    assert_eq!(udev(&host, "add", "sys/class/net/eth5"), [""; 0]);
}

/// All in one: a guest of a pool on a host of that age, from the card's appearance to the guest's stop.
#[test]
fn a_guest_of_a_pool() {
    let host = host(old_kernel);
    let maps = "7f00 r-xp 00000000 08:01 1234 /usr/lib64/libvirt.so.0.4005.0\n";
    host.put(&format!("proc/{}/maps", std::process::id()), maps);
    host.move_to(PF, Some("igb"));
    host.netdev(PF, "eth3", false, &[]);
    for call in udev(&host, "add", "sys/class/net/eth3") {
        host.udev(&[&call]).ok_silently();
    }
    assert_eq!(host.recorded("queue/setup"), [PF]);
    host.vfpool(&["setup", "--queued"]);
    assert_eq!(host.driver(VF).as_deref(), Some("vfio-pci"));
    let ready = host.snapshot();
    host.define("web", &asking("web", VF));
    host.define("db", &asking("db", VF));
    host.reconcile().ok();
    host.runs("web");
    host.runs("db");
    let mut has = [host.points_at("web"), host.points_at("db")].concat();
    has.sort_unstable();
    assert_eq!(has, [VF, "0000:01:10.2"]);
    host.stops("web");
    host.stops("db");
    host.assert_no_leases("after the stops");
    host.assert_as(&ready, "after the stops");
}

/// libvirt before 10.5 tells no reason at `release`.
#[test]
fn a_release_without_a_reason_is_as_one_with() {
    let told = ["-", "destroyed", "shutdown", "failed", "migrated", "crashed"].map(|reason| {
        let host = Host::with_pair();
        let before = host.snapshot();
        let xml = domain_with("web", &["0000:02:00.0"]);
        host.prepare("web", &xml).ok();
        let outcome = host.hook_with(&["web", "release", "end", reason], xml.as_bytes()).run().ok();
        host.assert_restored(&before, reason);
        outcome.stderr
    });
    assert!(told.iter().all(|one| one == &told[0]), "{told:?}");
}

/// The directives that systemd 219 knows, of those that we use, and the kinds of lines in tmpfiles.d.
/// Source: systemd v219, `src/core/load-fragment-gperf.gperf.m4`, `src/tmpfiles/tmpfiles.c`.
#[test]
fn systemd_219_reads_the_units() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let known = [
        ("Unit", &["Description", "Documentation", "Before", "After", "Wants"][..]),
        ("Service", &["Type", "ExecStartPre", "ExecStart", "TimeoutStartSec", "StartLimitInterval"]),
        ("Path", &["PathChanged", "DirectoryNotEmpty"]),
        ("Install", &["WantedBy"]),
    ];
    let mut units = 0;
    for unit in fs::read_dir(folder.join("systemd")).unwrap() {
        let path = unit.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut section = "";
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
                continue;
            }
            let (key, _) = line.split_once('=').unwrap();
            let directives = known.iter().find(|(name, _)| *name == section).unwrap().1;
            // It warns of a directive that it does not know, and goes on.
            let is_told = index > 0 && lines[index - 1] == "# systemd before 254 ignores this line.";
            assert!(directives.contains(&key) != is_told, "{}: {line}", path.display());
        }
        units += 1;
    }
    assert_eq!(units, 7);
    let tmpfiles = fs::read_to_string(folder.join("tmpfiles.conf")).unwrap();
    for line in tmpfiles.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        assert!(
            matches!(fields[..], ["d", path, "0700", "root", "root", "-"] if path.starts_with("/run/vfpool")),
            "{line}"
        );
    }
}

/// All that have something to install, and no others.
#[test]
fn each_package_enables_the_same_units() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    let units = fs::read_dir(folder.join("packaging/systemd")).unwrap();
    let units = units.map(|unit| unit.unwrap().file_name().into_string().unwrap());
    let to_enable: BTreeSet<String> =
        units.filter(|unit| read(&format!("packaging/systemd/{unit}")).contains("[Install]\n")).collect();
    assert!(to_enable.contains("vfpool-definitions.service"), "{to_enable:?}");
    for (file, command) in [
        ("README.md", "systemctl enable "),
        ("packaging/70-vfpool.preset", "enable "),
        ("packaging/debian/postinst", "for unit in vfpool-setup.service "),
        ("packaging/debian/postrm", "for unit in "),
        ("rpm.spec", "systemctl preset "),
        ("rpm.spec", "systemctl disable "),
    ] {
        let text = read(file);
        let lines = text.lines().filter(|line| line.trim_start().starts_with(command));
        let words = lines.flat_map(str::split_whitespace).map(|word| word.trim_end_matches(';'));
        let named: BTreeSet<String> = words.filter(|word| word.starts_with("vfpool-")).map(str::to_owned).collect();
        assert_eq!(named, to_enable, "{file}: {command}");
    }
    // At each start of libvirt, also one after it has died.
    let definitions = Unit::read("vfpool-definitions.service");
    for daemon in ["libvirtd.service", "virtqemud.service"] {
        for key in ["WantedBy", "After"] {
            let values = definitions.all(key);
            assert!(values.iter().any(|value| value.split(' ').any(|unit| unit == daemon)), "{key}: {daemon}");
        }
    }
}

/// A unit file: section by section, as written.
struct Unit(Vec<(String, String)>);

impl Unit {
    /// Reads a unit; of an instance, its template.
    fn read(name: &str) -> Self {
        let (file, instance) = match name.split_once('@') {
            Some((prefix, rest)) => (format!("{prefix}@.service"), rest.trim_end_matches(".service")),
            None => (name.to_owned(), ""),
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        Self(lines.map(|(key, value)| (key.to_owned(), value.replace("%i", instance))).collect())
    }

    fn all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect()
    }

    /// Carries out its commands on the host.
    fn run(&self, host: &Host) {
        for line in self.all("ExecStart") {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["/usr/sbin/vfpool", arguments @ ..] => drop(host.vfpool(arguments).ok()),
                ["/bin/touch", "-c", path] => {
                    let path = host.path(path.trim_start_matches('/'));
                    let touched = std::process::Command::new("/bin/touch").arg("-c").arg(path).status().unwrap();
                    assert!(touched.success());
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// How a path unit treats an entry that is added while its service works.
/// Source: systemd v219 `src/core/path.c`, `path_dispatch_io` (the start that the entry causes is merged into the
/// running one, and the event is forgotten), `path_trigger_notify` (so nothing is looked at when the service ends);
/// later versions look.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    Systemd219,
    Later,
}

/// Plays systemd with one of our queues, from its first entry until nothing is started any more. `late` is called once,
/// when the service has done its work and systemd does not know it yet. Returns how often the service ran.
fn play(host: &Host, rule: Rule, kind: &str, has_requeue: bool, late: impl FnOnce()) -> usize {
    let folder = host.path(&format!("run/vfpool/queue/{kind}"));
    let is_empty = || fs::read_dir(&folder).unwrap().next().is_none();
    let attributes = || fs::metadata(&folder).unwrap().ctime_nsec();
    let name = format!("vfpool-{kind}.service");
    let service = Unit::read(&name);
    let (mut late, mut runs, mut is_started) = (Some(late), 0, true);
    while is_started {
        service.run(host);
        runs += 1;
        late.take().into_iter().for_each(|late| late());
        is_started = rule == Rule::Later && !is_empty();
        let has_ended = !is_started;
        for wanted in service.all("Wants").into_iter().filter(|_| has_requeue && has_ended) {
            let wanted = Unit::read(wanted);
            assert_eq!(wanted.all("After"), [name.as_str()], "it comes after the service has ended");
            assert_eq!((wanted.all("Type"), wanted.all("StartLimitInterval")), (vec!["oneshot"], vec!["0"]));
            let before = attributes();
            std::thread::sleep(std::time::Duration::from_millis(20));
            wanted.run(host);
            // IN_ATTRIB: the path unit looks at the folder.
            is_started |= attributes() != before && !is_empty();
        }
    }
    runs
}

#[test]
fn what_is_queued_while_a_service_works_is_done() {
    for (rule, has_requeue, runs) in
        [(Rule::Systemd219, true, 2), (Rule::Later, true, 2), (Rule::Later, false, 2), (Rule::Systemd219, false, 1)]
    {
        let case = format!("{rule:?}, requeue: {has_requeue}");
        // A second PF appears.
        let host = host(old_kernel);
        host.move_to(PF, Some("igb"));
        host.netdev(PF, "eth3", false, &[]);
        fs::remove_file(host.path("etc/vfpool/pools.d/disks.xml")).unwrap();
        host.put(&format!("run/vfpool/queue/setup/{PF}"), "");
        let appears = || {
            host.move_to(NVME, Some("nvme"));
            host.pool("disks", "<pf address='06:00.0'/>");
            host.udev(&[NVME]).ok_silently();
        };
        assert_eq!(play(&host, rule, "setup", has_requeue, appears), runs, "{case}");
        assert_eq!(host.driver(VF).as_deref(), Some("vfio-pci"), "{case}");
        let is_done = host.driver("0000:06:00.1").as_deref() == Some("vfio-pci");
        // Without our unit, 219 loses it.
        assert_eq!(is_done, runs == 2, "{case}");

        // A guest stops when another one has just been looked at.
        host.define("web", &asking("web", VF));
        host.put("run/vfpool/queue/reconcile/guest web", "");
        let late = || host.put("run/vfpool/queue/reconcile/guest db", "");
        assert_eq!(play(&host, rule, "reconcile", has_requeue, late), runs, "{case}");
        assert_eq!(host.recorded("queue/reconcile").len(), 2 - runs, "{case}");
    }
}

/// What is queued while `vfpool setup` is at work needs no further start.
#[test]
fn setup_looks_at_its_queue_again() {
    let host = host(old_kernel);
    host.move_to(PF, Some("igb"));
    host.netdev(PF, "eth3", false, &[]);
    host.put(&format!("run/vfpool/queue/setup/{PF}"), "");
    host.faults("write hang sriov_numvfs 2");
    let setup = host.command(&["setup", "--queued"]).spawn();
    while !host.recorded("queue/setup").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    host.move_to(NVME, Some("nvme"));
    host.udev(&[NVME]).ok_silently();
    host.faults("");
    setup.wait();
    assert_eq!(host.recorded("queue/setup"), [""; 0]);
    assert_eq!(host.driver("0000:06:00.1").as_deref(), Some("vfio-pci"));
}
