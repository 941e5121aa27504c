# A guest dies while libvirtd is down: when libvirtd is back, or before by `vfpool reconcile`, its devices go back.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

# Until its last thread has let go of the devices.
kill_qemu() {
    local pid
    pid=$(</run/libvirt/qemu/demo.pid)
    kill -KILL "$pid"
    wait_until 10 eval "! kill -0 $pid"
}

define_guest demo "$(hostdev 02:00.0)"
start demo
systemctl stop --quiet libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd
kill_qemu
vfpool reconcile
expect_driver 02:00.1 e1000e
systemctl start libvirtd.socket libvirtd
wait_for_libvirtd
wait_until 30 eval '[[ $(driver_of 02:00.0) == e1000e ]]'

start demo
systemctl stop --quiet libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd
kill_qemu
systemctl start libvirtd.socket libvirtd
wait_for_libvirtd
wait_until 30 eval '[[ $(driver_of 02:00.1) == e1000e && $(driver_of 02:00.0) == e1000e ]]'
expect_state demo 'shut off'
systemctl start libvirtd-ro.socket libvirtd-admin.socket
remove_guest demo
