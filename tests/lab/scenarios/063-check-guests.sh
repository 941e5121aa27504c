# vfpool check finds guests that cannot start because of their requests, devices or memory limits; each remedy works.
# deadline: 600
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'rm -f /etc/vfpool/host.xml; remove_all_guests; remove_pools' EXIT

define_passthrough
reload_libvirtd
adopted_guests 1 passthrough 01:10.0
expect_ready_host

# A pool that was removed.
mv /etc/vfpool/pools.d/passthrough.xml /root/
cure failure request "Guest 'g1' cannot start: it asks for a device of pool 'passthrough'. There is no pool"
mv /root/passthrough.xml /etc/vfpool/pools.d/
expect_ready_host
# A request whose device was detached by hand.
remove_guest g1
adopted_guests 1 passthrough 01:10.0
parked=$(parked_at g1)
virsh -q detach-device g1 /dev/stdin --config <<<"$(hostdev "$parked")"
cure warning request "Guest 'g1' asks pool 'passthrough' for a device at"
remove_guest g1

# The memory limit is lower than the guest's memory. The guest has a name that the shell must quote.
name="it's g2"
define_guest "$name" "$(hostdev 01:10.0)"
virsh -q memtune "$name" --hard-limit 32768 --config
cure failure memory 'cannot start with its PCI device'
start "$name"
stop "$name"
virsh -q memtune "$name" --hard-limit 70000 --config
cure warning memory 'may not start with its PCI device'
remove_guest "$name"

# A sibling that the host needs; a device that is not there.
define_guest g3 "$(hostdev 07:00.1)"
[[ $(found guest "Guest 'g3' cannot start: Cannot detach 0000:07:00.0 (sibling of 0000:07:00.1)" | jq -r .what || true) == *'it carries the default route'* ]] ||
    fail "sibling: $(vfpool check)"
expect_fails 'it carries the default route' virsh start g3
echo "<host><allow address='07:00.0'/></host>" >/etc/vfpool/host.xml
expect_gone guest "Guest 'g3'"
rm /etc/vfpool/host.xml
remove_guest g3
define_guest g4 "$(hostdev 55:00.0)"
[[ $(remedy_of failure guest "Guest 'g4' cannot start: there is no PCI device 0000:55:00.0 on this host") == *'`virsh edit g4`' ]] ||
    fail "missing: $(vfpool check)"
remove_guest g4

# The device of a running guest is no finding.
define_guest g5 "$(hostdev 01:10.2)"
start g5
expect_ready_host
stop g5
remove_guest g5
expect_ready_host
