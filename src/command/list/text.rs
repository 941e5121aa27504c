//! The list for people, and as JSON.
//!
//! A name may hold anything; here, too, it must not make lines or control sequences of its own. Colours are always
//! written; the owner of the stream removes them where it is not a terminal.

use super::{DeviceState, DeviceView, GroupView, Listing, PfView, PoolView, STATES};
use anstyle::{AnsiColor, Style};
use model::error::{Error, Result};
use model::lease::{LeaseState, Role};
use model::text::{count, one_line};
use std::fmt::{self, Display, Formatter, Write};

/// Columns of the narrowest terminal.
const WIDTH: usize = 80;

const HEADING: Style = Style::new().bold();

/// The tree: pool, PF, VF, guest; or with groups: group, device, guest.
impl Display for Listing {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match &self.groups {
            Some(groups) => show_groups(groups, out)?,
            None => self.show_pools(out)?,
        }
        for attention in &self.attention {
            let style = colour(AnsiColor::Red);
            let name = one_line(&attention.guest);
            fold(out, &format!("{name}  "), 4, style, &format!("needs attention: {}", one_line(&attention.why)))?;
        }
        Ok(())
    }
}

impl Listing {
    fn show_pools(&self, out: &mut dyn Write) -> fmt::Result {
        if self.pools.is_empty() && self.others.is_empty() {
            return writeln!(out, "No pool in /etc/vfpool/pools.d, and no guest holds a device.");
        }
        for pool in &self.pools {
            pool.show(out)?;
        }
        if !self.others.is_empty() {
            writeln!(out, "{HEADING}in no pool{HEADING:#}")?;
            for device in &self.others {
                device.show(2, out)?;
            }
        }
        Ok(())
    }

    /// All of it for programs.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n").map_err(|cause| Error::new(format!("Cannot write the list: {cause}")))
    }
}

fn show_groups(groups: &[GroupView], out: &mut dyn Write) -> fmt::Result {
    if groups.is_empty() {
        return writeln!(out, "No PCI device.");
    }
    for GroupView { group, devices } in groups {
        match group {
            Some(group) => writeln!(out, "{HEADING}group {group}{HEADING:#}")?,
            None => writeln!(out, "{HEADING}no IOMMU group{HEADING:#}")?,
        }
        for device in devices {
            device.show_in_group(out)?;
        }
    }
    Ok(())
}

impl PoolView {
    fn show(&self, out: &mut dyn Write) -> fmt::Result {
        let counts = self.count();
        let mut parts = vec![count(counts.values().sum(), "device")];
        for state in STATES {
            match counts.get(state) {
                Some(0) | None => {}
                Some(1) if state == "attention" => parts.push("1 needs attention".to_owned()),
                Some(number) if state == "attention" => parts.push(format!("{number} need attention")),
                Some(number) => parts.push(format!("{number} {}", state.replace('-', " "))),
            }
        }
        let heading = format!("{HEADING}{}{HEADING:#}: ", one_line(&self.name));
        fold(out, &heading, 4, Style::new(), &parts.join(", "))?;
        for pf in &self.pfs {
            pf.show(out)?;
            for device in &pf.devices {
                device.show(4, out)?;
            }
        }
        for device in &self.devices {
            device.show(2, out)?;
        }
        Ok(())
    }
}

impl PfView {
    fn show(&self, out: &mut dyn Write) -> fmt::Result {
        let Some(address) = self.address else {
            let front = Columns { indent: 2, name: &one_line(&self.name), driver: None, group: Some("") };
            let missing =
                if self.missing > 1 { format!("missing, with its {} VFs", self.missing) } else { "missing".into() };
            return fold(out, &front.to_string(), STATE, colour(AnsiColor::Red), &missing);
        };
        let group = group(self.found.iommu_group);
        let front = Columns { indent: 2, name: &address, driver: self.found.driver.as_deref(), group: Some(&group) };
        let there = self.devices.len() as u64;
        let vfs = match self.missing {
            0 => count(there, "VF"),
            missing => format!("{there} of {} VFs", there + u64::from(missing)),
        };
        let netdev = self.netdev.as_ref().map_or_else(String::new, |netdev| format!("{}, ", one_line(netdev)));
        let guest = self.guest.as_ref().map_or_else(String::new, |guest| format!(", leased to {}", one_line(guest)));
        let text = format!("{netdev}{vfs}{}{guest}", numa(self.found.numa_node));
        let style = if self.missing > 0 { colour(AnsiColor::Red) } else { Style::new() };
        fold(out, &front.to_string(), STATE, style, &text)
    }
}

