//! `vfpool list`.

use fakehost::{Device, FIRST, Host, NVME, Outcome, PF, SECOND, asking, group, vf};
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A host on which a device stands in each way there is, but for what needs attention.
pub(crate) fn host() -> Host {
    let host = Host::with_vfs(6);
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.add_pair("0000:02:00", 9);
    host.add(Device::new(NVME).id("1b36:0010").class(0x01_0802).driver("nvme").group(20));
    for (device, node) in [(PF, "1\n"), (NVME, "1\n"), (FIRST, "-1\n")] {
        host.put(&format!("sys/bus/pci/devices/{device}/numa_node"), node);
    }
    host.runs_with("db", &vf(0));
    host.define("web", &asking("web", &vf(1)));
    host.move_to(&vf(2), Some("vfio-pci"));
    host.process(5000, 1, 5);
    host.opens_group(5000, group(2));
    host.move_to(&vf(3), Some("igbvf"));
    host.netdev(&vf(3), "eth9", true, &["192.0.2.1"]);
    host.move_to(&vf(4), Some("igbvf"));
    host.netdev(&vf(4), "eth10", false, &["192.0.2.2"]);
    host.reconcile().ok();
    host.guest("demo", FIRST).prepare().ok();
    host.pool("store", "<pf address='0000:05:00.0' vfs='4'/><address type='pci' bus='6' slot='0' function='0'/>");
    host
}

/// What `vfpool` prints, with the host's own root left out.
pub(crate) fn shown(host: &Host, arguments: &[&str]) -> Outcome {
    let outcome = host.vfpool(arguments);
    let root = host.path("").display().to_string();
    let plain = |text: String| text.replace(root.trim_end_matches('/'), "");
    Outcome { stdout: plain(outcome.stdout), stderr: plain(outcome.stderr), ..outcome }
}

/// The list of a host with which nothing is wrong.
#[track_caller]
fn list(host: &Host) -> String {
    let outcome = shown(host, &["list"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{}", outcome.stdout);
    outcome.stdout
}

fn json(host: &Host, arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&shown(host, &[&["list", "--json"], arguments].concat()).stdout).unwrap()
}

const NO_STORE: &str = "vfpool: Cannot use <pf address='0000:05:00.0' vfs='4'> in /etc/vfpool/pools.d/store.xml line 1 \
                        (pool 'store'): there is no PCI function at this address. Put the card back, or name one that \
                        `lspci -D` shows\n";

#[test]
fn each_state_is_shown_beside_its_device() {
    let host = host();
    let before = host.snapshot();
    let outcome = shown(&host, &["list"]);
    assert_eq!(
        outcome.stdout,
        "net: 6 devices, 2 free, 1 parked, 1 leased, 2 in use\n\
        \x20 0000:01:00.0    igb         group 8    eth3, 6 VFs, NUMA node 1\n\
        \x20   0000:01:10.0  vfio-pci    group 100  leased to db\n\
        \x20   0000:01:10.1  -           group 101  parked by web\n\
        \x20   0000:01:10.2  vfio-pci    group 102  in use: process 5000 (qemu-kvm) uses it\n\
        \x20                                        through VFIO\n\
        \x20   0000:01:10.3  igbvf       group 103  in use: eth9 is up and has the address\n\
        \x20                                        192.0.2.1\n\
        \x20   0000:01:10.4  igbvf       group 104  free\n\
        \x20   0000:01:10.5  -           group 105  free\n\
        store: 5 devices, 1 free, 4 missing\n\
        \x20 0000:05:00.0    -                      missing, with its 4 VFs\n\
        \x20 0000:06:00.0    nvme        group 20   free, NUMA node 1\n\
        in no pool\n\
        \x20 0000:02:00.0    e1000e      group 9    leased to demo (pending)\n\
        \x20 0000:02:00.1    vfio-pci    group 9    leased to demo (sibling, pending, was\n\
        \x20                                        on e1000e)\n"
    );
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), NO_STORE));
    let outcome = shown(&host, &["list", "net"]);
    assert!(outcome.stdout.starts_with("net: ") && outcome.stdout.lines().count() == 10, "{}", outcome.stdout);
    host.assert_as(&before, "after looking");
}

