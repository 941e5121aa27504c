# Helpers for scenarios, which run inside the emulated host; sourced, also by the driver's own checks.
# A failing helper prints one line: what was expected and what was found.
# shellcheck shell=bash

readonly pci=/sys/bus/pci/devices
readonly leases=/run/vfpool/leases

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# 02:00.0 or 0000:02:00.0 -> 0000:02:00.0
address() {
    case $1 in
        ????:*) echo "$1" ;;
        *) echo "0000:$1" ;;
    esac
}

# --- devices ---------------------------------------------------------------

link_name() {
    local target
    target=$(readlink "$1") || target=none
    echo "${target##*/}"
}

driver_of() { link_name "$pci/$(address "$1")/driver"; }

group_of() { link_name "$pci/$(address "$1")/iommu_group"; }

# Addresses of all devices of the group that ADDR is in, bridges too, one a line.
group_members() { ls "$pci/$(address "$1")/iommu_group/devices"; }

# Name of the network device of ADDR, or none.
netdev_of() {
    local dir
    for dir in "$pci/$(address "$1")"/net/*; do
        [[ -e $dir ]] && echo "${dir##*/}" && return
    done
    echo none
}

# Prints address, driver, driver_override and sriov_numvfs of every PCI device, sorted.
# Starts no process: emulated, the few hundred of a plainer way would take a second each time.
snapshot_drivers() {
    local path dir override numvfs
    local -A driver=()
    for path in /sys/bus/pci/drivers/*/*:*:*.*; do
        dir=${path%/*}
        driver[${path##*/}]=${dir##*/}
    done
    for path in "$pci"/*; do
        # A VF can vanish between the listing and the look.
        { read -r override <"$path/driver_override"; } 2>/dev/null || override=gone
        { read -r numvfs <"$path/sriov_numvfs"; } 2>/dev/null || numvfs=-
        echo "${path##*/} driver=${driver[${path##*/}]:-none} override=$override numvfs=$numvfs"
    done
}

expect_driver() {
    local found
    found=$(driver_of "$1")
    [[ $found == "$2" ]] || fail "driver of $1: expected $2, found $found"
}

expect_same_group() {
    local other
    for other in "${@:2}"; do
        [[ $(group_of "$1") == "$(group_of "$other")" ]] ||
            fail "group of $other: expected that of $1 ($(group_of "$1")), found $(group_of "$other")"
    done
}

# Exactly these addresses and nothing else are in the group of the first one.
expect_group() {
    local expected found
    expected=$(for a in "$@"; do address "$a"; done | sort | xargs)
    found=$(group_members "$1" | sort | xargs)
    [[ $found == "$expected" ]] || fail "group of $1: expected $expected, found $found"
}

# set_vfs PF N: from one number to another the kernel wants 0 in between. Returns when the VFs have settled.
set_vfs() {
    local file
    file=$pci/$(address "$1")/sriov_numvfs
    [[ $(<"$file") == 0 ]] || echo 0 >"$file"
    [[ $2 == 0 ]] || echo "$2" >"$file"
    udevadm settle --timeout=60
}

# bind ADDR DRIVER|none
bind() {
    local dir
    dir=$pci/$(address "$1")
    [[ ! -e $dir/driver ]] || address "$1" >"$dir/driver/unbind"
    [[ $2 != none ]] || return 0
    echo "$2" >"$dir/driver_override"
    address "$1" >/sys/bus/pci/drivers_probe
    echo >"$dir/driver_override"
    expect_driver "$1" "$2"
}

# --- commands --------------------------------------------------------------

# expect_fails TEXT CMD...: CMD has to fail and say TEXT.
expect_fails() {
    local text=$1 output status=0
    shift
    output=$("$@" 2>&1) || status=$?
    [[ $status -ne 0 ]] || fail "$*: expected to fail with '$text', found success: $output"
    [[ $output == *"$text"* ]] || fail "$*: expected the message '$text', found (exit $status): $output"
}

# expect_output TEXT CMD...: CMD has to succeed and say TEXT.
expect_output() {
    local text=$1 output status=0
    shift
    output=$("$@" 2>&1) || status=$?
    [[ $status -eq 0 ]] || fail "$*: expected success, found exit $status: $output"
    [[ $output == *"$text"* ]] || fail "$*: expected '$text', found: $output"
}

# wait_until SECONDS CMD...: CMD has to become true in time.
wait_until() {
    local limit=$1 end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "$*: expected to become true within $limit s, found it still false"
        sleep 0.1
    done
}

# --- guests ----------------------------------------------------------------

# hostdev ADDR [managed]: the element for a PCI device; managed is yes unless given.
hostdev() {
    local address slot
    address=$(address "$1")
    slot=${address##*:}
    printf "<hostdev mode='subsystem' type='pci' managed='%s'><source><address domain='0x%s' bus='0x%s' slot='0x%s' function='0x%s'/></source></hostdev>\n" \
        "${2:-yes}" "${address%%:*}" "$(cut -d: -f2 <<<"$address")" "${slot%.*}" "${slot#*.}"
}

# guest_xml NAME [device xml...]: the smallest guest that really runs. A part that starts with
# <metadata or <seclabel goes beside the devices. No disk: firmware finds nothing to boot and halts.
# libvirtd itself is confined; a profile of its own for each guest would be compiled at every start,
# 6 of 9 seconds when emulated. For a guest that has one: guest_xml NAME "<seclabel type='dynamic' model='apparmor'/>".
guest_xml() {
    local name=$1 part metadata='' devices='' seclabel="<seclabel type='none' model='apparmor'/>"
    shift
    for part in "$@"; do
        case $part in
            '<metadata'*) metadata+=$part ;;
            '<seclabel'*) seclabel=$part ;;
            *) devices+=$part ;;
        esac
    done
    cat <<-END
		<domain type='qemu'>
		  <name>$name</name>
		  $metadata
		  <memory unit='MiB'>64</memory>
		  <vcpu>1</vcpu>
		  <os><type arch='x86_64' machine='pc'>hvm</type></os>
		  <on_poweroff>destroy</on_poweroff>
		  <on_reboot>restart</on_reboot>
		  <on_crash>destroy</on_crash>
		  $seclabel
		  <devices>
		    <emulator>/usr/bin/qemu-system-x86_64</emulator>
		    <controller type='usb' model='none'/>
		    <memballoon model='none'/>
		    $devices
		  </devices>
		</domain>
	END
}

