//! Man pages: what they say is what the programs do, and what the types of settings and documents can have.

use super::completion::completed;
use crate::commands::{check, list};
use fakehost::{Device, FIRST, Host, PF, asking, definition, domain, hostdev, interface_at, vf};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

fn source(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// The text of a man page, with its characters as a reader sees them.
fn page(name: &str) -> String {
    let mut text = fs::read_to_string(source("packaging/man").join(name)).unwrap();
    for (roff, seen) in [("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\&", ""), ("\\fI", ""), ("\\fP", "")] {
        text = text.replace(roff, seen);
    }
    text
}

const PAGES: [&str; 3] = ["vfpool.8", "vfpool-hook.8", "vfpool-pool.5"];

/// The parts of a text that begin with this macro, by what stands behind it, in order.
fn parts(text: &str, heading: &str) -> Vec<(String, String)> {
    let text = format!("\n{text}");
    let heading = format!("\n.{heading} ");
    let parts = text.split(heading.as_str()).skip(1);
    parts.filter_map(|part| part.split_once('\n')).map(|(title, text)| (title.to_owned(), text.to_owned())).collect()
}

#[track_caller]
fn part(text: &str, heading: &str, title: &str) -> String {
    let found = parts(text, heading).into_iter().find(|(found, _)| found == title);
    found.unwrap_or_else(|| panic!("no {heading} {title}")).1
}

/// What is shown in fonts of its own on this line, without the font.
fn words(line: &str) -> String {
    let Some((font, rest)) = line.strip_prefix('.').and_then(|line| line.split_once(' ')) else { return String::new() };
    let quoted: Vec<&str> = rest.split('"').collect();
    let is_one = ["B", "I"].contains(&font);
    // Fonts that take turns join their words, and quotes keep a word's spaces.
    let word = |(index, part): (usize, &&str)| {
        if index % 2 == 1 || is_one { (*part).to_owned() } else { part.split_whitespace().collect() }
    };
    quoted.iter().enumerate().map(word).collect()
}

/// The tags of a text, each with what it says about it.
fn tags(text: &str) -> Vec<(String, String)> {
    let parts = text.split(".TP\n").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(tag, about)| (words(tag), about.split("\n.PP").next().unwrap().to_owned())).collect()
}

fn options_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
    let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with("--"));
    words.map(str::to_owned).collect()
}

fn help(host: &Host, command: &str) -> String {
    let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
    let outcome = host.vfpool(&arguments);
    assert_eq!(outcome.code, Some(0), "{command}: {}", outcome.stderr);
    outcome.stdout
}

/// Every command of the program, and of its commands, in the order of the help.
fn commands(host: &Host, prefix: &str) -> Vec<String> {
    let help = help(host, prefix);
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![prefix.to_owned()] };
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").flat_map(|name| commands(host, format!("{prefix} {name}").trim())).collect()
}

