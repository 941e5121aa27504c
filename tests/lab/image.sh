# Part of the lab driver: the recipe of the emulated host's root file system.
# Its commands are hashed: changing one of them, or a variable that they use, means a new image.
# shellcheck shell=bash

image_packages() {
    # to boot
    echo linux-image-amd64 initramfs-tools zstd systemd-sysv udev dbus openssh-server
    # with apparmor, so that libvirtd and its guests are confined as on any Debian host
    echo libvirt-daemon-system libvirt-clients qemu-system-x86 apparmor
    # what scenarios inspect the host with, and what makes a host need a device (mounts, LVM, md, dm)
    echo iproute2 pciutils kmod lvm2 mdadm dmsetup e2fsprogs nvme-cli
    echo strace procps psmisc jq libxml2-utils rpm
}

image_hash() {
    { grep -v '^ *#' "$lab_dir/image.sh"; echo "$LAB_SUITE $ssh_function"; } | sha256sum | cut -c1-16
}

image_is_current() {
    [[ -f $image/recipe && $(<"$image/recipe") == "$(image_hash)" ]]
}

# Builds in a new directory and renames it at the end, so an interrupted build leaves no partial image,
# and a host that runs from the old image keeps its files.
build_image() {
    local work
    image_is_current && return
    [[ $EUID -eq 0 ]] || die "building the image of the emulated host needs root"
    # We hold the lock, so whatever is here was left by a killed build.
    remove_builds
    work=$lab_target/build.$$
    trap remove_builds EXIT
    mkdir -p "$work/image"
    ssh-keygen -q -t ed25519 -N '' -C lab -f "$work/image/key"
    note "building the root image ($LAB_SUITE), some minutes"
    bootstrap "$work/root"
    configure_root "$work/root" "$work/image/key.pub"
    pack_root "$work/root" "$work/image"
    bake "$work/image"
    image_hash >"$work/image/recipe"
    rm -rf "$image"
    mv "$work/image" "$image"
    remove_builds
    trap - EXIT
}

# A killed mmdebstrap leaves this machine's own /proc and /dev mounted in its root.
remove_builds() {
    local mounted
    awk -v prefix="$lab_target/build." 'index($2, prefix) == 1 { print $2 }' /proc/self/mounts | tac |
        while read -r mounted; do umount "$mounted"; done
    rm -rf --one-file-system "$lab_target"/build.*
}

bootstrap() {
    local root=$1 sources
    local -a unwanted=('/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*'
        /usr/share/initramfs-tools/{hooks,scripts/local-{block,bottom,top}}/{mdadm,lvm2,dmsetup})
    initrd_settings "$root.skeleton"
    sources=$(debian_sources "$LAB_SUITE")
    # A machine with another release has no apt entry for this suite: use its own mirror with the suite's name.
    [[ -n $sources ]] || sources=$(debian_sources "$(codename)" | sed "s/ $(codename) main$/ $LAB_SUITE main/")
    [[ -n $sources ]] || die "no apt source of Debian found on this machine to build $LAB_SUITE from"
    mmdebstrap --mode=root --variant=apt --include="$(image_packages | xargs | tr ' ' ,)" \
        --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
        "${unwanted[@]/#/--dpkgopt=path-exclude=}" \
        --essential-hook="sync-in $root.skeleton /" \
        "$LAB_SUITE" "$root" - <<<"$sources" >"$lab_target/build.log" 2>&1 && return
    tail -n 30 "$lab_target/build.log" >&2
    die "mmdebstrap failed; all of its output is in $lab_target/build.log"
}

# Copied in before the kernel is installed, so the only initrd that is built is the small one:
# the host boots from virtio alone.
initrd_settings() {
    local dir=$1/etc/initramfs-tools
    mkdir -p "$dir/conf.d"
    printf 'MODULES=list\nCOMPRESS=zstd\n' >"$dir/conf.d/lab"
    printf 'virtio_pci\nvirtio_blk\next4\n' >"$dir/modules"
}