define_guest() { virsh -q define /dev/stdin <<<"$(guest_xml "$@")" >/dev/null || fail "define_guest $1: expected success"; }

# define_hot_plug_guest NAME [device xml...]: a guest that devices can be plugged into.
define_hot_plug_guest() {
    local xml
    xml=$(guest_xml "$@" | sed 's,<on_poweroff>,<features><acpi/></features>&,')
    virsh -q define /dev/stdin <<<"$xml" >/dev/null || fail "define_hot_plug_guest $1: expected success"
}

# A guest without an operating system does nothing when it is asked to let go of a device. This does what its ACPI would: it
# reads which slots are asked for, and writes them to the register that ejects them (QEMU, docs/specs/acpi_pci_hotplug.rst).
guest_is_asked() { [[ $(asked_slots "$1") != 0x00000000 ]]; }

asked_slots() {
    virsh qemu-monitor-command "$1" --hmp 'o /4 0xae10 0' >/dev/null
    virsh qemu-monitor-command "$1" --hmp 'i /4 0xae04' | grep -o '0x[0-9a-f]*' | tail -n 1
}

guest_lets_go() { virsh qemu-monitor-command "$1" --hmp "o /4 0xae08 $(asked_slots "$1")" >/dev/null; }

start() { virsh -q start "$1" >/dev/null || fail "start of $1: expected success"; }

stop() { virsh -q destroy "$1" >/dev/null || fail "stop of $1: expected success"; }

state_of() { virsh -q domstate "$1" | head -n 1; }

expect_state() {
    local found
    found=$(state_of "$1" 2>&1)
    [[ $found == "$2" ]] || fail "state of $1: expected $2, found $found"
}

# PCI devices of the host that the running or next guest NAME gets, one address a line, sorted.
devices_of() {
    virsh dumpxml "${@:2}" "$1" | xmllint --xpath '//hostdev[@type="pci"]/source/address | //interface[@type="hostdev"]/source/address' - 2>/dev/null |
        sed -nE "s/.*domain=\"0x(....)\" bus=\"0x(..)\" slot=\"0x(..)\" function=\"0x(.)\".*/\1:\2:\3.\4/p" | sort
}

remove_guest() {
    virsh -q destroy "$1" >/dev/null 2>&1 || true
    virsh -q undefine --managed-save --nvram "$1" >/dev/null 2>&1 || true
}

