# rpm installs, upgrades, downgrades and erases the package while a guest runs: the guest and its lease stay, an earlier hook is kept, libvirtd keeps running.
# runs: outside
# deadline: 600
set -euo pipefail

package=${LAB_STAGE:?the rpm that is installed} upgrade=${LAB_UPGRADE:?a later build of it}
on_host() { "$LAB" run bash -c ". /run/lab/lib.sh; set -euo pipefail; $1"; }
install() { "$LAB" install "$1"; }
trap 'on_host "rm -f /etc/libvirt/hooks/qemu /etc/libvirt/hooks/qemu.before-vfpool; rpm -q vfpool >/dev/null && rpm -e vfpool; rm -rf /etc/vfpool"; install "$package"' EXIT

# Other scenarios may have removed a file.
install "$package"
on_host '
rpm -q vfpool >/dev/null
rpm --verify --nodeps vfpool
pidof libvirtd >/run/lab/libvirtd
define_guest demo "$(hostdev 02:00.0)"
define_guest other "$(hostdev 05:01.0)"
echo "<host><!-- mine --></host>" >/etc/vfpool/host.xml
start demo
cp /run/vfpool/leases/demo /run/lab/lease'
for file in "$upgrade" "$package" "$package"; do
    install "$file"
    on_host '
expect_state demo running
cmp /run/lab/lease /run/vfpool/leases/demo
grep -q mine /etc/vfpool/host.xml
[[ $(readlink /etc/libvirt/hooks/qemu) == /usr/sbin/vfpool-hook ]]
for unit in vfpool-setup.path vfpool-reconcile.path vfpool-definitions.path; do
    systemctl --quiet is-enabled $unit && systemctl --quiet is-active $unit || fail "$unit: expected enabled and active"
done
start other
expect_driver 05:02.0 vfio-pci
stop other
expect_driver 05:02.0 e1000
stop demo
expect_driver 02:00.1 e1000e
start demo
cp /run/vfpool/leases/demo /run/lab/lease'
done

# Erased while the guest runs: the guest keeps running, and rpm prints a command for each device that is not reattached
# automatically. The command works.
erased=$(on_host 'rpm --erase vfpool')
on_host '
expect_state demo running
[[ ! -e /etc/libvirt/hooks/qemu && ! -L /etc/libvirt/hooks/qemu ]] || fail "the hook is still there"
! ls /usr/lib/systemd/system/vfpool* /usr/sbin/vfpool* /etc/systemd/system/*/vfpool* 2>/dev/null || fail "files are left"
stop demo
expect_driver 02:00.0 e1000e
expect_driver 02:00.1 vfio-pci'
remedy=$(sed -n "s/^0000:02:00.1 (sibling of guest 'demo', was on e1000e) .*stopped: //p" <<<"$erased")
[[ -n $remedy ]] || { echo "erased: expected a command for 0000:02:00.1, found: $erased"; exit 1; }
on_host "$remedy >/dev/null; expect_driver 02:00.1 e1000e; grep -q mine /etc/vfpool/host.xml.rpmsave; rm -r /run/vfpool"

# Another program's hook is kept, called after ours from the next start on, and restored unchanged.
on_host 'printf "%s\n" "#!/bin/bash" "echo \"\$*\" >>/run/lab/theirs" >/etc/libvirt/hooks/qemu
chmod 755 /etc/libvirt/hooks/qemu
cp -p /etc/libvirt/hooks/qemu /run/lab/kept
reload_libvirtd'
install "$package"
on_host '
start demo
expect_driver 02:00.1 vfio-pci
stop demo
expect_driver 02:00.1 e1000e
expect_output "demo release end $(destroyed)" cat /run/lab/theirs
rpm --erase vfpool
cmp /run/lab/kept /etc/libvirt/hooks/qemu
[[ $(stat -c %a /etc/libvirt/hooks/qemu) == 755 ]]
rm /run/lab/theirs
expect_fails "is not viable" virsh start demo
expect_output "demo prepare begin -" cat /run/lab/theirs
remove_guest demo
remove_guest other
[[ $(pidof libvirtd) == $(</run/lab/libvirtd) ]] || fail "libvirtd was started again"'
