# A guest named `driver` starts and stops like any other, although libvirtd's own pid is in the file that has its name; after a start that was cut off its devices are reattached.
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest driver "$(hostdev 02:00.0)"
define_guest other "$(hostdev 02:00.1)"
virsh dumpxml driver >/run/lab/driver.xml
is_back() { [[ $(driver_of 02:00.0) == e1000e && $(driver_of 02:00.1) == e1000e ]] && no_leases; }

# libvirt 6.0 and later write their pid here at each start.
systemctl restart libvirtd
wait_for_libvirtd
! libvirt_is 6.0.0 || [[ $(</run/libvirt/qemu/driver.pid) == "$(pidof libvirtd)" ]] || fail "driver.pid: expected libvirtd's pid"

# A start whose libvirtd has ended: systemd-run stands for it.
systemd-run --quiet --wait --pipe --collect /usr/sbin/vfpool-hook driver prepare begin - </run/lab/driver.xml
expect_driver 02:00.1 vfio-pci
vfpool reconcile
is_back || fail "after a start that was cut off: $(vfpool list --groups)"
start other
stop other

# By libvirt, which puts QEMU's pid into the same file.
start driver
expect_driver 02:00.1 vfio-pci
stop driver
is_back || fail "after the stop: $(vfpool list --groups)"
remove_all_guests