configure_root() {
    local root=$1 key=$2
    echo host >"$root/etc/hostname"
    printf '127.0.0.1 localhost host\n' >"$root/etc/hosts"
    echo '/dev/vda / ext4 defaults 0 0' >"$root/etc/fstab"
    configure_ssh "$root" "$key"
    configure_network "$root"
    configure_libvirt "$root"
    mask_slow_units "$root"
    # Nothing here uses these modules, and each one costs udev time at every boot.
    printf 'blacklist %s\n' psmouse pcspkr serio_raw iTCO_wdt cfg80211 joydev >"$root/etc/modprobe.d/lab.conf"
}

configure_ssh() {
    local root=$1 key=$2
    install -d -m 700 "$root/root/.ssh"
    install -m 600 "$key" "$root/root/.ssh/authorized_keys"
    # Many commands share one connection; PAM would slow each of them down.
    printf 'MaxSessions 100\nMaxStartups 100\nUsePAM no\n' >"$root/etc/ssh/sshd_config.d/lab.conf"
}

# networkd and not a one-shot unit: the host must be reachable again after its driver was unbound and bound.
configure_network() {
    local root=$1
    cat >"$root/etc/systemd/network/10-lab.network" <<-END
		[Match]
		Path=pci-0000:$ssh_function

		[Network]
		Address=10.0.2.15/24
		Gateway=10.0.2.2
		LinkLocalAddressing=no
		IPv6AcceptRA=no
		ConfigureWithoutCarrier=yes
	END
    chroot "$root" systemctl --quiet enable systemd-networkd.service
}

# libvirt asks a starting QEMU for each of the 400 properties of its CPU, one by one. When emulated, that is two thirds
# of the time that QEMU takes to start. Without this capability libvirt asks for all of them at once.
# Debian's libvirtd ends after two idle minutes, and its socket starts another. Here it stays, so that a new pid always
# means that libvirtd crashed or was stopped.
configure_libvirt() {
    echo 'capability_filters = [ "cpu-unavailable-features" ]' >>"$1/etc/libvirt/qemu.conf"
    echo 'LIBVIRTD_ARGS=' >>"$1/etc/default/libvirtd"
}

mask_slow_units() {
    local root=$1 unit
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
        fstrim.timer blk-availability.service nvmefc-boot-connections.service systemd-pstore.service logrotate.timer man-db.timer systemd-timesyncd.service systemd-networkd-wait-online.service \
        getty@tty1.service serial-getty@ttyS0.service console-getty.service libvirt-guests.service \
        lvm2-monitor.service nvmf-autoconnect.service mdcheck_continue.timer mdcheck_start.timer mdmonitor-oneshot.timer \
        systemd-update-utmp.service systemd-update-utmp-runlevel.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
}

pack_root() {
    local root=$1 out=$2
    cp -L "$root"/boot/vmlinuz-* "$out/vmlinuz"
    cp -L "$root"/boot/initrd.img-* "$out/initrd"
    rm -rf "$root"/boot/initrd.img-* "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
    truncate -s 4G "$out/root.img"
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -J size=16 -E lazy_itable_init=1 -d "$root" "$out/root.img"
}

# Boots the new image once and keeps what that boot wrote: host keys, AppArmor's compiled profiles and
# above all libvirt's cache of QEMU's capabilities. Otherwise every fresh boot would do this work again.
bake() {
    note "first boot of the image"
    (
        image=$1
        run=$lab_target/run/bake.$$
        trap 'down; rm -rf "$run"' EXIT
        LAB_OWNED=1 boot snapshot=off
        inside 'virsh -q capabilities >/dev/null && virsh -q domcapabilities --virttype qemu --machine pc >/dev/null'
        inside 'aa-status --enabled && grep -q "^libvirtd (enforce)" /sys/kernel/security/apparmor/profiles' ||
            die "libvirtd has no enforced AppArmor profile in the new image"
        inside 'rm -rf /var/log/journal/*; sync; systemctl --no-block poweroff'
        wait_gone 60 || die "the new image did not power off"
    )
}
