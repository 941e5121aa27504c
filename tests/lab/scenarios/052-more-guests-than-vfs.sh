# Ten guests for seven VFs: the eighth start is refused and names the holders, works as soon as a VF is free, and `vfpool start` works at once.
# deadline: 600
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
adopted_guests 10 passthrough 01:10.0
wait_until 60 are_parked 7
for number in 1 2 3 4 5 6 7; do virsh -q start --paused "g$number" >/dev/null & done
wait
expect_no_sharing
message=$(virsh start g8 2>&1) && fail "start of g8: expected to be refused"
for number in 1 2 3 4 5 6 7; do
    [[ $message == *"no device of pool 'passthrough' is free: "*"(guest 'g$number')"* ]] || fail "g$number is not named: $message"
done
expect_fails "no device of pool 'passthrough' is free" vfpool start g8

# Plain virsh start: the guest is parked within two seconds of the stop, or, on a host under load, within eight times what
# the two edits of its definition take there by hand.
wait_until 60 units_are_idle
edit_began=$(date +%s%3N)
virsh -q detach-device g10 /dev/stdin --config <<<"$(hostdev "$(parked_at g10)")" >/dev/null
virsh -q attach-device g10 /dev/stdin --config <<<"$(hostdev 01:10.0)" >/dev/null
limit=$((8 * ($(date +%s%3N) - edit_began)))
((limit > 2000)) || limit=2000
vf=$(devices_of g3)
stop g3
stopped=$(date +%s%3N)
slot=${vf#*:*:}
until grep -A1 '<source>' /etc/libvirt/qemu/g8.xml | grep -q "slot='0x${slot%.*}' function='0x${slot#*.}'"; do
    (($(date +%s%3N) - stopped < 20000)) || fail "g8 was not pointed at $vf"
    sleep 0.05
done
took=$(($(date +%s%3N) - stopped))
echo "g8 was parked $took ms after the stop of g3"
virsh -q start --paused g8 || fail "start of g8 after the stop of g3"
[[ $(devices_of g8) == "$vf" ]] || fail "g8 has $(devices_of g8), expected $vf"
((took <= limit)) || fail "g8: expected to be parked within $limit ms, found $took ms"

# vfpool start needs no wait, and the definition stays unchanged.
before=$(virsh dumpxml g9 --inactive)
vf=$(devices_of g5)
stop g5
vfpool start g9 --paused || fail "vfpool start of g9"
[[ $(devices_of g9) == "$vf" ]] || fail "g9 has $(devices_of g9), expected $vf"
stop g9
remove_all_guests
remove_pools
