# Guests that all point at one NVMe VF and are adopted by the pool of its PF start with a VF each; the PF's disk stays with the host.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

define_pool disk "<pf address='06:00.0' vfs='max'/>"
adopted_guests 3 disk 06:00.1
wait_until 30 are_parked 3
for number in 1 2 3; do start "g$number"; done
expect_no_sharing
for number in 1 2 3; do expect_output '1b36:0010' virsh qemu-monitor-command "g$number" --hmp 'info pci'; done
expect_driver 06:00.0 nvme
for number in 1 2 3; do stop "g$number"; done
remove_all_guests
remove_pools 06:00.0
