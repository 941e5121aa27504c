# Earlier hooks keep working beside ours: they see each event after ours, may refuse a start, and are restored; one that hangs is ended.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
trap 'put_back' EXIT

hooks=/etc/libvirt/hooks
put_back() {
    rm -rf $hooks/qemu.d $hooks/mine /etc/vfpool/host.xml.lab
    [[ ! -e /etc/vfpool/host.xml.lab-kept ]] || mv /etc/vfpool/host.xml.lab-kept /etc/vfpool/host.xml
    rm -f $hooks/qemu.before-vfpool
    ln -sfn /usr/sbin/vfpool-hook $hooks/qemu
    reload_libvirtd
}
# hook FILE [MORE]: a script that logs its name, its arguments, the sibling's driver and the guest's name from its input.
hook() {
    printf '%s\n' '#!/bin/bash' "calls=/run/lab/calls" 'xml=$(cat)' \
        'sibling=$(basename "$(readlink /sys/bus/pci/devices/0000:02:00.1/driver)")' \
        'echo "$(basename "$0") $* $sibling $(xmllint --xpath "string(/domain/name)" - <<<"$xml")" >>$calls' "${2:-}" >"$1"
    chmod 755 "$1"
}
calls() { cat /run/lab/calls; rm -f /run/lab/calls; }
expect_calls() { diff <(printf '%s\n' "$@") <(calls) || fail "calls of the other hook"; }

define_guest demo "$(hostdev 02:00.0)"
rm $hooks/qemu
mkdir -p $hooks/mine
hook $hooks/mine/script
ln -s mine/script $hooks/qemu
vfpool hook install
[[ $(readlink $hooks/qemu) == /usr/sbin/vfpool-hook && $(readlink $hooks/qemu.before-vfpool) == mine/script ]] ||
    fail "expected both hooks in their places: $(ls -l $hooks)"
reload_libvirtd
start demo
stop demo
name=qemu.before-vfpool
expect_calls "$name demo prepare begin - vfio-pci demo" "$name demo start begin - vfio-pci demo" \
    "$name demo started begin - vfio-pci demo" "$name demo stopped end - vfio-pci demo" "$name demo release end $(destroyed) e1000e demo"

# libvirt 6.5 and later call the hooks in qemu.d; none is called twice.
mkdir -p $hooks/qemu.d
hook $hooks/qemu.d/20-more
reload_libvirtd
start demo
stop demo
maps=$(grep -o 'libvirt\.so\.0\.[0-9]*' /proc/"$(pidof libvirtd virtqemud | cut -d ' ' -f 1)"/maps | head -n 1)
[[ -n $maps ]] || fail "the version of libvirt is not in the maps of libvirtd"
[[ $(calls | grep -c '^20-more') == 5 ]] || fail "a hook in qemu.d: expected five calls ($maps)"
rm -r $hooks/qemu.d

# The other hook refuses the start.
hook $hooks/mine/script '[[ $2 != prepare ]] || { echo "the tape library is not ready" >&2; exit 7; }'
expect_fails 'the tape library is not ready' virsh start demo
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
calls >/dev/null

# The other hook hangs.
cp -p /etc/vfpool/host.xml /etc/vfpool/host.xml.lab-kept 2>/dev/null || true
echo "<host><hook seconds='2'/></host>" >/etc/vfpool/host.xml
hook $hooks/mine/script '[[ $2 != prepare ]] || sleep 1000'
expect_fails 'qemu.before-vfpool: it has not ended for 2 s' virsh start demo
! pgrep -f 'sleep 1000' || fail "a process of the hook still runs"
expect_driver 02:00.1 e1000e
[[ -e /etc/vfpool/host.xml.lab-kept ]] || rm /etc/vfpool/host.xml

# The other hook is not executable any more.
calls >/dev/null
chmod 644 $hooks/mine/script
start demo
stop demo
[[ ! -e /run/lab/calls ]] || fail "called although it is not executable"

# The other hook is restored, and is the only one.
hook $hooks/mine/script
vfpool hook remove
[[ $(readlink $hooks/qemu) == mine/script && ! -e $hooks/qemu.before-vfpool ]] || fail "expected the link back: $(ls -l $hooks)"
expect_fails 'is not viable' virsh start demo
calls | grep -q '^qemu demo prepare begin - e1000e demo' || fail "the hook that is back is not called"
remove_guest demo
