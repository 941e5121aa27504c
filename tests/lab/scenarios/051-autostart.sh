# Guests that start with the host find VFs that were made before libvirtd ran, each its own.
# runs: outside
# deadline: 500
set -euo pipefail
inside() { "$LAB" run bash -c ". /run/lab/lib.sh; set -euo pipefail; $1"; }
send_lib() { "$LAB" run bash -c 'mkdir -p /run/lab && cat >/run/lab/lib.sh' <"$(dirname "$LAB")/lib.sh"; }

inside '
define_passthrough
adopted_guests 7 passthrough 01:10.0
wait_until 60 are_parked 7
for number in 1 2 3 4 5 6 7; do virsh -q autostart "g$number"; done'
"$LAB" reboot
send_lib
inside '
seven_run() { [[ $(virsh -q list --name | grep -c .) == 7 ]]; }
wait_until 200 seven_run
expect_no_sharing
made=$(systemctl show -p ExecMainExitTimestampMonotonic --value vfpool-setup.service)
started=$(systemctl show -p ExecMainStartTimestampMonotonic --value libvirtd.service)
[[ $made -gt 0 && $made -lt $started ]] || fail "VFs were ready at $made us, libvirtd was started at $started us"
remove_all_guests
remove_pools'
