# Devices, drivers and IOMMU groups of the emulated host match the table in the README.
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

expect_topology() {
    expect_driver 01:00.0 igb
    expect_group 01:00.0
    expect_driver 02:00.0 e1000e
    expect_driver 02:00.1 e1000e
    expect_group 02:00.0 02:00.1
    expect_driver 03:00.0 igb
    expect_group 03:00.0 00:04.0
    expect_driver 05:01.0 e1000
    expect_driver 05:02.0 e1000
    expect_group 04:00.0 05:01.0 05:02.0
    expect_driver 06:00.0 nvme
    expect_group 06:00.0
    expect_driver 07:00.0 e1000e
    expect_driver 07:00.1 e1000e
    expect_group 07:00.0 07:00.1
}

# Behind ACS each of the seven VFs has its own group.
expect_vfs_apart() {
    local vf pf
    # igbvf waits some seconds for each VF of a PF that has never been up.
    pf=$(netdev_of 01:00.0)
    ip link set "$pf" up
    set_vfs 01:00.0 7
    for vf in 01:10.0 01:10.2 01:10.4 01:10.6 01:11.0 01:11.2 01:11.4; do
        expect_driver $vf igbvf
        expect_group $vf
    done
    set_vfs 01:00.0 0
    ip link set "$pf" down
}

# Without ACS two VFs share one group with the PF and the port.
expect_vfs_together() {
    set_vfs 03:00.0 2
    expect_group 03:00.0 00:04.0 03:10.0 03:10.2
    set_vfs 03:00.0 0
}

# VFs that are not NICs. No driver binds them because they have no queues yet.
expect_nvme_vfs() {
    set_vfs 06:00.0 4
    expect_group 06:00.1
    expect_group 06:00.4
    set_vfs 06:00.0 0
}

expect_default_route() {
    expect_output "dev $(netdev_of 07:00.0)" ip route show default
}

expect_topology
expect_default_route
expect_vfs_apart
expect_vfs_together
expect_nvme_vfs
expect_topology
