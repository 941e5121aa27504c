# libvirtd is killed while a guest runs: the guest keeps running, even if the leases were lost, and its devices are reattached when it stops.
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest demo "$(hostdev 02:00.0)"
define_guest other "$(hostdev 02:00.1)"
restart_libvirtd() {
    kill_libvirtd
    expect_state demo running
}
start demo
restart_libvirtd
expect_fails "guest 'demo' has" virsh start other
stop demo
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e

start demo
rm -r /run/vfpool
restart_libvirtd
expect_output 'learned from the running guest' logged 02:00.1
expect_fails "guest 'demo' has" virsh start other
stop demo
# Its original driver was recorded in the lost lease: it stays on vfio-pci, and the log said so.
expect_driver 02:00.1 vfio-pci
bind 02:00.1 e1000e
remove_guest demo
remove_guest other
systemd-tmpfiles --create vfpool.conf
