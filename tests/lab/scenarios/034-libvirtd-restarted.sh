# libvirtd is killed during a start, on a host without pools: once it runs again, the siblings are reattached without any further event.
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

trap restore_hook EXIT
hold_prepare
[[ -z $(ls /etc/vfpool/pools.d) ]] || fail "expected no pool"

define_guest demo "$(hostdev 02:00.0)"
start_held demo
expect_driver 02:00.1 vfio-pci
kill_libvirtd
expect_state demo 'shut off'
is_back() { [[ $(driver_of 02:00.0) == e1000e && $(driver_of 02:00.1) == e1000e ]] && no_leases; }
wait_until 90 is_back
remove_guest demo
