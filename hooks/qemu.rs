//! `/etc/libvirt/hooks/qemu`: libvirt tells here what happens to a guest.
//!
//! `qemu GUEST OPERATION SUBOPERATION EXTRA`, the guest's XML on standard input. Maps that to an [`Leases`] function and
//! its result to an exit code. Only `prepare` and `start` may fail, and the filters `migrate` and `restore`, whose output
//! libvirt takes as the guest's XML: it ignores a failing `release`, and kills the running guest after a failing `reconnect`.
//! Source: libvirt `docs/hooks.rst`.

use host::hooks::chain::{CHAINED, Chain};
use host::log::Log;
use host::paths::Host;
use lease::Leases;
use model::domain::{self, Domain};
use model::error::{Error, Result};
use once_cell::unsync::OnceCell;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

/// The guest's XML, read when it is first asked for.
type Xml = OnceCell<Result<Vec<u8>>>;

fn main() -> ExitCode {
    // Called by a hook that we have called.
    if std::env::var_os(CHAINED).is_some() {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<String> = arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let operation = words.get(1).map(String::as_str);
    let root = std::env::var_os("VFPOOL_ROOT").unwrap_or_else(|| "/".into());
    tell_panics(root.clone(), may_refuse(operation));
    let host = Host::new(root);
    let log = Log::new(&host, "vfpool");
    let xml = Xml::new();
    let chain = Chain::find(&host, &log);
    let output = match handle(&host, &log, &words, &xml) {
        Ok(output) => output,
        Err(error) if may_refuse(operation) => {
            log.refusal(&error);
            if operation == Some("prepare") {
                chain.refuse(&words[0]);
            }
            return ExitCode::FAILURE;
        }
        Err(error) => {
            log.error(&error);
            None
        }
    };
    let output = if chain.is_empty() {
        output
    } else {
        let xml = xml.get_or_init(read).as_deref().unwrap_or_default();
        match chain.run(&arguments, xml, output) {
            Ok(output) => output,
            Err(failed) => {
                let _ = io::stderr().write_all(&failed.said);
                if matches!(operation, Some("migrate" | "restore")) {
                    let _ = Leases::new(&host, &log).cancel(&words[0]);
                }
                return match operation {
                    Some("prepare" | "start" | "started" | "migrate" | "restore" | "attach") => failed.code.into(),
                    _ => ExitCode::SUCCESS,
                };
            }
        }
    };
    // What libvirt does not read here, it takes as it is.
    let Err(cause) = output.map_or(Ok(()), |output| io::stdout().write_all(&output)) else { return ExitCode::SUCCESS };
    log.refusal(&Error::new(format!("Cannot write the XML to libvirt: {cause}")));
    ExitCode::FAILURE
}

/// Whether libvirt asks us for leave, and no damage is done by a failure.
fn may_refuse(operation: Option<&str>) -> bool {
    matches!(operation, Some("prepare" | "start" | "migrate" | "restore") | None)
}

/// A panic is told as the one line that every failure is, and ends as one.
fn tell_panics(root: OsString, may_refuse: bool) {
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
        let error = Error::new(format!("this is a bug in vfpool: {text}"));
        let log = Log::new(&Host::new(root.clone()), "vfpool");
        if may_refuse {
            log.refusal(&error);
        } else {
            log.error(&error);
        }
        std::process::exit(may_refuse.into());
    }));
}

/// What is to be printed, if anything.
fn handle(host: &Host, log: &Log, arguments: &[String], xml: &Xml) -> Result<Option<Vec<u8>>> {
    let [guest, operation, _, _] = arguments else {
        let count = arguments.len();
        return Err(Error::new(format!(
            "called with {count} arguments; libvirt calls its qemu hook with GUEST OPERATION SUBOPERATION EXTRA"
        )));
    };
    if guest.is_empty() {
        return Err(Error::new("called without a guest's name"));
    }
    let leases = || Leases::new(host, log);
    let domain = || xml.get_or_init(read).as_deref().map_err(Clone::clone).and_then(Domain::parse);
    let handled = match operation.as_str() {
        "prepare" => domain().and_then(|domain| leases().prepare(guest, &domain)).map(|()| None),
        "start" => domain().and_then(|domain| leases().start(guest, &domain)).map(|()| None),
        "started" | "reconnect" => domain().and_then(|domain| leases().runs(guest, &domain)).map(|()| None),
        "release" => leases().release(guest).map(|()| None),
        "migrate" | "restore" => domain().and_then(|domain| {
            let resolved = leases().resolve(guest, &domain)?;
            Ok(resolved.filter(|resolved| resolved != domain.xml()))
        }),
        _ => Ok(None),
    };
    handled.map_err(|error| error.during(format_args!("guest '{guest}'")))
}

fn read() -> Result<Vec<u8>> {
    domain::read(io::stdin().lock())
}
