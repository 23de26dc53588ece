"""The benchmarks run, at their tiniest; what they measure is for quiet machines."""

import importlib
import sys

import pytest

from benchmarks import bench

PARTS = ("networks", "pretraining", "segmentation", "frozen", "decoding", "growth", "recipe", "scaling", "augmentation")


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_benchmark_runs(part, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "OUT", tmp_path)
    monkeypatch.setattr(sys, "argv", [part, "--tiny"])
    importlib.import_module(f"benchmarks.{part}").main()
    tables = list(tmp_path.glob("*.csv"))
    assert tables and all(len(table.read_text().splitlines()) > 1 for table in tables)
