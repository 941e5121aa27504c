# vfpool check finds a VFIO module that cannot be loaded, and unsafe interrupts allowed without need; both remedies work.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail
module=$(modinfo -n vfio_pci)
trap 'rm -f /etc/modprobe.d/x.conf; [[ -e $module ]] || mv "/root/${module##*/}" "$module"; depmod' EXIT

virsh -q list
reload_libvirtd
modprobe -r vfio_pci vfio_iommu_type1
expect_ready_host
printf 'blacklist vfio-pci\noptions vfio disable_hugepages=0\n' >/etc/modprobe.d/x.conf
cure failure vfio 'kept from being loaded'
[[ $(</etc/modprobe.d/x.conf) == 'options vfio disable_hugepages=0' ]] || fail "x.conf: $(cat /etc/modprobe.d/x.conf)"

echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' >/etc/modprobe.d/x.conf
modprobe vfio_iommu_type1
cure warning unsafe_interrupts 'without interrupt remapping'
[[ ! -s /etc/modprobe.d/x.conf ]] || fail "x.conf: $(cat /etc/modprobe.d/x.conf)"

# A kernel without the module.
mv "$module" /root/
depmod
remedy=$(remedy_of failure vfio 'This kernel has no vfio-pci')
[[ $remedy == "Install the package with the rest of the modules of kernel $(uname -r), or boot a kernel that has vfio-pci" ]] || fail "remedy: $remedy"
mv "/root/${module##*/}" "$module"
depmod
expect_ready_host
