# Helpers for scenarios. A scenario sources this file inside the emulated host, and so does the driver for its own checks.
# A helper that fails prints one line: what was expected and what was found.
# shellcheck shell=bash

readonly pci=/sys/bus/pci/devices
readonly leases=/run/vfpool/leases

fail() {
    trap - ERR
    echo "FAIL: $*" >&2
    exit 1
}

# rounds N MANY: how often a random scenario plays: N times, or MANY with `tests/run --long`.
rounds() { if [[ ${LAB_LONG:-} ]]; then echo "$2"; else echo "$1"; fi; }

# With `set -e` a command that fails ends the scenario; this names the command.
set -o errtrace
trap 'echo "${BASH_SOURCE[0]##*/} line $LINENO: exit $?: $BASH_COMMAND" >&2' ERR

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

# Addresses of all devices in ADDR's IOMMU group, including bridges, one per line.
group_members() { ls "$pci/$(address "$1")/iommu_group/devices"; }

# Name of ADDR's network interface, or none.
netdev_of() {
    local dir
    for dir in "$pci/$(address "$1")"/net/*; do
        [[ -e $dir ]] && echo "${dir##*/}" && return
    done
    echo none
}

# Prints address, driver, driver_override and sriov_numvfs of every PCI device, sorted.
# Starts no process: on the emulated host, a few hundred of them would take a second.
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

# The group of the first address contains exactly these addresses.
expect_group() {
    local expected found
    expected=$(for a in "$@"; do address "$a"; done | sort | xargs)
    found=$(group_members "$1" | sort | xargs)
    [[ $found == "$expected" ]] || fail "group of $1: expected $expected, found $found"
}

# set_vfs PF N: the kernel only changes the number through 0. Returns when udev has processed the VFs.
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

# expect_fails TEXT CMD...: CMD must fail and print TEXT.
expect_fails() {
    local text=$1 output status=0
    shift
    output=$("$@" 2>&1) || status=$?
    [[ $status -ne 0 ]] || fail "$*: expected to fail with '$text', found success: $output"
    [[ $output == *"$text"* ]] || fail "$*: expected the message '$text', found (exit $status): $output"
}

# expect_output TEXT CMD...: CMD must succeed and print TEXT.
expect_output() {
    local text=$1 output status=0
    shift
    output=$("$@" 2>&1) || status=$?
    [[ $status -eq 0 ]] || fail "$*: expected success, found exit $status: $output"
    [[ $output == *"$text"* ]] || fail "$*: expected '$text', found: $output"
}

