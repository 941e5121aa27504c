//! Hooks of others, which go on working beside ours: the one that was `/etc/libvirt/hooks/qemu` before vfpool came,
//! and those in `qemu.d` where libvirt is too old to call them itself.
//!
//! Ours is called first, except for a guest with a device of managed='no' at `prepare`: these may free it for us. Each
//! is called as libvirt would call it: the same arguments, the XML on standard input; of `migrate` and `restore` each
//! gets what the one before it has printed, and printing nothing changes nothing. The chain stops at the first hook
//! that fails; its exit status is ours. A file that cannot be executed is no hook, as for libvirt. Of a start that ours
//! refuses they see nothing, neither its `prepare` nor the `stopped` and `release` that follow. Source: libvirt
//! `docs/hooks.rst`, "Script location" (`qemu.d` since 6.5.0) and "Script execution".

use crate::config::settings;
use crate::libvirt::runtime;
use crate::log::Log;
use crate::paths::{Host, file_name};
use crate::{command, files};
use model::error::{Error, Result};
use model::operation::Operation;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Set for the hooks that we call: one of them may call ours in turn, as an admin may have arranged it by hand.
pub const CHAINED: &str = "VFPOOL_CHAINED";

/// The first libvirt that calls the hooks in `qemu.d` itself, as in the name of its library (`libvirt.so.0.6005.0`).
const CALLS_DIRECTORY: u32 = 6005;

/// The hooks that are called after ours.
pub struct Chain<'a> {
    host: &'a Host,
    log: &'a Log,
    hooks: Vec<PathBuf>,
}

/// What a hook that failed has left.
#[derive(Debug)]
pub struct Failed {
    /// To be told on standard error, as it was.
    pub said: Vec<u8>,
    /// To be returned.
    pub code: u8,
}

impl<'a> Chain<'a> {
    /// The hooks that there are now; on most hosts none.
    pub fn find(host: &'a Host, log: &'a Log) -> Self {
        let mut hooks = vec![host.earlier_hook()];
        hooks.retain(|path| is_executable(path));
        let folder = host.hook().with_extension("d");
        let mut names = files::names(&folder).unwrap_or_default();
        names.sort_unstable();
        let scripts: Vec<PathBuf> =
            names.iter().map(|name| folder.join(name)).filter(|path| is_executable(path)).collect();
        if !scripts.is_empty() && libvirt_leaves_directory(host) {
            hooks.extend(scripts);
        }
        Self { host, log, hooks }
    }

    /// Whether ours is the only hook.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Notes that ours has refused to let a guest start.
    pub fn refuse(&self, guest: &str) {
        if self.is_empty() {
            return;
        }
        let path = self.refused(guest);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, ""));
        if let Err(cause) = made {
            self.log.warning(Error::io("write", &path, &cause));
        }
    }

    /// Calls the hooks. `output` is what ours has made of `xml`, if it has. Returns what the last one has made of it.
    ///
    /// # Errors
    /// What the one that failed has said, and its exit status.
    pub fn run(&self, arguments: &[OsString], xml: &[u8], output: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Failed> {
        let text = |index: usize| arguments.get(index).map(|text| text.to_string_lossy()).unwrap_or_default();
        let (guest, name) = (text(0), text(1));
        let operation = Operation::of(&name);
        match operation {
            Operation::Prepare => _ = fs::remove_file(self.refused(&guest)),
            Operation::Stopped if self.refused(&guest).exists() => return Ok(output),
            Operation::Release if fs::remove_file(self.refused(&guest)).is_ok() => return Ok(output),
            _ => {}
        }
        // Ours logs what is wrong with them.
        let (settings, _) = settings::load(self.host);
        let mut output = output;
        for hook in &self.hooks {
            let input = output.as_deref().unwrap_or(xml);
            let printed = Self::call(hook, arguments, input, settings.hook_deadline()).inspect_err(|failed| {
                let code = failed.code;
                self.log.warning(format_args!("guest '{guest}', {name}: {} has failed ({code})", hook.display()));
            })?;
            if operation.is_filter() && !printed.is_empty() {
                output = Some(printed);
            }
        }
        Ok(output)
    }

    fn call(hook: &Path, arguments: &[OsString], input: &[u8], limit: Duration) -> Result<Vec<u8>, Failed> {
        let mut command = Command::new(hook);
        command.args(arguments).env(CHAINED, "1").process_group(0);
        let failed = |why: &str| Failed { said: format!("vfpool: {}: {why}\n", hook.display()).into_bytes(), code: 1 };
        let output = command::communicate(&mut command, input, limit).map_err(|cause| failed(&cause.to_string()))?;
        let status = output.status;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        match u8::try_from(code).unwrap_or(1) {
            0 => Ok(output.stdout),
            code if output.stderr.is_empty() => {
                Err(Failed { code, ..failed(&format!("{status}, and not a word why")) })
            }
            code => Err(Failed { said: output.stderr, code }),
        }
    }

    fn refused(&self, guest: &str) -> PathBuf {
        self.host.state().join("refused").join(file_name(guest))
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Whether the libvirtd that calls us is too old to call the hooks in `qemu.d`. It has the library mapped whose name
/// says so; where that cannot be told, no hook is called twice.
fn libvirt_leaves_directory(host: &Host) -> bool {
    let maps =
        runtime::starter(host).and_then(|libvirtd| fs::read_to_string(host.process(libvirtd.pid).join("maps")).ok());
    let version = maps.as_ref().and_then(|maps| {
        let (_, rest) = maps.split_once("/libvirt.so.0.")?;
        rest.split('.').next()?.parse::<u32>().ok()
    });
    version.is_some_and(|version| version < CALLS_DIRECTORY)
}
