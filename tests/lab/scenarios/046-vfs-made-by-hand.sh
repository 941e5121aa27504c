# VFs that are created by other means are bound to vfio-pci by udev, unless the host uses them; NetworkManager ignores them.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'remove_pools 01:00.0' EXIT

pf=$(netdev_of 01:00.0)
ip link set "$pf" up
pool net "<pf dev='$pf'/>"
set_vfs 01:00.0 4
wait_until 60 is_ready 01:00.0 4
set_vfs 01:00.0 0
# While the PF is locked, vfpool does not bind its VFs.
mkdir -p /run/vfpool/pfs
exec 9>/run/vfpool/pfs/0000:01:00.0
flock 9
set_vfs 01:00.0 2
expect_driver 01:10.0 igbvf
vf=$(netdev_of 01:10.0)
udevadm info -q property "/sys/class/net/$vf" | grep -qx NM_UNMANAGED=1 || fail "$vf: expected NM_UNMANAGED=1"
! udevadm info -q property "/sys/class/net/$pf" | grep NM_UNMANAGED || fail "$pf: expected no NM_UNMANAGED"
exec 9>&-
ip addr add 192.0.2.7/24 dev "$vf"
ip link set "$vf" up
expect_output "0000:01:10.0 (pool 'net') stays with the host: $vf is up and has the address 192.0.2.7" vfpool setup
expect_driver 01:10.0 igbvf
expect_driver 01:10.2 vfio-pci
# VFs of a PF in no pool stay with the host.
set_vfs 03:00.0 2
expect_driver 03:10.0 igbvf
! udevadm info -q property "/sys/class/net/$(netdev_of 03:10.0)" | grep NM_UNMANAGED || fail "03:10.0: expected no NM_UNMANAGED"
set_vfs 03:00.0 0
