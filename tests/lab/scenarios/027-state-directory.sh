# The state directory is missing, read-only, full or corrupt: the start is refused or the problem is logged, other guests keep working, and no device stays detached.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

state=/run/vfpool
define_guest demo "$(hostdev 02:00.0)"
define_guest other "$(hostdev 05:01.0)"
define_guest plain
before=$(snapshot_drivers)

trap 'systemd-tmpfiles --create vfpool.conf' EXIT
rm -rf $state
start demo
stop demo

mkdir -p $state
mount -t tmpfs -o ro lab $state
expect_fails 'Read-only file system' virsh start demo
start plain
stop plain
umount $state

# Enough inodes for some of the directories, or for all of them, but not for a lease.
for inodes in 3 4 5 6 7 8 9 10; do
    mount -t tmpfs -o nr_inodes=$inodes lab $state
    if virsh start demo >/dev/null 2>/run/lab/error; then
        stop demo
    else
        expect_output 'No space left on device' cat /run/lab/error
    fi
    [[ $(snapshot_drivers) == "$before" ]] || fail "a full disk ($inodes inodes) changed something"
    [[ -z $(ls $leases 2>/dev/null) ]] || fail "a lease is left on the full disk ($inodes inodes)"
    umount $state
done
mount -t tmpfs -o size=4k lab $state
head -c 4096 /dev/zero >$state/filler
expect_fails 'No space left on device' virsh start demo
umount $state
[[ $(snapshot_drivers) == "$before" ]] || fail "a full disk changed something"

start other
mkdir -p $leases
echo garbage >$leases/demo
start demo
expect_output "The lease of guest 'demo' is corrupt" logged corrupt
expect_output garbage cat $state/corrupt/demo
stop demo
echo garbage >$leases/demo
start demo
echo garbage >$leases/demo
expect_state other running
expect_fails "guest 'demo' has it" /usr/sbin/vfpool-hook third prepare begin - <<<"$(guest_xml third "$(hostdev 02:00.0)")"
stop demo
stop other
bind 02:00.1 e1000e
rm -r $state/corrupt
[[ $(snapshot_drivers) == "$before" ]] || fail "at the end: $(diff <(echo "$before") <(snapshot_drivers))"
remove_all_guests