remove_all_guests() {
    local name
    for name in $(virsh -q list --all --name); do
        remove_guest "$name"
    done
}

# --- pools -----------------------------------------------------------------

# pool NAME LINE...: a pool with these <pf> and <address> lines.
pool() {
    printf '<pool>\n<name>%s</name>\n<forward mode="hostdev" managed="yes">\n' "$1" >"/etc/vfpool/pools.d/$1.xml"
    printf '%s\n' "${@:2}" '</forward>' '</pool>' >>"/etc/vfpool/pools.d/$1.xml"
}

# define_pool NAME MEMBER...: a pool of these elements, set up.
define_pool() {
    pool "$@"
    vfpool setup || fail "setup of pool $1: expected success"
    udevadm settle --timeout=60
}

# The pool of most scenarios: the seven VFs of 01:00.0.
define_passthrough() { define_pool passthrough "<pf dev='$(netdev_of 01:00.0)'/>"; }

# remove_pools [PF...]: no pools, no VFs, the host as it was. Without PFs: of 01:00.0.
remove_pools() {
    local pf netdev
    rm -f /etc/vfpool/pools.d/*.xml
    for pf in "${@:-01:00.0}"; do
        [[ -e $pci/$(address "$pf") ]] || continue
        set_vfs "$pf" 0
        echo 1 >"$pci/$(address "$pf")/sriov_drivers_autoprobe"
        netdev=$(netdev_of "$pf")
        [[ $netdev == none ]] || ip link set "$netdev" down
    done
    udevadm settle --timeout=60
}

# adopted_guests N POOL ADDR: guests g1 ... gN, all with this one VF, and all adopted by the pool.
adopted_guests() {
    local number
    for ((number = 1; number <= $1; number++)); do
        define_guest "g$number" "$(hostdev "$3")"
        vfpool adopt "g$number" "$2" || fail "adopt g$number $2: expected success"
    done
}

# Where the next start of a guest would take its VF from.
parked_at() { devices_of "$1" --inactive; }

# are_parked N: g1 ... gN point each at a VF of its own.
are_parked() { [[ $(for ((g = 1; g <= $1; g++)); do parked_at "g$g"; done | sort | uniq -c | grep -c '^ *1 ') == "$1" ]]; }

# All definitions but for the source addresses, which are all that parking may change.
definitions() {
    local file
    for file in /etc/libvirt/qemu/*.xml; do
        echo "$file"
        sed -E "/<source>/,/<\\/source>/s/<address [^>]*>/<address>/" "$file"
    done
}

# No two running guests have the same VF, and the hook knows it so.
expect_no_sharing() {
    local shared
    shared=$(for guest in $(virsh -q list --name); do devices_of "$guest"; done | sort | uniq -d)
    [[ -z $shared ]] || fail "two guests have $shared"
}

vfs_of() {
    local index=0
    while [[ -e $pci/$(address "$1")/virtfn$index ]]; do
        link_name "$pci/$(address "$1")/virtfn$index"
        index=$((index + 1))
    done
}

# expect_ready PF N: the PF has N VFs, all on vfio-pci, without a network interface.
expect_ready() {
    local vf found
    found=$(vfs_of "$1" | wc -l)
    [[ $found == "$2" ]] || fail "VFs of $1: expected $2, found $found"
    for vf in $(vfs_of "$1"); do
        expect_driver "$vf" vfio-pci
        [[ $(netdev_of "$vf") == none ]] || fail "$vf: expected no network interface, found $(netdev_of "$vf")"
    done
}

is_ready() { (expect_ready "$@") 2>/dev/null; }

# --- vfpool check ----------------------------------------------------------

# found ID TEXT: the findings of this kind that say so and are not ok, as JSON, one a line. Exit status: that of the check.
found() {
    local report status=0
    report=$(vfpool check --json) || status=$?
    jq -c --arg id "$1" --arg text "$2" '.findings[] | select(.state != "ok" and .id == $id and (.what | contains($text)))' <<<"$report"
    return "$status"
}

# remedy_of STATE ID TEXT: what the one such finding advises; it has to have this state, and evidence.
remedy_of() {
    local finding status=0
    finding=$(found "$2" "$3") || status=$?
    [[ $(jq -r .state <<<"$finding") == "$1" && $(jq -r '.evidence // empty' <<<"$finding") ]] ||
        fail "check: expected one $1 of $2 with '$3', found '$finding' of: $(vfpool check)"
    case $1-$status in
        failure-1 | warning-[13] | note-?) jq -r .remedy <<<"$finding" ;;
        *) fail "check: exit $status with a $1" ;;
    esac
}

expect_gone() {
    local finding
    finding=$(found "$1" "$2") || true
    [[ -z $finding ]] || fail "check: expected no finding of $1 with '$2', found $finding"
}

# cure STATE ID TEXT: there is this finding; the commands in its remedy are run as they stand; the finding is gone.
cure() {
    local remedy commands
    remedy=$(remedy_of "$@") || fail "$remedy"
    commands=$(grep -o '`[^`]*`' <<<"$remedy" | tr -d '`') || fail "no command in the remedy '$remedy'"
    bash -c "$commands" </dev/null || fail "cure of $2 '$3': expected '$commands' to succeed"
    expect_gone "$2" "$3"
}

# A host on which nothing is found that keeps it from being ready.
expect_ready_host() {
    local status=0 output
    output=$(vfpool check) || status=$?
    [[ $status == 0 ]] || fail "check: expected a host that is ready, found (exit $status): $output"
}

# --- the hook and the host -------------------------------------------------

# libvirtd looks for the hook only when it starts and at SIGHUP; asleep behind its socket it needs nothing.
# The reload is done when it answers again.
reload_libvirtd() {
    systemctl --quiet is-active libvirtd && systemctl reload libvirtd
    virsh -q list >/dev/null
}

# What hooks are told at the release of a guest that was destroyed; libvirt before 10.5 tells no reason.
destroyed() { if printf '%s\n' 10.5.0 "$(virsh --version)" | sort -V -C; then echo destroyed; else echo -; fi; }

# Until libvirtd answers after a start. libvirt 7.0 may stand still then: it forks while its threads start, and the child, which
# is still libvirtd, waits for ever for a lock of GLib's. Only such a pair is killed; systemd starts another.
wait_for_libvirtd() {
    local end=$((SECONDS + 90))
    until timeout 20 virsh -q list >/dev/null 2>&1; do
        [[ $? != 124 ]] || ! pkill -KILL -x libvirtd -P "$(systemctl show --property MainPID --value libvirtd)" ||
            systemctl kill --kill-who=main --signal=KILL libvirtd
        ((SECONDS < end)) || fail "libvirtd: expected an answer within 90 s, found none"
        sleep 0.1
    done
}

# without_hook CMD...: runs CMD with the hook out of libvirtd's sight and puts it back whatever happens.
without_hook() (
    hook=/etc/libvirt/hooks/qemu
    aside=$hook.aside
    if [[ -e $hook || -L $hook ]]; then
        trap 'mv "$aside" "$hook"; reload_libvirtd' EXIT
        mv "$hook" "$aside"
        reload_libvirtd
    fi
    "$@"
)

# Lines of syslog since this scenario began that contain TEXT.
logged() { journalctl -q --no-pager -o cat --since "@${scenario_began:-0}" | grep -F -- "$1"; }

# No guest holds anything, nor has left anything.
no_leases() { [[ ! -d $leases || -z $(ls -A "$leases") ]]; }

# For the driver: what nobody may leave behind, one line each.
leftovers() {
    timeout 60 virsh -q list --all | sed 's/^ *//; s/^/guest: /'
    [[ ! -d $leases ]] || find "$leases" -type f -printf 'lease: %p\n'
}

# For the driver, as the package's scriptlets: make everyone see the files that were just copied.
# install_rpm FILE: also an older one, or the same again. The host is a Debian, whose dependencies rpm does not know.
install_rpm() {
    local -a debian=()
    [[ $(rpm --help) != *--force-debian* ]] || debian=(--force-debian)
    rpm --upgrade --oldpackage --replacepkgs --nodeps "${debian[@]}" "$1"
}

after_install() {
    systemctl daemon-reload
    udevadm control --reload
    systemd-tmpfiles --create
    enable_units
    reload_libvirtd
}

enable_units() {
    local file
    for file in /usr/lib/systemd/system/vfpool*; do
        [[ -e $file ]] || continue
        systemctl --quiet preset "${file##*/}"
        [[ $file != *.path ]] || systemctl start "${file##*/}"
    done
}

scenario_began=$EPOCHSECONDS
