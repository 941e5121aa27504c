//! A kernel for the fake host: loaded into the real binaries by `LD_PRELOAD`, it makes writes below `$VFPOOL_ROOT/sys`
//! do what Linux does, so that no test code is needed in the product.
//!
//! | file in the root | what |
//! |---|---|
//! | `hw/drivers/NAME` | a driver's id table, and how it answers, see [`Kernel::set_numvfs`] and [`Kernel::unbind`] |
//! | `hw/dynids/NAME` | the ids that `new_id` added |
//! | `hw/sriov/PF` | the VFs that a PF can have |
//! | `addresses` | the interfaces' addresses, for rtnetlink(7) |
//! | `routes` | the routes, for the same: network, metric, interfaces of the next hops |
//! | `faults` | what goes wrong, see [`Fault`] |
//! | `opened` | if it is there, each file that is opened, and each link that is read, one a line |
//! | `trace` | each call that changed something, one a line: also the count for `FAKE_KILL_AT` and `FAKE_KILL_AFTER` |
//!
//! Sources: Linux `drivers/base/bus.c` (bind, unbind, drivers_probe), `drivers/base/dd.c` (which errors a probe
//! swallows), `drivers/pci/pci-driver.c` (matching, new_id, remove_id), `drivers/pci/pci-sysfs.c` and `iov.c`
//! (sriov_*), `drivers/vfio/pci/vfio_pci_core.c` (what it refuses).
#![allow(unsafe_code, missing_docs)]
#![allow(clippy::missing_safety_doc, clippy::missing_panics_doc)] // the C library's functions, documented there

use fakehost::tree::Tree;
use nix::errno::Errno;
use nix::libc::{
    self, AF_INET, AF_INET6, AT_FDCWD, O_CREAT, O_TRUNC, SYS_mkdirat, SYS_openat, SYS_readlinkat, SYS_renameat2,
    SYS_socket, SYS_symlinkat, SYS_unlinkat, SYS_write, c_char, c_int, c_uint, c_void, mode_t, sockaddr, ssize_t,
};
use std::cell::Cell;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

type Result<T> = std::result::Result<T, Errno>;

/// The process that was started; a child that it forks keeps this.
static HOOK: AtomicI32 = AtomicI32::new(0);

#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = {
    extern "C" fn loaded() {
        // SAFETY: getpid has no conditions.
        HOOK.store(unsafe { libc::getpid() }, Ordering::Relaxed);
        // A child's stderr leads nowhere.
        std::panic::set_hook(Box::new(|panic| {
            let root = PathBuf::from(std::env::var_os("VFPOOL_ROOT").unwrap_or_default());
            let _ = fs::write(root.join("kernel.panic"), panic.to_string());
        }));
    }
    loaded
};

thread_local! {
    /// Set while this library works, as it calls the same functions.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A system call's result as the C library's caller expects it.
fn interpose(real: impl Fn() -> Result<i64>, fake: impl FnOnce(&Kernel) -> Result<i64>) -> i64 {
    let result = if INSIDE.replace(true) {
        real()
    } else {
        let result = match std::env::var_os("VFPOOL_ROOT") {
            Some(root) => fake(&Kernel::new(root.into())),
            None => real(),
        };
        INSIDE.set(false);
        result
    };
    result.unwrap_or_else(|errno| {
        Errno::set(errno);
        -1
    })
}

unsafe fn text<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: the caller's C string, used only during the call.
    Path::new(unsafe { CStr::from_ptr(path) }.to_str().unwrap_or(""))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, count: usize) -> ssize_t {
    // SAFETY: passed on as it came.
    let real = || Errno::result(unsafe { libc::syscall(SYS_write, fd, buffer, count) });
    let result = interpose(real, |kernel| {
        let Some(file) = fs::read_link(format!("/proc/self/fd/{fd}")).ok().and_then(|path| kernel.below(&path)) else {
            return real();
        };
        // SAFETY: the caller's buffer.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), count) };
        let value = String::from_utf8_lossy(bytes).into_owned();
        if !file.starts_with("sys/") {
            return kernel.change("write", &file, "", real);
        }
        // SAFETY: lseek has no conditions.
        let offset = |whence, to| unsafe { libc::lseek(fd, to, whence) };
        if offset(libc::SEEK_CUR, 0) != 0 {
            return Err(Errno::EINVAL);
        }
        kernel.change("write", &file, value.trim_end_matches('\n'), || kernel.attribute(&file, &value))?;
        offset(libc::SEEK_SET, 1);
        Ok(i64::try_from(count).unwrap())
    });
    isize::try_from(result).unwrap()
}

