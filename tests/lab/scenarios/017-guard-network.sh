# The host keeps its network: a start that would detach the NIC of the default route, of a bridge, of a VLAN or of an address is refused, unless the NIC is allowed.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

before=$(snapshot_drivers)
define_guest demo "$(hostdev 07:00.1)"
expect_fails 'it carries the default route' virsh start demo
define_guest itself "$(hostdev 07:00.0)"
expect_fails 'it carries the default route' virsh start itself
define_guest other "$(hostdev 02:00.0)"
nic=$(netdev_of 02:00.1)

ip link add br9 type bridge
ip link set "$nic" master br9
expect_fails "$nic belongs to br9" virsh start other
ip link delete br9

ip link add link "$nic" name vlan9 type vlan id 9
expect_fails "$nic belongs to vlan9" virsh start other
ip link delete vlan9

ip address add 192.0.2.1/32 dev "$nic"
ip link set "$nic" up
expect_fails "Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0): $nic is up and has the address 192.0.2.1" virsh start other
[[ $(snapshot_drivers) == "$before" ]] || fail "a refused start changed something"

echo "<host><allow address='02:00.1'/></host>" >/etc/vfpool/host.xml
start other
expect_driver 02:00.1 vfio-pci
stop other
rm /etc/vfpool/host.xml
remove_guest demo
remove_guest itself
remove_guest other
