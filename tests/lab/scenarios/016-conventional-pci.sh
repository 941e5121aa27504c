# Conventional PCI behind a bridge: the other device on the bus is detached and reattached, the bridge stays on its driver.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

bridge=$(driver_of 04:00.0)
define_guest demo "$(hostdev 05:01.0)"
start demo
expect_driver 05:02.0 vfio-pci
expect_driver 04:00.0 "$bridge"
stop demo
expect_driver 05:01.0 e1000
expect_driver 05:02.0 e1000
expect_driver 04:00.0 "$bridge"
remove_guest demo
define_guest bridge "$(hostdev 04:00.0)"
expect_fails "is a bridge" virsh start bridge
remove_guest bridge
