# vfpool check finds faults in pools, PFs, VFs, groups and networks; each remedy that is a command works.
# deadline: 600
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
# found fails with the check.
finding() { found "$@" || true; }
trap 'rm -f /etc/vfpool/host.xml; [[ $(driver_of 01:00.0) == igb ]] || bind 01:00.0 igb; remove_pools 01:00.0 03:00.0' EXIT

pf=$(netdev_of 01:00.0)
virsh -q list
reload_libvirtd

# VFs not created yet, then too few, then on another driver; a PF that is down.
ip link set "$pf" down
pool net "<pf dev='$pf' vfs='4'/>"
[[ -n $(finding pf "PF 0000:01:00.0 is down ($pf)") ]] || fail "PF down: $(vfpool check)"
cure failure vfs 'has 0 VFs'
expect_gone pf 'is down'
expect_ready 01:00.0 4
pool net "<pf dev='$pf'  vfs='7'/>"
cure failure vfs 'has 4 VFs'
expect_ready 01:00.0 7
pool net "<pf dev='$pf' vfs='6'/>"
cure warning vfs 'has 7 VFs'
bind 01:10.2 igbvf
cure warning vfs '1 of the 6 VFs of PF 0000:01:00.0 are not on vfio-pci; 0000:01:10.2 is on igbvf'
ip link set "$pf" down
cure failure pf 'is down'
# Without a driver the PF has no interface to name it by.
pool net "<pf address='01:00.0' vfs='6'/>"
bind 01:00.0 none
cure failure pf 'is on no driver'
pool net "<pf dev='$pf' vfs='70'/>"
[[ -n $(finding vfs 'cannot have 70 VFs') ]] || fail "70 VFs: $(vfpool check)"
pool net "<pf dev='$pf'/>"
vfpool setup
expect_ready_host

# A network of libvirt with the same VFs, stopped and running.
define() { virsh -q net-define /dev/stdin <<<"<network><name>old net</name><forward mode='hostdev' managed='yes'><pf dev='$pf'/></forward></network>"; }
define
cure warning network "libvirt's network 'old net' and pool 'net' both have VFs of the PF $pf"
define
virsh -q net-start 'old net'
cure warning network "'old net'"
[[ -z $(virsh -q net-list --all | grep 'old net') ]] || fail "the network is still there"

# Invalid files and lines, one at a time.
pool other "<pf address='01:00.0'/>"
[[ -n $(finding pool "Cannot use <pf address='01:00.0'> in /etc/vfpool/pools.d/other.xml line 4") ]] || fail "overlap: $(vfpool check)"
pool other "<pf dev='eth77'/>" "<pf address='02:00.0'/>" "<pf address='01:10.0'/>"
for why in 'there is no network interface eth77' '0000:02:00.0 has no SR-IOV' '0000:01:10.0 is itself a VF'; do
    [[ $(finding pool "$why" | jq -r .state) == failure ]] || fail "$why: $(vfpool check)"
done
echo '<pool' >/etc/vfpool/pools.d/other.xml
[[ -n $(finding pool 'Cannot use /etc/vfpool/pools.d/other.xml: it is no XML at line 1') ]] || fail "no XML: $(vfpool check)"
rm /etc/vfpool/pools.d/other.xml
echo '<host><alow/></host>' >/etc/vfpool/host.xml
[[ -n $(finding settings 'Cannot use /etc/vfpool/host.xml') ]] || fail "settings: $(vfpool check)"
rm /etc/vfpool/host.xml
expect_ready_host

# PF and VFs in one group: no guest can have a VF. Two functions in one group: one guest can have them.
pool single "<pf address='03:00.0' vfs='2'/>"
vfpool setup 03:00.0
[[ $(finding group 'No guest can have 0000:03:10.0 and 1 more of pool '\''single'\'': 0000:03:10.0 cannot be assigned to a guest: its PF 0000:03:00.0 is detached with it' | jq -r .state) == failure ]] ||
    fail "PF and VFs in one group: $(vfpool check)"
set_vfs 03:00.0 0
function_at() { echo "<address type='pci' domain='0' bus='0x${1%%:*}' slot='0x0' function='0x${1#*.}'/>"; }
pool single "$(function_at 02:00.0)" "$(function_at 02:00.1)"
[[ $(finding group "Pool 'single' can serve one guest only at a time: its 2 devices share 1 IOMMU group" | jq -r .state) == warning ]] ||
    fail "two functions in one group: $(vfpool check)"
status=0
vfpool check >/dev/null || status=$?
[[ $status == 3 ]] || fail "warnings only: expected exit 3, found $status"
# A sibling that the host needs.
pool single "$(function_at 07:00.1)"
[[ $(finding group 'No guest can have 0000:07:00.1' | jq -r .what) == *'Cannot detach 0000:07:00.0 (sibling of 0000:07:00.1): it carries the default route'* ]] ||
    fail "sibling: $(vfpool check)"
rm /etc/vfpool/pools.d/single.xml
expect_ready_host
