# With managed='no' the device itself is detached before the start and reattached after the stop, without virsh nodedev-*.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest demo "$(hostdev 02:00.0 no)"
expect_fails 'Failed to start' without_hook virsh start demo
start demo
expect_driver 02:00.0 vfio-pci
expect_driver 02:00.1 vfio-pci
stop demo
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
remove_guest demo
