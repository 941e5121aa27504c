# vfpool check finds units, the udev rule and the state directory that are not as installed; each remedy works.
# deadline: 600
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
rules=/usr/lib/udev/rules.d/60-vfpool.rules
trap '[[ -e $rules ]] || mv /root/60-vfpool.rules $rules; rm -f /etc/udev/rules.d/60-vfpool.rules; systemd-tmpfiles --create; enable_units' EXIT

virsh -q list
reload_libvirtd
systemctl --quiet disable vfpool-reconcile.path
cure failure units 'vfpool-reconcile.path is not enabled'
systemctl stop vfpool-definitions.path
cure failure units 'vfpool-definitions.path is enabled but not active'
systemctl --quiet disable --now vfpool-setup.path
systemctl --quiet mask vfpool-setup.path
cure failure units 'vfpool-setup.path is masked'
# A run that failed, and whose cause is fixed.
echo '<pool' >/etc/vfpool/pools.d/x.xml
! systemctl start vfpool-setup.service 2>/dev/null || fail "expected the unit to fail"
rm /etc/vfpool/pools.d/x.xml
cure warning units 'vfpool-setup.service failed'

mv $rules /root/60-vfpool.rules
remedy=$(remedy_of failure udev 'udev does not tell')
[[ $remedy == 'Install vfpool again, as it was installed, then run `udevadm control --reload`' ]] || fail "remedy: $remedy"
mv /root/60-vfpool.rules $rules
udevadm control --reload
expect_gone udev 'udev does not tell'
mkdir -p /etc/udev/rules.d
ln -s /dev/null /etc/udev/rules.d/60-vfpool.rules
cure failure udev 'takes the place'

chmod 755 /run/vfpool
cure failure state 'open to others'
chown 1 /run/vfpool
cure failure state "not root's"
rm -r /run/vfpool/queue
cure failure state 'is not there'
enable_units
expect_ready_host
