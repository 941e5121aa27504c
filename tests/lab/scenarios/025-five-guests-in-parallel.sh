# Five guests with a group each start and stop at the same time, three times (ten with --long); the drivers at the end are those at the start.
# deadline: 900
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

set_vfs 01:00.0 1
before=$(snapshot_drivers)
define_guest g1 "$(hostdev 02:00.0)"
define_guest g2 "$(hostdev 05:02.0 no)"
define_guest g3 "$(hostdev 06:00.0)"
define_guest g4 "$(hostdev 01:10.0)"
define_guest g5 "$(hostdev 03:00.0)"
each() {
    local guest job jobs=()
    for guest in g1 g2 g3 g4 g5; do
        "$1" $guest &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do
        wait "$job" || fail "$1 failed"
    done
}
for ((round = $(rounds 3 10); round > 0; round--)); do
    each start
    expect_driver 02:00.1 vfio-pci
    expect_driver 05:01.0 vfio-pci
    each stop
    [[ $(snapshot_drivers) == "$before" ]] || fail "after the stop: $(diff <(echo "$before") <(snapshot_drivers))"
done
remove_all_guests
set_vfs 01:00.0 0
