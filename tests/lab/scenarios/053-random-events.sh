# Random starts, stops and kills of ten guests on seven VFs, 60 of them (200 with --long): no VF is shared, none is lost, and no definition changes.
# deadline: 1500
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

RANDOM=53
events=$(rounds 60 200)
define_passthrough
adopted_guests 10 passthrough 01:10.0
wait_until 60 are_parked 7
before=$(definitions)
started=0
refused=0
for ((step = 1; step <= events; step++)); do
    guest=g$((RANDOM % 10 + 1))
    case $((RANDOM % 6)) in
        0 | 1)
            if virsh -q start --paused $guest >/run/lab/start 2>&1; then
                started=$((started + 1))
            elif grep -q "no device of pool 'passthrough' is free\|it will be pointed at a free one\|is just being pointed" /run/lab/start; then
                refused=$((refused + 1))
            else
                grep -q 'already active' /run/lab/start || fail "step $step, start of $guest: $(cat /run/lab/start)"
            fi
            ;;
        2) vfpool start $guest --paused >/run/lab/start 2>&1 && started=$((started + 1)) ||
            grep -q "no device of pool 'passthrough' is free\|it runs already" /run/lab/start ||
            fail "step $step, vfpool start of $guest: $(cat /run/lab/start)" ;;
        3) virsh -q destroy $guest >/dev/null 2>&1 || true ;;
        4) virsh -q destroy --graceful $guest >/dev/null 2>&1 || true ;;
        5) [[ ! -e /run/libvirt/qemu/$guest.pid ]] || kill -KILL "$(</run/libvirt/qemu/$guest.pid)" 2>/dev/null || true ;;
    esac
    ((step % 10)) || expect_no_sharing
done
echo "$started starts, $refused refused"
((started >= events / 10)) || fail "only $started of $events events were starts that worked"
for ((g = 1; g <= 10; g++)); do virsh -q destroy "g$g" >/dev/null 2>&1 || true; done
wait_until 60 no_leases
vfpool reconcile
no_leases || fail "leases are left: $(vfpool list)"
expect_ready 01:00.0 7
changed=$(diff <(echo "$before") <(definitions)) || fail "definitions changed: $changed"
remove_all_guests
remove_pools
