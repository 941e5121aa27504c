# A pooled interface is moved 50 times: MAC address, VLAN, guest address, alias, boot order and the other devices stay, and libvirtd survives.
# deadline: 600
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'start_watching; remove_all_guests; remove_pools' EXIT

define_passthrough
stop_watching
# The same element with either address, so that the pool can consist of one VF or the other.
member() { hostdev "$1" | sed -nE "s,.*<address (.*)/></source>.*,<address type='pci' \\1/>,p"; }
define_guest web "$(hostdev 05:01.0)" "<interface type='hostdev' managed='yes'><mac address='52:54:00:6d:90:02'/><source>$(member 01:10.0)</source><vlan><tag id='42'/></vlan><boot order='1'/><alias name='ua-net'/><address type='pci' domain='0' bus='0' slot='0x1e' function='0'/></interface>" \
    "$(hostdev 05:02.0)"
vfpool adopt web passthrough
before=$(definitions)
moves=0
for ((round = 0; round < 25; round++)); do
    for vf in 01:10.2 01:10.4; do
        pool passthrough "$(member "$vf")"
        vfpool reconcile
        [[ $(parked_at web) == *"0000:$vf"* ]] || fail "move $moves: expected $vf, found $(parked_at web)"
        moves=$((moves + 1))
    done
done
[[ $(logged ': parked at ' | wc -l) == 50 ]] || fail "expected 50 moves in the log, found $(logged ': parked at ' | wc -l)"
changed=$(diff <(echo "$before") <(definitions)) || fail "more changed than the source address: $changed"
start web
ip link show "$(netdev_of 01:00.0)" | grep -q '52:54:00:6d:90:02.* vlan 42' || fail "expected a VF with the MAC address and VLAN, found $(ip link show)"
stop web
