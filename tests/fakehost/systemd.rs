//! The host's systemctl: units as files of properties, shown as two versions of systemd show them.

use crate::Host;

/// A version of systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Systemd {
    /// RHEL 7's. It has no `StateChangeTimestamp`, and `show -p` ends at the first unit that lacks a property.
    /// Source: systemd v219 `src/systemctl/systemctl.c`, `show_one`; seen with 219 as PID 1.
    V219,
    /// Shows of each unit the properties that it has.
    Later,
}

impl Host {
    /// Installs a systemctl that knows `show` and `reload`.
    pub fn systemctl(&self, version: Systemd) {
        let root = self.path("systemd");
        let root = root.display();
        let stops = if version == Systemd::V219 { "exit 0" } else { ":" };
        let change = if version == Systemd::V219 { "" } else { "; echo \"StateChangeTimestamp=$now\"" };
        self.program(
            "systemctl",
            &format!(
                r#"
verb=$1; shift
names=
units=
while [ $# -gt 0 ]; do
    case $1 in -p) names="$names $2"; shift ;; *) units="$units $1" ;; esac
    shift
done
now=$(date -u '+%a %Y-%m-%d %H:%M:%S UTC')
for unit in $units; do
    file={root}/$unit
    case $verb in
    show)
        [ -z "$shown" ] || echo
        shown=yes
        [ -e "$file" ] || {{ echo "Id=$unit"; echo ActiveState=inactive; continue; }}
        [ -n "$names" ] || cat "$file"
        for name in $names; do grep "^$name=" "$file" || {stops}; done ;;
    reload)
        file=$file.service
        {{ grep -v -e ^ExecReload= -e ^StateChangeTimestamp= "$file"
           echo "ExecReload={{ path=/bin/kill ; start_time=[$now] ; stop_time=[n/a] ; pid=0 }}"{change}; }} >"$file.new"
        mv "$file.new" "$file" ;;
    *) exit 1 ;;
    esac
done"#
            ),
        );
    }

    /// Adds a unit with these properties beside its name.
    pub fn unit(&self, name: &str, properties: &[&str]) {
        self.put(&format!("systemd/{name}"), format!("Id={name}\n{}\n", properties.join("\n")));
    }
}