/// The options of a command that are its own.
fn options(help: &str) -> BTreeSet<String> {
    let (_, list) = help.split_once("\nOptions:\n").unwrap();
    let lines = list.lines().map(str::trim).filter(|line| line.starts_with('-'));
    let mut options: BTreeSet<String> = lines.flat_map(|line| options_in(line.split("  ").next().unwrap())).collect();
    assert!(options.remove("--help"));
    options
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn options_are_those_of_the_program() {
    let host = Host::new();
    let names = commands(&host, "");
    assert_eq!(names.len(), 13, "{names:?}");
    let page = page("vfpool.8");
    let sections = parts(&part(&page, "SH", "COMMANDS"), "SS");
    let titles: Vec<&str> = sections.iter().map(|(title, _)| title.split(' ').next().unwrap()).collect();
    assert_eq!(titles, names, "in the page, in the order of the help");
    let offered = completed(&host, &[""]);
    assert_eq!(offered.lines().collect::<Vec<_>>(), [&names[..], &["help".to_owned()]].concat());
    assert_eq!(completed(&host, &["help", ""]).lines().collect::<Vec<_>>(), names);
    let synopsis = part(&page, "SH", "SYNOPSIS");
    let uses: Vec<&str> = synopsis.split(".br\n").collect();
    assert_eq!(uses.len(), names.len());
    for ((name, (title, text)), usage) in names.iter().zip(&sections).zip(uses) {
        let help = help(&host, name);
        let own = options(&help);
        let told: BTreeSet<String> = tags(text).iter().flat_map(|(tag, _)| options_in(tag)).collect();
        assert_eq!(told, own, "{name} in the page");
        assert!(options_in(text).is_subset(&own), "{name}: {:?}", options_in(text));
        assert!(usage.starts_with(&format!(".B vfpool {name}\n")), "{usage}");
        if name == "start" {
            assert!(usage.contains("option of virsh start"));
        } else {
            assert_eq!(options_in(usage), own, "{name} in the synopsis");
        }
        let mut offered = lines(&completed(&host, &[name, "-"]));
        assert!(offered.remove("--help"), "{name}: {offered:?}");
        assert_eq!(offered, own, "{name} in the completion");
        // What stands without an option, as `<GUEST>`, `[DEVICE]`, `[POOL]...`.
        let (_, usage) = help.split_once("Usage: ").unwrap();
        let places = usage.lines().next().unwrap().split(' ').filter(|word| word.starts_with(['<', '[']));
        let places = places.filter(|word| *word != "[OPTIONS]" && !word.contains("--"));
        let places: Vec<String> = places.map(|word| word.replace(['<', '>'], "").replace("]...", "...]")).collect();
        assert_eq!(title.split(' ').skip(1).collect::<Vec<_>>(), places, "{name}");
    }
    let own = options(&help(&host, ""));
    let told = tags(&part(&page, "SH", "OPTIONS")).iter().flat_map(|(tag, _)| options_in(tag)).collect();
    assert_eq!(&own | &BTreeSet::from(["--help".to_owned()]), told);
    assert_eq!(lines(&completed(&host, &["-"])), told);
    let actions = completed(&host, &["hook", ""]);
    let help = help(&host, "hook");
    assert_eq!(help.lines().filter(|line| line.trim().starts_with("- ")).count(), actions.lines().count());
    assert!(actions.lines().all(|action| help.contains(&format!("- {action}:"))), "{actions}");
}

#[test]
fn each_page_has_its_sections_and_examples_that_can_be_run() {
    let host = Host::new();
    for (name, own) in PAGES.into_iter().zip(["COMMANDS", "COMMANDS", "ELEMENTS"]) {
        let page = page(name);
        let sections: Vec<String> = parts(&page, "SH").into_iter().map(|(title, _)| title).collect();
        let wanted =
            ["NAME", "SYNOPSIS", "DESCRIPTION", own, "EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"].map(str::to_owned);
        let found: Vec<&String> = sections.iter().filter(|title| wanted.contains(title)).collect();
        assert_eq!(found, wanted.iter().collect::<Vec<_>>(), "{name}");
        let examples = page.split(".EX\n").skip(1).flat_map(|text| text.split(".EE").next().unwrap().lines());
        let commands = examples.flat_map(|line| line.split(['|', '&', '#', '>'])).map(str::trim);
        let commands: Vec<&str> = commands.filter_map(|line| line.strip_prefix("vfpool ")).collect();
        assert!(commands.len() >= 3, "{name}: {commands:?}");
        for command in commands {
            // What is wrong in front of it is told first.
            help(&host, command.split('<').next().unwrap());
        }
    }
}

#[track_caller]
fn exit_codes(page: &str) -> BTreeSet<String> {
    let section = part(page, "SH", "EXIT STATUS");
    tags(&section).into_iter().map(|(tag, _)| tag).collect()
}

#[test]
fn exit_codes_are_those_of_the_programs() {
    let code = |host: &Host, arguments: &[&str]| host.vfpool(arguments).code.unwrap();
    let host = Host::with_vfs(2);
    host.runs_with("db", &vf(0));
    let ready = check::ready();
    let mut seen = vec![
        (code(&host, &["list"]), 0),
        (code(&host, &["explain", &vf(0)]), 0),
        (code(&host, &["explain", "nothing"]), 1),
        (code(&host, &["start", "nobody"]), 1),
        (code(&host, &["check"]), 1),
        (code(&host, &["start"]), 2),
        (code(&ready, &["check"]), 0),
    ];
    ready.put("run/vfpool/attention/web", "it is odd");
    seen.push((code(&ready, &["check"]), 3));
    for (index, (code, expected)) in seen.iter().enumerate() {
        assert_eq!(code, expected, "number {index}");
    }
    let named: BTreeSet<String> = seen.iter().map(|(code, _)| code.to_string()).collect();
    assert_eq!(exit_codes(&page("vfpool.8")), named);

    // The hook: refused, another's own, or fine.
    let web = asking("web", &vf(0));
    assert_eq!(host.prepare("web", &web).code, Some(1));
    assert_eq!(host.hook_with(&["web"], b"").run().code, Some(1));
    assert_eq!(host.hook("web", "reconnect", "<domain").run().code, Some(0));
    host.script("etc/libvirt/hooks/qemu.before-vfpool", "[ \"$2\" = stopped ] || exit 7");
    for (operation, expected) in [
        ("prepare", 7),
        ("start", 7),
        ("started", 7),
        ("migrate", 7),
        ("restore", 7),
        ("attach", 7),
        ("reconnect", 0),
        ("release", 0),
    ] {
        let outcome = host.hook("plain", operation, &domain("plain", &[])).run();
        assert_eq!(outcome.code, Some(expected), "{operation}");
    }
    assert_eq!(exit_codes(&page("vfpool-hook.8")), ["0", "1", "other"].map(str::to_owned).into());

    // A pool that cannot be used.
    let host = Host::with_vfs(1);
    let xml = asking("web", &vf(0));
    host.put("etc/vfpool/pools.d/net.xml", "<pool>");
    for (arguments, expected) in
        [(["check"].as_slice(), 1), (&["list"], 1), (&["setup"], 1), (&["list", "--metrics"], 0)]
    {
        assert_eq!(code(&host, arguments), expected, "{arguments:?}");
    }
    assert_eq!(host.prepare("web", &xml).code, Some(1));
    assert_eq!(host.guest("db", &vf(0)).prepare().code, Some(0));
    assert_eq!(exit_codes(&page("vfpool-pool.5")), ["0", "1"].map(str::to_owned).into());
}

/// The files that the programs open or change, in all that has a file of its own: below the host's root.
fn used() -> BTreeSet<String> {
    let host = Host::with_vfs(4);
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.add_pair("0000:02:00", 9);
    host.put("opened", "");
    host.put("etc/vfpool/host.xml", "<host/>");
    // Hooks of others, which note themselves; this libvirtd is too old to call the second one.
    host.put(
        &format!("proc/{}/maps", std::process::id()),
        "7f00 r-xp 00000000 08:01 1 /usr/lib64/libvirt.so.0.4005.0\n",
    );
    for hook in ["etc/libvirt/hooks/qemu.before-vfpool", "etc/libvirt/hooks/qemu.d/1"] {
        host.script(hook, &format!("echo {hook} >>{}", host.path("opened").display()));
    }
    // A lease that cannot be read, a device that cannot be reattached, a start that is refused.
    host.put("run/vfpool/leases/odd", "<lease");
    host.guest("odd", &vf(2)).prepare().ok();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.faults("write errno EIO e1000e/bind");
    web.release().ok();
    host.faults("");
    host.runs_with("db", &vf(0));
    assert_eq!(host.guest("mail", &vf(0)).prepare().code, Some(1));
    // A lock that is waited for.
    let lock = fs::File::options().write(true).open(host.path("run/vfpool/lock")).unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    let dns = host.guest("dns", &vf(1));
    let waits = dns.hook("prepare").spawn();
    let begun = Instant::now();
    while host.get("run/vfpool/lock-waits").is_none() && begun.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(1));
    }
    drop(lock);
    waits.wait().ok();
    // A PF that gets another number of VFs, and not as many as it should.
    let places = [("0000:06:00.1", 61), ("0000:06:00.2", 62)];
    host.add(Device::new("0000:06:00.0").id("1b36:0010").driver("nvme").group(60).vfs("1b36:0010", &places));
    host.make_vfs("0000:06:00.0", &[None, None]);
    host.driver_answers("nvme", "vfs-at-least 2");
    host.pool("disks", "<pf address='06:00.0' vfs='1'/>");
    // A PF that appears, its VFs, and what has changed for the reconciler.
    host.udev(&[PF]);
    host.vfpool(&["setup"]);
    host.vfpool(&["attach", "db", "net", "--live"]);
    host.reconcile();
    let opened = host.get("opened").unwrap();
    let changed = host.trace().join("\n");
    let changed = changed.lines().filter_map(|line| line.split(' ').nth(1));
    opened.lines().chain(changed).map(str::to_owned).collect()
}

