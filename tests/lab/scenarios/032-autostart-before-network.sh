# A guest whose sibling the host needs is also refused at autostart after a reboot, when the host's network has no address yet.
# runs: outside
# ends: libvirtd
# deadline: 400
set -euo pipefail

inside() { "$LAB" run bash -c ". /run/lab/lib.sh; set -euo pipefail; $1"; }
send_lib() { "$LAB" run bash -c 'mkdir -p /run/lab && cat >/run/lab/lib.sh' <"$(dirname "$LAB")/lib.sh"; }
trap 'inside "rm -f /etc/systemd/network/05-late.network /etc/systemd/system/late-address.service /etc/systemd/system/*.wants/late-address.service /root/late
systemctl daemon-reload
remove_guest demo"' EXIT

inside 'define_guest demo "$(hostdev 07:00.1)"
expect_fails "it carries the default route" virsh start demo
virsh -q autostart demo
# As with DHCP: networkd brings the interface up, and the address comes later; here once libvirtd has started its guests.
cat >/etc/systemd/network/05-late.network <<END
[Match]
Path=pci-0000:07:00.0
[Network]
LinkLocalAddressing=no
IPv6AcceptRA=no
ConfigureWithoutCarrier=yes
END
cat >/root/late-address <<END
#!/bin/bash
until virsh -q list; do sleep 1; done
sleep 5
{
    echo "\$(virsh -q domstate demo | head -n 1), 07:00.0 on \$(basename "\$(readlink /sys/bus/pci/devices/0000:07:00.0/driver)")"
    journalctl -b -q -o cat -t vfpool
} >/root/late
virsh -q destroy demo
sleep 3
interface=\$(ls /sys/bus/pci/devices/0000:07:00.0/net)
ip link set "\$interface" up
ip address add 10.0.2.15/24 dev "\$interface"
ip route replace default via 10.0.2.2
END
chmod 755 /root/late-address
cat >/etc/systemd/system/late-address.service <<END
[Unit]
After=libvirtd.service
[Service]
Type=oneshot
ExecStart=/root/late-address
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl --quiet enable late-address.service
rm -f /root/late'
"$LAB" reboot
send_lib
inside 'wait_until 60 test -s /root/late
[[ $(head -n 1 /root/late) == "shut off, 07:00.0 on e1000e" ]] || fail "at autostart: $(cat /root/late)"
grep -q "guest .demo.*0000:07:00.0" /root/late || fail "expected a refusal in the log, found $(cat /root/late)"'
