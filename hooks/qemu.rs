//! `/etc/libvirt/hooks/qemu`: libvirt tells here what happens to a guest.
//!
//! `qemu GUEST OPERATION SUBOPERATION EXTRA`, the guest's XML on standard input. Maps that to an [`Events`] function and
//! its result to an exit code. Only `prepare` and `start` may fail, and the filters `migrate` and `restore`, whose output
//! libvirt takes as the guest's XML: it ignores a failing `release`, and kills the running guest after a failing `reconnect`.
//! Source: libvirt `docs/hooks.rst`.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use vfpool::domain;
use vfpool::error::{Error, Result};
use vfpool::event::Events;
use vfpool::host::Host;
use vfpool::log::Log;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let host = Host::new(std::env::var_os("VFPOOL_ROOT").unwrap_or_else(|| "/".into()));
    let log = Log::new(&host, "vfpool");
    // A panic is told as the one line that every failure is.
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(|| handle(&host, &log, &arguments)))
        .unwrap_or_else(|panic| Err(Error::new(format!("this is a bug in vfpool: {}", panic_text(&*panic)))));
    let Err(error) = result else { return ExitCode::SUCCESS };
    match arguments.get(1).map(String::as_str) {
        Some("prepare" | "start" | "migrate" | "restore") | None => {
            log.refusal(&error);
            ExitCode::FAILURE
        }
        Some(_) => {
            log.error(&error);
            ExitCode::SUCCESS
        }
    }
}

fn handle(host: &Host, log: &Log, arguments: &[String]) -> Result<()> {
    let [guest, operation, _, _] = arguments else {
        let count = arguments.len();
        return Err(Error::new(format!(
            "called with {count} arguments; libvirt calls its qemu hook with GUEST OPERATION SUBOPERATION EXTRA"
        )));
    };
    if guest.is_empty() {
        return Err(Error::new("called without a guest's name"));
    }
    let handled = match operation.as_str() {
        "prepare" => xml().and_then(|xml| Events::new(host, log).prepare(guest, &xml)),
        "start" => xml().and_then(|xml| Events::new(host, log).start(guest, &xml)),
        "started" | "reconnect" => xml().and_then(|xml| Events::new(host, log).runs(guest, &xml)),
        "release" => Events::new(host, log).release(guest),
        "migrate" | "restore" => xml().and_then(|xml| filter(&Events::new(host, log), guest, &xml)),
        _ => Ok(()),
    };
    handled.map_err(|error| error.during(format_args!("guest '{guest}'")))
}

/// What libvirt does not read here, it takes as it is.
fn filter(events: &Events, guest: &str, xml: &[u8]) -> Result<()> {
    let Some(resolved) = events.resolve(guest, xml)? else { return Ok(()) };
    if resolved == xml {
        return Ok(());
    }
    io::stdout().write_all(&resolved).map_err(|cause| Error::new(format!("Cannot write the XML to libvirt: {cause}")))
}

fn xml() -> Result<Vec<u8>> {
    domain::read(std::io::stdin().lock())
}

fn panic_text(panic: &dyn std::any::Any) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}
