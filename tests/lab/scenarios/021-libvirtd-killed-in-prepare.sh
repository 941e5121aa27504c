# libvirtd is killed while the hook runs prepare: the guest's next start, another guest's start, or `vfpool reconcile` restores the host.
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

trap 'restore_hook; start_watching' EXIT
# Otherwise a run of the reconciler may reattach the sibling before the event that is tested here.
stop_watching
hold_prepare
define_guest demo "$(hostdev 02:00.0)"
define_guest other "$(hostdev 02:00.1)"

# Returns when another libvirtd runs, the guest is off, and its sibling is still detached.
kill_in_prepare() {
    start_held demo
    kill_libvirtd
    wait_until 30 eval '! pgrep -f "hooks/qemu demo prepare"'
    expect_state demo 'shut off'
    expect_driver 02:00.1 vfio-pci
}

kill_in_prepare
start demo
stop demo
expect_driver 02:00.1 e1000e

kill_in_prepare
start other
expect_output "guest 'demo' is no longer running" logged demo
stop other
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e

kill_in_prepare
vfpool reconcile
expect_driver 02:00.1 e1000e

remove_guest demo
remove_guest other
