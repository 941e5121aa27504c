//! `/usr/lib/udev/vfpool-device`: udev tells here of functions with SR-IOV.
//!
//! - `vfpool-device ADDRESS`: of a PF of a pool, it is noted that its VFs are to be made, which a unit does; a VF of a pool
//!   is bound to vfio-pci. Any other device is left alone.
//! - `vfpool-device member ADDRESS`: exit status 0 if this is a VF of a pool.
//!
//! udev holds back what is below the device until this ends, and kills it after its own time-out (30 s where that is
//! shortest); so each step has little time, and no udev event is ever waited for.
//! Source: systemd `man/udev.xml`, `RUN`, `PROGRAM`.

use host::log::Log;
use host::paths::Host;
use host::queue::Entry;
use lease::vfs::{Membership, Setup};
use model::address::PciAddress;
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
    Ok(Setup::new(host, log).membership(address.parse()?)? == Membership::Vf)
}

fn appeared(host: &Host, log: &Log, address: &str) -> Result<()> {
    let address: PciAddress = address.parse()?;
    let setup = Setup::new(host, log).within(LIMIT);
    match setup.membership(address)? {
        Membership::None => Ok(()),
        Membership::Pf => Entry::Pf(address).put(host),
        // The unit has more time, and nobody waits for it.
        Membership::Vf => match setup.vf(address) {
            Ok(true) => Ok(()),
            Ok(false) => Entry::Pf(address).put(host),
            Err(error) => Entry::Pf(address).put(host).and(Err(error)),
        },
    }
}