#[test]
fn groups_are_shown_with_all_their_members() {
    let host = host();
    let outcome = shown(&host, &["list", "--groups"]);
    assert_eq!(
        outcome.stdout,
        "group 7\n\
        \x20 0000:00:02.0    pcieport    bridge\n\
        group 8\n\
        \x20 0000:01:00.0    igb         in use: its VFs are pool 'net', NUMA node 1\n\
        group 9\n\
        \x20 0000:02:00.0    e1000e      leased to demo (pending)\n\
        \x20 0000:02:00.1    vfio-pci    leased to demo (sibling, pending, was on e1000e)\n\
        group 20\n\
        \x20 0000:06:00.0    nvme        free, pool store, NUMA node 1\n\
        group 100\n\
        \x20 0000:01:10.0    vfio-pci    leased to db, pool net, NUMA node 1\n\
        group 101\n\
        \x20 0000:01:10.1    -           parked by web, pool net, NUMA node 1\n\
        group 102\n\
        \x20 0000:01:10.2    vfio-pci    in use: process 5000 (qemu-kvm) uses it through\n\
        \x20                             VFIO, pool net, NUMA node 1\n\
        group 103\n\
        \x20 0000:01:10.3    igbvf       in use: eth9 is up and has the address 192.0.2.1,\n\
        \x20                             pool net, NUMA node 1\n\
        group 104\n\
        \x20 0000:01:10.4    igbvf       free, pool net, NUMA node 1\n\
        group 105\n\
        \x20 0000:01:10.5    -           free, pool net, NUMA node 1\n"
    );
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), NO_STORE));
    let outcome = shown(&host, &["list", "--groups", "store"]);
    assert_eq!(outcome.stdout, "group 20\n  0000:06:00.0    nvme        free, pool store, NUMA node 1\n");
    let groups = json(&host, &["--groups"]);
    let members = groups["groups"].as_array().unwrap().iter().map(|group| group["devices"].as_array().unwrap().len());
    assert_eq!(members.collect::<Vec<_>>(), [1, 1, 2, 1, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn programs_get_json() {
    let host = Host::with_vfs(2);
    host.runs_with("db", &vf(0));
    host.pool("odd", "<pf/>");
    let error = "Cannot use <pf> in /etc/vfpool/pools.d/odd.xml line 1: a PF has either dev='eth3' (its network \
                 interface) or address='0000:04:00.0'. Give it one of them";
    let outcome = shown(&host, &["list", "--json"]);
    assert_eq!(
        outcome.stdout,
        r#"{
  "version": 1,
  "pools": [
    {
      "name": "net",
      "file": "/etc/vfpool/pools.d/net.xml",
      "pfs": [
        {
          "name": "eth3",
          "address": "0000:01:00.0",
          "netdev": "eth3",
          "driver": "igb",
          "iommu_group": 8,
          "missing": 0,
          "devices": [
            {
              "address": "0000:01:10.0",
              "driver": "vfio-pci",
              "iommu_group": 100,
              "state": "leased",
              "guest": "db",
              "role": "managed",
              "lease": "active"
            },
            {
              "address": "0000:01:10.1",
              "iommu_group": 101,
              "state": "free"
            }
          ]
        }
      ],
      "devices": []
    }
  ],
  "others": [],
  "leases": [
    {
      "guest": "db",
      "state": "active"
    }
  ],
  "attention": [],
  "lock_waits": 0,
  "errors": [
    "ERROR"
  ]
}
"#
        .replace("ERROR", error)
    );
    assert_eq!(outcome.code, Some(1));
    let states = json(&self::host(), &[]);
    let device = |pool: usize, number: usize| &states["pools"][pool]["pfs"][0]["devices"][number];
    assert_eq!(device(0, 1)["guests"][0], "web");
    assert_eq!(device(0, 2)["by"], "process 5000 (qemu-kvm) uses it through VFIO");
    assert_eq!(device(0, 0)["numa_node"], 1);
    assert_eq!(states["pools"][1]["pfs"][0]["missing"], 4);
    assert!(states["pools"][1]["pfs"][0]["address"].is_null());
    assert_eq!((&states["others"][1]["role"], &states["others"][1]["was_on"]), (&"sibling".into(), &"e1000e".into()));
}

#[test]
fn prometheus_gets_metrics() {
    let host = Host::with_vfs(3);
    host.runs_with("db", &vf(0));
    let file = "<pool><name>a \\ \"b\"&#10;c</name><forward mode='hostdev'><pf dev='eth7' vfs='2'/></forward></pool>";
    host.put("etc/vfpool/pools.d/odd.xml", file);
    host.put("etc/vfpool/pools.d/broken.xml", "<pool>");
    host.put("run/vfpool/lock-waits", "...");
    let outcome = shown(&host, &["list", "--metrics"]);
    assert_eq!(
        outcome.stdout,
        r#"# HELP vfpool_devices Devices of pools by state.
# TYPE vfpool_devices gauge
vfpool_devices{pool="net",state="free"} 2
vfpool_devices{pool="net",state="parked"} 0
vfpool_devices{pool="net",state="leased"} 1
vfpool_devices{pool="net",state="in-use"} 0
vfpool_devices{pool="net",state="missing"} 0
vfpool_devices{pool="net",state="attention"} 0
vfpool_devices{pool="a \\ \"b\"\nc",state="free"} 0
vfpool_devices{pool="a \\ \"b\"\nc",state="parked"} 0
vfpool_devices{pool="a \\ \"b\"\nc",state="leased"} 0
vfpool_devices{pool="a \\ \"b\"\nc",state="in-use"} 0
vfpool_devices{pool="a \\ \"b\"\nc",state="missing"} 2
vfpool_devices{pool="a \\ \"b\"\nc",state="attention"} 0
# HELP vfpool_leases Leases of guests by state.
# TYPE vfpool_leases gauge
vfpool_leases{state="reserved"} 0
vfpool_leases{state="pending"} 0
vfpool_leases{state="active"} 1
vfpool_leases{state="failed"} 0
vfpool_leases{state="returning"} 0
# HELP vfpool_failed_reattachments Guests with devices that could not be reattached to the host.
# TYPE vfpool_failed_reattachments gauge
vfpool_failed_reattachments 0
# HELP vfpool_lock_waits_total Times that a process had to wait for a lock.
# TYPE vfpool_lock_waits_total counter
vfpool_lock_waits_total 3
# HELP vfpool_pool_errors Files and lines of pools that cannot be used.
# TYPE vfpool_pool_errors gauge
vfpool_pool_errors 2
"#
    );
    // Its file is to be used, and tells of the errors.
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(0), 2), "{}", outcome.stderr);
}