unsafe fn open_at(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: passed on as it came.
    let real = || Errno::result(unsafe { libc::syscall(SYS_openat, folder, path, flags, mode) });
    let result = interpose(real, |kernel| {
        // SAFETY: the caller's path.
        let Some(file) = kernel.below(unsafe { text(path) }) else { return real() };
        kernel.note(&file);
        let makes = flags & (O_CREAT | O_TRUNC) != 0;
        if makes && file.starts_with("sys/") {
            return Err(Errno::EACCES);
        }
        if makes && !kernel.tree.path(&file).exists() {
            return kernel.change("create", &file, "", real);
        }
        match kernel.fault("open", &file, "") {
            Some(Fault::Errno(errno)) => Err(errno),
            Some(Fault::Hang(line)) => kernel.hang(&line, real),
            Some(Fault::Ignore | Fault::Probe) | None => real(),
        }
    });
    i32::try_from(result).unwrap()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as called.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as called.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as called.
    unsafe { open_at(folder, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as called.
    unsafe { open_at(folder, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn readlink(path: *const c_char, buffer: *mut c_char, size: usize) -> ssize_t {
    // SAFETY: passed on as it came.
    let real = || Errno::result(unsafe { libc::syscall(SYS_readlinkat, AT_FDCWD, path, buffer, size) });
    let result = interpose(real, |kernel| {
        // SAFETY: the caller's path.
        kernel.below(unsafe { text(path) }).inspect(|file| kernel.note(file));
        real()
    });
    isize::try_from(result).unwrap()
}

fn folder_change(verb: &str, path: *const c_char, real: impl Fn() -> Result<i64>) -> c_int {
    let result = interpose(&real, |kernel| {
        // SAFETY: the caller's path.
        match kernel.below(unsafe { text(path) }) {
            Some(file) if file.starts_with("sys/") => Err(Errno::EPERM),
            Some(file) => kernel.change(verb, &file, "", &real),
            None => real(),
        }
    });
    i32::try_from(result).unwrap()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    folder_change("rename", to, || {
        // SAFETY: passed on as it came.
        Errno::result(unsafe { libc::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0 as c_uint) })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn symlink(target: *const c_char, link: *const c_char) -> c_int {
    // SAFETY: passed on as it came.
    folder_change("symlink", link, || Errno::result(unsafe { libc::syscall(SYS_symlinkat, target, AT_FDCWD, link) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: passed on as it came.
    folder_change("unlink", path, || Errno::result(unsafe { libc::syscall(SYS_unlinkat, AT_FDCWD, path, 0) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: passed on as it came.
    folder_change("mkdir", path, || Errno::result(unsafe { libc::syscall(SYS_mkdirat, AT_FDCWD, path, mode) }))
}

/// Our ends of the sockets that take the place of netlink sockets: the program's, and the kernel's.
static NETLINK: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];

/// A netlink socket is one of a pair; what is sent to it, [`sendto`] answers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: passed on as it came.
    let real = || Errno::result(unsafe { libc::syscall(SYS_socket, domain, kind, protocol) });
    let result = interpose(real, |_| {
        if domain != libc::AF_NETLINK {
            return real();
        }
        let mut ends = [-1; 2];
        // SAFETY: two descriptors are written to.
        Errno::result(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()) })?;
        for (end, place) in ends.iter().zip(&NETLINK) {
            place.store(*end, Ordering::Relaxed);
        }
        Ok(ends[0].into())
    });
    i32::try_from(result).unwrap()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    count: usize,
    flags: c_int,
    to: *const sockaddr,
    length: libc::socklen_t,
) -> ssize_t {
    // SAFETY: passed on as it came.
    let real = || Errno::result(unsafe { libc::syscall(libc::SYS_sendto, fd, buffer, count, flags, to, length) });
    let result = interpose(real, |kernel| {
        if fd != NETLINK[0].load(Ordering::Relaxed) {
            return real();
        }
        // SAFETY: the caller's buffer.
        let request = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), count) };
        let (name, answer) = kernel.rtnetlink(request);
        let send = || {
            for part in answer.chunks(PART) {
                let bytes = part.concat();
                let to = NETLINK[1].load(Ordering::Relaxed);
                // SAFETY: our own buffer.
                Errno::result(unsafe { libc::send(to, bytes.as_ptr().cast(), bytes.len(), 0) })?;
            }
            Ok(i64::try_from(count).unwrap())
        };
        match kernel.fault("netlink", name, "") {
            Some(Fault::Errno(errno)) => Err(errno),
            Some(Fault::Hang(line)) => kernel.hang(&line, send),
            Some(Fault::Ignore | Fault::Probe) | None => send(),
        }
    });
    isize::try_from(result).unwrap()
}

/// So many messages come in one part of a dump.
const PART: usize = 3;

/// A netlink message: type, what its family has in front, and its attributes.
fn message(kind: u16, fixed: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = [fixed, &attributes.concat()].concat();
    let length = u32::try_from(16 + body.len()).unwrap();
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[2, 0], &[0; 8], &body].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn octets(ip: IpAddr) -> (c_int, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
    }
}

impl Kernel {
    /// What rtnetlink answers to a request for all addresses or routes: the name of the table, and the messages.
    /// Sources: Linux `net/ipv4/devinet.c`, `fib_semantics.c` (fib_dump_info), `net/ipv6/route.c`.
    fn rtnetlink(&self, request: &[u8]) -> (&'static str, Vec<Vec<u8>>) {
        const DONE: u16 = 3;
        let kind = u16::from_ne_bytes([request[4], request[5]]);
        let family = c_int::from(request[16]);
        let name = if kind == libc::RTM_GETADDR { "addresses" } else { "routes" };
        let table = self.tree.get(name).unwrap_or_default();
        let mut messages: Vec<Vec<u8>> = Vec::new();
        for line in table.lines() {
            let field: Vec<&str> = line.split(' ').collect();
            messages.extend(match kind {
                libc::RTM_GETADDR => Some(self.address_message(field[0], field[1].parse().unwrap())),
                libc::RTM_GETROUTE => self.route_message(family, field[0], field[1], &field[2..]),
                other => panic!("netlink request {other}"),
            });
        }
        messages.push(message(DONE, &[0; 4], &[]));
        (name, messages)
    }

    /// The number of an interface; of one that the host's tree does not show, one that nothing else has.
    fn interface(&self, name: &str) -> [u8; 4] {
        let number = self.tree.get(format!("sys/class/net/{name}/ifindex"));
        number.map_or(4711u32, |number| number.parse().unwrap()).to_ne_bytes()
    }

    fn address_message(&self, netdev: &str, ip: IpAddr) -> Vec<u8> {
        let (family, octets) = octets(ip);
        let fixed = [&[u8::try_from(family).unwrap(), 24, 0, 0][..], &self.interface(netdev)].concat();
        let mut attributes = vec![attribute(libc::IFA_ADDRESS, &octets)];
        if ip.is_ipv4() {
            attributes.push(attribute(libc::IFA_LOCAL, &octets));
        }
        message(libc::RTM_NEWADDR, &fixed, &attributes)
    }

    /// `to` is a network with its bits. Next hops are interfaces, or `blackhole`.
    fn route_message(&self, family: c_int, to: &str, metric: &str, hops: &[&str]) -> Option<Vec<u8>> {
        const MAIN: u8 = 254;
        let (network, bits) = to.split_once('/').unwrap();
        let (of, octets) = octets(network.parse().unwrap());
        if of != family {
            return None;
        }
        let bits: u8 = bits.parse().unwrap();
        let kind = if hops == ["blackhole"] { 6 } else { 1 };
        let fixed = [u8::try_from(family).unwrap(), bits, 0, 0, MAIN, 3, 0, kind, 0, 0, 0, 0];
        let mut attributes = vec![attribute(libc::RTA_PRIORITY, &metric.parse::<u32>().unwrap().to_ne_bytes())];
        if bits > 0 {
            attributes.push(attribute(libc::RTA_DST, &octets));
        }
        match hops {
            ["blackhole"] => {}
            [only] => attributes.push(attribute(libc::RTA_OIF, &self.interface(only))),
            several => {
                let hop = |name: &&str| [&[8, 0, 0, 0][..], &self.interface(name)].concat();
                let hops: Vec<Vec<u8>> = several.iter().map(hop).collect();
                attributes.push(attribute(libc::RTA_MULTIPATH, &hops.concat()));
            }
        }
        Some(message(libc::RTM_NEWROUTE, &fixed, &attributes))
    }
}

/// A line of `faults`: `VERB errno NAME PATH [VALUE]`, `VERB hang PATH [VALUE]`, `VERB ignore PATH [VALUE]`, or
/// `VERB probe PATH [VALUE]`: right before the attribute is written, the kernel itself probes its device.
///
/// VERB is `netlink` (PATH is `addresses` or `routes`), `open` (of what is there already), `create`, `write`, `rename`,
/// `symlink`, `unlink` or `mkdir`. PATH is the end of the file's real path, VALUE what is written. A hang ends when its
/// line is taken out of the file, and then the call is made after all, as a driver that sleeps for long does.
enum Fault {
    Errno(Errno),
    Hang(String),
    Ignore,
    Probe,
}

struct Kernel {
    tree: Tree,
}

impl Kernel {
    fn new(root: PathBuf) -> Self {
        Self { tree: Tree { root } }
    }

    fn below(&self, path: &Path) -> Option<String> {
        let below = path.strip_prefix(&self.tree.root).ok()?.to_str()?;
        Some(below.strip_suffix(" (deleted)").unwrap_or(below).to_owned())
    }

    /// Adds a line to `opened`, if that is there.
    fn note(&self, file: &str) {
        if let Ok(mut opened) = File::options().append(true).open(self.tree.path("opened")) {
            opened.write_all(format!("{file}\n").as_bytes()).unwrap();
        }
    }

    fn fault(&self, verb: &str, file: &str, value: &str) -> Option<Fault> {
        self.tree.get("faults")?.lines().find_map(|line| {
            let mut field = line.split(' ');
            if field.next()? != verb {
                return None;
            }
            let fault = match field.next()? {
                "errno" => Fault::Errno(match field.next()? {
                    "EBUSY" => Errno::EBUSY,
                    "EIO" => Errno::EIO,
                    "EINVAL" => Errno::EINVAL,
                    "ENODEV" => Errno::ENODEV,
                    "ENOMEM" => Errno::ENOMEM,
                    "ENOSPC" => Errno::ENOSPC,
                    "ENOENT" => Errno::ENOENT,
                    "ENOSYS" => Errno::ENOSYS,
                    "EPERM" => Errno::EPERM,
                    "EOPNOTSUPP" => Errno::EOPNOTSUPP,
                    other => panic!("faults: {other}"),
                }),
                "hang" => Fault::Hang(line.to_owned()),
                "ignore" => Fault::Ignore,
                "probe" => Fault::Probe,
                other => panic!("faults: {other}"),
            };
            let end = field.next()?;
            (file.ends_with(end) && field.next().is_none_or(|only| only == value)).then_some(fault)
        })
    }

    /// Makes a change, unless a fault says otherwise.
    fn change(&self, verb: &str, file: &str, value: &str, make: impl Fn() -> Result<i64>) -> Result<i64> {
        let what = format!("{verb} {file} {value}");
        match self.fault(verb, file, value) {
            Some(Fault::Errno(errno)) => Err(errno),
            Some(Fault::Ignore) => self.step(&what, || Ok(0)),
            Some(Fault::Hang(line)) => self.hang(&line, || self.step(&what, &make)),
            Some(Fault::Probe) => {
                self.probe(file.rsplit('/').nth(1).unwrap());
                self.step(&what, make)
            }
            None => self.step(&what, make),
        }
    }

    /// One counted change at a time, over all processes; the place where the hook is killed.
    fn step(&self, what: &str, make: impl FnOnce() -> Result<i64>) -> Result<i64> {
        let lock = File::options().create(true).append(true).open(self.tree.path("kernel.lock")).unwrap();
        fs2::FileExt::lock_exclusive(&lock).unwrap();
        let mut trace = File::options().create(true).append(true).open(self.tree.path("trace")).unwrap();
        trace.write_all(format!("{}\n", what.trim_end().replace('\n', "\\n")).as_bytes()).unwrap();
        let number = fs::read_to_string(self.tree.path("trace")).unwrap().lines().count();
        let is_now = |variable| std::env::var(variable).is_ok_and(|text| text.parse() == Ok(number));
        if is_now("FAKE_KILL_AT") {
            kill_hook();
        }
        let result = make();
        if is_now("FAKE_KILL_AFTER") {
            kill_hook();
        }
        result
    }

    /// Sleeps where SIGKILL does not reach, as a system call in the D state: a process of its own that has inherited
    /// every file and lock of the caller.
    fn hang(&self, line: &str, call: impl FnOnce() -> Result<i64>) -> Result<i64> {
        // SAFETY: the hook has a single thread, so its child may do anything.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let still = |text: String| text.lines().any(|other| other == line);
            for _ in 0..6000 {
                if !self.tree.get("faults").is_some_and(still) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let code = call().err().map_or(0, |errno| errno as c_int);
            // SAFETY: _exit has no conditions.
            unsafe { libc::_exit(code) }
        }
        let mut status = 0;
        // SAFETY: status is ours.
        while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {}
        match libc::WEXITSTATUS(status) {
            0 => Ok(0),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    /// A write to an attribute, as its `store` function in the kernel handles it.
    fn attribute(&self, file: &str, value: &str) -> Result<i64> {
        if !self.tree.path(file).exists() {
            return Err(Errno::ENODEV);
        }
        let line = value.trim_end_matches('\n');
        let parts: Vec<&str> = file.split('/').collect();
        match parts.as_slice() {
            ["sys", "bus", "pci", "drivers_probe"] => self.probe(self.known(line)?),
            ["sys", "bus", "pci", "drivers", driver, "bind"] => self.bind(driver, self.known(line)?)?,
            ["sys", "bus", "pci", "drivers", driver, "unbind"] => self.unbind(driver, self.known(line)?)?,
            ["sys", "bus", "pci", "drivers", driver, "new_id"] => self.new_id(driver, line)?,
            ["sys", "bus", "pci", "drivers", driver, "remove_id"] => self.remove_id(driver, line)?,
            ["sys", "devices", .., address, "driver_override"] => {
                self.tree.set_driver_override(address, Some(line).filter(|line| !line.is_empty()));
            }
            ["sys", "devices", .., address, "sriov_numvfs"] => self.set_numvfs(address, line)?,
            ["sys", "devices", .., "sriov_drivers_autoprobe"] if matches!(line, "0" | "1") => {
                self.tree.put(file, format!("{line}\n"));
            }
            _ => return Err(Errno::EACCES),
        }
        Ok(0)
    }

    fn known<'a>(&self, address: &'a str) -> Result<&'a str> {
        self.tree.device(address).map(|_| address).ok_or(Errno::ENODEV)
    }

    fn id(&self, address: &str) -> String {
        let part = |name| self.tree.attribute(address, name).unwrap()[2..].to_owned();
        format!("{}:{}", part("vendor"), part("device"))
    }

    fn dynamic_ids(&self, driver: &str) -> Vec<String> {
        let ids = self.tree.get(format!("hw/dynids/{driver}")).unwrap_or_default();
        ids.lines().map(str::to_owned).collect()
    }

    fn set_dynamic_ids(&self, driver: &str, ids: &[String]) {
        self.tree.put(&format!("hw/dynids/{driver}"), ids.join("\n"));
    }

    fn has_id(&self, driver: &str, id: &str) -> bool {
        let fixed = self.tree.get(format!("hw/drivers/{driver}")).unwrap_or_default();
        fixed.lines().any(|line| line == id) || self.dynamic_ids(driver).iter().any(|line| line == id)
    }

    /// `pci_match_device`: an override decides alone.
    fn matches(&self, driver: &str, address: &str) -> bool {
        match self.tree.driver_override(address) {
            Some(only) => only == driver,
            None => self.has_id(driver, &self.id(address)),
        }
    }

    /// `pci_device_probe` and the driver's own.
    fn probe_with(&self, driver: &str, address: &str) -> Result<()> {
        if let Some(pf) = self.tree.points_to(format!("sys/bus/pci/devices/{address}/physfn"))
            && self.tree.attribute(&pf, "sriov_drivers_autoprobe").as_deref() == Some("0")
            && self.tree.driver_override(address).is_none()
        {
            return Err(Errno::ENODEV);
        }
        if driver == "vfio-pci" {
            let config = fs::read(self.tree.path(format!("sys/bus/pci/devices/{address}/config"))).unwrap();
            let group = self.tree.points_to(format!("sys/bus/pci/devices/{address}/iommu_group"));
            if config[0x0e] & 0x7f != 0 || group.is_none() {
                return Err(Errno::EINVAL);
            }
            if self.numvfs(address) > 0 {
                return Err(Errno::EBUSY);
            }
        }
        self.tree.bind(address, driver);
        if self.answers(driver, "vfs-need-link").is_some() {
            // A new interface is down.
            let folder = format!("{}/net", self.tree.device(address).unwrap());
            for name in self.tree.names(&folder) {
                self.tree.put(&format!("{folder}/{name}/flags"), "0x1002\n");
            }
        }
        Ok(())
    }

    /// `device_attach`: the first driver that matches and does not fail; nobody hears of one that does.
    fn probe(&self, address: &str) {
        let drivers = self.tree.names("sys/bus/pci/drivers");
        let is_bound = self.tree.driver(address).is_some();
        let mut matching = drivers.iter().filter(|driver| !is_bound && self.matches(driver, address));
        matching.any(|driver| self.probe_with(driver, address).is_ok());
    }

    fn bind(&self, driver: &str, address: &str) -> Result<()> {
        if !self.matches(driver, address) {
            return Err(Errno::ENODEV);
        }
        if self.tree.driver(address).is_some() {
            return Err(Errno::EBUSY);
        }
        self.probe_with(driver, address)
    }

    fn unbind(&self, driver: &str, address: &str) -> Result<()> {
        if self.tree.driver(address).as_deref() != Some(driver) {
            return Err(Errno::ENODEV);
        }
        let removes_vfs =
            self.tree.get(format!("hw/drivers/{driver}")).is_some_and(|text| text.contains("removes-vfs"));
        if removes_vfs && self.numvfs(address) > 0 {
            self.tree.remove_vfs(address);
        }
        self.tree.unbind(address);
        Ok(())
    }

    fn new_id(&self, driver: &str, line: &str) -> Result<()> {
        let id = line.split_once(' ').ok_or(Errno::EINVAL).map(|(vendor, device)| format!("{vendor}:{device}"))?;
        if self.has_id(driver, &id) {
            return Err(Errno::EEXIST);
        }
        let mut ids = self.dynamic_ids(driver);
        ids.push(id);
        self.set_dynamic_ids(driver, &ids);
        for address in self.tree.names("sys/bus/pci/devices") {
            if self.tree.driver(&address).is_none() && self.matches(driver, &address) {
                let _ = self.probe_with(driver, &address);
            }
        }
        Ok(())
    }

    fn remove_id(&self, driver: &str, line: &str) -> Result<()> {
        let id = line.replace(' ', ":");
        let mut ids = self.dynamic_ids(driver);
        let position = ids.iter().position(|known| *known == id).ok_or(Errno::ENODEV)?;
        ids.remove(position);
        self.set_dynamic_ids(driver, &ids);
        Ok(())
    }

    fn numvfs(&self, pf: &str) -> u32 {
        self.tree.attribute(pf, "sriov_numvfs").map_or(0, |text| text.parse().unwrap())
    }

    fn set_numvfs(&self, pf: &str, line: &str) -> Result<()> {
        let count: u32 = line.parse().map_err(|_| Errno::EINVAL)?;
        let total = self.tree.attribute(pf, "sriov_totalvfs").unwrap().parse::<u32>().unwrap();
        let now = self.numvfs(pf);
        if count > total {
            return Err(Errno::ERANGE);
        }
        if count == now {
            return Ok(());
        }
        // Without a driver, or with one that has no sriov_configure (vfio-pci's is switched off).
        let driver = self.tree.driver(pf).filter(|driver| driver != "vfio-pci").ok_or(Errno::ENOENT)?;
        if self.answers(&driver, "no-vfs").is_some() {
            return Err(Errno::ENOENT);
        }
        if count == 0 {
            self.tree.remove_vfs(pf);
            return Ok(());
        }
        if now > 0 {
            return Err(Errno::EBUSY);
        }
        if let Some(answer) = self.answers(&driver, "vfs-need-link") {
            let folder = format!("{}/net", self.tree.device(pf).unwrap());
            let flags = |name: &String| self.tree.get(format!("{folder}/{name}/flags")).unwrap_or_default();
            if !self.tree.names(&folder).iter().any(|name| flags(name) == "0x1003") {
                return if answer == "EINVAL" { Err(Errno::EINVAL) } else { Ok(()) };
            }
        }
        let vfs = self.tree.vfs(pf);
        let count = match (self.answers(&driver, "vfs-at-most"), self.answers(&driver, "vfs-at-least")) {
            (Some(most), _) => (count as usize).min(most.parse().unwrap()),
            (_, Some(least)) => (count as usize).max(least.parse().unwrap()),
            _ => count as usize,
        };
        self.tree.make_vfs(pf, count);
        for vf in vfs.iter().take(count) {
            self.probe(&vf.address);
        }
        Ok(())
    }

    /// How a driver answers, by a line `NAME VALUE` of its table: `vfs-need-link EINVAL` (bnx2x) or `vfs-need-link
    /// nothing` (`bnxt_en`), `vfs-at-least N` (QAT, which creates all it can), `vfs-at-most N`, and `no-vfs -`
    /// (mlx4_core, igb_uio).
    fn answers(&self, driver: &str, name: &str) -> Option<String> {
        let table = self.tree.get(format!("hw/drivers/{driver}"))?;
        table.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    }
}

/// As `kill -9` on the hook, its children with it.
fn kill_hook() -> ! {
    // SAFETY: kill and pause have no conditions.
    unsafe {
        libc::kill(HOOK.load(Ordering::Relaxed), libc::SIGKILL);
        libc::kill(libc::getpid(), libc::SIGKILL);
        loop {
            libc::pause();
        }
    }
}