/// All that `make install` installs, below this folder.
fn installed(folder: &Path) -> Vec<String> {
    let stage = folder.join("stage");
    // Programs that are built already.
    fs::create_dir_all(folder.join("release")).unwrap();
    for program in ["vfpool", "vfpool-hook", "vfpool-device"] {
        fs::write(folder.join("release").join(program), "").unwrap();
    }
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(source("packaging")).args(["install", "BUILT=yes", "TARGET="]);
    make.arg(format!("DESTDIR={}", stage.display())).env("CARGO_TARGET_DIR", folder).env_remove("MAKEFLAGS");
    assert!(make.status().unwrap().success());
    let found = Command::new("find").arg(&stage).args(["!", "-type", "d", "-printf", "/%P\n"]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn files_are_those_of_the_installation_and_of_the_programs() {
    let folder = tempfile::tempdir().unwrap();
    let installed = installed(folder.path());
    let used = used();
    let mut named = BTreeSet::new();
    for name in PAGES {
        let page = page(name);
        let files = part(&page, "SH", "FILES");
        let files = tags(&files);
        for path in files.iter().flat_map(|(tag, _)| tag.split(',')) {
            // GUEST and ADDRESS stand for what there are many of.
            let path = path.trim().trim_end_matches(|c: char| c.is_ascii_uppercase()).trim_end_matches('/');
            let is_it = |file: &String| file == &path[1..] || file.starts_with(&format!("{}/", &path[1..]));
            assert!(installed.iter().any(|file| file == path) || used.iter().any(is_it), "{name}: {path}");
            named.insert(path.to_owned());
        }
    }
    for file in installed.iter().filter(|file| !file.starts_with("/usr/share/man/")) {
        let is_reading = file.starts_with("/usr/share/doc/") && !file.contains("example");
        assert!(is_reading || named.contains(file), "{file} is in no page");
    }
    // All of the state; what is there only while it is written, or while virsh reads it, is no file to know of.
    let is_passing = |file: &&str| *file == "new" || [".new", "create."].iter().any(|part| file.contains(part));
    let state = used.iter().filter_map(|file| file.strip_prefix("run/vfpool/"));
    let state: BTreeSet<&str> = state.filter(|file| !is_passing(file)).collect();
    assert!(state.len() > 12, "{state:?}");
    for file in state {
        let parts = [file, file.split('/').next().unwrap(), file.rsplit_once('/').unwrap_or((file, "")).0];
        let is_named = parts.iter().any(|part| named.contains(&format!("/run/vfpool/{part}")));
        let is_parent = named.iter().any(|path| path.starts_with(&format!("/run/vfpool/{file}/")));
        assert!(is_named || is_parent, "/run/vfpool/{file} is in no page");
    }
}

#[test]
fn settings_are_those_of_the_code() {
    let section = part(&page("vfpool-hook.8"), "SH", "OPTIONS");
    let told: Vec<String> = tags(&section).into_iter().map(|(tag, _)| tag).collect();
    let settings = possible(schemars::schema_for!(model::settings::Settings).as_value());
    let settings = settings.keys().filter_map(|key| key.split_once(".@"));
    let settings = settings.map(|(element, name)| format!("<{} {name}=/>", element.trim_end_matches("[]")));
    assert_eq!(told.iter().cloned().collect::<BTreeSet<_>>(), settings.collect());
    // The example is read, and so is what is installed.
    let (_, example) = section.split_once(".EX\n").unwrap();
    let host = Host::with_pair();
    for text in [
        example.split(".EE").next().unwrap().to_owned(),
        fs::read_to_string(source("packaging/host.xml")).unwrap(),
        fs::read_to_string(source("packaging/host.xml")).unwrap().replace("<!--", "").replace("-->", ""),
    ] {
        let text: String = text.lines().filter(|line| line.trim_start().starts_with('<')).collect();
        host.put("etc/vfpool/host.xml", &text);
        let found = host.vfpool(&["check"]).stdout;
        assert!(!found.contains("host.xml"), "{text}: {found}");
    }
}

/// The places of values in JSON documents, as the pages write them, and the texts that were seen there.
type Keys = BTreeMap<String, BTreeSet<String>>;

/// What looks alike, in several places.
const ALIKE: [(&str, &str); 10] = [
    ("pools[].pfs[].devices[].", "DEVICE."),
    ("pools[].devices[].", "DEVICE."),
    ("others[].", "DEVICE."),
    ("groups[].devices[].", "DEVICE."),
    ("device.start.", "START."),
    ("guest.start.", "START."),
    ("START.left[].", "ACTION."),
    ("START.steps[].", "ACTION."),
    ("START.at_stop[].", "ACTION."),
    ("guest.at_stop[].", "ACTION."),
];

/// A place as the pages write it.
fn alike(place: &str) -> String {
    ALIKE.iter().fold(place.to_owned(), |place, (long, short)| match place.strip_prefix(long) {
        Some(rest) => format!("{short}{rest}"),
        None => place,
    })
}

fn collect(place: &str, value: &Value, keys: &mut Keys) {
    let place = alike(place);
    match value {
        Value::Object(object) => {
            if !place.is_empty() {
                keys.entry(place.clone()).or_default();
            }
            for (key, value) in object {
                collect(format!("{place}.{key}").trim_start_matches('.'), value, keys);
            }
        }
        Value::Array(members) => {
            let place = format!("{place}[]");
            keys.entry(place.clone()).or_default();
            for member in members {
                collect(&place, member, keys);
            }
        }
        Value::String(text) => _ = keys.entry(place).or_default().insert(text.clone()),
        _ => _ = keys.entry(place).or_default(),
    }
}

#[track_caller]
fn json(host: &Host, arguments: &[&str], keys: &mut Keys) {
    let outcome = host.vfpool(&[arguments, &["--json"]].concat());
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{}", outcome.stderr));
    assert_eq!(document["version"], 1);
    collect("", &document, keys);
}

/// Whether a text has this word.
fn names(text: &str, wanted: &str) -> bool {
    let text = text.replace("\\-", "-");
    text.split(|c: char| !c.is_ascii_lowercase() && c != '_' && c != '-').any(|word| word == wanted)
}

/// What stands in the page of one command: its keys, each with what is said about it.
fn told(command: &str) -> BTreeMap<String, String> {
    let section = part(&page("vfpool.8"), "SH", "JSON");
    let about = section.split(".SS ").next().unwrap().to_owned() + &part(&section, "SS", &format!("Of {command}"));
    tags(&about).into_iter().collect()
}

/// The keys in the page of one command are those that were seen; each value that is one of a few words is named there.
#[track_caller]
fn expect_documented(command: &str, seen: &Keys) {
    let told = told(command);
    assert_eq!(told.keys().collect::<Vec<_>>(), seen.keys().collect::<Vec<_>>());
    let one_of_a_few = ["state", "role", "lease", "fate", "verdict", "kind", "id", "ACTION.by"];
    for (key, values) in seen {
        let is_one = one_of_a_few.iter().any(|few| key == few || key.ends_with(&format!(".{few}")));
        for value in values.iter().filter(|_| is_one && !key.ends_with("device.id") && !key.ends_with("members[].id")) {
            assert!(names(&told[key], value), "{key}: {value} is not in {}", told[key]);
        }
    }
}

/// What a document of this schema can have: its keys as in [`collect`], and the words for one of a few.
fn possible(schema: &Value) -> Keys {
    let mut keys = Keys::new();
    add_possible(schema, schema, "", &mut keys);
    keys.remove("");
    keys
}

fn add_possible(document: &Value, schema: &Value, place: &str, keys: &mut Keys) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).unwrap();
        return add_possible(document, schema, place, keys);
    }
    let place = &alike(place);
    for one in ["oneOf", "anyOf", "allOf"].iter().flat_map(|of| schema[of].as_array().into_iter().flatten()) {
        add_possible(document, one, place, keys);
    }
    if schema["items"].is_object() {
        return add_possible(document, &schema["items"], &format!("{place}[]"), keys);
    }
    let words = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
    keys.entry(place.clone()).or_default().extend(words.filter_map(|word| word.as_str().map(str::to_owned)));
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        add_possible(document, schema, format!("{place}.{key}").trim_start_matches('.'), keys);
    }
}

