# vfpool check finds the IOMMU and interrupt remapping disabled; with the kernel command line that it prints, both are enabled.
# runs: outside
# deadline: 600
set -euo pipefail

files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
"$LAB" run cat /usr/sbin/vfpool >"$files/vfpool"
# Replaces grub, which the emulated host does not have: prints the command line of the next boot.
cat >"$files/update-grub" <<'END'
#!/bin/sh
. /etc/default/grub
echo $GRUB_CMDLINE_LINUX >/root/line
END
# Runs the remedy of the failure ID with TEXT and prints the next command line; fails if there is no such failure.
cat >"$files/cure" <<'END'
#!/bin/bash
set -euo pipefail
echo "GRUB_CMDLINE_LINUX=\"$1\"" >/etc/default/grub
{ /root/check/vfpool check --json || true; } >/root/report
[[ -n ${2:-} ]] || { jq -r '.findings[] | select(.id == "iommu" or .id == "interrupt_remapping") | .state' /root/report; exit; }
finding=$(jq -c --arg id "$2" --arg text "$3" '.findings[] | select(.state == "failure" and .id == $id and (.what | contains($text)))' /root/report)
[[ -n $finding ]] || { cat /root/report; exit 1; }
bash -c "$(jq -r .remedy <<<"$finding" | sed -n 's/^Run `\(.*\)`, then reboot$/\1/p')"
cat /root/line
END
chmod 755 "$files"/*
export files LAB_NAME=no-iommu LAB_KERNEL

# on LINE [ID TEXT]: the output of `cure` on a host that was booted with this command line.
on() {
    LAB_KERNEL=$1
    # shellcheck disable=SC2016 # expanded by the inner shell
    "$LAB" with bash -c '
        set -e
        "$LAB" put "$files" /root/check
        "$LAB" run mv /root/check/update-grub /usr/sbin/update-grub
        "$LAB" run /root/check/cure "$@"' - "$@"
}

expect() { [[ $2 == "$1" ]] || { echo "expected '$1', found '$2'"; exit 1; }; }

line=$(on 'intel_iommu=off intremap=off' iommu 'The IOMMU is off: the kernel was not told to switch it on')
expect 'intremap=off intel_iommu=on iommu=pt' "$line"
line=$(on "$line" interrupt_remapping 'Interrupts are not remapped, so VFIO gives guests no devices')
expect 'intel_iommu=on iommu=pt' "$line"
expect 'ok ok' "$(on "$line" | xargs)"
