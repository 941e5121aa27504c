# Part of the lab driver: the programs that the lab needs on this machine.
# As root on Debian it installs them; otherwise it only lists what is missing.
# shellcheck shell=bash

# QEMU 8.0 is the first with igb (an SR-IOV NIC).
readonly qemu_needed=8

qemu_is_recent() {
    local version
    version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p')
    [[ ${version:-0} -ge $qemu_needed ]]
}

# Prints the Debian packages that are missing, one per line.
missing_packages() {
    qemu_is_recent || echo qemu-system-x86
    command -v ssh >/dev/null || echo openssh-client
    command -v socat >/dev/null || echo socat
    image_is_current && return
    command -v mmdebstrap >/dev/null || echo mmdebstrap
    PATH=$PATH:/usr/sbin:/sbin command -v mke2fs >/dev/null || echo e2fsprogs
}

# Prints apt's arguments for a package: from backports only if the release's own version is too old.
apt_name() {
    local candidate
    candidate=$(apt-cache policy "$1" | sed -n 's/ *Candidate: *//p')
    if [[ $1 == qemu-system-x86 ]] && dpkg --compare-versions "${candidate#*:}" lt "$qemu_needed"; then
        add_backports
        echo "-t $(codename)-backports $1"
    else
        echo "$1"
    fi
}

codename() {
    # shellcheck source=/dev/null
    (. /etc/os-release && echo "$VERSION_CODENAME")
}

# Prints each source of exactly this suite (not of its -security or -updates) as a one-line apt entry:
# `deb [options] URI SUITE main`. Reads both formats of apt.
debian_sources() {
    local suite=$1
    awk -v suite="$suite" -v RS= -F '\n' '
        {
            uri = suites = key = enabled = ""
            types = ""
            for (i = 1; i <= NF; i++) {
                value = $i
                sub(/^[^:]*:[ \t]*/, "", value)
                if ($i ~ /^Types:/) types = value
                if ($i ~ /^URIs:/) { split(value, uris, " "); uri = uris[1] }
                if ($i ~ /^Suites:/) suites = " " value " "
                if ($i ~ /^Signed-By:[ \t]*\//) key = "[signed-by=" value "] "
                if ($i ~ /^Enabled:/) enabled = value
            }
            if (enabled != "no" && (" " types " ") ~ / deb / && index(suites, " " suite " "))
                print "deb " key uri " " suite " main"
        }' /etc/apt/sources.list.d/*.sources 2>/dev/null || true
    sed -nE "s/^deb +(\[[^]]*\] +)?([^ ]+) +$suite +main.*/deb \1\2 $suite main/p" \
        /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true
}

add_backports() {
    local suite list=/etc/apt/sources.list.d/vfpool-lab-backports.list
    suite=$(codename)
    [[ -z $(debian_sources "$suite-backports") ]] || return 0
    debian_sources "$suite" | head -n 1 | sed "s/ $suite main$/ $suite-backports main/" >"$list"
    [[ -s $list ]] || die "no apt source of Debian $suite found to derive $suite-backports from; add it by hand"
    apt_get update
}

install_tools() {
    local package name
    local -a missing
    mapfile -t missing < <(missing_packages)
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ $EUID -ne 0 ]] || ! grep -qs '^ID=debian' /etc/os-release; then
        die "missing on this machine (installed by itself only on Debian as root): ${missing[*]} (QEMU $qemu_needed.0 or later)"
    fi
    apt-cache show "${missing[0]}" >/dev/null 2>&1 || apt_get update
    for package in "${missing[@]}"; do
        note "installing $package"
        name=$(apt_name "$package")
        apt_install "$name" || { apt_get update && apt_install "$name"; } ||
            die "apt-get could not install $package; its output is in $lab_target/install.log"
    done
}

# $1 may be several words: `-t SUITE PACKAGE`.
apt_install() {
    local -a words
    read -ra words <<<"$1"
    apt_get install --no-install-recommends "${words[@]}"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >>"$lab_target/install.log" 2>&1 </dev/null
}