#[test]
fn every_key_and_every_word_of_the_code_is_in_the_page() {
    let (mut keys, mut words) = (0, 0);
    for (command, schema) in [
        ("check", schemars::schema_for!(command::check::Report)),
        ("list", schemars::schema_for!(command::list::Listing)),
        ("explain", schemars::schema_for!(command::explain::Explanation)),
    ] {
        let (told, seen) = (told(command), possible(schema.as_value()));
        assert_eq!(told.keys().collect::<Vec<_>>(), seen.keys().collect::<Vec<_>>(), "{command}");
        for (key, values) in &seen {
            // Not at each key: two may have one type, and one of them never one of its words.
            for value in values {
                assert!(told.values().any(|about| names(about, value)), "{command}: {key}: {value} is not in the page");
            }
            words += values.len();
        }
        keys += seen.len();
    }
    assert!(keys > 70 && words > 30, "{keys} keys, {words} words");
}

#[test]
fn keys_of_check() {
    let mut seen = Keys::new();
    json(&check::ready(), &["check"], &mut seen);
    let host = Host::with_pair();
    json(&host, &["check"], &mut seen);
    expect_documented("check", &seen);
    // What a finding may be about, and nothing else.
    let ids = possible(schemars::schema_for!(command::check::Report).as_value()).remove("findings[].id").unwrap();
    let section = part(&page("vfpool.8"), "SH", "JSON");
    let told = tags(&section).into_iter().find(|(tag, _)| tag == "findings[].id").unwrap().1;
    let bold = told.lines().filter(|line| line.starts_with(".BR "));
    let words = bold.flat_map(|line| line[4..].split([' ', ',', '"', '.'])).filter(|word| !word.is_empty());
    let told: BTreeSet<String> = words.filter(|word| *word != "or").map(str::to_owned).collect();
    assert_eq!(told, ids);
}

