# A VF as an interface (with its MAC address), an NVMe controller as a disk and as a hostdev: each starts and returns to its driver; a VF has no sibling.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

set_vfs 01:00.0 2
ip link set "$(netdev_of 01:00.0)" up
wait_until 10 test -e "$pci/0000:01:10.2/driver"
before=$(snapshot_drivers)
define_guest interface "<interface type='hostdev' managed='yes'><mac address='52:54:00:6d:90:02'/><source><address type='pci' domain='0x0000' bus='0x01' slot='0x10' function='0x2'/></source></interface>"
if has_nvme_disks; then define_guest disk "$(nvme_disk 06:00.0 no)"; else define_guest disk "$(hostdev 06:00.0 no)"; fi
define_guest vf "$(hostdev 01:10.0 no)"
for guest in interface disk vf; do
    start $guest
done
expect_driver 01:10.2 vfio-pci
expect_driver 06:00.0 vfio-pci
expect_driver 01:10.0 vfio-pci
expect_output '52:54:00:6d:90:02' ip link show "$(netdev_of 01:00.0)"
for guest in interface disk vf; do
    stop $guest
    remove_guest $guest
done
[[ $(snapshot_drivers) == "$before" ]] || fail "after the stop: $(diff <(echo "$before") <(snapshot_drivers))"
ip link set "$(netdev_of 01:00.0)" down
set_vfs 01:00.0 0
