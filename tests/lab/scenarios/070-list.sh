# vfpool list shows pools of NICs and NVMe, running and stopped guests, a sibling and a missing PF; also while libvirtd is stopped.
# deadline: 400
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'start_libvirtd; remove_all_guests; remove_pools 01:00.0 06:00.0' EXIT

# line ADDR TEXT [list's arguments]: the line of a device ends with TEXT.
line() {
    local found
    found=$(vfpool list "${@:3}" 2>/dev/null | grep "^ *0000:$1 ") || fail "list: expected a line for $1, found none"
    [[ $found == *"$2" ]] || fail "list: expected '$1 ... $2', found: $found"
}

[[ $(vfpool list) == "No pool in /etc/vfpool/pools.d, and no guest holds a device." ]] ||
    fail "list without pools: found $(vfpool list)"
pf=$(netdev_of 01:00.0)
pool net "<pf dev='$pf' vfs='4'/>"
pool disk "<pf address='06:00.0' vfs='2'/>"
vfpool setup
udevadm settle --timeout=60
adopted_guests 2 net 01:10.0
wait_until 60 are_parked 2
start g1
define_guest nvme "$(hostdev 06:00.1)"
start nvme
define_guest pair "$(hostdev 02:00.0)"
start pair
running=$(devices_of g1)
stopped=$(parked_at g2)
vfpool list
line "${running#*:}" "  leased to g1"
line "${stopped#*:}" "  parked by g2"
line 01:10.4 "  free"
line 01:00.0 "  $pf, 4 VFs"
line 06:00.1 "  leased to nvme"
line 06:00.2 "  free"
line 02:00.0 "  leased to pair (was on e1000e)"
line 02:00.1 "  leased to pair (sibling, was on e1000e)" --groups
line 00:04.0 "  bridge" --groups
line 07:00.0 "  in use: it carries the default route ($(netdev_of 07:00.0))" --groups
[[ -z $(vfpool list --groups | awk 'length > 80') ]] || fail "expected 80 columns, found $(vfpool list --groups)"
expect_output '"version": 1' vfpool list --json
expect_output 'vfpool_devices{pool="disk",state="leased"} 1' vfpool list --metrics
expect_output 'vfpool_leases{state="active"} 3' vfpool list --metrics

# Colours only on a terminal, and not with NO_COLOR.
escape=$'\e['
expect_output "${escape}32mfree" env TERM=xterm script -qec 'vfpool list' /dev/null
[[ $(NO_COLOR=1 TERM=xterm script -qec 'vfpool list' /dev/null) != *"$escape"* ]] || fail "NO_COLOR: expected no colours"
[[ $(vfpool list) != *"$escape"* ]] || fail "a pipe: expected no colours"
# --watch draws over the previous output, and ends with Ctrl-C.
rm -f /run/lab/watch
script -qefc 'timeout --signal=INT --foreground 30 vfpool list --watch' /run/lab/watch >/dev/null 2>&1 &
two_screens() { [[ $(grep -cF "${escape}H" /run/lab/watch) -ge 2 ]]; }
wait_until 30 two_screens
pkill -INT -f 'vfpool list --watch'
wait

# A stopped libvirtd or an invalid pool file does not hide the rest.
before=$(vfpool list)
stop_libvirtd
[[ $(vfpool list) == "$before" ]] || fail "without libvirtd: expected $before, found $(vfpool list)"
start_libvirtd
pool gone "<pf dev='nic9'/>"
expect_fails "there is no network interface nic9" vfpool list
[[ $(vfpool list 2>/dev/null) == *"gone: 1 device, 1 missing"*"nic9 "*" missing"*"leased to g1"* ]] ||
    fail "with a PF missing: found $(vfpool list 2>&1)"
expect_output 'vfpool_pool_errors 1' vfpool list --metrics
expect_fails "this needs root" runuser -u nobody -- vfpool list