#[test]
fn keys_of_list() {
    let mut seen = Keys::new();
    // In each way that there is.
    let host = list::host();
    host.pool("gone", "<address type='pci' bus='9' slot='0' function='0'/>");
    json(&host, &["list", "--groups"], &mut seen);
    host.vfpool_with(&["rewrite"], host.definition("web").as_bytes()).run();
    json(&host, &["list"], &mut seen);
    // With what could not be reattached, and without an IOMMU.
    let host = Host::with_pair();
    let web = host.guest("web", "0000:02:00.0");
    web.prepare().ok();
    host.faults("write errno EIO e1000e/bind");
    web.release().ok();
    json(&host, &["list"], &mut seen);
    // A PF that a guest has, with managed='no'.
    let host = Host::with_vfs(1);
    host.put("sys/class/net/eth3/flags", "0x1002\n");
    host.prepare("demo", &domain("demo", &[hostdev(PF, false)])).ok();
    host.pool("net", "<pf address='01:00.0' vfs='1'/>");
    json(&host, &["list"], &mut seen);
    expect_documented("list", &seen);
    let states: BTreeSet<&str> = seen["DEVICE.state"].iter().map(String::as_str).collect();
    assert_eq!(states, ["attention", "bridge", "free", "in-use", "leased", "missing", "parked"].into());
}

