"""The CPUs that a process may use: affinity, the quota of its container, OMP_NUM_THREADS."""

import os

import joblib
import pytest
import torch

from hw1lib import cpus, workbook

OWN = os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("omp", "expected"), [("4", 4), ("128", 64), (" 3 ", 3), ("4,2", 4), ("0", 64), ("-2", 64), ("many", 64), ("²", 64)]
)
def test_a_valid_omp_num_threads_counts(monkeypatch, omp, expected):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert cpus.available() == expected and cpus.available(threads=False) == 64
    assert [cpus.share(n, threads=False) for n in (3, 1000)] == [21, 1]


def test_cpu_affinity_counts(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= cpus.available() <= len(OWN)
    try:
        os.sched_setaffinity(0, {min(OWN)})
        assert cpus.available() == 1
    finally:
        os.sched_setaffinity(0, OWN)


@pytest.mark.parametrize(("took", "may_use", "setting", "expected"), [(3, 2, 0, 2), (2, 8, 0, 2), (2, 2, 5, 5)])
def test_a_workbook_limits_torchs_threads(course_data, tmp_path, monkeypatch, took, may_use, setting, expected):
    """It does not raise their number, on which rounding depends; the setting takes precedence."""
    monkeypatch.setattr(cpus, "available", lambda **_: may_use)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(took)
        workbook.Workbook("smoke", course_data, tmp_path / "out", {"threads": setting} if setting else None)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
