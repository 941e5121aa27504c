# Part of the lab driver: boots an emulated host, runs commands on it, and makes sure that it ends.
# shellcheck shell=bash
# $run is the directory with all state of this instance. ssh and QEMU use names relative to it, because the path of a Unix
# socket is limited to 107 bytes.

ssh_options=(-F /dev/null -i key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
    -o LogLevel=ERROR -o ConnectTimeout=5 -o ControlPath=ssh.ctl)

accelerator() {
    case ${LAB_ACCEL:-auto} in
        auto) if kvm_works; then echo kvm; else echo tcg; fi ;;
        kvm | tcg) echo "$LAB_ACCEL" ;;
        *) die "LAB_ACCEL is kvm or tcg, not $LAB_ACCEL" ;;
    esac
}

# A /dev/kvm that opens and creates a VM is not enough: on CPUs without vmx or svm it may be emulated in software, and no
# ordinary kernel boots there.
kvm_works() {
    [[ -w /dev/kvm ]] && grep -qwE 'vmx|svm' /proc/cpuinfo &&
        echo quit | timeout 10 qemu-system-x86_64 -M none -accel kvm -nodefaults -display none -monitor stdio >/dev/null 2>&1
}

free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

qemu_command() {
    local accel cpu eim=auto snapshot=$1
    accel=$(accelerator)
    case $accel in
        kvm) cpu=host ;;
        # Nehalem: the emulated 5-level paging, SMAP and AVX of `max` cost a fifth of all time and are not needed here.
        # x2APIC: QEMU loses some writes to the memory-mapped registers that it replaces. If that is the end of an
        # interrupt, no more interrupts arrive.
        tcg) accel+=,thread=multi cpu=Nehalem,+x2apic eim=on ;;
    esac
    # no_timer_check: on a busy machine the kernel's test of its timer fails, and it panics.
    # shellcheck disable=SC2054 # the commas are QEMU's
    qemu=(qemu-system-x86_64 -name "lab-$LAB_NAME" -machine q35,kernel-irqchip=split -accel "$accel" -cpu "$cpu"
        -smp 2 -m "$LAB_MEMORY" -nodefaults -display none -pidfile qemu.pid -serial file:console.log
        -monitor unix:monitor,server=on,wait=off
        -kernel "$image/vmlinuz" -initrd "$image/initrd"
        -append "root=/dev/vda rw console=ttyS0 quiet fsck.mode=skip mitigations=off cryptomgr.notests no_timer_check sysrq_always_enabled $LAB_KERNEL"
        -device "intel-iommu,intremap=on,eim=$eim"
        -drive "if=none,id=root,file=$image/root.img,format=raw,cache=unsafe,$snapshot"
        -device "virtio-blk-pci,bus=pcie.0,addr=0x1,drive=root")
    topology
}

# With LAB_OWNED the host ends with this process, whatever ends the process. Without it, LAB_LIFE is the last resort.
# Not in a subshell: the parent-death signal follows the process that forks.
launch() {
    local port qemu
    local -a owner=(setsid)
    [[ -z ${LAB_OWNED:-} ]] || owner=(setpriv --pdeathsig TERM)
    port=$(free_port)
    qemu_command "$1"
    pushd "$run" >/dev/null || die "no directory $run"
    rm -f qemu.pid qemu.log console.log ssh.ctl
    cp -p "$image/key" key
    echo "$port" >port
    : >namespace.img
    truncate -s 64M namespace.img
    "${owner[@]}" timeout --kill-after=10 "$LAB_LIFE" "${qemu[@]}" </dev/null >qemu.log 2>&1 &
    echo $! >pid
    popd >/dev/null || true
}

# A boot is tried three times: another process may bind the port between free_port and QEMU, and now and then an emulated
# kernel loses its timer interrupt during boot and hangs.
boot() {
    local snapshot=${1:-snapshot=on} try
    mkdir -p "$run"
    is_up && die "host $LAB_NAME is already up"
    for try in 1 2 3; do
        launch "$snapshot"
        wait_ssh "$LAB_BOOT_DEADLINE" && return
        note "host $LAB_NAME did not answer on ssh within $LAB_BOOT_DEADLINE s (try $try); the tail of its console:"
        { tail -n 30 "$run/console.log" "$run/qemu.log" || true; } >&2
        down
    done
    die "host $LAB_NAME does not come up"
}