#[test]
fn keys_of_explain() {
    let mut seen = Keys::new();
    let (first, second) = ("0000:02:00.0", "0000:02:00.1");
    // A PF with VFs, one of which runs, and one that is asked for twice.
    let host = Host::with_vfs(2);
    host.put(&format!("sys/bus/pci/devices/{PF}/numa_node"), "1\n");
    host.define("db", &asking("db", &vf(0)));
    json(&host, &["explain", PF], &mut seen);
    host.runs("db");
    host.define("web", &definition("web", &[("net", 0), ("net", 7)], &[interface_at(&vf(0), 0)]));
    for name in [&vf(0), "web", "db"] {
        json(&host, &["explain", name], &mut seen);
    }
    host.runs_with("other", &vf(1));
    host.put("run/vfpool/attention/web", "it is odd");
    host.put("var/lib/libvirt/qemu/save/web.save", "");
    json(&host, &["explain", "web"], &mut seen);
    // A group with all that there may be in it, left behind by a guest that is gone.
    let host = Host::with_pair();
    host.add(Device::new("0000:02:00.3").behind("0000:00:02.0").group(8).driver("vfio-pci"));
    host.add(Device::new("0000:02:01.0").bridge().group(8));
    host.netdev(second, "enp2s0f1", false, &[]);
    json(&host, &["explain", first], &mut seen);
    let xml = domain("web", &[hostdev(first, false)]);
    host.prepare("web", &xml).ok();
    host.define("web", &xml);
    json(&host, &["explain", "web"], &mut seen);
    host.libvirtd_dies();
    for name in ["web", first] {
        json(&host, &["explain", name], &mut seen);
    }
    host.reconcile().ok();
    host.put("sys/class/net/enp2s0f1/flags", "0x1003\n");
    host.route("0.0.0.0/0", 100, &["enp2s0f1"]);
    for name in [first, second] {
        json(&host, &["explain", name], &mut seen);
    }
    expect_documented("explain", &seen);
}

