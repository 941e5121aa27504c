//! The explanation for a person: labelled lines, plain text.

use super::{
    Action, Actor, Chosen, DeviceReport, Fate, GuestDevice, GuestReport, GuestState, Member, Pointer, Start, Verdict,
};
use model::lease::{LeaseState, Role};
use model::text::shell_word;

/// A line with its label.
fn labelled(label: &str, text: impl AsRef<str>) -> String {
    format!("  {label:<13} {}", text.as_ref())
}

fn driver(driver: Option<&String>) -> &str {
    driver.map_or("no driver", String::as_str)
}

pub(super) fn device(device: &DeviceReport) -> Vec<String> {
    let mut lines = vec![format!("{}  {} {} (class {})", device.address, device.id, kind(&device.class), device.class)];
    lines.push(labelled("driver", driver(device.driver.as_ref())));
    if !device.netdevs.is_empty() {
        lines.push(labelled("interface", device.netdevs.join(", ")));
    }
    if let Some(pf) = device.physfn {
        lines.push(labelled("VF of", pf.to_string()));
    }
    if let Some(most) = device.totalvfs {
        lines.push(labelled("VFs", format!("{} of {most}", device.vfs.len())));
    }
    if let Some(node) = device.numa_node {
        lines.push(labelled("NUMA node", node.to_string()));
    }
    lines.push(labelled("option ROM", if device.option_rom { "yes" } else { "no" }));
    match device.group {
        Some(group) if device.members.is_empty() => lines.push(labelled("IOMMU group", format!("{group}, alone"))),
        Some(group) => lines.push(labelled("IOMMU group", format!("{group}, with"))),
        None => lines.push(labelled("IOMMU group", "none")),
    }
    lines.extend(device.members.iter().map(member));
    if let Some(pool) = &device.pool {
        lines.push(labelled("pool", pool));
    }
    if let Some(lease) = &device.lease {
        let state = lease.state.map_or("lost", state);
        let before = driver(lease.driver_before.as_ref());
        let how = lease.role.map_or_else(|| format!("({state})"), |role| format!("({state}, {role}), was on {before}"));
        lines.push(labelled("leased to", format!("guest '{}' {how}", lease.guest)));
    }
    if let Some(by) = &device.used_by {
        lines.push(labelled("used", by));
    }
    lines.extend(device.pointed_at_by.iter().map(pointer));
    let start = &device.start;
    lines.push(labelled("verdict", verdict(start)));
    if let Some(refusal) = &start.refusal {
        lines.extend(["a guest with it would be refused:".to_owned(), format!("  {refusal}")]);
    }
    lines.extend(steps("a guest with it", start));
    lines
}

/// A word for a class code's first byte.
/// Source: pci.ids, "List of known device classes".
fn kind(class: &str) -> &'static str {
    match class.get(2..4) {
        Some("01") => "storage",
        Some("02") => "network",
        Some("03") => "display",
        Some("04") => "multimedia",
        Some("06") => "bridge",
        Some("0b" | "12") => "processor",
        Some("0c") => "serial bus",
        _ => "device",
    }
}

fn member(member: &Member) -> String {
    let why = member.why.as_deref().unwrap_or_default();
    let fate = match member.fate {
        Fate::Bridge => "bridge, never touched".to_owned(),
        Fate::Leased => format!("guest '{why}' has it"),
        Fate::Needed => format!("needed: {why}"),
        Fate::Detached if member.driver.is_none() => "would go to vfio-pci".to_owned(),
        Fate::Detached => "would be detached".to_owned(),
        Fate::Vanishes => "goes with its PF".to_owned(),
        Fate::Stays => "stays there".to_owned(),
    };
    format!("    {}  {:<10} {fate}", member.address, driver(member.driver.as_ref()))
}

fn pointer(Pointer { guest, is_running, pool }: &Pointer) -> String {
    match pool {
        Some(pool) if !is_running => labelled("parked by", format!("guest '{guest}' (pool '{pool}')")),
        _ => labelled("defined for", format!("guest '{guest}'{}", if *is_running { " (runs)" } else { "" })),
    }
}

fn verdict(start: &Start) -> String {
    let left_by = guests(&start.left_by);
    match start.verdict {
        Verdict::Refused => "not free".to_owned(),
        Verdict::Left => format!("not free: {left_by} left devices that have to be reattached first"),
        Verdict::Free | Verdict::Own if left_by.is_empty() => "free".to_owned(),
        Verdict::Free | Verdict::Own => format!("free once the devices that {left_by} left are reattached"),
    }
}

fn guests(names: &[String]) -> String {
    let guests: Vec<String> = names.iter().map(|name| format!("guest '{name}'")).collect();
    guests.join(", ")
}

