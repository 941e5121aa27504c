# dpkg installs, reinstalls and removes the package on a Debian host, as rpm does, and a unit that was disabled stays disabled.
# runs: outside
set -euo pipefail

package=${LAB_STAGE:?the rpm that is installed} deb=${LAB_DEB:?the same for dpkg}
on_host() { "$LAB" run bash -c ". /run/lab/lib.sh; set -euo pipefail; $1"; }
trap 'on_host "dpkg --purge vfpool >/dev/null 2>&1 || true; rm -rf /etc/vfpool"; "$LAB" install "$package"' EXIT

on_host 'rpm --erase vfpool'
"$LAB" put "$deb" /run/lab/vfpool.deb
on_host '
units="vfpool-setup.path vfpool-reconcile.path vfpool-definitions.path"
pidof libvirtd >/run/lab/libvirtd
dpkg --install /run/lab/vfpool.deb
dpkg --verify vfpool
[[ $(readlink /etc/libvirt/hooks/qemu) == /usr/sbin/vfpool-hook ]] || fail "the hook is not there"
for unit in $units; do
    systemctl --quiet is-enabled $unit && systemctl --quiet is-active $unit || fail "$unit: expected enabled and active"
done
systemctl --quiet is-enabled vfpool-setup.service
define_guest demo "$(hostdev 02:00.0)"
start demo
expect_driver 02:00.1 vfio-pci
cp /run/vfpool/leases/demo /run/lab/lease
echo "<host><!-- mine --></host>" >/etc/vfpool/host.xml
systemctl --quiet disable vfpool-definitions.path

dpkg --install /run/lab/vfpool.deb
expect_state demo running
cmp /run/lab/lease /run/vfpool/leases/demo
grep -q mine /etc/vfpool/host.xml
! systemctl --quiet is-enabled vfpool-definitions.path || fail "vfpool-definitions.path: expected still disabled"
stop demo
expect_driver 02:00.1 e1000e

dpkg --remove vfpool
[[ ! -e /etc/libvirt/hooks/qemu && ! -L /etc/libvirt/hooks/qemu ]] || fail "the hook is still there"
! ls /usr/lib/systemd/system/vfpool* /usr/sbin/vfpool* 2>/dev/null || fail "files are left"
! systemctl --quiet is-active $units || fail "units are left"
expect_fails "is not viable" virsh start demo
grep -q mine /etc/vfpool/host.xml

# Installed again after a removal: as the first time. An upgrade leaves alone what the admin has removed.
rm -f /run/lab/setup && mkdir -p /etc/systemd/system/vfpool-setup.service.d
printf "[Service]\nExecStartPost=/bin/touch /run/lab/setup\n" >/etc/systemd/system/vfpool-setup.service.d/lab.conf
dpkg --install /run/lab/vfpool.deb
[[ $(readlink /etc/libvirt/hooks/qemu) == /usr/sbin/vfpool-hook ]] || fail "the hook is not back"
wait_until 30 test -e /run/lab/setup
rm -r /etc/systemd/system/vfpool-setup.service.d
vfpool hook remove
systemctl --quiet disable --now vfpool-definitions.path
dpkg --install /run/lab/vfpool.deb
[[ ! -e /etc/libvirt/hooks/qemu && ! -L /etc/libvirt/hooks/qemu ]] || fail "the hook is back"
! systemctl --quiet is-active vfpool-definitions.path || fail "vfpool-definitions.path: expected still stopped"
dpkg --purge vfpool
! ls -d /etc/vfpool /etc/systemd/system/*/vfpool* 2>/dev/null || fail "configuration is left"
[[ $(pidof libvirtd) == $(</run/lab/libvirtd) ]] || fail "libvirtd was started again"
remove_guest demo'
