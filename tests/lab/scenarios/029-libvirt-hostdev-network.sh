# A VF that a libvirt hostdev network chooses is known only when the start hook runs: from then on it is leased, and refused to other guests.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

pf=$(netdev_of 01:00.0)
ip link set "$pf" up
set_vfs 01:00.0 2
before=$(snapshot_drivers)
virsh -q net-define /dev/stdin <<<"<network><name>passthrough</name><forward mode='hostdev' managed='yes'><pf dev='$pf'/></forward></network>"
virsh -q net-start passthrough
define_guest demo "<interface type='network'><source network='passthrough'/></interface>"
start demo
vf=$(devices_of demo)
[[ $(vfpool list) =~ $vf\ +vfio-pci\ +group\ [0-9]+\ +leased\ to\ demo ]] || fail "expected $vf leased to demo, found $(vfpool list)"
define_guest other "$(hostdev "$vf" no)"
expect_fails "$vf is not free: guest 'demo' has it" virsh start other
stop demo
[[ $(snapshot_drivers) == "$before" ]] || fail "after the stop: $(diff <(echo "$before") <(snapshot_drivers))"
remove_all_guests
virsh -q net-destroy passthrough
virsh -q net-undefine passthrough
set_vfs 01:00.0 0
ip link set "$pf" down
