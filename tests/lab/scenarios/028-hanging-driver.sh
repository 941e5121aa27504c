# A driver hangs in the kernel: the start fails at its deadline, guests of other groups are not delayed, and later all devices are reattached.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

# The hook's child that writes to sysfs is held in write(2), as a hanging driver would hold it.
replace_hook <<'END'
#!/bin/bash
[[ $1 == slow && $2 == prepare ]] || exec /usr/sbin/vfpool-hook "$@"
exec strace -f -qq -o /dev/null -P /sys/bus/pci/drivers/e1000e/unbind -e inject=write:delay_enter=25000000 /usr/sbin/vfpool-hook "$@"
END
echo "<host><deadline seconds='15'/></host>" >/etc/vfpool/host.xml
define_guest slow "$(hostdev 02:00.0)"
define_guest fast "$(hostdev 05:01.0)"
virsh start slow >/run/lab/slow 2>&1 &
wait_until 30 grep -q . /run/vfpool/leases/slow
began=$SECONDS
start fast
stop fast
jobs -r | grep -q slow || fail "the slow start should still be running ($((SECONDS - began)) s)"
wait || true
expect_output 'the kernel has not come back from it for 15 s' cat /run/lab/slow
restore_hook
rm /etc/vfpool/host.xml
# The next event of any guest reattaches what hung.
wait_until 60 eval '! pgrep -x vfpool-hook'
start fast
stop fast
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
remove_guest slow
remove_guest fast
