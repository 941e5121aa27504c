# Ten guests are parked again and again while their definitions are edited, 100 times (500 with --long): no edit is lost, and nothing else changes.
# deadline: 1500
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
modprobe vfio-pci
trap 'touch /run/lab/enough; start_watching' EXIT
stop_watching
for number in 1 2 3 4 5 6 7 8 9 10; do
    source=$(hostdev 01:10.0 | sed "s/<address /&type='pci' /" | sed 's/.*\(<source>.*<\/source>\).*/\1/')
    if ((number % 2)); then
        define_guest "g$number" "$(hostdev 01:10.0)"
    else
        define_guest "g$number" "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:$(printf %02x "$number")'/>$source</interface>"
    fi
    vfpool adopt "g$number" passthrough
done
before=$(definitions)

# Each edit is read back; at the end the last edit of each guest must still be there.
edit() {
    local round=0 guest
    while [[ ! -e /run/lab/enough ]]; do
        round=$((round + 1))
        for guest in 1 2 3 4 5 6 7 8 9 10; do
            virsh -q desc "g$guest" --config "edit $round" >/dev/null || { echo "edit $round of g$guest failed"; return 1; }
            [[ $(virsh -q desc "g$guest" --config) == "edit $round" ]] || { echo "edit $round of g$guest is lost"; return 1; }
        done
    done
    for guest in 1 2 3 4 5 6 7 8 9 10; do
        [[ $(virsh -q desc "g$guest" --config) == "edit $round" ]] || { echo "edit $round of g$guest is lost"; return 1; }
    done
    echo "$round edits of each guest"
}
rm -f /run/lab/enough
edit >/run/lab/edits 2>&1 &
editor=$!

# The pool's members alternate, so that all guests must move each time.
moves() { logged ': parked at ' | wc -l; }
address_element() { hostdev "$1" | sed "s/.*<source><address \(.*\)<.source>.*/<address type='pci' \1/"; }
half() {
    { echo "<pool><name>passthrough</name><forward mode='hostdev'>"; for vf in "$@"; do address_element "$vf"; done; echo '</forward></pool>'; } >/etc/vfpool/pools.d/passthrough.xml
}
while kill -0 $editor 2>/dev/null; do
    half 01:10.2 01:10.4 01:10.6
    vfpool reconcile || fail "reconcile: expected success"
    half 01:11.0 01:11.2 01:11.4
    vfpool reconcile || fail "reconcile: expected success"
    ((${moves:=0} < $(rounds 100 500))) || break
    moves=$(moves)
done
touch /run/lab/enough
wait $editor || fail "$(cat /run/lab/edits)"
cat /run/lab/edits
echo "$moves moves"
for number in 1 2 3 4 5 6 7 8 9 10; do
    [[ $(devices_of "g$number" --inactive | wc -l) == 1 ]] || fail "g$number has $(devices_of "g$number" --inactive)"
done
changed=$(diff <(echo "$before") <(definitions | sed '/<description>/d')) || fail "more changed than the edits: $changed"
remove_all_guests
remove_pools
