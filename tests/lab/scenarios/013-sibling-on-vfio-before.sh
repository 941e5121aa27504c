# A sibling that was on vfio-pci, or on no driver, before the start is in the same state after the stop.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

modprobe vfio-pci
define_guest demo "$(hostdev 02:00.0)"
for before in vfio-pci none; do
    bind 02:00.1 "$before"
    start demo
    expect_driver 02:00.1 vfio-pci
    stop demo
    expect_driver 02:00.0 e1000e
    expect_driver 02:00.1 "$before"
done
bind 02:00.1 e1000e
remove_guest demo
