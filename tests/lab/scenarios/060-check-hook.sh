# vfpool check finds a hook that libvirtd does not know or cannot run, a missing hook, and a stopped libvirtd; each remedy works.
# deadline: 600
# ends: libvirtd
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
hook=/etc/libvirt/hooks/qemu
trap 'ln -sfn /usr/sbin/vfpool-hook $hook; rm -f $hook.*; chmod 755 /usr/sbin/vfpool-hook; start_libvirtd; reload_libvirtd' EXIT

before=$(snapshot_drivers)
virsh -q list
reload_libvirtd
expect_ready_host
# Colours only on a terminal, and not with NO_COLOR.
[[ $(vfpool check) != *$'\e'* ]] || fail "check: expected no colours in a pipe"
[[ $(TERM=xterm script -qec 'vfpool check' /dev/null) == *$'\e[32mok'* ]] || fail "check: expected colours on a terminal"
[[ $(TERM=xterm NO_COLOR=1 script -qec 'vfpool check' /dev/null) != *$'\e'* ]] || fail "check: expected NO_COLOR to be honoured"

# The hook is installed while libvirtd runs.
rm $hook
reload_libvirtd
sleep 1
ln -s /usr/sbin/vfpool-hook $hook
cure failure hook 'does not know the hook'
# A refused start shows that libvirtd calls the hook now.
define_guest probe "$(hostdev 07:00.1)"
expect_fails 'it carries the default route' virsh start probe
remove_guest probe

# Missing, a dangling link, not executable, another program.
rm $hook
cure failure hook 'has no hook'
ln -sfn /usr/sbin/nothing $hook
cure failure hook 'has no hook'
chmod 644 /usr/sbin/vfpool-hook
cure failure hook 'not executable'
rm $hook
printf '#!/bin/sh\nexit 0\n' >$hook
chmod 755 $hook
cure failure hook 'is another one'
[[ -e $hook.before-vfpool ]] || fail "the other hook was not kept"
rm $hook.before-vfpool
# A copy in the hooks directory runs under libvirtd's own AppArmor profile.
ln -f /usr/sbin/vfpool-hook $hook
systemctl reload libvirtd
cure failure hook 'AppArmor keeps'
# A hook that calls ours is reported as a note.
rm $hook
printf '#!/bin/sh\nexec /usr/sbin/vfpool-hook "$@"\n' >$hook
chmod 755 $hook
systemctl reload libvirtd
[[ $(found hook 'names ours' | jq -r .state) == note ]] || fail "a hook that calls ours: $(vfpool check)"
expect_ready_host
define_guest probe "$(hostdev 07:00.1)"
expect_fails 'it carries the default route' virsh start probe
remove_guest probe
ln -sfn /usr/sbin/vfpool-hook $hook
systemctl reload libvirtd

# libvirtd inactive behind its socket is fine. libvirtd down is reported, and everything else is still checked.
if [[ -n $(libvirtd_sockets) ]]; then
    systemctl --quiet stop libvirtd.service
    [[ $(vfpool check) == *'libvirtd is started when it is called'* ]] || fail "inactive: $(vfpool check)"
fi
stop_libvirtd
[[ $(vfpool check || true) == *'libvirtd is down'*'The units are enabled'* ]] || fail "down: $(vfpool check)"
cure failure libvirtd 'is down'

expect_ready_host
expect_fails 'vfpool: this needs root' setpriv --reuid 65534 --clear-groups vfpool check
[[ $(snapshot_drivers) == "$before" ]] || fail "a check changed a device"