# A pid may be reused, so the command line and the working directory must match as well.
is_running() {
    local pid
    pid=$(cat "$run/$1" 2>/dev/null) && [[ -n $pid ]] && grep -qszxF -- "lab-$LAB_NAME" "/proc/$pid/cmdline" &&
        [[ $(readlink "/proc/$pid/cwd") == "$(readlink -f "$run")" ]]
}

is_up() { is_running pid || is_running qemu.pid; }

wait_gone() {
    local end=$((SECONDS + $1))
    while is_up; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# Opens one connection that all later commands share. Its output is closed, because a master that holds the caller's stdout
# would keep a pipe behind `lab up` open. If the host hangs, the connection ends after two minutes, and so do all commands.
connect() {
    (cd "$run" && timeout 20 ssh "${ssh_options[@]}" -o ControlMaster=yes -o ControlPersist=yes \
        -o ServerAliveInterval=20 -o ServerAliveCountMax=6 \
        -p "$(<port)" -fN root@127.0.0.1 </dev/null >/dev/null 2>&1)
}

disconnect() {
    [[ ! -S $run/ssh.ctl ]] || (cd "$run" && timeout 5 ssh "${ssh_options[@]}" -O exit lab </dev/null >/dev/null 2>&1) || true
    rm -f "$run/ssh.ctl"
}

# QEMU's user network accepts connections at once; only an opened session shows that sshd runs.
wait_ssh() {
    local end=$((SECONDS + $1))
    until connect; do
        ((SECONDS < end)) && is_up || return 1
        sleep 0.2
    done
}

# Runs one line of shell inside, as root.
inside() {
    [[ -f $run/port ]] || die "host $LAB_NAME is not up; start it with: lab up"
    (cd "$run" && exec ssh "${ssh_options[@]}" -o ControlMaster=no -p "$(<port)" ${ssh_tty:+-t} root@127.0.0.1 "$@")
}

monitor() {
    [[ -S $run/monitor ]] || die "host $LAB_NAME is not up; start it with: lab up"
    # -t: seconds to wait for an answer after the command is sent.
    (cd "$run" && printf '%s\n' "$1" | timeout 30 socat -t 2 - UNIX-CONNECT:monitor) |
        sed -e 's/\r//g' -e '1d' -e 's/^(qemu) .*\x1b\[K//' -e '/^(qemu) $/d'
}

# The disk is kept, /run is not. --hard is a power cut: nothing is written back first.
reboot_host() {
    local before
    before=$(inside cat /proc/sys/kernel/random/boot_id)
    [[ ${1:-} == --hard ]] || inside sync
    disconnect
    for _ in 1 2 3; do
        monitor system_reset >/dev/null
        wait_ssh "$LAB_BOOT_DEADLINE" && break
    done
    is_running qemu.pid && [[ -S $run/ssh.ctl ]] || die "host $LAB_NAME did not come back after a reset"
    [[ $(inside cat /proc/sys/kernel/random/boot_id) != "$before" ]] || die "host $LAB_NAME did not reset"
}

save_logs() {
    local dir=$1
    mkdir -p "$dir"
    cp "$run/console.log" "$run/qemu.log" "$dir/" 2>/dev/null || true
    note "logs are in $dir"
    is_up || return 0
    timeout 60 "$lab_dir/lab" run journalctl --no-pager -o short-precise >"$dir/journal.log" 2>&1 || true
    timeout 60 "$lab_dir/lab" run tar -C /var/log -cf - libvirt 2>/dev/null | tar -C "$dir" -xf - 2>/dev/null || true
}

# The process may end, and QEMU may remove its pid file, at any moment: then there is nothing to do.
signal() {
    local pid
    is_running "$2" || return 0
    pid=$(cat "$run/$2" 2>/dev/null) || return 0
    kill "-$1" "$pid" 2>/dev/null || true
}

# `timeout` passes TERM on to QEMU, but not KILL, which therefore goes to QEMU itself.
down() {
    local file
    is_up || {
        rm -f "$run"/{port,ssh.ctl}
        return 0
    }
    disconnect
    for file in pid qemu.pid; do
        signal TERM "$file"
    done
    rm -f "$run/port"
    wait_gone 5 && return
    for file in qemu.pid pid; do
        signal KILL "$file"
    done
    wait_gone 5 || die "host $LAB_NAME does not end: $(cat "$run"/{pid,qemu.pid} 2>/dev/null | xargs)"
}
