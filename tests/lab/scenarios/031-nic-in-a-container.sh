# A NIC whose interface, or a macvlan on it, is in a container's network namespace is in use: it is not detached as a sibling, and neither setup nor udev binds such a VF.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

# The kernel moves a physical interface back to the host when its namespace ends.
remove_container() {
    ip netns delete container 2>/dev/null || true
    wait_until 20 eval '[[ $(netdev_of 02:00.1) != none ]]'
}
trap 'remove_container; ip link set "$(netdev_of 02:00.1)" down; remove_pools' EXIT

nic=$(netdev_of 02:00.1)
define_guest demo "$(hostdev 02:00.0)"
before=$(snapshot_drivers)
refused() {
    expect_fails 'Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0)' virsh start demo
    [[ $(snapshot_drivers) == "$before" ]] || fail "$1: the refused start changed $(diff <(echo "$before") <(snapshot_drivers))"
    expect_output 'would be refused' vfpool explain demo
}

# The interface itself.
ip netns add container
ip link set "$nic" netns container
refused "an interface in a container"
ip netns exec container ip link show "$nic" >/dev/null || fail "the container has lost $nic"
remove_container

# A macvlan on it. The host sees no address, and no upper interface.
nic=$(netdev_of 02:00.1)
ip netns add container
ip link set "$nic" up
ip link add link "$nic" name uplink netns container type macvlan
refused "a macvlan in a container"
ip netns exec container ip link show uplink >/dev/null || fail "the container has lost its macvlan"
remove_container
ip link set "$(netdev_of 02:00.1)" down
remove_guest demo

# A VF, on its host driver.
pf=$(netdev_of 01:00.0)
ip link set "$pf" up
set_vfs 01:00.0 2
expect_driver 01:10.0 igbvf
ip netns add container
vf=$(netdev_of 01:10.0)
ip link set "$vf" netns container
pool net "<pf dev='$pf' vfs='2'/>"
expect_output "0000:01:10.0 (pool 'net') stays with the host: " vfpool setup
expect_driver 01:10.2 vfio-pci
# As when the VF is announced again.
udevadm trigger --action=add "$pci/0000:01:10.0"
udevadm settle --timeout=60
expect_driver 01:10.0 igbvf
ip netns exec container ip link show "$vf" >/dev/null || fail "the container has lost $vf"
