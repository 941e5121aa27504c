# Two guests need one group: the second start is refused and names the first guest, changes nothing, and works once the first guest has stopped.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest first "$(hostdev 02:00.0)"
define_guest second "$(hostdev 02:00.1)"
define_guest third "$(hostdev 02:00.0 no)"
start first
expect_fails "guest 'first' has 0000:02:00.0 of the same IOMMU group $(group_of 02:00.0)" virsh start second
expect_fails "0000:02:00.0 is not free: guest 'first' has it" virsh start third
expect_state first running
expect_driver 02:00.0 vfio-pci
expect_driver 02:00.1 vfio-pci
stop first
expect_driver 02:00.1 e1000e
start second
expect_fails "Stop 'second' first" virsh start first
stop second
remove_guest first
remove_guest second
remove_guest third
