# The guide's case: a guest with 02:00.0 starts although 02:00.1 of the same group is on its host driver; both return to it after the stop.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest demo "$(hostdev 02:00.0)"
for _ in 1 2; do
    start demo
    expect_driver 02:00.0 vfio-pci
    expect_driver 02:00.1 vfio-pci
    expect_output '8086:10d3' virsh qemu-monitor-command demo --hmp 'info pci'
    expect_output "leased to demo (sibling, was on e1000e)" vfpool list --groups
    stop demo
    expect_driver 02:00.0 e1000e
    expect_driver 02:00.1 e1000e
done
expect_lines() {
    local found
    found=$(logged "$2" | wc -l)
    [[ $found == "$1" ]] || fail "log lines '$2': expected $1, found $found"
}
expect_lines 2 "0000:02:00.1: e1000e -> vfio-pci (sibling, guest 'demo')"
expect_lines 2 "0000:02:00.1: vfio-pci -> e1000e (reattached, guest 'demo')"
remove_guest demo