impl DeviceView {
    fn show(&self, indent: usize, out: &mut dyn Write) -> fmt::Result {
        let group = group(self.found.iommu_group);
        let front = Columns { indent, name: &self.address, driver: self.found.driver.as_deref(), group: Some(&group) };
        // A VF is where its PF is.
        let numa = if indent == 2 { numa(self.found.numa_node) } else { String::new() };
        fold(out, &front.to_string(), STATE, self.state.style(), &format!("{}{numa}", self.state))
    }

    fn show_in_group(&self, out: &mut dyn Write) -> fmt::Result {
        let front = Columns { indent: 2, name: &self.address, driver: self.found.driver.as_deref(), group: None };
        let pool = self.pool.as_ref().map_or_else(String::new, |pool| format!(", pool {}", one_line(pool)));
        let text = format!("{}{pool}{}", self.state, numa(self.found.numa_node));
        fold(out, &front.to_string(), STATE - GROUP - 2, self.state.style(), &text)
    }
}

fn group(group: Option<u32>) -> String {
    group.map_or_else(|| "no group".to_owned(), |group| format!("group {group}"))
}

fn numa(node: Option<u32>) -> String {
    node.map_or_else(String::new, |node| format!(", NUMA node {node}"))
}

/// The columns before the state.
struct Columns<'a> {
    indent: usize,
    name: &'a dyn Display,
    driver: Option<&'a str>,
    group: Option<&'a str>,
}

const NAME: usize = 16;
const DRIVER: usize = 10;
const GROUP: usize = 9;
/// Where the state stands.
const STATE: usize = NAME + 2 + DRIVER + 2 + GROUP + 2;

impl Display for Columns<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = format!("{:indent$}{}", "", self.name, indent = self.indent);
        let driver = self.driver.map_or_else(|| "-".to_owned(), one_line);
        write!(f, "{name:NAME$}  {driver:DRIVER$}  ")?;
        self.group.map_or(Ok(()), |group| write!(f, "{group:GROUP$}  "))
    }
}

impl DeviceState {
    fn style(&self) -> Style {
        match self {
            Self::Free | Self::Parked { .. } => colour(AnsiColor::Green),
            Self::Leased { .. } => colour(AnsiColor::Cyan),
            Self::InUse { .. } => colour(AnsiColor::Yellow),
            Self::Missing { .. } | Self::Attention { .. } => colour(AnsiColor::Red),
            Self::Bridge => Style::new(),
        }
    }
}

const fn colour(colour: AnsiColor) -> Style {
    colour.on_default()
}

impl Display for DeviceState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            Self::Parked { guests } => {
                let guests: Vec<String> = guests.iter().map(|guest| one_line(guest)).collect();
                write!(f, "parked by {}", guests.join(", "))
            }
            Self::Leased { guest, role, lease, was_on } => {
                let mut more = Vec::new();
                match role {
                    Some(Role::Managed | Role::Unmanaged) => {}
                    Some(Role::Sibling) => more.push("sibling".to_owned()),
                    Some(Role::Vf) => more.push("went with its PF".to_owned()),
                    None => more.push("its group".to_owned()),
                }
                more.extend(lease.filter(|lease| *lease != LeaseState::Active).map(|lease| lease.to_string()));
                more.extend(was_on.iter().map(|driver| format!("was on {}", one_line(driver))));
                let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
                write!(f, "leased to {}{more}", one_line(guest))
            }
            Self::InUse { by } => write!(f, "in use: {}", one_line(by)),
            Self::Missing { .. } => f.write_str("missing"),
            Self::Attention { why, .. } => write!(f, "needs attention: {}", one_line(why)),
            Self::Bridge => f.write_str("bridge"),
        }
    }
}

/// Writes a text behind `front`, from column `indent` on, and on as many lines as it needs to stay within [`WIDTH`].
fn fold(out: &mut dyn Write, front: &str, indent: usize, style: Style, text: &str) -> fmt::Result {
    let mut column = anstream::adapter::strip_str(front).to_string().chars().count();
    write!(out, "{front}")?;
    let mut line = String::new();
    let flush = |line: &mut String, out: &mut dyn Write| {
        let line = std::mem::take(line);
        if line.is_empty() { Ok(()) } else { write!(out, "{style}{line}{style:#}") }
    };
    for word in text.split(' ') {
        let length = word.chars().count();
        let blank = usize::from(!line.is_empty());
        if column + blank + length <= WIDTH {
            if blank == 1 {
                line.push(' ');
            }
            line.push_str(word);
            column += blank + length;
            continue;
        }
        if !line.is_empty() {
            flush(&mut line, out)?;
            write!(out, "\n{:indent$}", "")?;
            column = indent;
        }
        // One that is longer than a line.
        for character in word.chars() {
            if column == WIDTH {
                flush(&mut line, out)?;
                write!(out, "\n{:indent$}", "")?;
                column = indent;
            }
            line.push(character);
            column += 1;
        }
    }
    flush(&mut line, out)?;
    writeln!(out)
}
