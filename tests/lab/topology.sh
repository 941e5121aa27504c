# Part of the lab driver: the machine that QEMU emulates. The table is in README.md.
# shellcheck shell=bash

# The NIC of ssh and the default route. The firmware numbers the buses in the order of the ports' slots.
readonly ssh_function=07:00.0

# Each port has its own slot on the root bus, and its own `chassis` number.
port() {
    local id=$1 slot=$2
    shift 2
    qemu+=(-device "pcie-root-port,id=$id,bus=pcie.0,addr=$slot,chassis=$((slot))$(printf ',%s' "$@")")
}

device() { qemu+=(-device "$1"); }

# Without option ROMs: no card is booted from, and the firmware would try each one.
card_acs() {
    port acs "$1"
    device igb,bus=acs,romfile=
}

card_pair() {
    port pair "$1"
    device e1000e,bus=pair,addr=0x0.0,multifunction=on,romfile=
    device e1000e,bus=pair,addr=0x0.1,romfile=
}

# The host `second` has the same cards at other addresses, and other cards at the same addresses.
topology() {
    case $LAB_TOPOLOGY in
        first)
            card_acs 0x2
            card_pair 0x3
            ;;
        second)
            card_pair 0x2
            card_acs 0x3
            ;;
        *) die "LAB_TOPOLOGY is first or second, not $LAB_TOPOLOGY" ;;
    esac

    port noacs 0x4 disable-acs=on
    device igb,bus=noacs,romfile=

    port conventional 0x5
    device pcie-pci-bridge,id=bridge,bus=conventional
    device e1000,bus=bridge,addr=0x1,romfile=
    device e1000,bus=bridge,addr=0x2,romfile=

    port storage 0x6
    device nvme-subsys,id=subsys
    device nvme,id=nvme,bus=storage,serial=lab,subsys=subsys,sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=12,msix_qsize=13
    device nvme-ns,bus=nvme,drive=namespace,nsid=1
    qemu+=(-drive "if=none,id=namespace,file=namespace.img,format=raw")

    port route 0x7
    device e1000e,bus=route,addr=0x0.0,multifunction=on,netdev=ssh,romfile=
    device "e1000e,bus=route,addr=0x0.1,romfile=$(link_end)"
    # restrict: the host must not depend on anything outside.
    qemu+=(-netdev "user,id=ssh,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22")
    [[ -z $LAB_LINK ]] || qemu+=(-netdev "$(link_netdev)")

    # Empty, for `lab monitor 'device_add igb,bus=hot0,...'`; the reserved memory is for the VFs' BARs.
    port hot0 0x8 pref64-reserve=32M,mem-reserve=4M
}

# The cable to the host $LAB_LINK. With datagrams either host may boot first, end, and boot again.
# The names are relative to $run, where QEMU is started.
link_netdev() {
    echo "dgram,id=link,local.type=unix,local.path=link,remote.type=unix,remote.path=../$LAB_LINK/link"
}

# By default QEMU counts up from the same MAC address in every host, so both NICs on the cable would have the same one.
link_end() {
    [[ -n $LAB_LINK ]] || return 0
    printf ',netdev=link,mac=52:54:01:%s' "$(md5sum <<<"$LAB_NAME" | sed -E 's/(..)(..)(..).*/\1:\2:\3/')"
}