#[test]
fn waits_for_locks_are_counted_and_nothing_else() {
    let host = Host::with_vfs(1);
    let xml = asking("web", &vf(0));
    host.prepare("web", &xml).ok();
    host.release("web", &xml).ok();
    assert_eq!(host.get("run/vfpool/lock-waits"), None);
    let lock = fs::File::options().write(true).open(host.path("run/vfpool/lock")).unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    let prepare = host.hook("web", "prepare", &xml).spawn();
    let begun = Instant::now();
    while host.get("run/vfpool/lock-waits").is_none() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(lock);
    prepare.wait().ok();
    assert_eq!(json(&host, &[])["lock_waits"], 1);
}

#[test]
fn what_could_not_be_given_back_is_shown() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.faults("write errno EIO e1000e/bind");
    web.release().ok();
    host.put("run/vfpool/leases/lost", "<lease");
    // Where it is folded depends on this host's root.
    let text = host.vfpool(&["list"]).stdout.split_whitespace().collect::<Vec<_>>().concat();
    let why = host.get("run/vfpool/attention/web").unwrap().replace(' ', "");
    assert!(why.starts_with("Cannotreattach0000:02:00.1toe1000e:") && why.ends_with("(oserror5)"), "{why}");
    let lost = "lostneedsattention:itsleasecannotberead;thenexteventoftheguestsetsitaside";
    let expected = format!("innopool{SECOND}-group8needsattention:{why}{lost}webneedsattention:{why}");
    assert_eq!(text, expected);
    assert_eq!(host.get("run/vfpool/leases/lost").as_deref(), Some("<lease"), "a look changes nothing");
    assert_eq!(json(&host, &[])["attention"][1]["guest"], "web");
    let metrics = shown(&host, &["list", "--metrics"]).stdout;
    assert!(metrics.contains("vfpool_failed_reattachments 2\n"), "{metrics}");
}

