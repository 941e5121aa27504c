//! `/usr/lib/udev/vfpool-device`: udev's rules run this for functions with SR-IOV.
//!
//! - `vfpool-device ADDRESS`: a PF of a pool is queued for the unit that creates its VFs; a VF of a pool is bound to
//!   vfio-pci. Any other device is left alone.
//! - `vfpool-device member ADDRESS`: exit status 0 if this is a VF of a pool.
//!
//! udev holds back what is below the device until this ends, and kills it after its own time-out (30 s where that is
//! shortest); so each step has little time, and no udev event is ever waited for.
//! Source: systemd `man/udev.xml`, `RUN`, `PROGRAM`.

use host::log::Log;
use host::paths::Host;
use host::queue::Entry;
use lease::vfs::{Membership, Setup};
use model::error::{Error, Result};
use std::process::ExitCode;
use std::time::Duration;

/// For each of at most five steps.
const LIMIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let host = Host::new(std::env::var_os("VFPOOL_ROOT").unwrap_or_else(|| "/".into()));
    let log = Log::new(&host, "vfpool");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["member", address] => is_member(&host, &log, address),
        [address] => appeared(&host, &log, address).map(|()| true),
        _ => {
            Err(Error::new("vfpool-device is called by udev's rules, with an address or with 'member' and an address"))
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log.error(&error);
            ExitCode::FAILURE
        }
    }
}

fn is_member(host: &Host, log: &Log, address: &str) -> Result<bool> {
    let setup = Setup::new(host, log);
    let device = setup.device(address.parse()?)?;
    Ok(device.is_some_and(|device| matches!(setup.membership(&device), Membership::Vf(_))))
}

fn appeared(host: &Host, log: &Log, address: &str) -> Result<()> {
    let setup = Setup::new(host, log).within(LIMIT);
    let Some(device) = setup.device(address.parse()?)? else { return Ok(()) };
    let queue = || Entry::Pf(device.address).put(host);
    match setup.membership(&device) {
        Membership::None => Ok(()),
        Membership::Pf => queue(),
        // The unit has more time, and nothing waits for it.
        Membership::Vf(pool) => match setup.vf(pool, &device) {
            Ok(true) => Ok(()),
            Ok(false) => queue(),
            Err(error) => queue().and(Err(error)),
        },
    }
}
