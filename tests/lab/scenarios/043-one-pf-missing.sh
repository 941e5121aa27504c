# If one PF of a pool, or one pool, is broken, all others are still set up.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'remove_pools 01:00.0 06:00.0' EXIT

pool a-missing "<pf dev='nic9'/>" "<pf address='06:00.0' vfs='1'/>"
pool net "<pf dev='$(netdev_of 01:00.0)' vfs='3'/>"
echo '<pool><name>odd</name><forwrd/></pool>' >/etc/vfpool/pools.d/odd.xml
output=$(vfpool setup 2>&1) && fail "setup: expected it to fail, found: $output"
for text in "<forwrd> in /etc/vfpool/pools.d/odd.xml line 1: this element is not known here" \
    "<pf dev='nic9'> in /etc/vfpool/pools.d/a-missing.xml line 4 (pool 'a-missing'): there is no network interface nic9"; do
    [[ $output == *"$text"* ]] || fail "setup: expected '$text', found: $output"
done
expect_ready 01:00.0 3
expect_ready 06:00.0 1