/// What a start would do, and the stop after it.
fn steps(who: &str, start: &Start) -> Vec<String> {
    let left_by = guests(&start.left_by);
    let mut lines = actions(&format!("first, the devices that {left_by} left would be reattached"), &start.left);
    if start.verdict == Verdict::Left {
        lines.push("what then, can be told after `vfpool reconcile`".to_owned());
    }
    lines.extend(actions(&format!("{who} would"), &start.steps));
    lines.extend(actions("and at its stop", &start.at_stop));
    lines
}

fn state(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Reserved => "reserved",
        LeaseState::Pending => "pending",
        LeaseState::Active => "active",
        LeaseState::Failed => "failed",
        LeaseState::Returning => "returning",
    }
}

/// A heading, and what is done below it.
fn actions(heading: &str, actions: &[Action]) -> Vec<String> {
    let heading = (!actions.is_empty()).then(|| format!("{heading}:"));
    let line = |action: &Action| {
        let by = if action.by == Some(Actor::Libvirt) { "libvirt: " } else { "" };
        let role = match action.role {
            Role::Sibling => " (sibling)",
            Role::Managed | Role::Unmanaged | Role::Vf => "",
        };
        format!("  {}  {by}{}{role}", action.address, action.what)
    };
    heading.into_iter().chain(actions.iter().map(line)).collect()
}

pub(super) fn guest(guest: &GuestReport) -> Vec<String> {
    let pid = guest.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let doing = match guest.state {
        GuestState::Running => "runs",
        GuestState::Starting => "is being started",
        GuestState::ShutOff => "is shut off",
    };
    let mut lines = vec![format!("guest '{}' {doing}{pid}", guest.name)];
    if let Some(lease) = guest.lease {
        lines.push(labelled("lease", state(lease)));
    }
    if let Some(why) = &guest.attention {
        lines.push(labelled("attention", why));
    }
    if guest.is_saved {
        lines.push(labelled("saved", "`virsh start` restores it, with devices as `vfpool start` chooses them"));
    }
    if guest.devices.is_empty() && guest.at_stop.is_empty() {
        lines.push(labelled("devices", "none of PCI"));
    }
    let refusal = guest.start.as_ref().and_then(|start| start.refusal.as_deref());
    for device in &guest.devices {
        lines.extend(guest_device(device, refusal.unwrap_or_default()));
    }
    lines.extend(guest.warnings.iter().map(|warning| labelled("warning", warning)));
    if let Some(start) = &guest.start {
        lines.extend(guest_start(guest, start));
    }
    if let Some(chosen) = &guest.chosen {
        lines.extend(choice(guest, chosen));
    }
    lines.extend(actions("at its stop", &guest.at_stop));
    lines
}

/// What the refusal of the whole start says is not said twice.
fn guest_device(device: &GuestDevice, refusal: &str) -> Vec<String> {
    let pool = device.pool.as_ref().map_or_else(String::new, |pool| format!(", pool '{pool}'"));
    let managed = if device.is_managed { "" } else { ", managed='no'" };
    let standing = match device.verdict {
        Verdict::Free => "free",
        Verdict::Own => "has it",
        Verdict::Left => "not reattached yet",
        Verdict::Refused => "not free",
    };
    let line = format!("{} ({}{pool}{managed}): {standing}", device.address, device.kind);
    let mut lines = vec![labelled("device", line)];
    let is_said = |why: &str| refusal.contains(why.split(". ").next().unwrap_or_default());
    lines.extend(device.why.iter().filter(|why| !is_said(why)).map(|why| labelled("", why)));
    lines
}

fn guest_start(guest: &GuestReport, start: &Start) -> Vec<String> {
    let (name, word) = (&guest.name, shell_word(&guest.name));
    if let Some(refusal) = &start.refusal {
        return vec![format!("`virsh start {word}` would be refused:"), format!("  vfpool: guest '{name}': {refusal}")];
    }
    match steps(&format!("`virsh start {word}`"), start) {
        lines if lines.is_empty() => vec![format!("`virsh start {word}` would have nothing to do here")],
        lines => lines,
    }
}

fn choice(guest: &GuestReport, chosen: &Chosen) -> Vec<String> {
    let (name, word) = (&guest.name, shell_word(&guest.name));
    if let Some(refusal) = &chosen.refusal {
        return vec![
            format!("`vfpool start {word}` would be refused:"),
            format!("  vfpool: guest '{name}': {refusal}"),
        ];
    }
    let heading = (!chosen.devices.is_empty()).then(|| format!("`vfpool start {word}` would choose:"));
    let line = |choice: &super::Choice| format!("  {}  of pool '{}'", choice.address, choice.pool);
    heading.into_iter().chain(chosen.devices.iter().map(line)).collect()
}
