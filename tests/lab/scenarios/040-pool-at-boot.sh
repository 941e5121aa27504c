# After a boot the VFs of a pool exist, on vfio-pci and without network interfaces, before libvirtd runs.
# runs: outside
# ends: libvirtd
# deadline: 400
set -euo pipefail

"$LAB" run bash -s <<'END'
. /run/lab/lib.sh
pool net "<pf dev='$(netdev_of 01:00.0)'/>"
pool disk "<pf address='06:00.0' vfs='2'/>"
END
"$LAB" reboot
"$LAB" run mkdir -p /run/lab
"$LAB" put "$(dirname "$0")/../lib.sh" /run/lab/lib.sh
"$LAB" run bash -s <<'END'
. /run/lab/lib.sh
set -euo pipefail
trap 'remove_pools 01:00.0 06:00.0' EXIT
scenario_began=$(date -d "$(uptime -s)" +%s)
virsh -q list
wait_until 60 is_ready 01:00.0 7
expect_ready 06:00.0 2
[[ $(<$pci/0000:01:00.0/sriov_drivers_autoprobe) == 0 ]] || fail "autoprobe: expected 0"
ip link show "$(netdev_of 01:00.0)" | grep -q ',UP' || fail "the PF's interface: expected it to be up"
[[ $(systemctl show -p Result --value vfpool-setup.service) == success ]] || fail "vfpool-setup.service: $(systemctl status vfpool-setup.service)"
stamp() { systemctl show -p "$2" --value "$1"; }
done=$(stamp vfpool-setup.service ExecMainExitTimestampMonotonic)
begun=$(stamp libvirtd.service ExecMainStartTimestampMonotonic)
((0 < done && done < begun)) || fail "libvirtd began at $begun us, vfpool setup ended at $done us: expected the other order"
# Each VF is logged once, and no host driver has bound one.
for vf in $(vfs_of 01:00.0); do
    found=$(logged "$vf: no driver -> vfio-pci (pool 'net')" | wc -l)
    [[ $found == 1 ]] || fail "$vf: expected one move from no driver to vfio-pci, found $found"
done
! logged 'igbvf 0000:' || fail "igbvf: expected it not to probe any VF"
END
