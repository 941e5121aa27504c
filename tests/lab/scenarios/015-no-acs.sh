# Without ACS the port, the PF and its VFs share one group: the PF can be assigned (its VFs are removed and created again), a VF cannot, and the port stays on its driver.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

set_vfs 03:00.0 2
vfs=$(group_members 03:00.0 | grep -v -e 00:04.0 -e 03:00.0)
[[ $(wc -w <<<"$vfs") == 2 ]] || fail "expected two VFs in the group of 03:00.0, found: $vfs"
before=$(snapshot_drivers)
define_guest vf "$(hostdev "$(head -n 1 <<<"$vfs")")"
expect_fails "its PF 0000:03:00.0 is detached with it" virsh start vf
[[ $(snapshot_drivers) == "$before" ]] || fail "the refused start changed something"

define_guest pf "$(hostdev 03:00.0)"
start pf
expect_driver 03:00.0 vfio-pci
expect_driver 00:04.0 pcieport
for vf in $vfs; do
    [[ ! -e $pci/$vf ]] || fail "expected $vf to be removed with its PF"
done
stop pf
expect_driver 03:00.0 igb
[[ $(snapshot_drivers) == "$before" ]] || fail "after the stop: $(diff <(echo "$before") <(snapshot_drivers))"
remove_guest vf
remove_guest pf
set_vfs 03:00.0 0
