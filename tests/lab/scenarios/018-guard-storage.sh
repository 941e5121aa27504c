# The host keeps its disks: a disk that is mounted, used as swap, or a member of md or LVM (mounted or not) is never detached.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

nvme=$(basename /sys/bus/pci/devices/0000:06:00.0/nvme/nvme*)
disk=/dev/${nvme}n1
# With native multipath the controller itself has only hidden paths to the disk.
[[ -b $disk ]] || fail "expected the disk $disk of 06:00.0"
# Undoes all uses below, also when only some of them exist.
free_disk() {
    {
        umount /mnt
        swapoff "$disk"
        vgchange -an lab
        mdadm --stop /dev/md9
        wipefs -a "$disk"
    } >/dev/null 2>&1 || true
}
trap free_disk EXIT
define_guest own "$(hostdev 06:00.0)"
define_guest unmanaged "$(hostdev 06:00.0 no)"
guests=(own unmanaged)
if has_nvme_disks; then
    define_guest disk "$(nvme_disk 06:00.0 yes)"
    guests+=(disk)
fi
refused() {
    for guest in "${guests[@]}"; do
        expect_fails "$1" virsh start $guest
    done
    expect_driver 06:00.0 nvme
}

mkfs.ext4 -q "$disk"
mount "$disk" /mnt
refused "${disk#/dev/} is mounted at /mnt"
umount /mnt

mkswap "$disk" >/dev/null
swapon "$disk"
refused "${disk#/dev/} is swapped to"
swapoff "$disk"
wipefs -qa "$disk"

mdadm --create /dev/md9 --run --force --level=1 --raid-devices=1 --metadata=1.2 "$disk" 2>/dev/null
refused "${disk#/dev/} is a member of md9"
pvcreate -qq /dev/md9
vgcreate -qq lab /dev/md9
lvcreate -qq -n data -l 100%FREE lab
refused "md9 is a member of lab-data"
mkfs.ext4 -q /dev/lab/data
mount /dev/lab/data /mnt
refused "is mounted at /mnt"
free_disk
start own
expect_driver 06:00.0 vfio-pci
stop own
expect_driver 06:00.0 nvme
remove_all_guests
