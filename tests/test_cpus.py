"""How many CPUs a process may use: affinity, control groups of both versions, OMP_NUM_THREADS."""

import os

import pytest
import torch

from hw1lib import cpus, workbook

OWN = os.sched_getaffinity(0)


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """A system with 64 CPUs, and a function that writes its control groups and returns what is available."""
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
        ("0::/\n", {V2.format(""): "800000 100000\n"}, 8),
        ("0::/\n", {V2.format(""): "150000 100000\n"}, 2),  # 1.5 CPUs
        ("0::/\n", {V2.format(""): "20000 100000\n"}, 1),
        ("0::/job/step\n", {V2.format("job/"): "400000 100000", V2.format("job/step/"): "max 100000"}, 4),
        ("0::/job/step\n", {V2.format("job/"): "400000 100000", V2.format("job/step/"): "600000 100000"}, 4),
        ("0::/job/step\n", {V2.format("job/step/"): "300000 100000", V2.format(""): "max 100000"}, 3),
        ("0::/job\n", {V2.format("other/"): "100000 100000"}, 64),
        ("0::/docker/none\n", {V2.format(""): "500000 100000"}, 5),  # as a container sees its host's name
        ("0::/../..\n", {V2.format(""): "500000 100000"}, 5),
        ("4:cpu,cpuacct:/\n", v1(600000), 6),
        ("4:cpu,cpuacct:/\n", v1(-1), 64),
        ("4:cpuacct,cpu:/slurm/job_1\n0::/\n", v1(200000, "slurm/"), 2),
        ("4:memory:/\n", v1(600000), 64),
        ("4:cpuset:/\n", v1(600000), 64),
        ("4:cpu:/a:b\n", v1(700000, "a:b/"), 7),
        ("0::/\n", {V2.format(""): "0 100000"}, 64),
        ("0::/\n", {V2.format(""): "-5 100000"}, 64),
        ("0::/\n", {V2.format(""): "100000 0"}, 64),
        ("0::/\n", {V2.format(""): "nonsense"}, 64),
        ("0::/\n", {V2.format(""): "a b"}, 64),
        ("0::/\n", {V2.format(""): ""}, 64),
        ("0::/\n", {V2.format(""): b"\xff\xfe"}, 64),
        ("0::/\n", {V2.format(""): "99900000 100000"}, 64),
        ("", {}, 64),
        ("nonsense\n\n1:\n", {}, 64),
    ],
)
def test_the_smallest_quota_around_a_process_counts(limits, groups, files, expected):
    assert limits(groups, files) == expected


@pytest.mark.parametrize(
    ("omp", "expected"),
    [("4", 4), ("1", 1), ("128", 64), (" 3 ", 3), ("4,2", 4), ("0", 64), ("-2", 64), ("", 64), ("many", 64),
     ("2.5", 64), ("²", 64), ("1e2", 64), (",", 64)],
)  # fmt: skip
def test_a_number_of_threads_that_makes_sense_counts(limits, omp, expected):
    assert limits(omp=omp) == expected
    assert limits(omp=omp, threads=False) == 64


def test_a_process_may_use_what_it_is_bound_to(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= cpus.available() <= len(OWN)
    assert [cpus.share(n) for n in (1, 1000)] == [cpus.available(), 1]
    try:
        os.sched_setaffinity(0, {min(OWN)})
        assert cpus.available() == 1
    finally:
        os.sched_setaffinity(0, OWN)


def test_a_system_without_affinity_or_control_groups_has_its_cpus(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delenv("OMP_NUM_THREADS")
    for count, expected in ((12, 12), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert cpus.available(system=tmp_path) == expected


@pytest.mark.parametrize(("took", "may_use", "setting", "expected"), [(3, 2, 0, 2), (2, 8, 0, 2), (2, 2, 5, 5)])
def test_torch_takes_no_more_threads_than_that(course_data, tmp_path, monkeypatch, took, may_use, setting, expected):
    """Fewer stay fewer, as bits depend on them; the setting wins."""
    monkeypatch.setattr(cpus, "available", lambda **_: may_use)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(took)
        workbook.Workbook("smoke", course_data, tmp_path / "out", {"threads": setting} if setting else None)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
