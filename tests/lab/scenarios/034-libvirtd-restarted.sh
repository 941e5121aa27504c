# libvirtd is killed during a start, on a host without pools: once it runs again, the siblings are reattached without any further event.
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

hook=/etc/libvirt/hooks/qemu
trap '[[ ! -e $hook.aside && ! -L $hook.aside ]] || mv $hook.aside $hook' EXIT
mv $hook $hook.aside
cat >$hook <<'END'
#!/bin/bash
/usr/sbin/vfpool-hook "$@" || exit
[[ $2 != prepare ]] || { touch /run/lab/prepared; exec >&- 2>&- <&-; sleep 5; }
END
chmod 755 $hook
rm -f /run/lab/prepared
[[ -z $(ls /etc/vfpool/pools.d) ]] || fail "expected no pool"

define_guest demo "$(hostdev 02:00.0)"
virsh start demo >/dev/null 2>&1 &
wait_until 30 test -e /run/lab/prepared
expect_driver 02:00.1 vfio-pci
systemctl kill --kill-who=main --signal=KILL libvirtd
wait || true
wait_for_libvirtd
expect_state demo 'shut off'
is_back() { [[ $(driver_of 02:00.0) == e1000e && $(driver_of 02:00.1) == e1000e ]] && no_leases; }
wait_until 90 is_back
remove_guest demo
