# A pool's PF that is hot-added gets its VFs automatically; after it is removed, setup reports what is missing.
# runs: outside
set -euo pipefail

inside() { "$LAB" run bash -s; }
trap '"$LAB" monitor "device_del hot" >/dev/null 2>&1 || true; "$LAB" run rm -f /etc/vfpool/pools.d/hot.xml' EXIT
inside <<'END'
. /run/lab/lib.sh
pool hot "<pf address='08:00.0'/>"
expect_fails "<pf address='08:00.0'> in /etc/vfpool/pools.d/hot.xml line 4 (pool 'hot'): there is no PCI function" vfpool setup
END
for _ in 1 2; do
    "$LAB" monitor 'device_add igb,bus=hot0,id=hot,romfile=' >/dev/null
    inside <<'END'
. /run/lab/lib.sh
wait_until 60 is_ready 08:00.0 7
wait_until 10 test -z "$(ls /run/vfpool/queue/setup)"
END
    "$LAB" monitor 'device_del hot' >/dev/null
    inside <<'END'
. /run/lab/lib.sh
wait_until 60 test ! -e "$pci/0000:08:00.0"
expect_fails "there is no PCI function" vfpool setup
END
done
# systemd's start limit was not reached.
inside <<'END'
. /run/lab/lib.sh
[[ $(systemctl is-active vfpool-setup.path) == active ]] || fail "vfpool-setup.path: $(systemctl status vfpool-setup.path)"
END
