# Guests with autostart find VFs that were created before libvirtd started, a different one each.
# runs: outside
# ends: libvirtd
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
created=$(systemctl show -p ExecMainExitTimestampMonotonic --value vfpool-setup.service)
started=$(systemctl show -p ExecMainStartTimestampMonotonic --value libvirtd.service)
[[ $created -gt 0 && $created -lt $started ]] || fail "VFs were ready at $created us, libvirtd was started at $started us"
remove_all_guests
remove_pools'
