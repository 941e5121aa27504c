# The hook is killed before each of its system calls that change anything, in prepare and in release; whatever comes next brings all back.
# deadline: 600
. /run/lab/lib.sh

define_guest demo "$(hostdev 02:00.0 no)"
virsh dumpxml demo >/run/lab/demo.xml
before=$(snapshot_drivers)
hook=/usr/sbin/vfpool-hook
changes=write,rename,renameat,renameat2,symlink,symlinkat,unlink,unlinkat,mkdir,clone,fork,vfork,clone3
# Below systemd-run the hook's libvirtd is a process that has ended with it.
run_hook() { systemd-run --quiet --wait --pipe --collect "$@" </run/lab/demo.xml; }
call() { run_hook $hook demo "$1" begin - || fail "$1 after a kill at step $step: exit $?"; }
# Dies at the step; fails once there is no such step any more.
killed_at() { ! run_hook strace -qq -o /dev/null -e inject=$changes:signal=KILL:when="$2" $hook demo "$1" begin - 2>/dev/null; }
is_back() {
    [[ $(snapshot_drivers) == "$before" ]] || fail "$1, step $step: $(diff <(echo "$before") <(snapshot_drivers))"
    [[ -z $(ls "$leases" 2>/dev/null) ]] || fail "$1, step $step: the lease is still there"
}

for next in release prepare reconcile; do
    for ((step = 1; ; step++)); do
        killed_at prepare $step || break
        case $next in
            reconcile) vfpool reconcile || fail "reconcile, step $step" ;;
            prepare) call prepare; expect_driver 02:00.1 vfio-pci; call release ;;
            release) call release ;;
        esac
        is_back "prepare killed, then $next"
    done
    ((step > 10)) || fail "expected more than 10 steps in prepare, found $step"
    call release
    is_back "prepare not killed"
done
for next in release prepare reconcile; do
    for ((step = 1; ; step++)); do
        call prepare
        expect_driver 02:00.1 vfio-pci
        killed_at release $step || break
        case $next in
            reconcile) vfpool reconcile || fail "reconcile, step $step" ;;
            prepare) call prepare; expect_driver 02:00.1 vfio-pci; call release ;;
            release) call release ;;
        esac
        is_back "release killed, then $next"
    done
    is_back "release not killed"
done
echo "$step steps in release"
remove_guest demo
