# `virsh start` fails after prepare has succeeded: all devices are reattached.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_guest demo "$(hostdev 02:00.0)"
virsh dumpxml demo | sed -e "s#<domain #<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' #" \
    -e "s#</domain>#<qemu:commandline><qemu:arg value='-no-such-option'/></qemu:commandline></domain>#" >/run/lab/demo.xml
virsh -q define /run/lab/demo.xml
expect_fails 'no-such-option' virsh start demo
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 e1000e
expect_output 'reattached, guest' logged 02:00.1
remove_guest demo
