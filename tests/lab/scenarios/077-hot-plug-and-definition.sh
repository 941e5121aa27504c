# Hot-plug with --config: the guest and its definition get the same device, which is pooled from the next start on; siblings are detached with it.
# deadline: 400
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
define_hot_plug_guest g1
start g1
sleep 2
vfpool attach g1 passthrough --live --config --rom-off
vf=$(devices_of g1)
[[ $(devices_of g1 --inactive) == "$vf" ]] || fail "the definition has $(devices_of g1 --inactive), expected $vf"
for view in '' --inactive; do
    xml=$(virsh dumpxml g1 $view)
    [[ $xml == *"<rom bar='off'/>"* && $xml == *'vfpool:device pool="passthrough"'* ]] || fail "dumpxml $view: $xml"
done
at() { virsh dumpxml g1 "$@" | xmllint --xpath 'string(//hostdev/address/@slot)' -; }
[[ $(at) == "$(at --inactive)" ]] || fail "in the guest at $(at), by its definition at $(at --inactive)"

# Stopped, and started with another VF because its own is in use.
stop g1
[[ ! -e $leases/g1 ]] || fail "the lease of g1 is still there"
define_guest g2 "$(hostdev "$vf")"
start g2
vfpool reconcile
start g1
[[ -n $(devices_of g1) && $(devices_of g1) != "$vf" ]] || fail "g1 has '$(devices_of g1)'"
sleep 2
vfpool detach g1 passthrough --live --config --force >/run/lab/detach 2>&1 &
detach=$!
wait_until 20 guest_is_asked g1
guest_lets_go g1
wait $detach || fail "detach: $(</run/lab/detach)"
[[ -z $(devices_of g1)$(devices_of g1 --inactive) ]] || fail "g1 still has a device"
[[ $(virsh dumpxml g1)$(virsh dumpxml g1 --inactive) != *vfpool:device* ]] || fail "g1 still asks for a device"

# A function whose sibling has a host driver.
pool nics "<address type='pci' domain='0' bus='0x02' slot='0' function='0'/>"
expect_driver 02:00.1 e1000e
vfpool attach g1 nics --live
expect_driver 02:00.0 vfio-pci
expect_driver 02:00.1 vfio-pci
vfpool detach g1 nics --live --force >/run/lab/detach 2>&1 &
detach=$!
wait_until 20 guest_is_asked g1
guest_lets_go g1
wait $detach || fail "detach: $(</run/lab/detach)"
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
[[ ! -e $leases/g1 ]] || fail "the lease of g1 is still there"
vfpool attach g1 nics --live
stop g1
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
remove_all_guests
remove_pools
