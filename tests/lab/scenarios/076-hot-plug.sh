# A running guest gets a VF of a pool by hot-plug, and loses it when its system agrees to the unplug, or keeps it.
# deadline: 400
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
define_hot_plug_guest g1
define_guest g2 "$(hostdev 01:10.0)"
vfpool adopt g2 passthrough
wait_until 60 units_are_idle
start g1
sleep 2 # its firmware comes up

definition=$(</etc/libvirt/qemu/g1.xml)
expect_output "attached to the running guest" vfpool attach g1 passthrough --live
vf=$(devices_of g1)
[[ -n $vf && $vf != 0000:01:10.0 ]] || fail "device of g1: expected a VF that nobody is parked at, found '$vf'"
[[ $(<"$pci/$vf/enable") == 1 ]] || fail "$vf: expected to be in use by QEMU"
expect_output 8086:10ca virsh qemu-monitor-command g1 --hmp 'info pci'
expect_output "leased to g1" vfpool list
[[ $(virsh dumpxml g1) == *'vfpool:device pool="passthrough"'* ]] || fail "the request is not in the live metadata"
[[ $(</etc/libvirt/qemu/g1.xml) == "$definition" ]] || fail "the definition has changed"

# No other guest gets it, and a restart of libvirtd does not change that.
define_guest g3 "$(hostdev "$vf")"
expect_fails "$vf is not free: guest 'g1' has it" virsh start g3
systemctl restart libvirtd
vfpool reconcile
grep -q "$vf" "$leases/g1" || fail "the lease has lost $vf"

# Without a terminal there is no one to ask. A guest that does not answer in time keeps the VF.
expect_fails 'there is no terminal to ask. Use --force' vfpool detach g1 passthrough --live </dev/null
echo '<host><deadline seconds="20"/></host>' >/etc/vfpool/host.xml
expect_fails "it has not let go of $vf within 20 s" vfpool detach g1 passthrough --live --force
grep -q "$vf" "$leases/g1" || fail "the lease has lost $vf"
expect_output '' virsh dumpxml g1
[[ $(devices_of g1) == "$vf" ]] || fail "g1 has lost $vf"

# The guest answers too late, and then in time.
guest_lets_go g1
wait_until 10 eval "[[ -z \$(devices_of g1) ]]"
vfpool reconcile
[[ ! -e $leases/g1 ]] || fail "the lease of g1 is still there: $(<"$leases/g1")"
rm /etc/vfpool/host.xml
vfpool attach g1 passthrough --live --interface 52:54:00:6d:90:02
vf=$(devices_of g1)
ip link show "$(netdev_of 01:00.0)" | grep -q 52:54:00:6d:90:02 || fail "the PF does not know the MAC address"
vfpool detach g1 passthrough --live --force >/run/lab/detach 2>&1 &
detach=$!
wait_until 20 guest_is_asked g1
guest_lets_go g1
wait $detach || fail "detach: $(</run/lab/detach)"
[[ ! -e $leases/g1 ]] || fail "the lease of g1 is still there: $(<"$leases/g1")"
[[ $(virsh dumpxml g1) != *vfpool:* && -z $(devices_of g1) ]] || fail "something is left in the guest: $(virsh dumpxml g1)"
remove_all_guests
remove_pools
