# The hook is killed before each system call that changes something, in prepare and in release; the next event restores the host.
# deadline: 600
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest demo "$(hostdev 02:00.0 no)"
virsh dumpxml demo >/run/lab/demo.xml
before=$(snapshot_drivers)
hook=/usr/sbin/vfpool-hook
# Under systemd-run the hook's parent, which stands for libvirtd, ends with the hook; `reconcile` needs to see that.
run_hook() {
    local -a orphan=()
    [[ $next != reconcile ]] || orphan=(systemd-run --quiet --wait --pipe --collect)
    "${orphan[@]}" "${@:2}" $hook demo "$1" begin - </run/lab/demo.xml
}
call() { run_hook "$1" || fail "$1 after a kill at $step: exit $?"; }
# Killed before the Nth call of a kind; fails once there are fewer calls. clone is the fork for a write to sysfs.
killed_at() { ! run_hook "$1" strace -qq -o /dev/null -e inject="$2:signal=KILL:when=$3" >/dev/null 2>&1; }
is_back() {
    [[ $(snapshot_drivers) == "$before" ]] || fail "killed at $step: $(diff <(echo "$before") <(snapshot_drivers))"
    [[ -z $(ls "$leases" 2>/dev/null) ]] || fail "killed at $step: the lease is still there"
}
# The kinds of events that follow a kill, in turn.
after=(release prepare reconcile)
recover() {
    case $next in
        reconcile) vfpool reconcile || fail "reconcile after a kill at $step" ;;
        prepare) call prepare; expect_driver 02:00.1 vfio-pci; call release ;;
        release) call release ;;
    esac
    is_back
}
# kill_each OPERATION
kill_each() {
    local kind count
    for kind in mkdir unlink write rename symlink clone sendto; do
        for ((count = 1; ; count++)); do
            next=${after[${#steps[@]} % 3]}
            step="$1, $kind $count, then $next"
            [[ $1 == prepare ]] || call prepare
            killed_at "$1" $kind $count || break
            recover
            steps+=("$step")
        done
        call release
        is_back
    done
}
steps=()
kill_each prepare
prepare_steps=${#steps[@]}
kill_each release
printf '%s\n' "${steps[@]}"
((prepare_steps >= 15)) || fail "expected at least 15 steps in prepare, found $prepare_steps"
((${#steps[@]} - prepare_steps >= 12)) || fail "expected at least 12 steps in release, found $((${#steps[@]} - prepare_steps))"
remove_guest demo
