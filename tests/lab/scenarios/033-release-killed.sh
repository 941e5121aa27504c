# The release hook of a failed start is killed at its first step: the devices are reattached without any further event.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

trap restore_hook EXIT
replace_hook <<'END'
#!/bin/bash
[[ $1 == demo && $2 == release && ! -e /run/lab/killed ]] || exec /usr/sbin/vfpool-hook "$@"
touch /run/lab/killed
exec strace -f -qq -o /dev/null -e inject=mkdir,unlink,write,rename,symlink,clone:signal=KILL:when=1 /usr/sbin/vfpool-hook "$@"
END
rm -f /run/lab/killed

define_guest demo "$(hostdev 02:00.0)"
virsh dumpxml demo | sed -e "s#<domain #<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' #" \
    -e "s#</domain>#<qemu:commandline><qemu:arg value='-no-such-option'/></qemu:commandline></domain>#" >/run/lab/demo.xml
virsh -q define /run/lab/demo.xml
expect_fails 'no-such-option' virsh start demo
[[ -e /run/lab/killed ]] || fail "expected libvirt to call the release hook"
is_back() { [[ $(driver_of 02:00.0) == e1000e && $(driver_of 02:00.1) == e1000e ]] && no_leases; }
wait_until 90 is_back
remove_guest demo
