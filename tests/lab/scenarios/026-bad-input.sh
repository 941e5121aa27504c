# Bad input is reported in one line and changes nothing; reconnect, release and unknown operations always succeed.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

hook=/usr/sbin/vfpool-hook
before=$(snapshot_drivers)
domain() { guest_xml demo "$@"; }
# refuses TEXT XML: the operations in $failing fail with one line that contains TEXT.
refuses() {
    local operation output status
    for operation in $failing; do
        status=0
        output=$($hook demo $operation begin - <<<"$2" 2>&1) || status=$?
        [[ $status == 1 && $output == *"$1"* && $(wc -l <<<"$output") == 1 ]] ||
            fail "$operation: expected '$1' in one line, found (exit $status): $output"
    done
    for operation in stopped release reconnect started attach nonsense ''; do
        $hook demo "$operation" begin - <<<"$2" >/dev/null || fail "$operation has to succeed, found exit $?"
    done
}
# The filters also need a domain; its devices are checked at the start only.
failing='prepare start migrate restore'
refuses 'is empty' ''
refuses 'no libvirt domain' '<network><name>x</name></network>'
refuses 'no libvirt domain' 'hello'
refuses 'cut off' "$(domain "$(hostdev 02:00.0)" | head -n 15)"
failing='prepare start'
refuses 'there is no PCI device 0000:0b:00.0' "$(domain "$(hostdev 0b:00.0)")"
refuses '0000:00:02.0 is a bridge' "$(domain "$(hostdev 00:02.0)")"
many=$(domain "$(for i in {0..32}; do hostdev "$(printf '40:%02x.%x' $((i / 8)) $((i % 8)))"; done)")
refuses 'it has 33 assigned PCI devices, and 32 is the most a guest may have' "$many"
echo "<host><devices max='33'/></host>" >/etc/vfpool/host.xml
refuses 'there is no PCI device 0000:40:00.0' "$many"
rm /etc/vfpool/host.xml

expect_fails 'larger than 16 MiB' $hook demo prepare begin - < <(domain; head -c 100M /dev/zero | tr '\0' x)
expect_fails 'called with 1 argument' $hook demo </dev/null
expect_fails 'called with 0 argument' $hook </dev/null
expect_fails "without a guest's name" $hook '' prepare begin - </dev/null
$hook demo release </dev/null
$hook demo reconnect begin - extra </dev/null
[[ $(snapshot_drivers) == "$before" ]] || fail "bad input changed something"

# Guests with names that libvirt accepts are started; other names are passed to the hook directly.
for name in 'two words' "it's \"quoted\"" '..' 'gäst 日本' '50%'; do
    xml=$(guest_xml NAME "$(hostdev 02:00.0)" | sed "s#<name>NAME#<name>$(sed 's/&/\&amp;/g; s/</\&lt;/g' <<<"$name")#")
    if virsh -q define /dev/stdin <<<"$xml" 2>/dev/null; then
        # libvirt 4.5 refuses the name `..` only when the guest starts.
        if output=$(virsh -q start "$name" 2>&1); then
            expect_driver 02:00.1 vfio-pci
            stop "$name"
        elif [[ $name != .. || $output != *'nvalid'* ]]; then
            fail "start of '$name': $output"
        fi
        remove_guest "$name"
    fi
done
for name in 'two words' "it's \"quoted\"" $'new\nline' '..' 'a/../b' '../../etc/x' 'gäst 日本' '-x' "$(printf 'x%.0s' {1..251})"; do
    $hook "$name" prepare begin - <<<"$(domain "$(hostdev 02:00.0)")" || fail "prepare of '$name'"
    expect_driver 02:00.1 vfio-pci
    $hook "$name" release end - </dev/null
    expect_driver 02:00.1 e1000e
done
[[ $(snapshot_drivers) == "$before" ]] || fail "odd names changed something"
expect_fails 'File name too long' $hook "$(printf 'x%.0s' {1..300})" prepare begin - <<<"$(domain "$(hostdev 02:00.0)")"
[[ $(snapshot_drivers) == "$before" ]] || fail "a refused name changed something"
