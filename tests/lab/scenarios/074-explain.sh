# What `vfpool explain` says about devices and guests then happens: each refusal word for word, and each step of a start and of a stop.
# deadline: 600
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

explained() { vfpool explain "$@" || fail "explain $*: expected success, found exit $?"; }
# says NAME LINE...: each of these lines is in the explanation.
says() {
    local text line
    text=$(explained "$1")
    for line in "${@:2}"; do
        [[ $'\n'$text$'\n' == *$'\n'"$line"$'\n'* ]] || fail "explain $1: expected the line '$line', found: $text"
    done
}
# The hook's line in libvirt's message about a refused start.
refusal() { { virsh start "$1" 2>&1 >/dev/null || true; } | grep -o "vfpool: guest '.*" || fail "start of $1: expected a refusal"; }
# refused_as_explained GUEST REASON
refused_as_explained() {
    local refusal
    says "$1" "\`virsh start $1\` would be refused:"
    refusal=$(refusal "$1")
    [[ $refusal == *"$2"* ]] || fail "start of $1: expected '$2', found: $refusal"
    says "$1" "  $refusal"
}
# started_as_explained GUEST: each `unbind from D` of the explanation becomes a line `D -> vfio-pci` in the log, and each
# device is then on the driver that was announced.
started_as_explained() {
    local text address driver
    text=$(explained "$1")
    ! grep -F 'would be refused' <<<"$text" || fail "$1: expected no refusal"
    start "$1"
    while read -r address driver; do
        expect_output "$address: $driver -> vfio-pci" logged "(sibling, guest '$1')"
    done < <(sed -nE 's/^  (....:..:..\..)  unbind from ([^ ]+) \(sibling\)$/\1 \2/p' <<<"$text")
    while read -r address; do
        expect_driver "$address" vfio-pci
    done < <(sed -nE 's/^  (....:..:..\..)  .*(offer|bind) to vfio-pci.*/\1/p' <<<"$text")
    says "$1" "guest '$1' runs (pid $(cat "/run/libvirt/qemu/$1.pid"))" 'at its stop:'
    sed -n '/^at its stop:/,$p' <<<"$(explained "$1")" | grep -F 'reattach to' >/run/lab/promised
    stop "$1"
    while read -r address driver; do
        expect_driver "$address" "$driver"
    done < <(sed -E 's/^  (....:..:..\..)  .*reattach to ([^ ]+).*/\1 \2/' /run/lab/promised)
}

before=$(snapshot_drivers)

# The pair.
define_guest pair "$(hostdev 02:00.0)"
says 02:00.0 "  driver        e1000e" "  IOMMU group   $(group_of 02:00.0), with" \
    '    0000:02:00.1  e1000e     would be detached' "  defined for   guest 'pair'" '  verdict       free' \
    'a guest with it would:' '  0000:02:00.1  unbind from e1000e (sibling)' '  0000:02:00.0  libvirt: bind to vfio-pci'
[[ $(explained "$(netdev_of 02:00.0)") == "$(explained pci_0000_02_00_0)" ]] || fail "an interface is not its device"
rom=no
[[ ! -e $pci/0000:02:00.0/rom ]] || rom=yes
says 02:00.0 "  option ROM    $rom"
started_as_explained pair

# While the guest runs, also when libvirtd is down.
start pair
define_guest other "$(hostdev 02:00.1)"
stop_libvirtd
says 02:00.1 "    0000:02:00.0  vfio-pci   guest 'pair' has it" \
    "  leased to     guest 'pair' (active, sibling), was on e1000e" '  verdict       not free'
says pair "guest 'pair' runs (pid $(cat /run/libvirt/qemu/pair.pid))" '  0000:02:00.1  reattach to e1000e (sibling)'
start_libvirtd
refused_as_explained other "0000:02:00.1 is not free: guest 'pair' has 0000:02:00.0 of the same IOMMU group"
stop pair

# Without ACS: port, PF and VFs in one group.
set_vfs 03:00.0 2
says 03:00.0 '    0000:00:04.0  pcieport   bridge, never touched' '  VFs           2 of 7' \
    '  0000:03:00.0  remove its 2 VFs' '  0000:03:00.0  make its 2 VFs again'
define_guest pf "$(hostdev 03:00.0)"
started_as_explained pf
define_guest vf "$(hostdev "$(vfs_of 03:00.0 | head -n 1)")"
refused_as_explained vf 'its PF 0000:03:00.0 is detached with it'
set_vfs 03:00.0 0

# Conventional PCI.
says 05:01.0 "    0000:04:00.0  $(printf '%-10s' "$(driver_of 04:00.0 | sed 's/none/no driver/')") bridge, never touched" \
    '    0000:05:02.0  e1000      would be detached'
define_guest conventional "$(hostdev 05:01.0)"
started_as_explained conventional

# The host's network.
says 07:00.0 "  used          it carries the default route ($(netdev_of 07:00.0))" '  verdict       not free'
says 07:00.1 "    0000:07:00.0  e1000e     needed: it carries the default route ($(netdev_of 07:00.0))" '  verdict       not free'
define_guest network "$(hostdev 07:00.1)"
refused_as_explained network 'it carries the default route'

# A pool: the device that is chosen instead.
define_passthrough
define_guest g1 "$(hostdev 01:10.0)"
define_guest g2 "$(hostdev 01:10.0)"
vfpool adopt g1 passthrough
start g1
says 01:10.0 '  pool          passthrough' '  VF of         0000:01:00.0' "  leased to     guest 'g1' (active, managed), was on vfio-pci"
refused_as_explained g2 "0000:01:10.0 is not free: guest 'g1' has it"
vfpool adopt g2 passthrough
# While it is being moved the guest has no device.
is_moved() { [[ $(parked_at g2) == 0000:01:1?.? && $(parked_at g2) != 0000:01:10.0 ]]; }
wait_until 30 is_moved
chosen=$(parked_at g2)
says g2 "  device        $chosen (hostdev, pool 'passthrough'): free" "  $chosen  of pool 'passthrough'"
says "$chosen" "  parked by     guest 'g2' (pool 'passthrough')" '  verdict       free'
vfpool start g2
[[ $(devices_of g2) == "$chosen" ]] || fail "vfpool start g2: expected $chosen, found $(devices_of g2)"
[[ $(explained g2 --json) == *'"state": "running"'* ]] || fail "expected a JSON document"

expect_fails 'is no PCI device, no network interface of one, and no guest' vfpool explain nobody
expect_fails "there is no PCI device 0000:0b:00.0" vfpool explain 0b:00.0
remove_all_guests
remove_pools
[[ $(snapshot_drivers) == "$before" ]] || fail "something is not as it was: $(diff <(echo "$before") <(snapshot_drivers))"
