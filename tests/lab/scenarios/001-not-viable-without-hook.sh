# Without the hook a guest with one function of a two-function card does not start: its group is not viable.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

start_is_refused() {
    define_guest lonely "$(hostdev 02:00.0)"
    expect_fails 'is not viable' virsh start lonely
    expect_driver 02:00.1 e1000e
    remove_guest lonely
}

without_hook start_is_refused
