# A pool and a libvirt hostdev network on the same PF: a VF that one of them uses is refused to the other.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
virsh -q net-define /dev/stdin <<<"<network><name>beside</name><forward mode='hostdev' managed='yes'><pf dev='$(netdev_of 01:00.0)'/></forward></network>"
virsh -q net-start beside
for guest in net1 net2; do define_guest $guest "<interface type='network'><source network='beside'/></interface>"; done
adopted_guests 2 passthrough 01:10.0
wait_until 30 are_parked 2

# The network chooses the first VF, where g1 is parked.
[[ $(parked_at g1) == 0000:01:10.0 ]] || fail "g1 is parked at $(parked_at g1)"
start net1
[[ $(devices_of net1) == 0000:01:10.0 ]] || fail "net1 has $(devices_of net1)"
moved() { [[ $(parked_at g1) != 0000:01:10.0 ]]; }
wait_until 20 moved
start g1
start g2
expect_no_sharing

# The network knows its own guests only. It chooses the second VF, which a guest of the pool has, and libvirt refuses it.
expect_fails 'PCI device 0000:01:10.2 is in use by driver QEMU, domain g' virsh start net2
expect_no_sharing
for guest in g1 g2 net1; do stop $guest; done
start net2
stop net2
remove_all_guests
virsh -q net-destroy beside
virsh -q net-undefine beside
remove_pools
