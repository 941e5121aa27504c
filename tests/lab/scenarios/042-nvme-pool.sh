# A PF without a network interface: NVMe controllers as VFs; the PF's own disk stays in use.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'remove_pools 06:00.0' EXIT

pool disk "<pf address='06:00.0' vfs='max'/>"
vfpool setup
expect_ready 06:00.0 4
expect_driver 06:00.0 nvme
begun=$EPOCHREALTIME
expect_output '' vfpool setup
[[ -z $(journalctl -q -o cat -t vfpool --since "@$begun") ]] || fail "the second setup: expected it to change nothing"
