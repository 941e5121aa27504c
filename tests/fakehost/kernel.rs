//! A kernel for the fake host: loaded into the real binaries by `LD_PRELOAD`, it makes writes below `$VFPOOL_ROOT/sys`
//! do what Linux does, so that no test code is needed in the product.
//!
//! | file in the root | what |
//! |---|---|
//! | `hw/drivers/NAME` | a driver's id table, and how it answers, see [`Kernel::set_numvfs`] and [`Kernel::unbind`] |
//! | `hw/dynids/NAME` | the ids that `new_id` added |
//! | `hw/sriov/PF` | the VFs that a PF can have |
//! | `addresses` | the interfaces' addresses, for getifaddrs(3) |
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
    SYS_symlinkat, SYS_unlinkat, SYS_write, c_char, c_int, c_uint, c_void, ifaddrs, mode_t, sockaddr, sockaddr_storage,
    ssize_t,
};
use std::cell::Cell;
use std::ffi::{CStr, CString};
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

/// The addresses in `addresses`, lines of interface and address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getifaddrs(list: *mut *mut ifaddrs) -> c_int {
    let root = PathBuf::from(std::env::var_os("VFPOOL_ROOT").unwrap_or_default());
    let table = fs::read_to_string(root.join("addresses")).unwrap_or_default();
    let mut first = std::ptr::null_mut();
    for line in table.lines().rev() {
        let (name, address) = line.split_once(' ').unwrap();
        // SAFETY: all-zero is a valid value of these C structs.
        let (mut entry, mut storage): (ifaddrs, sockaddr_storage) = unsafe { std::mem::zeroed() };
        match address.parse().unwrap() {
            IpAddr::V4(ip) => {
                // SAFETY: sockaddr_storage holds any address, and is aligned for it.
                let socket = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
                socket.sin_family = u16::try_from(AF_INET).unwrap();
                socket.sin_addr.s_addr = u32::from(ip).to_be();
            }
            IpAddr::V6(ip) => {
                // SAFETY: as above.
                let socket = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
                socket.sin6_family = u16::try_from(AF_INET6).unwrap();
                socket.sin6_addr.s6_addr = ip.octets();
            }
        }
        entry.ifa_next = first;
        entry.ifa_name = CString::new(name).unwrap().into_raw();
        entry.ifa_addr = Box::into_raw(Box::new(storage)).cast::<sockaddr>();
        first = Box::into_raw(Box::new(entry));
    }
    // SAFETY: the caller's variable.
    unsafe { *list = first };
    0
}

#[unsafe(no_mangle)]
#[allow(clippy::cast_ptr_alignment)] // made as what it is cast to
pub unsafe extern "C" fn freeifaddrs(mut list: *mut ifaddrs) {
    while !list.is_null() {
        // SAFETY: made by getifaddrs above.
        unsafe {
            let entry = Box::from_raw(list);
            drop(CString::from_raw(entry.ifa_name));
            drop(Box::from_raw(entry.ifa_addr.cast::<sockaddr_storage>()));
            list = entry.ifa_next;
        }
    }
}

/// A line of `faults`: `VERB errno NAME PATH [VALUE]`, `VERB hang PATH [VALUE]`, `VERB ignore PATH [VALUE]`, or
/// `VERB probe PATH [VALUE]`: right before the attribute is written, the kernel itself probes its device.
///
/// VERB is `open` (of what is there already), `create`, `write`, `rename`, `symlink`, `unlink` or `mkdir`. PATH is the
/// end of the file's real path, VALUE what is written. A hang ends when its line is taken out of the file, and then the
/// call is made after all, as a driver that sleeps for long does.
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
