//! virsh and libvirtd of the fake host: a program at `usr/bin/virsh` that edits `etc/libvirt/qemu/GUEST.xml` and starts
//! guests as libvirt does, hooks and all.
//!
//! | file in the root | what |
//! |---|---|
//! | `virsh.trace` | each command but `domid`, one a line, with the guest's name for its UUID |
//! | `virsh.faults` | what goes wrong, see [`Fault`] |
//! | `virsh.bug` | a call that no libvirt would survive: its caller holds a lock that hooks take |
//! | `hw/libvirtd` | the pid of libvirtd |
//! | `hw/active/GUEST.id` | libvirt has an id for the guest: from before `prepare` to before `stopped` |
//! | `hw/keeps-devices/GUEST` | the guest's system refuses a hot-unplug until the fake's own command `eject` |
//! | `hw/no-reset-nvram` | this virsh is older than libvirt 8.1 |
//! | `hw/no-guest/GUEST` | the file of that name in `etc/libvirt/qemu` is no guest's |
//! | `hw/keeps-failed-create` | this libvirt forgets to put a definition back after a `create` that failed early |
//!
//! With `FAKE_ADMIN` in the environment somebody else calls: no fault, no trace.
//!
//! All behaviour was measured on libvirt 9.0: what is matched by what, the order of devices after a change, the words
//! of refusals, the boot order that comes by itself, the exit status of a batch.
#![allow(unsafe_code, missing_docs)]

use fakehost::tree::Tree;
use fakehost::xml::Node;
use nix::libc;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

type Result<T, E = String> = std::result::Result<T, E>;

/// QEMUs get pids that no process of this machine has.
const FIRST_PID: u32 = 5_000_000;

