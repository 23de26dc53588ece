"""The committed notebooks: thin, and their outputs still hold (nbval)."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from hw1lib import paths, pipeline

NOTEBOOKS = [paths.NOTEBOOKS / f"{name}.ipynb" for name in pipeline.NOTEBOOKS]


def test_nbval_finds_the_committed_outputs(smoke_run):
    """All cells run; those tagged nbval-check-output give what is committed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q",
         "-p", "no:cacheprovider", *map(str, NOTEBOOKS)],
        env=os.environ | {"HW1_BUILD": str(smoke_run.parent), "HW1_HEADLESS": "1"},
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_thin(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parameters = [c for c in code if "parameters" in c.metadata.get("tags", ())]
    assert [c.source for c in parameters] == [
        'profile = "smoke"\ndata_root = ""\nout = ""\nsettings = {}'
    ]
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= 15
        assert not any(line.startswith(("class ", "def ", "for ", "while ")) for line in lines)
        assert cell.execution_count, "a cell without outputs is not compared"
    checked = [c for c in code if "nbval-check-output" in c.metadata.get("tags", ())]
    assert all(cell.outputs for cell in checked)


def test_no_number_is_typed_into_prose():
    """Results come from results: no decimals, no percentages in Markdown cells."""
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            prose = cell.source.partition("**References.**")[0]
            if cell.cell_type == "markdown":
                assert not re.search(r"\d\.\d|\d ?%", prose), prose
