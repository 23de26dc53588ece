"""The benchmarks run, at their tiniest; what they measure is for quiet machines."""

import importlib
import sys

import pytest

from benchmarks import bench
from hw1lib.data import earth
from hw1lib.data.csv_rows import GROUPS

PARTS = ("networks", "pretraining", "segmentation", "frozen", "decoding", "growth", "recipe", "scaling", "augmentation")


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_benchmark_runs(part, course_data, tmp_path, monkeypatch):
    """On a small course folder, whose images all show different places, instead of the Earth sample."""
    places = [
        f"{folder},{path.name},{path.name}"
        for folder in ("p1_data/office/train", "p2_data/train")
        for path in (course_data / folder).glob("*.jpg")
    ]
    (course_data / GROUPS).write_text("\n".join(["split,filename,group", *places]))
    monkeypatch.setattr(earth, "build", lambda *_: course_data)
    monkeypatch.setattr(bench, "OUT", tmp_path)
    monkeypatch.setattr(sys, "argv", [part, "--tiny"])
    importlib.import_module(f"benchmarks.{part}").main()
    tables = list(tmp_path.glob("*.csv"))
    assert tables and all(len(table.read_text().splitlines()) > 1 for table in tables)
