"""How many threads a session starts: the cores that this process may use, and need not wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pycrispasr.runtimes import native

CPU = "sys/devices/system/cpu/cpu{}"


class Machine:
    """A folder that looks like a Linux machine's /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def groups(self, *groups: str, mounts: str) -> None:
        """The groups of this process, and the lines of mountinfo."""
        self.write("proc/self/cgroup", "".join(f"{group}\n" for group in groups))
        self.write("proc/self/mountinfo", "24 1 0:5 / /proc rw shared:1 - proc proc rw\n" + mounts)

    def cores(self, allowed: str = "0-15") -> int:
        return native.usable_cores_of(self.root, allowed)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n"

# ---- Cores


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [("0-15", 16), ("0", 1), ("3,5-6,11", 4), ("", 1), ("nonsense", 1), ("7-3", 1), ("0-99999999999999999999", 65536)],
)
def test_a_machine_that_tells_nothing_has_a_core_for_each_allowed_cpu(
    machine: Machine, allowed: str, cores: int
) -> None:
    assert machine.cores(allowed) == cores


def test_hardware_threads_of_one_core_count_once(machine: Machine) -> None:
    for cpu in range(8):
        machine.write(f"{CPU.format(cpu)}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    assert machine.cores("0-7") == 4
    assert machine.cores("1,5") == 1
    assert machine.cores("2,3,7") == 2


def test_efficiency_cores_of_intel_s_hybrids_are_left_aside(machine: Machine) -> None:
    machine.write("sys/devices/cpu_core/cpus", "0-7\n")  # four cores of two threads
    machine.write("sys/devices/cpu_atom/cpus", "8-15\n")
    for cpu in range(16):
        siblings = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" if cpu < 8 else f"{cpu}"
        machine.write(f"{CPU.format(cpu)}/topology/thread_siblings_list", siblings + "\n")
    assert machine.cores() == 4
    assert machine.cores("6-9") == 1
    assert machine.cores("8-15") == 8, "a process that may use these only uses them"


@pytest.mark.parametrize(
    ("capacities", "cores"),
    [
        ((1024,) * 4, 4),
        ((446,) * 4 + (1024,) * 2, 2),
        ((530,) * 4 + (1024,) * 4, 4),
        ((250,) * 4 + (871,) * 3 + (1024,), 4),  # middle ones are fast enough
        ((250,) * 4, 4),
        (("?",) + (1024,) * 2, 3),
        ((0,) + (250,) * 2, 3),
    ],
)
def test_slow_cores_of_arm_s_processors_are_left_aside(
    machine: Machine, capacities: tuple[int, ...], cores: int
) -> None:
    for cpu, capacity in enumerate(capacities):
        machine.write(f"{CPU.format(cpu)}/cpu_capacity", f"{capacity}\n")
    assert machine.cores(f"0-{len(capacities) - 1}") == cores


# ---- Quotas of control groups


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("100000 50000", 2),
        ("9999999999999999999999 100000", 16),
        ("9223372036854775807 1", 16),
        ("0 100000", 16),
        ("-5 100000", 16),
        ("200000 0", 16),
        ("200000", 16),
        ("", 16),
        ("garbage", 16),
    ],
)
def test_a_quota_limits_the_threads(machine: Machine, limit: str, cores: int) -> None:
    machine.groups("0::/", mounts=V2)
    machine.write("sys/fs/cgroup/cpu.max", limit + "\n")
    assert machine.cores() == cores


def test_the_smallest_quota_above_a_nested_group_counts_and_no_sibling_s(machine: Machine) -> None:
    machine.groups("0::/kubepods/pod7/box", mounts=V2)
    machine.write("sys/fs/cgroup/kubepods/pod7/box/cpu.max", "max 100000\n")
    machine.write("sys/fs/cgroup/kubepods/pod7/cpu.max", "300000 100000\n")
    machine.write("sys/fs/cgroup/kubepods/cpu.max", "800000 100000\n")
    machine.write("sys/fs/cgroup/kubepods/pod7/other/cpu.max", "100000 100000\n")
    machine.write("sys/fs/cgroup/kubepods/pod7/box/inner/cpu.max", "100000 100000\n")
    assert machine.cores() == 3
    machine.write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert machine.cores() == 2


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_its_own_group_at_the_mount_point(machine: Machine, version: int) -> None:
    """The mount's root is the group, since the container has no namespace of groups."""
    line, group = (V2, "0::/docker/abc") if version == 2 else (V1, "4:cpu,cpuacct:/docker/abc")
    machine.groups(group, mounts=line.replace(" / /sys", " /docker/abc /sys"))
    if version == 2:
        machine.write("sys/fs/cgroup/cpu.max", "400000 100000\n")
    else:
        machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n")
        machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert machine.cores() == 4


def test_a_group_outside_of_what_is_mounted_has_the_mount_point_s_quota(machine: Machine) -> None:
    machine.write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    machine.write("host/cpu.max", "100000 100000\n")
    mounts = V2.replace(" / /sys", " /docker/abc /sys")
    for group in ("/docker/abcdef", "/../elsewhere", "/user.slice"):
        machine.groups(f"0::{group}", mounts=mounts + V2.replace(" / /sys/fs/cgroup", " /docker/xyz /host"))
        assert machine.cores() == 2


def test_version_1_and_both_versions_side_by_side(machine: Machine) -> None:
    unified = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    others = V1.replace("cpu,cpuacct", "cpuset")  # whose name begins with cpu
    machine.groups("5:cpuset:/a", "4:cpu,cpuacct:/a/b", "1:name=systemd:/x:y", "0::/", mounts=others + unified + V1)
    cpu = "sys/fs/cgroup/cpu,cpuacct"
    machine.write("sys/fs/cgroup/cpuset/a/cpu.cfs_quota_us", "100000\n")
    machine.write("sys/fs/cgroup/cpuset/a/cpu.cfs_period_us", "100000\n")
    for folder, quota in (("/a/b", -1), ("/a", 500000), ("", -1)):
        machine.write(f"{cpu}{folder}/cpu.cfs_quota_us", f"{quota}\n")
        machine.write(f"{cpu}{folder}/cpu.cfs_period_us", "100000\n")
    assert machine.cores() == 5
    machine.write("sys/fs/cgroup/unified/cpu.max", "300000 100000\n")
    assert machine.cores() == 3


def test_mount_points_have_spaces_written_as_numbers(machine: Machine) -> None:
    machine.groups("0::/a b", mounts=V2.replace("/sys/fs/cgroup", "/odd\\040place\\134"))
    machine.write("odd place\\/a b/cpu.max", "200000 100000\n")
    assert machine.cores() == 2


@pytest.mark.parametrize("mounts", ["", "\n", "1 2 3\n", "30 24 0:26 / /sys/fs/cgroup rw -\n", "- - - - - - - -\n" * 3])
@pytest.mark.parametrize("group", ["", "0::", "::", ":", "0:/", "0::relative"])
def test_damaged_lists_limit_nothing(machine: Machine, mounts: str, group: str) -> None:
    machine.groups(group, mounts=mounts)
    machine.write("sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert machine.cores() == 16


# ---- This machine


def test_this_machine_has_a_core_at_least() -> None:
    assert 1 <= native.usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="sets the CPUs of a process")
def test_a_process_on_one_cpu_has_one_core() -> None:
    code = (
        "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pycrispasr.runtimes import native\nprint(native.usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