#[test]
fn a_lease_is_shown_as_far_as_it_is() {
    let host = Host::with_vfs(2);
    let line = |host: &Host, vf: &str| {
        let text = list(host);
        let line = text.lines().find(|line| line.contains(vf)).unwrap().to_owned();
        line.split_at(41).1.to_owned()
    };
    // A reservation, and one that was not used in time.
    host.define("web", &asking("web", &vf(0)));
    host.vfpool_with(&["rewrite"], host.definition("web").as_bytes()).run();
    assert_eq!(line(&host, &vf(0)), "leased to web (reserved)");
    host.uptime(2000);
    assert_eq!(line(&host, &vf(0)), "free");
    host.runs("web");
    assert_eq!(line(&host, &vf(0)), "leased to web");
    // On its way out: libvirt does its part.
    host.qemu_ends("web");
    assert_eq!(line(&host, &vf(0)), "leased to web");
    // Nobody will do it.
    host.libvirtd_dies();
    assert_eq!(json(&host, &[])["pools"][0]["pfs"][0]["devices"][0]["state"], "attention");
    assert!(list(&host).contains("guest 'web' is no"), "{}", list(&host));
    host.reconcile();
    assert_eq!(line(&host, &vf(0)), "parked by web");
    // By its own node, which is not its group's.
    host.move_to(&vf(1), Some("vfio-pci"));
    host.opens_itself(5003, &vf(1));
    assert!(line(&host, &vf(1)).starts_with("in use: process 5003 (qemu-kvm)"), "{}", list(&host));
}

#[test]
fn a_pf_that_a_guest_has_takes_its_vfs_along() {
    let host = Host::with_vfs(2);
    host.put(
        "etc/vfpool/pools.d/net.xml",
        host.get("etc/vfpool/pools.d/net.xml").unwrap().replace("'eth3'", "'eth3' vfs='2'"),
    );
    host.guest("demo", PF).prepare().ok();
    host.libvirt_detaches(PF);
    host.pool("net", "<pf address='01:00.0' vfs='2'/>");
    let text = list(&host);
    assert!(
        text.starts_with(
            "net: 2 devices, 2 missing\n  0000:01:00.0    vfio-pci    group 8    eth3, 0 of 2 VFs, leased to demo\nin \
             no pool\n"
        ),
        "{text}"
    );
    assert!(text.contains("0000:01:10.1    -           no group   leased to demo (went with its PF"), "{text}");
}

