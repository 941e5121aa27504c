# vfpool dumpxml prints a network's XML as libvirt does, and it is accepted as a pool file; a device's XML can be attached with virsh.
# deadline: 300
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
file=/etc/vfpool/pools.d/passthrough.xml
trap 'virsh -q net-destroy passthrough || true; virsh -q net-undefine passthrough || true; remove_all_guests; remove_pools 01:00.0' EXIT

# The same network in libvirt and as a pool.
pf=$(netdev_of 01:00.0)
printf '%s\n' '<network>' '  <name>passthrough</name>' '  <uuid>a6b49429-d353-d7ad-3185-4451cc786437</uuid>' \
    "  <forward mode='hostdev' managed='yes'>" "    <pf dev='$pf'/>" '  </forward>' '</network>' >$file
vfpool setup >/dev/null 2>&1
udevadm settle --timeout=60
virsh -q net-define $file
virsh -q net-start passthrough
same() {
    local ours theirs
    ours=$(vfpool dumpxml passthrough | xmllint --c14n -)
    theirs=$(virsh net-dumpxml passthrough | xmllint --c14n -)
    # libvirt leaves out a count of 0.
    [[ ${ours/ connections=\"0\"/} == "$theirs" ]] || fail "$1: expected $theirs, found $ours"
}
same "no guest has a VF"
define_guest demo "<interface type='network'><source network='passthrough'/></interface>"
start demo
same "a guest has a VF"
stop demo
virsh -q net-destroy passthrough
vfpool dumpxml passthrough >/run/lab/dump.xml
cp /run/lab/dump.xml $file
[[ $(vfpool dumpxml passthrough) == "$(cat /run/lab/dump.xml)" ]] || fail "read back: found $(vfpool dumpxml passthrough)"
expect_output "passthrough: 7 devices, 7 free" vfpool list
virsh -q net-start passthrough

# Each printed element, attached for the next start and to a running guest.
define_hot_plug_guest other
for element in '' --hostdev --interface; do
    vfpool dumpxml 01:10.2 $element | virsh -q attach-device other /dev/stdin --config
    [[ $(devices_of other --inactive) == 0000:01:10.2 ]] || fail "$element: expected 0000:01:10.2, found $(devices_of other --inactive)"
    vfpool dumpxml 01:10.2 $element | virsh -q detach-device other /dev/stdin --config || virsh -q undefine other
    virsh -q dominfo other >/dev/null 2>&1 || define_hot_plug_guest other
done
start other
sleep 2 # its firmware comes up
vfpool dumpxml pci_0000_01_10_4 | virsh -q attach-device other /dev/stdin
[[ $(devices_of other) == 0000:01:10.4 ]] || fail "attached to the running guest: expected 0000:01:10.4, found $(devices_of other)"
stop other
