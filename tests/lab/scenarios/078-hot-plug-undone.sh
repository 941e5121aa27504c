# A hot-plug that libvirt refuses is undone; after one that was killed, lease and guest agree again; a stuck device is reattached by `vfpool release`.
# deadline: 500
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
pool nics "<address type='pci' domain='0' bus='0x02' slot='0' function='0'/>"

# A guest without ACPI has no hot-plug.
define_guest g1
start g1
expect_fails 'does not support hotplugging' vfpool attach g1 nics --live --config
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
[[ ! -e $leases/g1 && -z $(devices_of g1 --inactive) ]] || fail "something of the hot-plug is left"
remove_guest g1

# Killed as soon as the lease exists: whatever libvirt then does, lease and guest agree after the next reconcile.
define_hot_plug_guest g1
start g1
sleep 2
for round in 1 2 3; do
    vfpool attach g1 passthrough --live >/dev/null 2>&1 &
    attach=$!
    until [[ -n $(find /run/vfpool/claims -type l) ]] || ! kill -0 $attach 2>/dev/null; do sleep 0.0$round; done
    kill -9 $attach 2>/dev/null || true
    wait $attach 2>/dev/null || true
    sleep 3 # virsh goes on by itself
    vfpool reconcile
    has=$(devices_of g1)
    held=$(grep -o 'address="[^"]*"' "$leases/g1" 2>/dev/null | cut -d'"' -f2 | sort) || true
    [[ $has == "$held" ]] || fail "round $round: g1 has '$has', its lease '$held'"
done
stop g1
[[ ! -e $leases/g1 ]] || fail "the lease of g1 is still there"
remove_guest g1

# Stuck: a start that libvirtd never finished.
define_guest g2 "$(hostdev 02:00.0)"
/etc/libvirt/hooks/qemu g2 prepare begin - <<<"$(virsh dumpxml g2)"
expect_driver 02:00.1 vfio-pci
expect_output 'released by hand: 0000:02:00.1, 0000:02:00.0' vfpool release g2 --force
expect_driver 02:00.1 e1000e
[[ ! -e $leases/g2 ]] || fail "the lease of g2 is still there"
expect_fails "guest 'g2': it holds nothing" vfpool release g2
start g2
expect_fails 'and has its devices. Stop it first: virsh destroy' vfpool release g2 --force
stop g2
remove_all_guests
remove_pools
