//! What a refusal says: who has the devices of a pool, and what to do.

use crate::Leases;
use crate::availability::Standing;
use crate::view::View;
use host::config::pool::{OnBusy, Pool};
use host::libvirt::definitions;
use host::parked::Parked;
use host::queue::Entry;
use model::address::PciAddress;
use model::domain::{Assigned, Domain};
use model::error::{Error, Result};
use model::plan::Refusal;
use model::text::shell_word;
use std::collections::BTreeMap;

/// So many holders are named in a message; a line has to be read.
pub(crate) const NAMED: usize = 8;

impl Leases<'_> {
    /// Puts a refusal into words. Of a pooled device it tells how the pool stands. Beside the words: what the
    /// reconciler is to do about it.
    pub fn explain_refusal(
        &self,
        guest: &str,
        assigned: &[Assigned],
        refusal: Refusal,
        view: &View,
    ) -> (Error, Vec<Entry>) {
        let Refusal { why, device, .. } = refusal;
        let asked = assigned.iter().find(|assigned| Some(assigned.address) == device);
        let Some(name) = asked.and_then(|assigned| assigned.pool.as_ref()) else { return (why, Vec::new()) };
        let mut entries = vec![Entry::Refused(guest.to_owned())];
        let Ok(pool) = self.pools().find(name) else { return (why, entries) };
        let Ok(standings) = view.standings(Some(guest), pool) else { return (why, entries) };
        let used = |address: &PciAddress| assigned.iter().any(|assigned| assigned.address == *address);
        let free = standings.iter().find(|(address, standing)| *standing == Standing::Free && !used(address));
        let Some((free, _)) = free else {
            let is_told = standings.iter().any(|(address, _)| Some(*address) == device);
            let held = held(pool, &standings);
            let words = if is_told { held } else { Error::new(why.reason()).remedy(held.to_string()) };
            return (words, entries);
        };
        let then = match pool.on_busy {
            // Neither parking nor `vfpool start` reaches a guest that exists only in the XML of its next start.
            _ if !self.is_defined(guest) => {
                "libvirt keeps no definition of this guest that could be pointed at it: pass its XML through vfpool \
                 rewrite before virsh create"
                    .to_owned()
            }
            OnBusy::Refuse => {
                format!(
                    "it will be pointed at a free one: start it again in a moment, or run `vfpool start {}`",
                    shell_word(guest)
                )
            }
            OnBusy::Restart => {
                entries.push(Entry::Restart(guest.to_owned()));
                "it is started again by itself with a free one (on-busy='restart')".to_owned()
            }
        };
        // What to do about one certain device does not fit where any of a pool will do.
        let words = Error::new(why.reason()).remedy(format!("{free} of pool '{name}' is free, and {then}"));
        (words, entries)
    }

    /// Whether libvirt keeps a definition of the guest. Other tools may keep a file of theirs at the same place.
    fn is_defined(&self, guest: &str) -> bool {
        definitions::path(self.host, guest).exists() && !Parked::load(self.host).is_unknown(guest)
    }
}

/// Why a pool has no device for a guest.
pub(super) fn exhausted(guest: &str, pool: &Pool, refused: &BTreeMap<PciAddress, Error>, view: &View) -> Error {
    if let Some(why) = refused.values().next() {
        return why.clone();
    }
    match view.standings(Some(guest), pool) {
        Ok(standings) => held(pool, &standings),
        Err(error) => error,
    }
}

/// What is to be told of requests without a device.
///
/// # Errors
/// One of them is just being moved.
pub fn missing_devices(domain: &Domain) -> Result<Vec<Error>> {
    let mut warnings = Vec::new();
    for request in &domain.requests {
        let (pool, address) = (&request.pool, request.guest_address);
        match (domain.device_for(request), &request.moving) {
            (None, Some(_)) => {
                return Err(Error::new(format!(
                    "its device of pool '{pool}' (in the guest at {address}) is just being pointed at a free one"
                ))
                .remedy("Start it again in a moment; if that does not help, run `vfpool reconcile`"));
            }
            (None, None) => warnings.push(Error::new(format!(
                "guest '{}' asks pool '{pool}' for a device at {address}, where it has none; see `vfpool detach`",
                domain.name
            ))),
            _ => {}
        }
    }
    Ok(warnings)
}

/// Who has the devices of a pool of which none is free.
fn held(pool: &Pool, standings: &[(PciAddress, Standing)]) -> Error {
    if standings.is_empty() {
        return Error::new(format!("pool '{}' has no devices now; run `vfpool setup` to see why", pool.name));
    }
    let who = |standing: &Standing| match standing {
        Standing::Free => "this guest's other device".to_owned(),
        standing => standing.to_string(),
    };
    let named = standings.iter().take(NAMED).map(|(address, standing)| format!("{address} ({})", who(standing)));
    let named: Vec<String> = named.collect();
    let more = match standings.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Error::new(format!("no device of pool '{}' is free: {}{more}", pool.name, named.join(", "))).remedy(
        if standings.iter().any(|(_, standing)| matches!(standing, Standing::Leased { .. })) {
            "Stop one of these first"
        } else {
            "`vfpool explain` says of each what frees it"
        },
    )
}
