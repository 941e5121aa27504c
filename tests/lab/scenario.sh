# Part of the lab driver: runs scenarios on the host one after the other, each from a clean state.
# shellcheck shell=bash

# Runs a line of shell inside the host with the helpers of lib.sh.
with_lib() { inside ". /run/lab/lib.sh; $1"; }

# /run is empty after a reboot, so this is done before each scenario and before each check.
send_lib() { inside 'mkdir -p /run/lab/scenarios && cat >/run/lab/lib.sh' <"$lab_dir/lib.sh"; }

# The time limit of a scenario in seconds: `# deadline: N`, or the default.
deadline_of() {
    local own
    own=$(sed -n 's/^# deadline: *\([0-9]*\).*/\1/p' "$1" | head -n 1)
    echo "${own:-$LAB_DEADLINE}"
}

# A scenario with `# runs: outside` needs more than the host itself, such as hot-add or a power cut.
# It runs on this machine and reaches the host through "$LAB".
run_scenario() {
    local file=$1 limit
    limit=$(deadline_of "$file")
    if grep -q '^# runs: outside' "$file"; then
        LAB=$lab_dir/lab timeout --kill-after=5 "$limit" bash "$file"
    else
        inside "cat >/run/lab/scenarios/scenario.sh" <"$file"
        timeout --kill-after=5 $((limit + 20)) "$lab_dir/lab" run \
            timeout --kill-after=5 "$limit" env LAB_LONG="${LAB_LONG:-}" bash /run/lab/scenarios/scenario.sh
    fi </dev/null
}

# Prints what a scenario left behind, or nothing when the host is as before.
leftovers() {
    local before=$1
    send_lib
    with_lib leftovers
    diff --label before --label after -U0 <(echo "$before") <(with_lib snapshot_drivers) || true
}

# survived FILE PID: prints a line if libvirtd has another pid now. A scenario with `# ends: libvirtd` stops, kills or
# reboots it on purpose.
survived() {
    local now
    ! grep -q '^# ends: libvirtd' "$1" || return 0
    now=$(with_lib libvirtd_pid)
    [[ $now == "$2" ]] || echo "libvirtd did not survive the scenario: its pid was $2 and is now $now"
}

one_scenario() {
    local file=$1 name key before libvirtd output start=$SECONDS status=0 left ended
    name=$(basename "$file" .sh)
    send_lib
    before=$(with_lib snapshot_drivers)
    libvirtd=$(with_lib libvirtd_pid)
    output=$(run_scenario "$file" 2>&1) || status=$?
    if [[ $status -ne 0 ]] && ! answers; then
        note "$name: the emulated kernel hangs; running the scenario again after a reset"
        # Its console then shows what the CPUs execute, and the blocked tasks.
        for key in l w; do monitor "sendkey alt-sysrq-$key" >/dev/null; done
        mkdir -p "$LAB_LOGS" && cp "$run/console.log" "$LAB_LOGS/$name-still.log"
        status=0
        restore "$before" >/dev/null 2>&1
        libvirtd=$(with_lib libvirtd_pid)
        output=$(run_scenario "$file" 2>&1) || status=$?
    fi
    left=$(leftovers "$before" 2>&1) || left="the host does not answer"
    ended=$(survived "$file" "$libvirtd" 2>&1) || ended="libvirtd does not answer"
    if [[ $status -eq 0 && -z $left && -z $ended ]]; then
        echo "ok $name ($((SECONDS - start)) s)"
        return
    fi
    echo "FAIL $name ($((SECONDS - start)) s): $(sed -n '1s/^# *//p' "$file")"
    [[ $status -ne 124 ]] || echo "    it did not end within $(deadline_of "$file") s"
    [[ $status -eq 0 || -n $output ]] || echo "    it ended with exit status $status and printed nothing"
    [[ -z $output ]] || indent '    ' <<<"$output"
    [[ -z $ended ]] || indent '    ' <<<"$ended"
    [[ -z $left ]] || indent '    left behind: ' <<<"$left"
    save_logs "$LAB_LOGS/$name"
    restore "$before" >/dev/null 2>&1 || note "$name: the host is not as before, even after a reboot"
    return 1
}

# An emulated kernel may lose its timer interrupt and hang, which a real one does not.
answers() { timeout 60 "$lab_dir/lab" run true </dev/null >/dev/null 2>&1; }

indent() { sed "s/^/$1/"; }

# The next scenario needs a clean host. Definitions are on the disk, so they are removed again after a reboot.
restore() {
    clean_up "$1" || { reboot_host --hard && clean_up "$1"; }
}

clean_up() {
    send_lib
    timeout 120 "$lab_dir/lab" run bash -c '. /run/lab/lib.sh; start_libvirtd; remove_all_guests; rm -f /etc/vfpool/pools.d/* /etc/vfpool/host.xml; remove_pools 01:00.0 03:00.0 06:00.0; systemd-tmpfiles --create; enable_units' </dev/null || return
    [[ -z $(leftovers "$1") ]]
}

run_scenarios() {
    local file output passed=0 failed=0
    is_up || die "host $LAB_NAME is not up; start it with: lab up"
    for file in "$@"; do
        [[ -f $file ]] || die "no scenario $file"
    done
    for file in "$@"; do
        # Hosts that share the work: the one that makes the directory runs the scenario.
        [[ -z ${LAB_TAKEN:-} ]] || mkdir "$LAB_TAKEN/$(basename "$file")" 2>/dev/null || continue
        # Printed as a whole, so that the lines of two hosts do not mix.
        if output=$(one_scenario "$file"); then passed=$((passed + 1)); else failed=$((failed + 1)); fi
        printf '%s\n' "$output"
    done
    echo "$passed passed, $failed failed"
    [[ $failed -eq 0 ]]
}
