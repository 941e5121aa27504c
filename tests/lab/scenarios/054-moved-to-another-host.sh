# On a host with the PF at another address a moved definition is parked and starts, and the filter resolves an offline migration; saves and live migrations pass the hook.
# runs: outside
# ends: libvirtd
# deadline: 700
set -euo pipefail

stage=${LAB_STAGE:?the directory that is installed on the second host}
first=${LAB_NAME:-host}
other() { LAB_NAME=second LAB_TOPOLOGY=second LAB_LINK=$first "$LAB" "$@"; }
on_first() { "$LAB" run bash -c ". /run/lab/lib.sh; set -euo pipefail; $1"; }
on_second() { other run bash -c ". /run/lab/lib.sh; set -euo pipefail; $1"; }
trap 'other down' EXIT
other up
other install "$stage"

on_first "
define_passthrough
for guest in moved migrated; do define_guest \$guest \"\$(hostdev 01:10.0)\"; vfpool adopt \$guest passthrough; done
define_guest live \"<metadata><r:request xmlns:r='urn:vfpool:domain:1'><device pool='passthrough' guest-address='00:1e.0'/></r:request></metadata>\"
wait_until 30 eval '[[ \$(parked_at migrated) != \$(parked_at moved) ]]'"
on_second 'define_pool passthrough "<pf dev='"'\$(netdev_of 02:00.0)'"'/>"'

# A definition is copied by hand.
"$LAB" run virsh dumpxml --inactive moved | other run virsh -q define /dev/stdin
on_second '
at_home() { [[ $(parked_at moved) == 0000:02:1* ]]; }
wait_until 30 at_home
start moved
expect_output 8086:10ca virsh qemu-monitor-command moved --hmp "info pci"
[[ $(devices_of moved) == 0000:02:1* ]] || fail "moved has $(devices_of moved)"
stop moved'

# Both hosts are named `host`, which libvirt treats as one host, and neither has an address on the cable.
address=1
for where in on_first on_second; do
    $where "
hostname host$address
printf '198.51.100.%s\n' '1 host1' '2 host2' >>/etc/hosts
ip address replace 198.51.100.$address/24 dev \$(netdev_of 07:00.1)
ip link set \$(netdev_of 07:00.1) up
systemctl stop libvirtd.service"
    address=2
done
on_second "echo 'auth_tcp = \"none\"' >>/etc/libvirt/libvirtd.conf
systemctl start libvirtd-tcp.socket libvirtd.service"

on_first 'is_reached() { (: </dev/tcp/host2/16509) 2>/dev/null; }
wait_until 60 is_reached'

# An offline migration defines the output of the filter; the reconciler is stopped so that it does not park the guest first.
# libvirt 7.0 does not migrate a guest with a PCI device, even if it is off: there the scenario calls the filter and defines
# its output.
on_second 'systemctl stop vfpool-reconcile.path'
migrate='virsh -q migrate --offline --persistent migrated qemu+tcp://host2/system'
if [[ $("$LAB" run virsh --version) == 7.0.* ]]; then
    on_first "expect_fails 'cannot migrate a domain with <hostdev' $migrate"
    "$LAB" run virsh dumpxml --inactive migrated |
        other run bash -c '/etc/libvirt/hooks/qemu migrated migrate begin - | virsh -q define /dev/stdin'
else
    on_first "$migrate"
fi
on_second '
[[ $(parked_at migrated) == 0000:02:1* ]] || fail "migrated points at $(parked_at migrated)"
virsh dumpxml --inactive migrated >/run/lab/after'
diff <("$LAB" run virsh dumpxml --inactive migrated | sed '/<source>/{n;d}') <(other run cat /run/lab/after | sed '/<source>/{n;d}') ||
    { echo "the filter changed more than the source address"; exit 1; }
on_second '
systemctl start vfpool-reconcile.path
start migrated
stop migrated'

# An emulated device does not survive a save. A guest without a device does, and the hook is called for it.
on_first "
start live
virsh -q save live /run/lab/saved
virsh -q restore /run/lab/saved
expect_state live running
virsh -q managedsave live
vfpool start live
expect_state live running
virsh -q migrate --live live qemu+tcp://host2/system tcp://host2
seen=\$(logged \"guest 'live' asks pool 'passthrough' for a device at 0000:00:1e.0, where it has none\" | wc -l)
[[ \$seen -ge 5 ]] || fail \"start, two restores with their prepares: expected 5 lines of the hook, found \$seen\""
on_second "
expect_state live running
[[ \$(journalctl -q --no-pager -o cat | grep -cF \"guest 'live' asks pool 'passthrough'\") -ge 1 ]] || fail 'the hook was not called for the incoming guest'"

# The filter by hand, with XML whose device does not exist on this host.
on_second '
remove_guest moved
hook=/etc/libvirt/hooks/qemu
sed "s/<source>/<source>\n/" /run/lab/after | sed "s/bus=.0x02./bus=\"0x01\"/" >/run/lab/in
for operation in migrate restore; do
    $hook migrated $operation begin - </run/lab/in >/run/lab/out
    changed=$(diff /run/lab/in /run/lab/out | grep -c "^[<>]") || true
    [[ $changed == 2 ]] || fail "$operation changed $changed lines: $(diff /run/lab/in /run/lab/out)"
    grep -q "bus=\"0x02\"" /run/lab/out || fail "$operation did not point at this host"
done
$hook plain restore begin - </dev/null && fail "an empty XML was accepted"
guest_xml plain "$(hostdev 01:10.0)" >/run/lab/plain
[[ -z $($hook plain restore begin - </run/lab/plain) ]] || fail "a guest without a request was rewritten"'
on_first "
ip address flush dev \$(netdev_of 07:00.1)
ip link set \$(netdev_of 07:00.1) down
hostname host
sed -i '/198.51.100/d' /etc/hosts
systemctl start libvirtd.service
remove_all_guests
remove_pools"
