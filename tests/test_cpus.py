"""The CPUs that a process may use: affinity, control groups of both versions, OMP_NUM_THREADS."""

import os

import pytest
import torch

from hw1lib import cpus, workbook

OWN = os.sched_getaffinity(0)


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """A function that writes control groups of a system with 64 CPUs, and returns the number of CPUs available."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def available(groups="0::/\n", files=None, omp=None, **options):
        for name, text in {"proc/self/cgroup": groups, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        if omp is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", omp)
        return cpus.available(system=tmp_path, **options)

    return available


V2 = "sys/fs/cgroup/{}cpu.max"
QUOTA, PERIOD = "sys/fs/cgroup/cpu/{}cpu.cfs_quota_us", "sys/fs/cgroup/cpu/{}cpu.cfs_period_us"


def v1(quota, group=""):
    return {QUOTA.format(group): f"{quota}\n", PERIOD.format(group): "100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {V2.format(""): "max 100000\n"}, 64),
        ("0::/\n", {V2.format(""): "150000 100000\n"}, 2),  # 1.5 CPUs
        ("0::/job/step\n", {V2.format("job/"): "400000 100000", V2.format("job/step/"): "max 100000"}, 4),
        ("0::/job/step\n", {V2.format("job/"): "400000 100000", V2.format("job/step/"): "600000 100000"}, 4),
        ("0::/job\n", {V2.format("other/"): "100000 100000"}, 64),
        ("0::/docker/none\n", {V2.format(""): "500000 100000"}, 5),  # a container sees the name on its host
        ("0::/../..\n", {V2.format(""): "500000 100000"}, 5),
        ("4:cpu,cpuacct:/\n", v1(600000), 6),
        ("4:cpu,cpuacct:/\n", v1(-1), 64),
        ("4:cpuacct,cpu:/slurm/job_1\n0::/\n", v1(200000, "slurm/"), 2),
        ("4:cpuset:/\n", v1(600000), 64),
        ("4:cpu:/a:b\n", v1(700000, "a:b/"), 7),
        *(("0::/\n", {V2.format(""): text}, 64) for text in ("-5 100000", "100000 0", "a b", "", b"\xff\xfe")),
        ("nonsense\n\n1:\n", {}, 64),
    ],
)
def test_the_smallest_quota_of_the_control_groups_counts(limits, groups, files, expected):
    assert limits(groups, files) == expected


@pytest.mark.parametrize(
    ("omp", "expected"),
    [("4", 4), ("128", 64), (" 3 ", 3), ("4,2", 4), ("0", 64), ("-2", 64), ("", 64), ("many", 64), ("²", 64)],
)
def test_a_valid_omp_num_threads_counts(limits, omp, expected):
    assert limits(omp=omp) == expected
    assert limits(omp=omp, threads=False) == 64


def test_cpu_affinity_counts(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= cpus.available() <= len(OWN)
    assert [cpus.share(n) for n in (1, 1000)] == [cpus.available(), 1]
    try:
        os.sched_setaffinity(0, {min(OWN)})
        assert cpus.available() == 1
    finally:
        os.sched_setaffinity(0, OWN)


def test_without_affinity_or_control_groups_all_cpus_count(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delenv("OMP_NUM_THREADS")
    for count, expected in ((12, 12), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert cpus.available(system=tmp_path) == expected


@pytest.mark.parametrize(("took", "may_use", "setting", "expected"), [(3, 2, 0, 2), (2, 8, 0, 2), (2, 2, 5, 5)])
def test_a_workbook_limits_torchs_threads(course_data, tmp_path, monkeypatch, took, may_use, setting, expected):
    """It does not raise them, as bits depend on their number; the setting takes precedence."""
    monkeypatch.setattr(cpus, "available", lambda **_: may_use)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(took)
        workbook.Workbook("smoke", course_data, tmp_path / "out", {"threads": setting} if setting else None)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