# wait_until SECONDS CMD...: CMD must succeed within SECONDS.
wait_until() {
    local limit=$1 end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "$*: expected to succeed within $limit s, found that it still fails"
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

# nvme_disk ADDR MANAGED: the element for a disk on an NVMe controller.
nvme_disk() {
    hostdev "$1" | sed -nE "s,.*(<address .*)</source>.*,<disk type='nvme' device='disk'><driver name='qemu' type='raw'/><source type='pci' managed='$2' namespace='1'>\1</source><target dev='vda' bus='virtio'/></disk>,p"
}

# libvirt before 6.0 has no such disks, and says so.
has_nvme_disks() {
    ! libvirt_is 6.0.0 || return 0
    expect_fails 'unknown disk type' virsh define /dev/stdin <<<"$(guest_xml nvme "$(nvme_disk 06:00.0 yes)")"
    return 1
}

# guest_xml NAME [device xml...]: the smallest guest that runs. A part that starts with <metadata or <seclabel goes
# beside the devices. There is no disk: the firmware finds nothing to boot and halts.
# libvirtd itself is confined, but the guest has no AppArmor profile: compiling one at each start takes 6 of 9 seconds
# here. For a guest with a profile: guest_xml NAME "<seclabel type='dynamic' model='apparmor'/>".
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

# define_hot_plug_guest NAME [device xml...]: a guest that supports hot-plug.
define_hot_plug_guest() {
    local xml
    xml=$(guest_xml "$@" | sed 's,<on_poweroff>,<features><acpi/></features>&,')
    virsh -q define /dev/stdin <<<"$xml" >/dev/null || fail "define_hot_plug_guest $1: expected success"
}

# A guest without an operating system does not answer an unplug request. guest_lets_go does what its ACPI code would do:
# it reads the requested slots and writes them to the eject register (QEMU, docs/specs/acpi_pci_hotplug.rst).
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

# devices_of NAME [--inactive]: the host's PCI devices in the guest's live (or next) definition, one address per line, sorted.
# xmllint fails when there is none, which is no error here.
devices_of() {
    local xml
    xml=$(virsh dumpxml "${@:2}" "$1") || return
    { xmllint --xpath '//hostdev[@type="pci"]/source/address | //interface[@type="hostdev"]/source/address' - <<<"$xml" 2>/dev/null || true; } |
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

# pool NAME LINE...: writes a pool with these <pf> and <address> lines.
pool() {
    printf '<pool>\n<name>%s</name>\n<forward mode="hostdev" managed="yes">\n' "$1" >"/etc/vfpool/pools.d/$1.xml"
    printf '%s\n' "${@:2}" '</forward>' '</pool>' >>"/etc/vfpool/pools.d/$1.xml"
}

# define_pool NAME LINE...: the same, and creates its VFs.
define_pool() {
    pool "$@"
    vfpool setup || fail "setup of pool $1: expected success"
    udevadm settle --timeout=60
}

# The pool that most scenarios use: the seven VFs of 01:00.0.
define_passthrough() { define_pool passthrough "<pf dev='$(netdev_of 01:00.0)'/>"; }

# remove_pools [PF...]: removes all pools and the VFs of these PFs (01:00.0 if none is given).
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

# adopted_guests N POOL ADDR: defines guests g1 ... gN, all with the same VF ADDR, and adopts each into POOL.
adopted_guests() {
    local number
    for ((number = 1; number <= $1; number++)); do
        define_guest "g$number" "$(hostdev "$3")"
        vfpool adopt "g$number" "$2" || fail "adopt g$number $2: expected success"
    done
}

# The VF that a stopped guest points at.
parked_at() { devices_of "$1" --inactive; }

# are_parked N: each of g1 ... gN points at a different VF.
are_parked() { [[ $(for ((g = 1; g <= $1; g++)); do parked_at "g$g"; done | sort | uniq -c | grep -c '^ *1 ') == "$1" ]]; }

# All definitions without the source addresses, which are the only thing that parking may change.
definitions() {
    local file
    for file in /etc/libvirt/qemu/*.xml; do
        echo "$file"
        sed -E "/<source>/,/<\\/source>/s/<address [^>]*>/<address>/" "$file"
    done
}

# No two running guests have the same device.
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

# expect_ready PF N: the PF has N VFs, all on vfio-pci and without a network interface.
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

# found ID TEXT: the findings with this id and text that are not ok, as JSON, one per line. The exit status is the check's.
found() {
    local report status=0
    report=$(vfpool check --json) || status=$?
    jq -c --arg id "$1" --arg text "$2" '.findings[] | select(.state != "ok" and .id == $id and (.what | contains($text)))' <<<"$report"
    return "$status"
}

# remedy_of STATE ID TEXT: the remedy of the only finding with this id and text. It must have this state, and evidence.
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

# cure STATE ID TEXT: expects this finding, runs the commands of its remedy unchanged, and expects the finding to be gone.
cure() {
    local remedy commands
    remedy=$(remedy_of "$@") || fail "$remedy"
    commands=$(grep -o '`[^`]*`' <<<"$remedy" | tr -d '`') || fail "no command in the remedy '$remedy'"
    bash -c "$commands" </dev/null || fail "cure of $2 '$3': expected '$commands' to succeed"
    expect_gone "$2" "$3"
}

# `vfpool check` succeeds.
expect_ready_host() {
    local status=0 output
    output=$(vfpool check) || status=$?
    [[ $status == 0 ]] || fail "check: expected the host to be ready, found (exit $status): $output"
}

# --- the hook and the host -------------------------------------------------

# libvirt_is VERSION: the host's libvirt is this version or a later one.
libvirt_is() { printf '%s\n' "$1" "$(virsh --version)" | sort -V -C; }

# libvirtd looks for the hook when it starts and at SIGHUP; inactive behind its socket it needs no reload.
# The reload is complete when libvirtd answers again.
reload_libvirtd() {
    ! systemctl --quiet is-active libvirtd || systemctl reload libvirtd
    virsh -q list >/dev/null
}

# The sockets of libvirtd on this host; libvirt before 5.6 has none.
libvirtd_sockets() { systemctl list-unit-files --no-legend 'libvirtd.socket' 'libvirtd-ro.socket' 'libvirtd-admin.socket' | sed 's/ .*//'; }

# Stops libvirtd together with the sockets that would start it again.
stop_libvirtd() {
    # shellcheck disable=SC2046 # one word per socket
    systemctl stop --quiet $(libvirtd_sockets) libvirtd.service
}

start_libvirtd() {
    # shellcheck disable=SC2046 # one word per socket
    systemctl start --quiet $(libvirtd_sockets) libvirtd.service
    wait_for_libvirtd
}

# The EXTRA argument of a release hook after `virsh destroy`; libvirt before 10.5 gives no reason.
destroyed() { if libvirt_is 10.5.0; then echo destroyed; else echo -; fi; }

# Waits until libvirtd answers after a start. libvirt 7.0 may hang then: it forks while its threads start, and the child,
# which is still libvirtd, waits forever for a lock of GLib. Only such a pair is killed; systemd then starts another.
wait_for_libvirtd() {
    local end=$((SECONDS + 90))
    until timeout 20 virsh -q list >/dev/null 2>&1; do
        [[ $? != 124 ]] || ! pkill -KILL -x libvirtd -P "$(systemctl show --property MainPID --value libvirtd)" ||
            systemctl kill --kill-who=main --signal=KILL libvirtd
        ((SECONDS < end)) || fail "libvirtd: expected an answer within 90 s, found none"
        sleep 0.1
    done
}

readonly libvirt_hook=/etc/libvirt/hooks/qemu

# replace_hook: standard input is libvirt's hook until restore_hook. libvirtd runs what has this name, without a reload.
replace_hook() {
    mv "$libvirt_hook" "$libvirt_hook.aside"
    cat >"$libvirt_hook"
    chmod 755 "$libvirt_hook"
}

restore_hook() { [[ ! -e $libvirt_hook.aside && ! -L $libvirt_hook.aside ]] || mv "$libvirt_hook.aside" "$libvirt_hook"; }

# without_hook CMD...: runs CMD while libvirtd has no hook, and always puts the hook back.
without_hook() (
    if [[ -e $libvirt_hook || -L $libvirt_hook ]]; then
        trap 'restore_hook; reload_libvirtd' EXIT
        mv "$libvirt_hook" "$libvirt_hook.aside"
        reload_libvirtd
    fi
    "$@"
)

# The hook stays in prepare for 5 s, after vfpool's work.
hold_prepare() {
    replace_hook <<'END'
#!/bin/bash
/usr/sbin/vfpool-hook "$@" || exit
[[ $2 != prepare ]] || { touch /run/lab/prepared; exec >&- 2>&- <&-; sleep 5; }
END
}

# start_held GUEST: returns when its hook stays in prepare.
start_held() {
    rm -f /run/lab/prepared
    virsh start "$1" >/dev/null 2>&1 &
    wait_until 30 test -e /run/lab/prepared
}

# Returns when another libvirtd runs, and the clients of this one have ended.
kill_libvirtd() {
    systemctl kill --kill-who=main --signal=KILL libvirtd
    wait || true
    wait_for_libvirtd
}

# logged TEXT: the lines of syslog since the scenario began that contain TEXT.
logged() { journalctl -q --no-pager -o cat --since "@${scenario_began:-0}" | grep -F -- "$1"; }

# No service of vfpool works or is about to. A oneshot service that works is `activating`, which is-active does not count.
units_are_idle() {
    [[ -z $(systemctl list-units --no-legend --state=active,activating,deactivating 'vfpool-*.service') &&
        -z $(systemctl list-jobs --no-legend 'vfpool-*') ]]
}

# There is no lease.
no_leases() { [[ ! -d $leases || -z $(ls -A "$leases") ]]; }

# For the driver: libvirtd's pid. Starts libvirtd if it is inactive behind its socket.
libvirtd_pid() {
    timeout 60 virsh -q list >/dev/null
    systemctl show --property MainPID libvirtd | sed 's/.*=//'
}

# For the driver: what a scenario must not leave behind, one line each.
leftovers() {
    local path
    timeout 60 virsh -q list --all | sed 's/^ *//; s/^/guest: /'
    [[ ! -d $leases ]] || find "$leases" -type f -printf 'lease: %p\n'
    [[ -e /usr/sbin/vfpool-hook ]] || return 0
    while read -r path; do
        [[ -d $path ]] || echo "missing directory: $path"
    done < <(sed -n 's/^d *\([^ ]*\).*/\1/p' /usr/lib/tmpfiles.d/vfpool.conf)
    for path in /usr/lib/systemd/system/vfpool-*.path; do
        systemctl --quiet is-active "${path##*/}" || echo "inactive unit: ${path##*/}"
    done
}

# install_rpm FILE: installs it, also if it is older than the installed one or the same. The host is a Debian, and rpm does
# not know its packages.
install_rpm() {
    local -a debian=()
    [[ $(rpm --help) != *--force-debian* ]] || debian=(--force-debian)
    rpm --upgrade --oldpackage --replacepkgs --nodeps "${debian[@]}" "$1"
}

# For the driver, after files were copied onto the host: what the package's scriptlets do.
after_install() {
    systemctl daemon-reload
    udevadm control --reload
    systemd-tmpfiles --create
    enable_units
    reload_libvirtd
}

# Definitions and leases that change are left alone until start_watching, also when libvirtd starts.
stop_watching() {
    systemctl stop vfpool-reconcile.path vfpool-definitions.path
    wait_until 60 units_are_idle
}
start_watching() { systemctl start vfpool-reconcile.path vfpool-definitions.path; }

enable_units() {
    local -a units paths
    units=(/usr/lib/systemd/system/vfpool*)
    paths=(/usr/lib/systemd/system/vfpool*.path)
    [[ -e ${units[0]} ]] || return 0
    systemctl --quiet preset "${units[@]##*/}"
    systemctl start "${paths[@]##*/}"
}

scenario_began=$EPOCHSECONDS
