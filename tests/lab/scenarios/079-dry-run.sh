# --dry-run prints what would be done and changes nothing; wrong usage is reported in one line and changes nothing either.
# deadline: 400
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_passthrough
define_hot_plug_guest g1 "$(hostdev 01:10.0)"
define_guest g2 "$(hostdev 02:00.0)"
vfpool adopt g1 passthrough --rom-off
wait_until 30 eval 'units_are_idle && ! grep -q lt.hostdev /etc/libvirt/qemu/g1.xml'
grep -q "<rom bar='off'/>" /etc/libvirt/qemu/g1.xml || fail "adopt --rom-off: $(</etc/libvirt/qemu/g1.xml)"
start g1
sleep 2
/etc/libvirt/hooks/qemu g2 prepare begin - <<<"$(virsh dumpxml g2)"
trap 'start_watching' EXIT
stop_watching

state() {
    snapshot_drivers
    find /run/vfpool /etc/vfpool /etc/libvirt/qemu -printf '%p %i %s %T@\n' | sort
    virsh dumpxml g1
}
# unchanged CODE TEXT CMD...: exits with CODE, prints TEXT (in one line, if it fails), and changes nothing.
unchanged() {
    local code=$1 text=$2 before output status=0
    shift 2
    before=$(state)
    output=$("$@" 2>&1 </dev/null) || status=$?
    [[ $status == "$code" && $output == *"$text"* ]] || fail "$*: expected exit $code and '$text', found exit $status: $output"
    [[ $code == 0 || $output != *$'\n'* ]] || fail "$*: expected one line, found: $output"
    diff <(echo "$before") <(echo "$(state)") >/run/lab/changes || fail "$*: changed $(</run/lab/changes)"
}
unchanged 0 'virsh attach-device' vfpool attach g1 passthrough --live --config --dry-run
unchanged 0 'virsh detach-device' vfpool detach g1 passthrough --live --config --dry-run
unchanged 0 "is now any device of pool 'passthrough'" vfpool adopt g2 passthrough 02:00.0 --rom-off --dry-run
unchanged 0 '0000:02:00.1: vfio-pci -> e1000e' vfpool release g2 --force --dry-run
unchanged 0 '' vfpool reconcile --dry-run
unchanged 0 '' vfpool setup --dry-run
set_vfs 03:00.0 0
pool later "<pf address='0000:03:00.0' vfs='2'/>"
unchanged 0 '0000:03:00.0: 0 VFs -> 2' vfpool setup --dry-run
rm /etc/vfpool/pools.d/later.xml
define_guest g3 "$(hostdev 01:10.0)"
vfpool adopt g3 passthrough
unchanged 0 'for this boot (its definition has 0000:01:10.0)' vfpool start g3 --dry-run
unchanged 0 'parked at' vfpool reconcile --dry-run

# Wrong usage.
unchanged 1 "no guest 'no' is defined on this host" vfpool attach no passthrough --live
unchanged 1 "There is no pool 'no'" vfpool attach g1 no --live --config
unchanged 1 'it is not running. Use --config instead of --live' vfpool attach g2 passthrough --live
unchanged 1 "it has no such device of pool 'passthrough' now" vfpool detach g1 passthrough 77:00.0 --live --force
unchanged 1 'it runs (QEMU is process' vfpool release g1 --force
unchanged 1 "guest 'g2': it is being started by libvirtd" vfpool release g2
for command in 'attach g1 passthrough --live' 'adopt g2 passthrough 02:00.0' 'release g2 --force' reconcile setup 'start g2'; do
    # shellcheck disable=SC2086
    unchanged 1 'vfpool: this needs root; run it with sudo' setpriv --reuid=65534 --clear-groups vfpool $command
done

# No libvirtd.
live=$(devices_of g1)
stop_libvirtd
state() { snapshot_drivers; find /run/vfpool /etc/vfpool /etc/libvirt/qemu -not -type d -not -path '*/turns*' -printf '%p %i %s %T@\n' | sort; }
for command in 'attach g1 passthrough --live' 'attach g1 passthrough --config' 'adopt g2 passthrough 02:00.0' 'detach g1 passthrough --live --force' \
    'detach g1 passthrough --config'; do
    # shellcheck disable=SC2086
    unchanged 1 'ailed to connect' vfpool $command
done
start_libvirtd
[[ $(devices_of g1) == "$live" ]] || fail "g1 has $(devices_of g1), expected $live"
start_watching
vfpool release g2 --force
remove_all_guests
remove_pools