#[test]
fn metrics_are_those_of_the_program() {
    let metrics = Host::with_vfs(1).vfpool(&["list", "--metrics"]).stdout;
    let sample = |line: &str| {
        let (name, labels) =
            line.rsplit_once(' ').unwrap().0.split_once('{').unwrap_or((line.split(' ').next().unwrap(), ""));
        let labels: Vec<&str> =
            labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name).collect();
        if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
    };
    let seen: BTreeSet<String> = metrics.lines().filter(|line| !line.starts_with('#')).map(sample).collect();
    let section = part(&page("vfpool.8"), "SH", "METRICS");
    let told = tags(&section);
    assert_eq!(told.iter().map(|(tag, _)| tag.clone()).collect::<BTreeSet<_>>(), seen);
    for (name, about) in told.iter().filter(|(name, _)| name.contains('{')) {
        let (name, _) = name.split_once('{').unwrap();
        let of_it = metrics.lines().filter(|line| line.starts_with(name));
        for state in of_it.filter_map(|line| line.split_once("state=\"")?.1.split('"').next()) {
            assert!(about.contains(state), "{name}: {state}");
        }
    }
}

/// The table of what the host uses is the program's own.
#[test]
fn each_kind_of_use_is_in_the_table() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/man/vfpool-hook.8")).unwrap();
    let page = page.replace(r"\(aq", "'");
    let entries: Vec<&str> = page.split(".TP\n").collect();
    for kind in model::host_use::HostUse::kinds() {
        let entry = entries.iter().find(|entry| entry.starts_with(&format!(".B \"{kind}\"\n")));
        let entry = entry.unwrap_or_else(|| panic!("vfpool-hook(8) has no {kind:?}"));
        assert_eq!(entry.contains("Not if the guest names the device."), !kind.is_vital(), "{kind}");
    }
}
