# On a host whose IOMMU is off, the refusal names `vfpool check`, and that says how to enable it.
# runs: outside
set -euo pipefail

files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
"$LAB" run cat /usr/sbin/vfpool-hook >"$files/hook"
"$LAB" run cat /usr/sbin/vfpool >"$files/vfpool"
chmod 755 "$files/hook" "$files/vfpool"
cat >"$files/guest.xml" <<'END'
<domain><devices><hostdev type='pci'><source><address bus='2'/></source></hostdev></devices></domain>
END
export LAB_NAME=iommu-off LAB_KERNEL=intel_iommu=off files
# shellcheck disable=SC2016 # expanded by the inner shell
"$LAB" with bash -c '
    set -e
    "$LAB" put "$files/hook" /root/hook
    "$LAB" put "$files/vfpool" /root/vfpool
    status=0
    output=$("$LAB" run /root/hook demo prepare begin - <"$files/guest.xml" 2>&1) || status=$?
    [[ $status == 1 && $output == *"0000:02:00.0 has no IOMMU group: the IOMMU is off. See \`vfpool check\`"* ]] ||
        { echo "expected a refusal that names vfpool check, found (exit $status): $output"; exit 1; }
    output=$("$LAB" run /root/vfpool check 2>&1) || true
    [[ $output == *"intel_iommu=on iommu=pt"* ]] || { echo "expected how to enable the IOMMU, found: $output"; exit 1; }'
