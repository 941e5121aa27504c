# `vfpool rewrite` and `vfpool start` of a guest that is just starting or stopping are refused, and change nothing.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

trap 'restore_hook; remove_all_guests; remove_pools' EXIT
pool nics "<address type='pci' domain='0' bus='0x02' slot='0' function='0'/>"
adopted_guests 1 nics 02:00.0
wait_until 60 units_are_idle
virsh dumpxml g1 --inactive >/run/lab/g1.xml
before=$(snapshot_drivers)

# The hook of these operations returns only when /run/lab/go exists.
replace_hook <<'END'
#!/bin/bash
/usr/sbin/vfpool-hook "$@" || exit
[[ $2 == start || $2 == stopped ]] || exit 0
echo "$2" >/run/lab/reached
exec >&- 2>&- <&-
for ((i = 0; i < 600; i++)); do [[ ! -e /run/lab/go ]] || exit 0; sleep 0.1; done
END

# during OPERATION CMD...: CMD is held in this operation while both commands are refused.
during() {
    local operation=$1 job state
    shift
    rm -f /run/lab/go /run/lab/reached
    "$@" >/run/lab/held 2>&1 &
    job=$!
    wait_until 30 test -e /run/lab/reached
    [[ $(</run/lab/reached) == "$operation" ]] || fail "expected the operation $operation, found $(</run/lab/reached)"
    state=$(snapshot_drivers)
    cp /run/vfpool/leases/g1 /run/lab/lease
    expect_fails "guest 'g1'" vfpool rewrite </run/lab/g1.xml
    timeout 20 vfpool start g1 >/run/lab/start 2>&1 && fail "vfpool start during $operation: expected a refusal"
    [[ $(snapshot_drivers) == "$state" ]] || fail "during $operation: $(diff <(echo "$state") <(snapshot_drivers))"
    cmp /run/lab/lease /run/vfpool/leases/g1 || fail "during $operation the lease has changed"
    touch /run/lab/go
    wait $job || fail "$*: $(cat /run/lab/held)"
}
during start virsh -q start g1
expect_state g1 running
expect_driver 02:00.0 vfio-pci
expect_driver 02:00.1 vfio-pci
during stopped virsh -q destroy g1
expect_state g1 'shut off'
[[ $(snapshot_drivers) == "$before" ]] || fail "after the stop: $(diff <(echo "$before") <(snapshot_drivers))"
no_leases || fail "expected no lease, found $(vfpool list)"
vfpool start g1
expect_driver 02:00.1 vfio-pci
touch /run/lab/go
stop g1
