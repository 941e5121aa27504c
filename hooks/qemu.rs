//! `/etc/libvirt/hooks/qemu`: libvirt reports here what happens to a guest.
//!
//! `qemu GUEST OPERATION SUBOPERATION EXTRA`, the guest's XML on standard input. Maps that to a [`Leases`] function and
//! its result to an exit code. Only `prepare` and `start` may fail, and the filters `migrate` and `restore`, whose
//! output libvirt takes as the guest's XML: it ignores a failing `release`, and kills the running guest after a failing
//! `reconnect`. Source: libvirt `docs/hooks.rst`.

use host::hooks::chain::{CHAINED, Chain, Failed};
use host::log::Log;
use host::paths::Host;
use lease::{Caller, Leases};
use model::domain::{self, Domain};
use model::error::{Error, Result};
use model::operation::Operation;
use once_cell::unsync::OnceCell;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

/// One call of the hook.
struct Call {
    host: Host,
    log: Log,
    /// As libvirt gave them, for other hooks.
    arguments: Vec<OsString>,
    /// The same as text.
    words: Vec<String>,
    /// The guest's XML, read when it is first needed.
    xml: OnceCell<Result<Vec<u8>>>,
}

fn main() -> ExitCode {
    // Called by a hook that we have called.
    if std::env::var_os(CHAINED).is_some() {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<String> = arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let root = std::env::var_os("VFPOOL_ROOT").unwrap_or_else(|| "/".into());
    report_panics(root.clone(), may_refuse(&words));
    let host = Host::new(root);
    let log = Log::new(&host, "vfpool");
    Call { host, log, arguments, words, xml: OnceCell::new() }.run()
}

/// Whether libvirt asks for permission, and a failure does no damage; also for a caller other than libvirt.
fn may_refuse(words: &[String]) -> bool {
    words.get(1).is_none_or(|operation| Operation::of(operation).may_refuse())
}

/// A panic is reported in one line, as every failure is, and ends as one.
fn report_panics(root: OsString, may_refuse: bool) {
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

impl Call {
    /// Ours comes first, so that the other hooks do not see a start that is refused here. But what they do at `prepare`
    /// may be what frees a device with managed='no' (it ends the host's desktop); then they come first.
    fn run(&self) -> ExitCode {
        let chain = Chain::find(&self.host, &self.log);
        let operation = self.operation();
        let others_first = operation == Operation::Prepare && !chain.is_empty() && self.has_unmanaged();
        if others_first {
            if let Err(failed) = self.call_others(&chain, None) {
                return self.fail(&failed);
            }
        }
        let output = match self.handle() {
            Ok(output) => output,
            Err(error) if may_refuse(&self.words) => {
                self.log.refusal(&error);
                if operation == Operation::Prepare && !others_first {
                    chain.refuse(&self.words[0]);
                }
                return ExitCode::FAILURE;
            }
            Err(error) => {
                self.log.error(&error);
                None
            }
        };
        let output = if others_first { Ok(output) } else { self.call_others(&chain, output) };
        let output = match output {
            Ok(output) => output,
            Err(failed) => return self.fail(&failed),
        };
        // What libvirt does not read here, it takes as it is.
        let written = output.map_or(Ok(()), |output| io::stdout().write_all(&output));
        let Err(cause) = written else { return ExitCode::SUCCESS };
        self.log.refusal(&Error::new(format!("Cannot write the XML to libvirt: {cause}")));
        ExitCode::FAILURE
    }

    fn operation(&self) -> Operation {
        self.words.get(1).map_or(Operation::Other, |operation| Operation::of(operation))
    }

    fn call_others(&self, chain: &Chain, output: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Failed> {
        if chain.is_empty() {
            return Ok(output);
        }
        chain.run(&self.arguments, self.xml().unwrap_or_default(), output)
    }

    /// After another hook has failed.
    fn fail(&self, failed: &Failed) -> ExitCode {
        let _ = io::stderr().write_all(&failed.said);
        let operation = self.operation();
        if operation.is_filter() {
            let _ = Leases::new(&self.host, &self.log).cancel(&self.words[0]);
        }
        if operation.passes_failure_on() { failed.code.into() } else { ExitCode::SUCCESS }
    }

    fn xml(&self) -> Result<&[u8]> {
        self.xml.get_or_init(|| domain::read(io::stdin().lock())).as_deref().map_err(Clone::clone)
    }

    fn domain(&self) -> Result<Domain> {
        self.xml().and_then(Domain::parse)
    }

    fn has_unmanaged(&self) -> bool {
        self.domain().is_ok_and(|domain| domain.devices.iter().any(|device| !device.managed))
    }

    /// What is to be printed, if anything.
    fn handle(&self) -> Result<Option<Vec<u8>>> {
        let [guest, operation, _, _] = self.words.as_slice() else {
            let count = self.words.len();
            return Err(Error::new(format!(
                "called with {count} arguments; libvirt calls its qemu hook with GUEST OPERATION SUBOPERATION EXTRA"
            )));
        };
        if guest.is_empty() {
            return Err(Error::new("called without a guest's name"));
        }
        // The libvirtd of a user (qemu:///session) calls it too, and may move no device.
        if self.is_session() {
            return Ok(None);
        }
        let leases = || Leases::new(&self.host, &self.log);
        let handled = match Operation::of(operation) {
            Operation::Prepare => self.domain().and_then(|domain| leases().prepare(guest, &domain)).map(|()| None),
            Operation::Start => self.domain().and_then(|domain| leases().start(guest, &domain)).map(|()| None),
            Operation::Started | Operation::Reconnect => {
                self.domain().and_then(|domain| leases().runs(guest, &domain)).map(|()| None)
            }
            Operation::Stopped => {
                leases().stopped(guest);
                Ok(None)
            }
            Operation::Release => leases().release(guest).map(|()| None),
            Operation::Migrate | Operation::Restore => self.domain().and_then(|domain| {
                let resolved = leases().resolve(guest, &domain, Caller::Libvirt)?;
                Ok(resolved.filter(|resolved| resolved != domain.xml()))
            }),
            Operation::Attach | Operation::Other => Ok(None),
        };
        handled.map_err(|error| error.during(format_args!("guest '{guest}'")))
    }

    fn is_session(&self) -> bool {
        let owner = fs::metadata(self.host.path("run")).map(|data| data.uid());
        owner.is_ok_and(|owner| owner != nix::unistd::geteuid().as_raw())
    }
}
