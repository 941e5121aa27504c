//! The operations of libvirt's qemu hook.
//! Source: libvirt `docs/hooks.rst`.

/// What libvirt tells its hook about a guest, by the hook's second argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A start begins; libvirt has not touched any device yet.
    Prepare,
    /// QEMU is about to run.
    Start,
    /// The guest runs.
    Started,
    /// QEMU has ended.
    Stopped,
    /// libvirt has done its part of a stop.
    Release,
    /// A guest comes from another host.
    Migrate,
    /// A guest is restored from a file.
    Restore,
    /// A new libvirtd has found the guest running.
    Reconnect,
    /// A new libvirtd has attached to a QEMU of another tool.
    Attach,
    /// Any other, which is ignored.
    Other,
}

impl Operation {
    /// The operation of this name.
    pub fn of(name: &str) -> Self {
        match name {
            "prepare" => Self::Prepare,
            "start" => Self::Start,
            "started" => Self::Started,
            "stopped" => Self::Stopped,
            "release" => Self::Release,
            "migrate" => Self::Migrate,
            "restore" => Self::Restore,
            "reconnect" => Self::Reconnect,
            "attach" => Self::Attach,
            _ => Self::Other,
        }
    }

    /// Whether libvirt asks for permission, and a failure of ours does no damage.
    pub fn may_refuse(self) -> bool {
        matches!(self, Self::Prepare | Self::Start) || self.is_filter()
    }

    /// Whether libvirt takes what the hook prints for the guest's XML.
    pub fn is_filter(self) -> bool {
        matches!(self, Self::Migrate | Self::Restore)
    }

    /// Whether the exit status of another hook is passed on to libvirt. A failing `reconnect` would kill the running
    /// guest.
    pub fn passes_failure_on(self) -> bool {
        self.may_refuse() || matches!(self, Self::Started | Self::Attach)
    }
}
