//! One guest: its devices, its lease, and its next start.

use super::{Actor, Choice, Chosen, GuestDevice, GuestReport, GuestState, Start, Verdict, at_stop};
use host::libvirt::{definitions, runtime};
use host::paths::Host;
use lease::life::Life;
use lease::view::View;
use lease::{Leases, Preview, missing_devices};
use model::domain::{Assigned, Domain, Hostdev, Kind};
use model::error::{Error, Result};
use model::lease::{Lease, LeaseState};

pub(super) fn explain(host: &Host, leases: &Leases, view: &View, name: &str) -> Result<GuestReport> {
    let lease = view.lease(name)?;
    let qemu = runtime::qemu(host, name);
    let state = match &lease {
        _ if qemu.is_some() => GuestState::Running,
        Some(lease) if lease.is_running(host, name) => GuestState::Running,
        Some(lease) if lease.state != LeaseState::Reserved && lease.is_in_use(host, name) => GuestState::Starting,
        _ => GuestState::ShutOff,
    };
    let live = if state == GuestState::Running { runtime::live(host, name) } else { None };
    let xml = match live.map_or_else(|| definitions::read(host, name), Ok) {
        Ok(xml) => xml,
        // A guest that was never defined, and is gone or has no state file: its lease is all that is known.
        Err(_) if lease.is_some() || qemu.is_some() => Vec::from("<domain/>"),
        Err(error) => return Err(error),
    };
    let mut guest = GuestReport {
        name: name.to_owned(),
        state,
        pid: qemu.map(|qemu| qemu.pid),
        is_saved: host.saved(name).exists(),
        lease: lease.as_ref().map(|lease| lease.state),
        attention: leases.store().attention(name)?,
        devices: Vec::new(),
        warnings: Vec::new(),
        start: None,
        chosen: None,
        at_stop: match &lease {
            Some(lease) if state != GuestState::ShutOff => at_stop(lease.devices.iter(), Actor::Libvirt),
            _ => Vec::new(),
        },
    };
    let domain = match Domain::parse(&xml) {
        Ok(domain) => domain,
        Err(error) => {
            guest.start = Some(Start::refused(&error));
            return Ok(guest);
        }
    };
    guest.warnings = missing_devices(&domain).unwrap_or_default().iter().map(Error::to_string).collect();
    let is_off = state == GuestState::ShutOff;
    for device in &domain.devices {
        let (verdict, why) =
            if is_off { foreseen(leases, view, name, &domain, device) } else { had(lease.as_ref(), device) };
        guest.devices.push(GuestDevice {
            address: device.address,
            kind: match device.kind {
                Kind::Hostdev => "hostdev",
                Kind::Interface => "interface",
                Kind::Disk => "disk",
            },
            is_managed: device.managed,
            guest_address: device.guest_address,
            pool: domain.request_for(device).map(|request| request.pool.clone()),
            verdict,
            why,
        });
    }
    if is_off {
        let expected = missing_devices(&domain).map(drop);
        let assigned = domain.assigned();
        let forecast = expected.clone().and_then(|()| {
            let forecast = leases.preview(view, Some(name), &assigned);
            forecast.map_err(|refusal| leases.explain_refusal(name, &assigned, refusal, view).0)
        });
        guest.start = Some(match forecast {
            Ok(forecast) => Start::foreseen(host, view, forecast)?,
            Err(why) => Start::refused(&why),
        });
        guest.chosen = chosen(leases, view, name, &domain, expected);
    }
    Ok(guest)
}

/// How one of its devices stands at the guest's next start, by itself.
fn foreseen(leases: &Leases, view: &View, guest: &str, domain: &Domain, device: &Hostdev) -> (Verdict, Option<String>) {
    let pool = domain.request_for(device).map(|request| request.pool.clone());
    let assigned = [Assigned { address: device.address, managed: device.managed, pool }];
    match leases.preview(view, Some(guest), &assigned) {
        Ok(Preview { taken: None, .. }) => (Verdict::Left, None),
        Ok(_) => (Verdict::Free, None),
        Err(refusal) => (Verdict::Refused, Some(refusal.why.to_string())),
    }
}

/// How one of its devices stands while it runs.
fn had(lease: Option<&Lease>, device: &Hostdev) -> (Verdict, Option<String>) {
    let is_leased = lease.is_some_and(|lease| lease.held(device.address).is_some());
    let unknown = "no lease tells of it: it came while the guest ran, or from a definition that changed since";
    (Verdict::Own, (!is_leased).then(|| unknown.to_owned()))
}

/// What `vfpool start` and the filters would choose for the guest's requests now.
fn chosen(leases: &Leases, view: &View, guest: &str, domain: &Domain, expected: Result<()>) -> Option<Chosen> {
    if domain.requests.is_empty() {
        return None;
    }
    let decide = |assigned: &[Assigned]| leases.preview(view, Some(guest), assigned).map(drop);
    Some(match expected.and_then(|()| leases.choose(guest, domain, view, decide)) {
        Err(why) => Chosen { devices: Vec::new(), refusal: Some(why.to_string()) },
        Ok(chosen) => {
            let choice = |(device, address): (&Hostdev, _)| {
                let request = domain.request_for(device)?;
                Some(Choice { pool: request.pool.clone(), guest_address: device.guest_address, address })
            };
            Chosen { devices: chosen.into_iter().filter_map(choice).collect(), refusal: None }
        }
    })
}
