"""All tests of chapters draw in the house style; the published demo is at hand."""

import types

import matplotlib
import pytest

from hw1lib import files, paths
from hw1lib.chapters import style


@pytest.fixture(autouse=True)
def house_style():
    with matplotlib.rc_context():
        style.use()
        yield


@pytest.fixture(scope="session")
def demo():
    """The published demo: .settings, .steps (their metrics) and .table(name), the text of a CSV."""
    folder = paths.REPORT / "demo"
    found = files.read_json(folder / "metrics.json")
    read = lambda name: (folder / "tables" / f"{name}.csv").read_text()  # noqa: E731
    return types.SimpleNamespace(settings=found["settings"], steps=found["steps"], table=read)
