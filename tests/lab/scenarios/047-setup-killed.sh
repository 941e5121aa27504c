# setup is killed while the kernel removes VFs: guests of other devices start and stop meanwhile, and the next setup creates the VFs.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'remove_all_guests; remove_pools' EXIT

define_passthrough
define_guest demo "$(hostdev 02:00.0)"
define_guest other "$(hostdev 05:01.0)"
start other
pool passthrough "<pf dev='$(netdev_of 01:00.0)' vfs='3'/>"
# The child that writes is held in write(2), as by a kernel that takes long.
strace -f -qq -o /dev/null -P /sys/bus/pci/devices/0000:01:00.0/sriov_numvfs -P "$(readlink -f $pci/0000:01:00.0)/sriov_numvfs" \
    -e inject=write:delay_enter=40000000 vfpool setup >/run/lab/setup 2>&1 &
tracer=$!
writer() { pgrep -P "$(pgrep -P $tracer)"; }
# Other writes end at once.
is_held() { local pid; pid=$(writer) && sleep 1 && [[ $(writer) == "$pid" ]]; }
wait_until 20 is_held
child=$(writer)
kill -KILL "$(pgrep -P $tracer)"
began=$SECONDS
start demo
expect_driver 02:00.1 vfio-pci
stop other
expect_driver 05:02.0 e1000
stop demo
expect_driver 02:00.1 e1000e
kill -0 "$child" || fail "expected the write to hang longer than the starts ($((SECONDS - began)) s)"
wait $tracer || true
vfpool setup
expect_ready 01:00.0 3
