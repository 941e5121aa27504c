# A guest with both functions of a group has no siblings to detach; managed and unmanaged devices may share the group.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest demo "$(hostdev 02:00.0)$(hostdev 02:00.1)"
start demo
expect_driver 02:00.0 vfio-pci
expect_driver 02:00.1 vfio-pci
stop demo
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e

remove_guest demo
define_guest demo "$(hostdev 02:00.0 no)$(hostdev 02:00.1 yes)"
start demo
stop demo
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
remove_guest demo