#[test]
fn fewer_vfs_than_wanted_are_missing() {
    let host = Host::with_vfs(3);
    for (line, text) in [("vfs='5'", "3 of 5 VFs"), ("vfs='3'", "3 VFs"), ("vfs='max'", "3 VFs"), ("", "3 VFs")] {
        host.pool("net", &format!("<pf dev='eth3' {line}/>"));
        assert!(list(&host).contains(&format!("eth3, {text}\n")), "{line}: {}", list(&host));
    }
    // One of them is in an earlier pool, and not missing.
    host.pool("a", "<address type='pci' bus='1' slot='0x10' function='0'/>");
    host.pool("net", "<pf dev='eth3' vfs='3'/>");
    let outcome = shown(&host, &["list"]);
    assert!(
        outcome.stdout.starts_with("a: 1 device, 1 free\n") && outcome.stdout.contains("eth3, 2 VFs\n"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn a_host_without_pools_without_iommu_or_without_anything_is_no_trouble() {
    let host = Host::new();
    assert_eq!(list(&host), "No pool in /etc/vfpool/pools.d, and no guest holds a device.\n");
    assert_eq!(shown(&host, &["list", "--groups"]).stdout, "No PCI device.\n");
    host.add(Device::new(FIRST).driver("e1000e"));
    host.pool("net", "<address type='pci' bus='2' slot='0' function='0'/>");
    fs::remove_dir_all(host.path("run/vfpool")).unwrap_or_default();
    // Without the places where it is folded.
    let text = list(&host).split_whitespace().collect::<Vec<_>>().join(" ");
    let why = "0000:02:00.0 has no IOMMU group: the IOMMU is off";
    let line = format!("0000:02:00.0 e1000e no group needs attention: {why}");
    assert_eq!(text, format!("net: 1 device, 1 needs attention {line}"));
    let groups = shown(&host, &["list", "--groups"]).stdout;
    assert!(groups.starts_with("no IOMMU group\n  0000:02:00.0    e1000e      needs attention"), "{groups}");
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.pool("net", "<address type='pci' bus='0' slot='2' function='0'/>");
    assert!(list(&host).contains("needs attention: it is a bridge,"), "{}", list(&host));
    assert!(!host.path("run/vfpool").exists(), "a look leaves nothing");
}

#[test]
fn no_name_makes_lines_or_control_sequences_of_its_own() {
    let host = Host::with_vfs(2);
    let guest = format!("x\n\u{1b}[2J\u{9b}1m\u{202e}{}", "long".repeat(20));
    host.guest(&guest, &vf(0)).prepare().ok();
    let pool = "<pool><name>p&#27;[31m</name><forward mode='hostdev'><pf dev='eth3'/></forward></pool>";
    host.put("etc/vfpool/pools.d/net.xml", pool);
    for arguments in [&["list"] as &[&str], &["list", "--groups"], &["dumpxml", "p\u{1b}[31m"]] {
        let text = shown(&host, arguments).stdout;
        let odd = |character: &char| character.is_control() && *character != '\n' || *character == '\u{202e}';
        assert_eq!(text.chars().find(odd), None, "{text:?}");
        if arguments[0] == "list" {
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        }
    }
    assert!(list(&host).starts_with("p\\u{1b}[31m: 2 devices"), "{}", list(&host));
}

#[test]
fn colours_are_for_those_who_want_them() {
    let host = Host::with_vfs(1);
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vfpool"));
        command.env_clear().env("VFPOOL_ROOT", host.path("")).env("TERM", "xterm").envs(variables.iter().copied());
        String::from_utf8(command.arg("list").args(arguments).output().unwrap().stdout).unwrap()
    };
    let plain = run(&[], &[]);
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let coloured = run(&[("CLICOLOR_FORCE", "1")], &[]);
    assert!(coloured.contains("\u{1b}[32mfree\u{1b}[0m"), "{coloured:?}");
    assert_eq!(run(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], &[]), plain);
    for arguments in [["--json"], ["--metrics"]] {
        assert!(!run(&[("CLICOLOR_FORCE", "1")], &arguments).contains('\u{1b}'));
    }
}

#[test]
fn a_watch_ends_with_ctrl_c() {
    let host = Host::with_vfs(1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_vfpool"));
    command.env_clear().env("VFPOOL_ROOT", host.path("")).args(["list", "--watch"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    // The first picture is as long as the list.
    let mut picture = vec![0; list(&host).len()];
    std::io::Read::read_exact(watch.stdout.as_mut().unwrap(), &mut picture).unwrap();
    assert_eq!(String::from_utf8(picture).unwrap().replace(&*host.path("").to_string_lossy(), ""), list(&host));
    host.pool("odd", "<pf/>");
    let pid = nix::unistd::Pid::from_raw(watch.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_use_is_told_in_one_line() {
    let host = Host::with_vfs(1);
    for wrong in [
        &["list", "--watch", "--json"] as &[&str],
        &["list", "--watch", "--metrics"],
        &["list", "--json", "--metrics"],
        &["list", "--metrics", "net"],
        &["list", "--metrics", "--groups"],
        &["dumpxml"],
        &["dumpxml", "net", "x"],
        &["dumpxml", "01:10.0", "--hostdev", "--interface"],
    ] {
        assert_eq!(host.vfpool(wrong).code, Some(2), "{wrong:?}");
    }
    shown(&host, &["list", "x"]).refused("There is no pool 'x': /etc/vfpool/pools.d has 'net'");
    shown(&host, &["dumpxml", "x"]).refused("There is no pool 'x': /etc/vfpool/pools.d has 'net'");
    shown(&host, &["dumpxml", "net", "--hostdev"]).refused_saying(&["'net' is a pool"]);
    shown(&host, &["dumpxml", "09:00.0"])
        .refused("There is no PCI function 0000:09:00.0; `lspci -D` shows those that there are");
    shown(&host, &["dumpxml", "01:00.0", "--interface"]).refused_saying(&["0000:01:00.0 is no VF of a network card"]);
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    shown(&host, &["dumpxml", "00:02.0"]).refused("0000:00:02.0 is a bridge, which no guest can have");
}

#[test]
fn each_attribute_is_read_once() {
    let host = host();
    for arguments in [&["list"] as &[&str], &["list", "--groups"], &["list", "--metrics"], &["dumpxml", "net"]] {
        host.put("opened", "");
        host.vfpool(arguments);
        let opened = host.get("opened").unwrap();
        fs::remove_file(host.path("opened")).unwrap();
        let files: Vec<&str> = opened.lines().filter(|file| file.starts_with("sys/")).collect();
        let mut seen = BTreeSet::new();
        let twice: Vec<&&str> = files.iter().filter(|file| !seen.insert(**file)).collect();
        assert_eq!(twice, [&""; 0], "{arguments:?}");
        assert!(files.iter().filter(|file| file.contains("0000:01:10.1")).count() >= 5, "{files:?}");
        // All processes are looked at once, for the one VF that nobody has a lease for.
        assert_eq!(opened.lines().filter(|file| file.ends_with("proc/5000/fd/9")).count(), 1, "{opened}");
    }
}

/// A list against a bare walk over the attributes that it has to know.
#[test]
fn a_list_of_4096_vfs_costs_little_more_than_reading_them() {
    let host = Host::with_vfs(4096);
    let walk = || {
        let begun = Instant::now();
        for number in 0..4096 {
            let folder = host.path(&format!("sys/bus/pci/devices/{}", vf(number)));
            fs::read(folder.join("modalias")).unwrap();
            for link in ["driver", "physfn", "iommu_group"] {
                let _ = fs::read_link(folder.join(link));
            }
        }
        begun.elapsed()
    };
    let list = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vfpool"));
        let begun = Instant::now();
        let output = command.env_clear().env("VFPOOL_ROOT", host.path("")).arg("list").output().unwrap();
        let took = begun.elapsed();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 4098);
        took
    };
    // Other work on this machine may come in between. Most of it is this build, which is not optimized.
    let mut ratios = Vec::new();
    while ratios.len() < 10 && ratios.iter().all(|ratio| *ratio > 6.0) {
        ratios.push(list().as_secs_f64() / walk().as_secs_f64());
    }
    assert!(ratios.iter().any(|ratio| *ratio <= 6.0), "{ratios:?}");
    println!("{ratios:?}");
}
