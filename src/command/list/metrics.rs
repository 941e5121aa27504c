//! The list for Prometheus: its text exposition format, for node_exporter's textfile collector.

use super::{Listing, STATES};
use model::lease::LeaseState;

impl Listing {
    /// The counts in Prometheus' text exposition format, for node_exporter's textfile collector.
    pub fn metrics(&self) -> String {
        let devices = self.pools.iter().flat_map(|pool| {
            let count = pool.count();
            STATES.map(|state| (format!("{{pool=\"{}\",state=\"{state}\"}}", label(&pool.name)), count[state]))
        });
        let leases = LeaseState::ALL.map(|state| {
            let leases = self.leases.iter().filter(|lease| lease.state == state);
            (format!("{{state=\"{state}\"}}"), leases.count() as u64)
        });
        let single = |value: u64| vec![(String::new(), value)];
        let metrics = [
            ("devices", "gauge", "Devices of pools by state.", devices.collect()),
            ("leases", "gauge", "Leases of guests by state.", leases.to_vec()),
            (
                "failed_reattachments",
                "gauge",
                "Guests with devices that could not be reattached to the host.",
                single(self.attention.len() as u64),
            ),
            ("lock_waits_total", "counter", "Times that a process had to wait for a lock.", single(self.lock_waits)),
            ("pool_errors", "gauge", "Files and lines of pools that cannot be used.", single(self.pool_errors as u64)),
        ];
        let blocks = metrics.map(|(name, kind, help, samples): (_, _, _, Vec<(String, u64)>)| {
            let samples = samples.iter().map(|(labels, value)| format!("vfpool_{name}{labels} {value}\n"));
            format!(
                "# HELP vfpool_{name} {help}\n# TYPE vfpool_{name} {kind}\n{}",
                samples.collect::<Vec<_>>().concat()
            )
        });
        blocks.concat()
    }
}

/// A label's value. Source: Prometheus, "Exposition formats".
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
