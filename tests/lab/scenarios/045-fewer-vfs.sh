# The number of VFs does not change while a guest has one, and changes once the guest has stopped.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'remove_pools 01:00.0' EXIT

pool net "<pf address='01:00.0'/>"
vfpool setup
define_guest web "$(hostdev 01:10.2)"
start web
pool net "<pf address='01:00.0' vfs='3'/>"
expect_fails "Cannot bring 0000:01:00.0 from 7 to 3 VFs (<pf address='01:00.0' vfs='3'> in /etc/vfpool/pools.d/net.xml line 4): " vfpool setup
expect_fails "0000:01:10.2" vfpool setup
expect_ready 01:00.0 7
expect_state web running
stop web
vfpool setup
expect_ready 01:00.0 3
remove_guest web
pool net "<pf address='01:00.0' vfs='8'/>"
expect_fails "Cannot bring 0000:01:00.0 from 3 to 8 VFs (<pf address='01:00.0' vfs='8'> in /etc/vfpool/pools.d/net.xml line 4): it can have 7" vfpool setup
