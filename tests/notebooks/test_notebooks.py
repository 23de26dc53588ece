"""The notebooks: the rules of a lesson, and their smoke copies, whose outputs nbval compares."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from hw1lib import files, paths
from hw1lib.chapters.tables import markdown
from hw1lib.report import notebooks
from tests.notebooks import make

NOTEBOOKS = [paths.NOTEBOOKS / f"{name}.ipynb" for name in notebooks.NOTEBOOKS]
BYTES = 1_000_000  # larger files are not displayed by code hosts
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def is_checked(cell):
    return "nbval-check-output" in cell.metadata.get("tags", ())


@each
def test_nbval_runs_the_smoke_copies_with_their_outputs(smoke_run, tmp_path, path):
    """All cells run, including each Try it; those tagged nbval-check-output give what is stored."""
    shutil.copytree(smoke_run, tmp_path / "smoke")  # other tests compare the original's files
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-n0", "-p", "no:cacheprovider"]
    environment = os.environ | {"HW1_BUILD": str(tmp_path)}
    done = subprocess.run([*command, make.COPIES / path.name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "\nprocessor: " in done.stdout


@each
def test_nbval_compares_nothing_that_follows_from_training(path):
    """Trained numbers depend on the processor."""
    trained = set()  # names of variables
    for cell in cells(path):
        nodes = list(ast.walk(ast.parse(cell.source)))
        targets = [node.target for node in nodes if isinstance(node, ast.comprehension)]
        local = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        names = [node for node in nodes if isinstance(node, ast.Name) and node.id not in local]
        stored, loaded = ({n.id for n in names if isinstance(n.ctx, kind)} for kind in (ast.Store, ast.Load))
        follows = "book.result" in cell.source or not trained.isdisjoint(loaded)
        assert not (follows and is_checked(cell)), cell.id
        trained = trained | stored if follows else trained - stored
    assert trained


@each
def test_the_smoke_copy_has_the_same_sources(path):
    copy, committed = (nbformat.read(file, as_version=4) for file in (make.COPIES / path.name, path))
    first, second = (
        [(cell.id, cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
        for notebook in (copy, make.smoke_copy(committed))
    )
    assert first == second, f"{path.name} and its smoke copy differ: run make notebooks"
    both = (path, make.COPIES / path.name)
    first, second = ([cell.outputs for cell in cells(file) if "getsource" in cell.source] for file in both)
    assert first == second, f"{path.name} shows code as it once was: run make notebooks"


@each
def test_it_shows_the_demo(path):
    """Every cell was run without an error, and the file is small enough to be displayed."""
    code = cells(path)
    (parameters,) = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", ())]
    assert parameters == 'profile = "demo"\ndata_root = ""\nout = ""\nsettings = {}'
    outputs = [output for cell in code for output in cell.outputs]
    assert all(cell.execution_count for cell in code) and sum("image/png" in o.get("data", ()) for o in outputs) >= 3
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert path.stat().st_size < BYTES


@each
def test_it_shows_the_published_report(path):
    """Each table and text that it keeps is that of report/demo; if not, run make notebooks."""
    text = (make.DEMO_REPORT / "README.md").read_text()
    tables = [markdown(pd.read_csv(table)) for table in (make.DEMO_REPORT / "tables").glob("*.csv")]
    outputs = [output.get("data", {}) for cell in cells(path) for output in cell.outputs]
    kept = [data["text/markdown"].strip("\n") for data in outputs if "text/markdown" in data]
    assert kept and [shown for shown in kept if shown not in text and shown not in tables] == []


@each
def test_it_is_a_lesson(path):
    """Short cells, each after a sentence; no class, function or long loop; no unfolded modules, no typed results."""
    notebook = nbformat.read(path, as_version=4)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert sum(a == b == "code" for a, b in itertools.pairwise(kinds)) <= 2
    for cell in cells(path):
        lines = cell.source.splitlines()
        assert len(lines) <= 15 and max(map(len, lines)) <= 100, cell.id
        assert not any(re.match(r"class |def |while |for epoch", line) for line in lines), cell.id
        for output in cell.outputs:
            text = output.get("text") or output.get("data", {}).get("text/markdown", "")
            assert len(text.splitlines()) < 80 or text.startswith("<details>"), cell.id
    assert all(cell.outputs for cell in cells(make.COPIES / path.name) if is_checked(cell))
    for cell in cells(path, "markdown"):  # no decimals and no percentages in prose: results come from results
        prose = re.sub(r"```.*?```|`[^`]*`", "", cell.source.partition("**References.**")[0], flags=re.S)
        assert not re.search(r"\d\.\d|\d ?%", prose), prose


def test_committed_notebooks_are_executed_on_the_published_run(smoke_run, tmp_path, monkeypatch):
    """With its settings, here those of a smoke run; neither it nor the notebook's parameters change."""
    (tmp_path / "demo").symlink_to(smoke_run)
    (tmp_path / "published").mkdir()
    shutil.copy(smoke_run / "metrics.json", tmp_path / "published")
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(make, "DEMO_REPORT", tmp_path / "published")
    before = {path: files.digest(path) for path in smoke_run.rglob("*") if path.is_file()}
    source = nbformat.read(paths.NOTEBOOKS / "03_embeddings.ipynb", as_version=4)
    sources = [cell.source for cell in source.cells]
    notebook = make.execute_published(source)
    assert [cell.source for cell in notebook.cells] == sources
    texts = [o.get("data", {}).get("text/markdown", "") for cell in notebook.cells for o in cell.get("outputs", ())]
    for name in ("embedding", "embedding_in_words"):
        assert (smoke_run / "text" / f"{name}.md").read_text().strip("\n") in texts
    assert {path: files.digest(path) for path in smoke_run.rglob("*") if path.is_file()} == before
    (tmp_path / "published" / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match="Run make publish"):
        make.execute_published(notebook)