fn main() -> ExitCode {
    let root = PathBuf::from(std::env::var_os("VFPOOL_ROOT").expect("VFPOOL_ROOT is set"));
    // Without it, the fake kernel lets this program do what it likes. The hooks get it again.
    // SAFETY: there is no other thread yet.
    unsafe { std::env::remove_var("VFPOOL_ROOT") };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut words: &[String] = &arguments;
    loop {
        words = match words {
            [quiet, rest @ ..] if quiet == "-q" => rest,
            [connect, uri, rest @ ..] if connect == "-c" && uri == "qemu:///system" => rest,
            _ => break,
        };
    }
    let commands = match words {
        [line] => split(line),
        words => Ok(vec![words.to_vec()]),
    };
    let known = commands.and_then(|commands| {
        let unknown = commands.iter().find(|words| !COMMANDS.contains(&words[0].as_str()));
        unknown.map_or(Ok(()), |words| Err(format!("unknown command: '{}'", words[0]))).map(|()| commands)
    });
    let virsh = Virsh { tree: Tree { root }, is_admin: std::env::var_os("FAKE_ADMIN").is_some() };
    match known {
        // All are run, and the last one's result counts.
        Ok(commands) => commands.iter().fold(ExitCode::SUCCESS, |_, words| virsh.run(words)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

const COMMANDS: [&str; 13] = [
    "help",
    "metadata",
    "detach-device",
    "attach-device",
    "update-device",
    "create",
    "start",
    "destroy",
    "define",
    "dumpxml",
    "managedsave-remove",
    "eject",
    "domid",
];

/// virsh's own rules for one argument that holds whole commands.
fn split(line: &str) -> Result<Vec<Vec<String>>> {
    let mut commands = vec![Vec::new()];
    let mut characters = line.chars().peekable();
    while let Some(first) = characters.peek().copied() {
        match first {
            ' ' | '\t' => _ = characters.next(),
            ';' | '\n' => {
                characters.next();
                commands.push(Vec::new());
            }
            _ => {
                let mut word = String::new();
                let (mut single, mut double) = (false, false);
                while let Some(character) = characters.peek().copied() {
                    match character {
                        ' ' | '\t' | '\n' | ';' if !single && !double => break,
                        '\'' if !double => single = !single,
                        '"' if !single => double = !double,
                        '\\' if !single => {
                            characters.next();
                            word.extend(characters.peek());
                        }
                        _ => word.push(character),
                    }
                    characters.next();
                }
                if single || double {
                    return Err(format!("missing {}", if double { "\"" } else { "'" }));
                }
                commands.last_mut().unwrap().push(word);
            }
        }
    }
    commands.retain(|words| !words.is_empty());
    Ok(commands)
}

/// A line of `virsh.faults`: `WHEN WHAT [TEXT]`. WHEN is a command, or the number of its line in the trace; `qemu` is
/// the moment at which QEMU is run.
enum Fault {
    /// Fails with this text.
    Fail(String),
    /// Waits until the line is taken out of the file, and then does it after all.
    Hang(String),
    /// The caller is killed, and this virsh with it, before anything is done.
    Killed,
    /// The caller is killed when it is done.
    Kills,
    /// This shell script is run before, in the root.
    Sh(String),
    /// This shell script is run after, in the root, before the caller gets the answer.
    Then(String),
}

struct Virsh {
    tree: Tree,
    is_admin: bool,
}

struct Guest {
    name: String,
    text: String,
}

impl Virsh {
    fn run(&self, words: &[String]) -> ExitCode {
        let fault = if self.is_admin {
            None
        } else {
            self.look_at_locks();
            let number = if words[0] == "domid" { 0 } else { self.trace(words) };
            self.fault(&words[0], number)
        };
        let done = match &fault {
            Some(Fault::Fail(text)) => Err(text.clone()),
            Some(Fault::Killed) => kill_caller(),
            fault => {
                match fault {
                    Some(Fault::Hang(line)) => self.hang(line),
                    Some(Fault::Sh(script)) => self.shell(script),
                    _ => {}
                }
                self.command(words)
            }
        };
        match fault {
            Some(Fault::Kills) => kill_caller(),
            Some(Fault::Then(script)) => self.shell(&script),
            _ => {}
        }
        match done {
            Ok(output) => {
                print!("{output}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    }

    /// Notes the command, and returns its number.
    fn trace(&self, words: &[String]) -> usize {
        let mut line = words[0].clone();
        let mut rest = words[1..].iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--uri" | "--key" => _ = rest.next(),
                "--config" | "/dev/stdin" => {}
                "--set" => {
                    let is_moving = rest.next().is_some_and(|text| text.contains("hostdev"));
                    line += if is_moving { " --set moving" } else { " --set" };
                }
                file if file.starts_with('/') => {
                    let name = fs::read_to_string(file).ok().and_then(|text| name_in(&text));
                    write!(line, " {}", name.unwrap_or_default()).unwrap();
                }
                word => {
                    let guest = self.find(word).map_or_else(|_| word.to_owned(), |guest| guest.name);
                    write!(line, " {guest}").unwrap();
                }
            }
        }
        let _lock = self.lock("trace");
        let mut trace = File::options().create(true).append(true).open(self.tree.path("virsh.trace")).unwrap();
        writeln!(trace, "{line}").unwrap();
        fs::read_to_string(self.tree.path("virsh.trace")).unwrap().lines().count()
    }

    /// libvirt runs hooks while it keeps a guest to itself. Who waits for it with a lock that a hook waits for, waits
    /// for ever.
    fn look_at_locks(&self) {
        let caller = unsafe { libc::getppid() };
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let turns = self.tree.names("run/vfpool/turns").into_iter().map(|name| format!("run/vfpool/turns/{name}"));
        for file in turns.chain(["run/vfpool/lock".to_owned()]) {
            let Ok(data) = fs::metadata(self.tree.path(&file)) else { continue };
            let end = format!(":{} 0 EOF", data.ino());
            let holds = |line: &str| line.contains(&format!(" {caller} ")) && line.ends_with(&end);
            if locks.lines().any(|line| line.contains("FLOCK") && holds(line)) {
                self.tree.put("virsh.bug", format!("virsh was called with {file} locked"));
            }
        }
    }

    fn fault(&self, command: &str, number: usize) -> Option<Fault> {
        let faults = self.tree.get("virsh.faults")?;
        faults.lines().find_map(|line| {
            let (when, what) = line.split_once(' ')?;
            let (what, text) = what.split_once(' ').unwrap_or((what, ""));
            if when != command && when.parse() != Ok(number) {
                return None;
            }
            Some(match what {
                "fail" => Fault::Fail(text.to_owned()),
                "hang" => Fault::Hang(line.to_owned()),
                "killed" => Fault::Killed,
                "kills" => Fault::Kills,
                "sh" => Fault::Sh(text.to_owned()),
                "then" => Fault::Then(text.to_owned()),
                other => panic!("virsh.faults: {other}"),
            })
        })
    }

    fn hang(&self, line: &str) {
        for _ in 0..6000 {
            if !self.tree.get("virsh.faults").is_some_and(|text| text.lines().any(|other| other == line)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn shell(&self, script: &str) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-ec", script]).current_dir(&self.tree.root).stdin(Stdio::null());
        shell.env("VFPOOL_ROOT", &self.tree.root).env("FAKE_ADMIN", "1").env_remove("LD_PRELOAD");
        assert!(shell.status().unwrap().success(), "{script}");
    }

    fn lock(&self, name: &str) -> File {
        self.tree.folder("hw/virsh.locks");
        let path = self.tree.path(format!("hw/virsh.locks/{name}"));
        let file = File::options().create(true).append(true).open(path).unwrap();
        fs2::FileExt::lock_exclusive(&file).unwrap();
        file
    }

    fn command(&self, words: &[String]) -> Result<String> {
        let mut options = Options::default();
        let mut rest = words[1..].iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--uri" | "--key" | "--set" | "--pass-fds" => {
                    let value = rest.next().ok_or_else(|| format!("expected syntax: {word} <string>"))?;
                    options.values.push((&word[2..], value));
                }
                "--domain" => options.positional.extend(rest.next().map(String::as_str)),
                flag if flag.starts_with("--") => options.flags.push(&flag[2..]),
                word => options.positional.push(word),
            }
        }
        let first = *options.positional.first().ok_or("command requires an argument")?;
        if matches!(words[0].as_str(), "create" | "define") {
            let text = fs::read_to_string(first).map_err(|cause| format!("Failed to open file '{first}': {cause}"))?;
            let name = name_in(&text).ok_or("XML error: no name")?;
            let _lock = self.lock(&name);
            return if words[0] == "create" { self.create(&name, &text) } else { self.define(&name, &text) };
        }
        if words[0] == "help" {
            let newer = if self.tree.path("hw/no-reset-nvram").exists() { "" } else { " [--reset-nvram]" };
            return Ok(format!("  SYNOPSIS\n    {first} <file> [--console] [--paused] [--autodestroy]{newer}\n"));
        }
        if words[0] == "domid" {
            let _lock = self.lock(first);
            // Also of one without a definition.
            let is_active = self.is_running(first) || self.tree.path(active(first)).exists();
            return if is_active { Ok("1\n".to_owned()) } else { self.find(first).map(|_| "-\n".to_owned()) };
        }
        let name = self.find(first)?.name;
        let _lock = self.lock(&name);
        // As it is now, with the guest locked.
        let guest = self.find(&name)?;
        match words[0].as_str() {
            "metadata" => self.metadata(&guest, &options),
            "dumpxml" if options.flags.contains(&"inactive") || !self.is_running(&name) => {
                Ok(self.tree.get(memory(&name)).unwrap_or(guest.text))
            }
            "dumpxml" => Ok(self.running(&name)?.text),
            "eject" => self.eject(&name),
            "start" => self.start(&guest, &options),
            "destroy" => self.destroy(&guest),
            "managedsave-remove" => {
                self.tree.unlink(&saved(&name));
                Ok(String::new())
            }
            command => {
                let file = options.positional.get(1).ok_or("command requires a file")?;
                let mut text = String::new();
                File::open(file).and_then(|mut file| file.read_to_string(&mut text)).map_err(|it| it.to_string())?;
                let device = Node::parse(&text)?;
                if options.flags.contains(&"live") {
                    return match command {
                        "attach-device" => self.plug(&name, device),
                        _ => self.unplug(&name, &device),
                    };
                }
                options.expect("config")?;
                let mut definition = Definition::new(guest)?;
                match command {
                    "attach-device" => definition.attach(device)?,
                    "detach-device" => definition.detach(&device)?,
                    _ => {
                        if device.name == "interface" && device.source().is_some() {
                            // libvirt 4.5 frees it and goes on using it, until that kills the daemon.
                            self.tree.put("virsh.bug", "update-device of an <interface type='hostdev'>");
                        }
                        definition.update(device)?;
                    }
                }
                self.write(&definition.name, &definition.with_boot()?);
                Ok(String::new())
            }
        }
    }

    fn running(&self, name: &str) -> Result<Guest> {
        let text = self.tree.get(live(name)).filter(|_| self.is_running(name));
        let text = text.ok_or("Requested operation is not valid: domain is not running")?;
        Ok(Guest { name: name.to_owned(), text: text + "\n" })
    }

    /// Hot-plug: libvirt takes the device, and QEMU opens it if its group is viable. No hook is run.
    fn plug(&self, name: &str, device: Node) -> Result<String> {
        let mut definition = Definition::new(self.running(name)?)?;
        let (address, managed) = (device.source().ok_or("a PCI device")?, device.attribute("managed") == Some("yes"));
        if definition.devices().iter().any(|other| other.source().as_ref() == Some(&address)) {
            return Err("operation failed: target pci device is already in the domain configuration".to_owned());
        }
        definition.attach(device)?;
        if self.tree.device(&address).is_none() {
            return Err(format!("Device {address} not found: could not access /sys/bus/pci/devices/{address}/config"));
        }
        let before = self.tree.driver(&address).unwrap_or_default();
        if managed && before != "vfio-pci" {
            self.tree.unbind(&address);
            self.tree.bind(&address, "vfio-pci");
            let taken = self.tree.get(taken_by(name)).unwrap_or_default();
            self.tree.put(&taken_by(name), format!("{taken}\n{address} {before}\n").trim_start());
        }
        let group = self.tree.points_to(format!("sys/bus/pci/devices/{address}/iommu_group")).unwrap_or_default();
        for member in self.tree.names(format!("sys/kernel/iommu_groups/{group}/devices")) {
            if !matches!(self.tree.driver(&member).as_deref(), None | Some("vfio-pci" | "pcieport")) {
                self.return_taken(name, Some(&address));
                return Err(format!(
                    "internal error: unable to execute QEMU command 'device_add': vfio {address}: group {group} is not \
                     viable"
                ));
            }
        }
        self.tree.put(&live(name), definition.text);
        self.set_enabled(&address, true);
        Ok("Device attached successfully\n".to_owned())
    }

    /// The guest is only asked.
    fn unplug(&self, name: &str, device: &Node) -> Result<String> {
        let definition = Definition::new(self.running(name)?)?;
        definition.matching(device)?;
        let asked = self.tree.get(asked_of(name)).unwrap_or_default();
        self.tree.put(&asked_of(name), format!("{asked}\n{}\n", device.source().ok_or("a PCI device")?).trim_start());
        if !self.tree.path(format!("hw/keeps-devices/{name}")).exists() {
            self.eject(name)?;
        }
        Ok("Device detached successfully\n".to_owned())
    }

    /// The guest lets go of what it was asked to.
    fn eject(&self, name: &str) -> Result<String> {
        for address in self.tree.get(asked_of(name)).unwrap_or_default().lines() {
            let mut definition = Definition::new(self.running(name)?)?;
            let found = definition.devices().iter().find(|device| device.source().as_deref() == Some(address));
            let Some(found) = found.map(|device| device.range.clone()) else { continue };
            self.set_enabled(address, false);
            self.return_taken(name, Some(address));
            definition.set(cut(&definition.text, &found))?;
            self.tree.put(&live(name), definition.text);
        }
        self.tree.unlink(&asked_of(name));
        Ok(String::new())
    }

    /// libvirt's own part for managed devices that a guest does not have any more; for all, or this one.
    fn return_taken(&self, name: &str, only: Option<&str>) {
        let mut left = String::new();
        for line in self.tree.get(taken_by(name)).unwrap_or_default().lines() {
            let (address, driver) = line.split_once(' ').unwrap_or((line, ""));
            if only.is_some_and(|only| only != address) {
                writeln!(left, "{line}").unwrap();
                continue;
            }
            self.tree.unbind(address);
            if !driver.is_empty() {
                self.tree.bind(address, driver);
            }
        }
        self.tree.put(&taken_by(name), left);
    }

    /// By UUID first, and by name.
    fn find(&self, key: &str) -> Result<Guest> {
        let files = self.tree.names("etc/libvirt/qemu");
        let names = files.iter().filter_map(|file| file.strip_suffix(".xml"));
        let read = |name: &str| {
            if self.tree.path(format!("hw/no-guest/{name}")).exists() {
                return None;
            }
            let text = fs::read_to_string(self.tree.path(definition(name))).ok()?;
            Some(Guest { name: name.to_owned(), text })
        };
        if key.len() == 36 {
            let uuid = format!("<uuid>{key}</uuid>");
            if let Some(guest) = names.filter_map(read).find(|guest| guest.text.contains(&uuid)) {
                return Ok(guest);
            }
        }
        read(key).ok_or_else(|| format!("failed to get domain '{key}'"))
    }

    /// By a rename, as libvirt does.
    fn write(&self, guest: &str, text: &str) {
        let path = self.tree.path(definition(guest));
        let new = path.with_extension("xml.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn metadata(&self, guest: &Guest, options: &Options) -> Result<String> {
        let uri = options.value("uri").ok_or("command 'metadata' requires <uri> option")?;
        let is_live = options.flags.contains(&"live");
        let running = if is_live { Some(self.running(&guest.name)?) } else { None };
        let text = &running.as_ref().unwrap_or(guest).text;
        let write = |text: &str| {
            if is_live { self.tree.put(&live(&guest.name), text) } else { self.write(&guest.name, text) }
        };
        let domain = Node::parse(text)?;
        let metadata = domain.child("metadata");
        let is_of_uri = |node: &&Node| {
            let prefix =
                node.name.split_once(':').map_or_else(|| "xmlns".into(), |(prefix, _)| format!("xmlns:{prefix}"));
            node.attribute(&prefix) == Some(uri)
        };
        let old = metadata.and_then(|metadata| metadata.children.iter().find(is_of_uri));
        let Some(new) = options.value("set") else {
            if options.flags.contains(&"remove") {
                let edited = old.map_or_else(|| text.clone(), |old| cut(text, &old.range));
                write(&edited);
                return Ok(String::new());
            }
            let old = old.ok_or("metadata not found: Requested metadata element is not present")?;
            return Ok(text[old.range.clone()].to_owned());
        };
        if !is_live {
            options.expect("config")?;
        }
        let key = options.value("key").ok_or("key is required when modifying metadata")?;
        let mut new = Node::parse(new)?;
        prefix(&mut new, key);
        new.attributes.insert(0, (format!("xmlns:{key}"), uri.to_owned()));
        let line = new.format_with(2, '"');
        let text = old.map_or_else(|| text.clone(), |old| cut(text, &old.range));
        let domain = Node::parse(&text)?;
        let edited = match domain.child("metadata") {
            Some(metadata) if metadata.inner_end < metadata.range.end => {
                let at = line_of(&text, &(metadata.inner_end..metadata.inner_end)).start;
                insert(&text, at, &line)
            }
            Some(metadata) => {
                let line = format!("  <metadata>\n{line}  </metadata>\n");
                let whole = line_of(&text, &metadata.range);
                insert(&cut(&text, &metadata.range), whole.start, &line)
            }
            None => {
                let before = ["description", "title", "uuid"].iter().find_map(|name| domain.child(name)).unwrap();
                let at = line_of(&text, &before.range).end;
                insert(&text, at, &format!("  <metadata>\n{line}  </metadata>\n"))
            }
        };
        write(&edited);
        Ok(String::new())
    }

    fn define(&self, name: &str, text: &str) -> Result<String> {
        Node::parse(text)?;
        self.write(name, text);
        self.tree.unlink(&memory(name));
        Ok(String::new())
    }

    fn is_running(&self, guest: &str) -> bool {
        self.tree.get(pid_file(guest)).is_some()
    }

    fn create(&self, name: &str, text: &str) -> Result<String> {
        let uuid = |text: &str| Node::parse(text).ok().and_then(|node| Some(node.child("uuid")?.text.clone()));
        if let Some(guest) = self.find(name).ok().filter(|guest| uuid(&guest.text) != uuid(text)) {
            let uuid = uuid(&guest.text).unwrap_or_default();
            return Err(format!("operation failed: domain '{name}' already exists with uuid {uuid}"));
        }
        if self.is_running(name) {
            return Err(format!("Requested operation is not valid: domain is already active as '{name}'"));
        }
        for device in devices(text)? {
            if self.tree.device(&device.address).is_none() {
                if self.tree.path("hw/keeps-failed-create").exists() {
                    self.tree.put(&memory(name), text);
                }
                let path = format!("/sys/bus/pci/devices/{}/config", device.address);
                return Err(format!("Device {} not found: could not access {path}", device.address));
            }
        }
        self.boot(name, text)?;
        Ok(format!("Domain '{name}' created\n"))
    }

    fn start(&self, guest: &Guest, options: &Options) -> Result<String> {
        let name = guest.name.as_str();
        if self.is_running(name) {
            return Err("Domain is already active".to_owned());
        }
        let saved = saved(name);
        let mut text = guest.text.clone();
        if options.flags.contains(&"force-boot") {
            self.tree.unlink(&saved);
        } else if let Ok(image) = fs::read_to_string(self.tree.path(&saved)) {
            let filtered = self.hook(name, "restore", "begin", &image)?;
            text = if filtered.is_empty() { image } else { filtered };
        }
        self.boot(name, &text)?;
        self.tree.unlink(&saved);
        Ok(format!("Domain '{name}' started\n"))
    }

    fn destroy(&self, guest: &Guest) -> Result<String> {
        let name = &guest.name;
        let pid = self.tree.get(pid_file(name)).ok_or("Requested operation is not valid: domain is not running")?;
        let text = self.tree.get(live(name)).unwrap();
        fs::remove_dir_all(self.tree.path(format!("proc/{pid}"))).unwrap();
        self.tree.unlink(&pid_file(name));
        self.tree.unlink(&live(name));
        for device in devices(&text)? {
            self.set_enabled(&device.address, false);
        }
        self.end(name, &text);
        Ok(String::new())
    }

    /// The part of a start that all its kinds have in common.
    fn boot(&self, name: &str, text: &str) -> Result<()> {
        self.tree.put(&active(name), "");
        let booted = self.hook(name, "prepare", "begin", text).and_then(|_| {
            let mut taken = String::new();
            for device in devices(text)?.iter().filter(|device| device.managed) {
                let driver = self.tree.driver(&device.address).unwrap_or_default();
                // What is there already stays there.
                if driver != "vfio-pci" {
                    self.tree.unbind(&device.address);
                    self.tree.bind(&device.address, "vfio-pci");
                    writeln!(taken, "{} {driver}", device.address).unwrap();
                }
            }
            self.tree.put(&taken_by(name), taken);
            self.hook(name, "start", "begin", text)?;
            if let Some(Fault::Fail(text)) = self.fault("qemu", 0) {
                return Err(text);
            }
            let pid = (FIRST_PID..u32::MAX).find(|pid| !self.tree.path(format!("proc/{pid}")).exists()).unwrap();
            self.process(pid, 1);
            self.tree.put(&pid_file(name), pid.to_string());
            self.tree.put(&live(name), text);
            for device in devices(text)? {
                self.set_enabled(&device.address, true);
            }
            self.hook(name, "started", "begin", text).map(drop)
        });
        booted.map_err(|error| {
            self.end(name, text);
            format!("Failed to start domain '{name}'\nerror: {error}")
        })
    }

    fn end(&self, name: &str, text: &str) {
        self.tree.unlink(&active(name));
        let _ = self.hook(name, "stopped", "end", text);
        self.return_taken(name, None);
        self.tree.unlink(&taken_by(name));
        self.tree.unlink(&asked_of(name));
        let _ = self.hook(name, "release", "end", text);
    }

    fn set_enabled(&self, address: &str, is_on: bool) {
        if let Some(folder) = self.tree.device(address) {
            self.tree.put(&format!("{folder}/enable"), if is_on { "1\n" } else { "0\n" });
        }
    }

    fn process(&self, pid: u32, parent: u32) {
        let line = format!("{pid} (x) S {parent} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 {} 0\n", pid * 10);
        self.tree.put(&format!("proc/{pid}/stat"), line);
    }

    /// Runs a hook as the libvirtd of this host, and returns what it printed.
    fn hook(&self, guest: &str, operation: &str, sub: &str, text: &str) -> Result<String> {
        let hook = self.tree.path("etc/libvirt/hooks/qemu");
        if !hook.exists() {
            return Ok(String::new());
        }
        let own = std::process::id();
        let libvirtd = self.tree.get("hw/libvirtd").unwrap().parse().unwrap();
        self.process(own, libvirtd);
        let mut command = Command::new(&hook);
        command.args([guest, operation, sub, "-"]).current_dir("/").env_clear();
        command.env("LC_ALL", "C").env("PATH", "/bin:/usr/bin").env("VFPOOL_ROOT", &self.tree.root);
        command.envs(std::env::var_os("LD_PRELOAD").map(|library| ("LD_PRELOAD", library)));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a hook");
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        let output = child.wait_with_output().unwrap();
        let _ = fs::remove_dir_all(self.tree.path(format!("proc/{own}")));
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        let (hook, said) = (hook.display(), String::from_utf8_lossy(&output.stderr).into_owned());
        Err(format!(
            "Hook script execution failed: internal error: Child process (LC_ALL=C {hook} {guest} {operation} {sub} -) \
             unexpected exit status 1: {said}"
        ))
    }
}

struct Device {
    address: String,
    managed: bool,
}

fn devices(text: &str) -> Result<Vec<Device>> {
    let domain = Node::parse(text)?;
    let devices = domain.child("devices").into_iter().flat_map(|devices| &devices.children);
    let devices = devices.filter_map(|device| {
        Some(Device { address: device.source()?, managed: device.attribute("managed") == Some("yes") })
    });
    Ok(devices.collect())
}

#[derive(Default)]
struct Options<'a> {
    positional: Vec<&'a str>,
    values: Vec<(&'a str, &'a str)>,
    flags: Vec<&'a str>,
}

impl Options<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn expect(&self, flag: &str) -> Result<()> {
        if self.flags.contains(&flag) {
            Ok(())
        } else {
            Err("Requested operation is not valid: not running".to_owned())
        }
    }
}

fn definition(guest: &str) -> String {
    format!("etc/libvirt/qemu/{guest}.xml")
}

fn memory(guest: &str) -> String {
    format!("hw/memory/{guest}.xml")
}

fn saved(guest: &str) -> String {
    format!("var/lib/libvirt/qemu/save/{guest}.save")
}

fn pid_file(guest: &str) -> String {
    format!("run/libvirt/qemu/{guest}.pid")
}

/// The managed devices that libvirt reattaches, and their drivers.
fn taken_by(guest: &str) -> String {
    format!("hw/taken/{guest}")
}

/// Made before `prepare` and removed before `stopped`, also by tests that call the hooks themselves.
fn active(guest: &str) -> String {
    format!("hw/active/{guest}.id")
}

/// The devices that a running guest was asked to let go of.
fn asked_of(guest: &str) -> String {
    format!("hw/asked/{guest}")
}

fn live(guest: &str) -> String {
    format!("run/libvirt/qemu/{guest}.xml")
}

fn name_in(text: &str) -> Option<String> {
    Some(Node::parse(text).ok()?.child("name")?.text.clone())
}

fn prefix(node: &mut Node, key: &str) {
    node.name = format!("{key}:{}", node.name);
    node.children.iter_mut().for_each(|child| prefix(child, key));
}

fn kill_caller() -> ! {
    // SAFETY: these have no conditions.
    unsafe { libc::kill(libc::getppid(), libc::SIGKILL) };
    std::process::exit(1)
}

/// The lines that an element stands on.
fn line_of(text: &str, element: &Range<usize>) -> Range<usize> {
    let start = text[..element.start].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[element.end..].find('\n').map_or(text.len(), |newline| element.end + newline + 1);
    start..end
}

fn cut(text: &str, element: &Range<usize>) -> String {
    let line = line_of(text, element);
    format!("{}{}", &text[..line.start], &text[line.end..])
}

fn insert(text: &str, at: usize, line: &str) -> String {
    format!("{}{line}{}", &text[..at], &text[at..])
}

/// A persistent definition that is being edited.
struct Definition {
    name: String,
    text: String,
    domain: Node,
}

/// The kinds of devices that libvirt writes before the interfaces, and those between interfaces and hostdevs.
const BEFORE_INTERFACES: [&str; 4] = ["emulator", "disk", "controller", "filesystem"];
const BEFORE_HOSTDEVS: [&str; 10] =
    ["interface", "smartcard", "serial", "parallel", "console", "channel", "input", "graphics", "sound", "video"];

impl Definition {
    fn new(Guest { name, text }: Guest) -> Result<Self> {
        let domain = Node::parse(&text)?;
        Ok(Self { name, text, domain })
    }

    fn set(&mut self, text: String) -> Result<()> {
        self.domain = Node::parse(&text)?;
        self.text = text;
        Ok(())
    }

    fn devices(&self) -> &[Node] {
        self.domain.child("devices").map_or(&[], |devices| &devices.children)
    }

    /// Gives a device what libvirt adds by itself.
    fn complete(&self, device: &mut Node) -> Result<()> {
        let used: Vec<String> = self.devices().iter().filter_map(Node::address).collect();
        let free = || (2..0x1f).map(|slot| format!("0000:00:{slot:02x}.0")).find(|free| !used.contains(free));
        let address = device.address().or_else(free).ok_or("internal error: No more available PCI slots")?;
        if used.contains(&address) {
            return Err(format!("XML error: Attempted double use of PCI Address {address}"));
        }
        if device.address().is_none() {
            let slot = &address[8..10];
            let given = format!("<address type='pci' domain='0x0000' bus='0x00' slot='0x{slot}' function='0x0'/>");
            device.children.push(Node::parse(&given)?);
        }
        if device.name == "interface" && device.child("mac").is_none() {
            let mac = format!("<mac address='52:54:00:00:00:{}'/>", &address[8..10]);
            device.children.insert(0, Node::parse(&mac)?);
        }
        let order = |device: &Node| device.child("boot").and_then(|boot| boot.attribute("order")).map(str::to_owned);
        if let Some(own) = order(device) {
            if self.domain.child("os").is_some_and(|os| os.child("boot").is_some()) {
                let why = "per-device boot elements cannot be used together with os/boot elements";
                return Err(format!("unsupported configuration: {why}"));
            }
            if self.devices().iter().any(|other| order(other).as_ref() == Some(&own)) {
                return Err(format!("unsupported configuration: boot order {own} used for more than one device"));
            }
        }
        Ok(())
    }

    fn attach(&mut self, mut device: Node) -> Result<()> {
        if device.name == "hostdev" && self.devices().iter().any(|other| other.source() == device.source()) {
            return Err("Requested operation is not valid: device is already in the domain configuration".to_owned());
        }
        self.complete(&mut device)?;
        let goes_after = |other: &&Node| {
            other.name == device.name
                || BEFORE_INTERFACES.contains(&other.name.as_str())
                || device.name == "hostdev" && BEFORE_HOSTDEVS.contains(&other.name.as_str())
        };
        let before = self.devices().iter().rfind(goes_after).ok_or("a guest without an emulator")?;
        let at = line_of(&self.text, &before.range).end;
        self.set(insert(&self.text, at, &device.format(2)))
    }

    /// The first hostdev with this source; the interface with this MAC address, and guest address if that is given.
    fn matching(&self, device: &Node) -> Result<Range<usize>> {
        let mac = |device: &Node| device.child("mac").and_then(|mac| mac.attribute("address")).map(str::to_owned);
        let is_same = |other: &&Node| {
            other.name == device.name
                && match device.name.as_str() {
                    "hostdev" => other.source().is_some() && other.source() == device.source(),
                    _ => {
                        mac(other) == mac(device) && (device.address().is_none() || other.address() == device.address())
                    }
                }
        };
        let found: Vec<&Node> = self.devices().iter().filter(is_same).collect();
        match (found.as_slice(), mac(device)) {
            ([one], _) => Ok(one.range.clone()),
            ([first, ..], _) if device.name == "hostdev" => Ok(first.range.clone()),
            ([], mac) if device.name == "interface" => {
                let (at, mac) = (device.address().unwrap_or_default(), mac.unwrap_or_else(|| "(<null>)".to_owned()));
                Err(format!("device not found: no device found at address '{at}' matching MAC address '{mac}'"))
            }
            ([], _) => Err("device not found: device not present in domain configuration".to_owned()),
            (_, mac) => {
                let mac = mac.unwrap_or_default();
                Err(format!("operation failed: multiple devices matching MAC address {mac} found"))
            }
        }
    }

    fn detach(&mut self, device: &Node) -> Result<()> {
        let found = self.matching(device)?;
        self.set(cut(&self.text, &found))
    }

    /// The whole old element is replaced by the given one.
    fn update(&mut self, mut device: Node) -> Result<()> {
        if device.name != "interface" {
            let kind = &device.name;
            return Err(format!("Operation not supported: persistent update of device '{kind}' is not supported"));
        }
        let found = self.matching(&device)?;
        let at = line_of(&self.text, &found).start;
        self.set(cut(&self.text, &found))?;
        self.complete(&mut device)?;
        self.set(insert(&self.text, at, &device.format(2)))
    }

    /// A guest in which nothing has a boot order boots from disk: libvirt writes that down.
    fn with_boot(&self) -> Result<String> {
        let os = self.domain.child("os").ok_or("XML error: no os")?;
        if os.child("boot").is_some() || self.devices().iter().any(|device| device.child("boot").is_some()) {
            return Ok(self.text.clone());
        }
        let at = line_of(&self.text, &(os.inner_end..os.inner_end)).start;
        Ok(insert(&self.text, at, "    <boot dev='hd'/>\n"))
    }
}
