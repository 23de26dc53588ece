"""`compare` shows scores side by side, and lists all other differences of the reports."""

import copy
import re

import pytest

from hw1lib import files, paths
from tests.conftest import refused, run

REPORT = {
    "metrics": {
        "settings": {"seed": 0, "about": "x", "finetune": {"epochs": 2}},
        "data": {"pool": "aa", "val": "bb", "tiles_train": "cc"},
        "versions": {"finetune-C": 7},
        "steps": {"finetune-C": {"key": "1", "accuracy_last": 0.5}, "segment-lraspp": {"key": "2", "miou_last": 0.1}},
    },
    "run": {"device": "cpu", "threads": 2, "packages": {"torch": "2.14.1"}, "precision": {"pretrain": "bf"}},
}


def write(folder, changes=()):
    """Write a report with values replaced by dotted name, such as run.device; None removes one."""
    report = copy.deepcopy(REPORT)
    for dotted, value in dict(changes).items():
        *groups, name = (dotted if dotted.startswith("run.") else f"metrics.{dotted}").split(".")
        parent = report
        for group in groups:
            parent = parent[group]
        parent[name] = value
        if value is None:
            del parent[name]
    for name, content in report.items():
        files.write_json(folder / f"{name}.json", content)


ALL = "The same: settings, data, versions of steps, packages and machine."
OTHER_DATA = "The data differ, so the scores cannot be compared."


CASES = [
    ({"steps.finetune-C": {"accuracy_last": 0.75}}, r"finetune-C +0\.5000 +0\.7500", ALL),
    ({"steps": {}}, r"finetune-C +0\.5", ALL),
    ({"settings.finetune": {"epochs": 4}}, r"finetune\.epochs +2 +4", "The same: data, versions"),
    ({"settings.seed": None}, r"seed +0 +–", "The same: data, versions"),
    ({"data.val": "zz"}, r"data that differ\n.*\nval +bb +zz", OTHER_DATA),
    ({"data.tiles_train": None}, r"tiles_train +cc +–", OTHER_DATA),
    ({"versions": {"finetune-C": 8}}, r"finetune-C +7 +8", "The same: settings, data, packages"),
    ({"run.packages": {"torch": "2.13"}}, r"packages\.torch +2\.14\.1 +2\.13", "The same: settings, data"),
    ({"run.precision": {"pretrain": "float32"}}, r"precision\.pretrain +bf +float32", "The same: settings, data"),
    ({"versions": None}, "", "Not recorded in all reports, so they may differ: versions of steps."),
    ({"data": None}, "", "Not recorded in all reports, so they may differ: data."),
]


@pytest.mark.parametrize(("changes", "row", "sentence"), CASES)
def test_every_difference_is_shown(capsys, tmp_path, changes, row, sentence):
    write(tmp_path / "one")
    write(tmp_path / "two", changes)
    code, out, _ = run(capsys, "compare", tmp_path / "one", tmp_path / "two")
    assert code == 0 and sentence in out and re.search(row, out), out
    assert "about" not in out and (OTHER_DATA in out) == (sentence == OTHER_DATA)


@pytest.mark.parametrize("content", [None, "", "[]", '{"steps": {}}', '{"settings": [], "steps": {}}'])
def test_a_folder_without_a_report_is_named(capsys, tmp_path, content):
    write(tmp_path / "one")
    if content is not None:
        files.write_text(tmp_path / "two" / "metrics.json", content)
    text = refused(capsys, "compare", tmp_path / "one", tmp_path / "two")
    assert f"{tmp_path / 'two'} holds no metrics.json with settings and steps" in text


def test_a_report_is_not_compared_with_itself(capsys, tmp_path):
    write(tmp_path / "one")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    for names in (["one"], ["one", "link"], ["one", f"../{tmp_path.name}/one"]):
        assert "two or more different reports" in refused(capsys, "compare", *(tmp_path / name for name in names))


def test_the_published_demo_can_be_compared(capsys, tmp_path):
    write(tmp_path / "one")
    code, out, _ = run(capsys, "compare", paths.REPORT / "demo", tmp_path / "one")
    assert code == 0 and "finetune-C" in out and "settings that differ" in out
