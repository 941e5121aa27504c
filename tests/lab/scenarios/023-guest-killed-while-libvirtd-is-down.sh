# A guest is killed while libvirtd is down: its devices are reattached when libvirtd is back, or earlier by `vfpool reconcile`.
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

# Returns when its last thread has closed the devices.
kill_qemu() {
    local pid
    pid=$(</run/libvirt/qemu/demo.pid)
    kill -KILL "$pid"
    wait_until 10 eval "! kill -0 $pid"
}

define_guest demo "$(hostdev 02:00.0)"
start demo
stop_libvirtd
kill_qemu
vfpool reconcile
expect_driver 02:00.1 e1000e
start_libvirtd
wait_until 30 eval '[[ $(driver_of 02:00.0) == e1000e ]]'

start demo
stop_libvirtd
kill_qemu
start_libvirtd
wait_until 30 eval '[[ $(driver_of 02:00.1) == e1000e && $(driver_of 02:00.0) == e1000e ]]'
expect_state demo 'shut off'
remove_guest demo
