# Seven guests hard-coded to one VF are adopted, each is parked at a VF of its own, and all start at the same time by plain virsh start.
# deadline: 400
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
for number in 1 2 3 4 5 6 7; do define_guest "g$number" "$(hostdev 01:10.0)"; done
before=$(definitions)
for number in 1 2 3 4 5 6 7; do vfpool adopt "g$number" passthrough; done
wait_until 60 are_parked 7
wait_until 60 units_are_idle
changed=$(diff <(echo "$before") <(definitions) | grep '^[<>]' | grep -v 'vfpool\|metadata') || true
[[ -z $changed ]] || fail "adopting and parking changed more than the request and the address: $changed"
for number in 1 2 3 4 5 6 7; do virsh -q start "g$number" >"/run/lab/start.$number" 2>&1 & done
wait
for number in 1 2 3 4 5 6 7; do
    expect_state "g$number" running
    expect_output '8086:10ca' virsh qemu-monitor-command "g$number" --hmp 'info pci'
done
expect_no_sharing
for number in 1 2 3 4 5 6 7; do stop "g$number"; done
no_leases || fail "leases are left: $(vfpool list)"
expect_ready 01:00.0 7
remove_all_guests
remove_pools
