# setup warns about a libvirt hostdev network on the PF of a pool; the network's XML is accepted as a pool file.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'remove_pools 01:00.0' EXIT

pf=$(netdev_of 01:00.0)
virsh -q net-define /dev/stdin <<<"<network><name>passthrough</name><forward mode='hostdev' managed='yes'><pf dev='$pf'/></forward></network>"
virsh net-dumpxml passthrough >/etc/vfpool/pools.d/net.xml
expect_output "warning: libvirt's network 'passthrough' and pool 'passthrough' both have VFs of the PF $pf" vfpool setup
expect_ready 01:00.0 7
# A running network is shown with its VFs.
virsh -q net-start passthrough
virsh net-dumpxml passthrough >/etc/vfpool/pools.d/net.xml
virsh -q net-destroy passthrough
virsh -q net-undefine passthrough
output=$(vfpool setup 2>&1)
[[ -z $output ]] || fail "setup: expected no output, found: $output"
