"""A notebook runs again when anything that it kept or read was changed."""

import json
import shutil
import types

import nbformat
import pytest

from hw1lib import files, kept, paths
from hw1lib.chapters import style
from hw1lib.data import csv_rows, layout
from hw1lib.errors import UserError
from hw1lib.report import notebooks, render
from hw1lib.workbook import Workbook
from tests.conftest import write_problem1, write_problem2

pytestmark = pytest.mark.slow
HEAD = (
    'profile = ""\ndata_root = ""\nout = ""\nsettings = {}',
    "import os\nimport pandas as pd\nfrom hw1lib.chapters import style\nfrom hw1lib.workbook import Workbook\n"
    "book = Workbook(profile, data_root, out, settings)",
)
ONE = (
    'book.result("segment-colour")',
    'for place in ("a", "b"):\n    book.keep(f"loop-{place}", place)',
    'name = "table"\nbook.keep(name, pd.DataFrame({"n": [1]}))\n# book.keep("commented", "x")',
    "book.keep('figure', style.timing({'a': 1.0}), caption='A caption.')",
)
SETTINGS = {"device": "cpu", "model_scale": 0.125}


def write(name, *cells):
    cells = [nbformat.v4.new_code_cell(source) for source in HEAD + cells]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), paths.NOTEBOOKS / f"{name}.ipynb")


def book_of(out, root, **settings):
    return Workbook("smoke", root, out, SETTINGS | settings)


def execute(out, root, *names, **settings):
    given = {"profile": "smoke", "data_root": str(root), "out": str(out), "settings": SETTINGS | settings}
    for name in names:
        notebooks._execute(name, book_of(out, root, **settings), given)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two small notebooks, a data root, and the build folder in which the notebooks were executed."""
    folder = tmp_path_factory.mktemp("stale")
    root, out = folder / "data", folder / "out"
    write_problem1(root / "p1_data")
    write_problem2(root / "p2_data")
    (folder / "notebooks").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "NOTEBOOKS", folder / "notebooks")
        write("one", *ONE)
        write("two", 'book.keep("other", "words")')
        execute(out, root, "one", "two")
    return types.SimpleNamespace(root=root, out=out, notebooks=folder / "notebooks")


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of all of these, which a test may change."""
    copy = types.SimpleNamespace(**{name: tmp_path / name for name in ("root", "out", "notebooks")})
    for name, folder in vars(made).items():
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.setattr(paths, "NOTEBOOKS", copy.notebooks)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", {"one": 0, "two": 0})
    for name in ("STYLE", "SENTENCES"):
        shutil.copy(getattr(paths, name), tmp_path / getattr(paths, name).name)
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).name)
    for name in ("one", "two"):  # the data folder's path is an input
        stamp = copy.out / "notebooks" / f".{name}.json"
        inputs = notebooks._inputs(copy.notebooks / f"{name}.ipynb", book_of(copy.out, copy.root))
        files.write_json(stamp, files.read_json(stamp) | {"inputs": inputs})
    return copy


def why(place, name="one", **settings):
    book = book_of(place.out, place.root, **settings)
    return notebooks._stale(name, notebooks._inputs(place.notebooks / f"{name}.ipynb", book), book)


def test_every_kept_name_is_recorded(place):
    names = {"loop-a", "loop-b", "table", "figure"}
    assert set(notebooks._kept("one", book_of(place.out, place.root))) == names == set(kept.entries(place.out, "one"))
    entry = kept.entry(place.out, "figure")
    assert entry["caption"] == "A caption." and set(entry["files"]) == {"figures/figure.png", "figures/figure.pdf"}
    assert set(entry["steps"]) == {"segment-colour"} and why(place) is None and why(place, "two") is None


def append(path, text=" "):
    with open(path, "a") as file:
        file.write(text)


def keep(place, name, thing, notebook=""):
    book = book_of(place.out, place.root)
    book.notebook = notebook
    book.keep(name, thing)


def caption(place):
    path = kept.path(place.out, "figure")
    files.write_json(path, files.read_json(path) | {"caption": "Another."})


CHANGES = {
    "kept at a prompt, a text": (lambda p: keep(p, "loop-b", "c"), "text/loop-b.md was changed or deleted since"),
    "kept by another notebook": (lambda p: keep(p, "loop-a", "a", "two"), "kept/loop-a.json was changed"),
    "a caption edited": (caption, "kept/figure.json was changed"),
    "a figure deleted": (lambda p: (p.out / "figures" / "figure.pdf").unlink(), "figures/figure.pdf was changed"),
    "its copy edited": (lambda p: append(p.out / "notebooks" / "one.ipynb"), "notebooks/one.ipynb was changed"),
    "its step deleted": (lambda p: shutil.rmtree(p.out / "steps" / "segment-colour"), "segment-colour, which has to"),
    "the stamp damaged": (lambda p: (p.out / "notebooks" / ".one.json").write_text("{"), ""),
    "an earlier version's stamp": (lambda p: (p.out / "notebooks" / ".one.json").write_text('{"source": 1}'), ""),
    "the style sheet": (lambda p: append(paths.STYLE, "\n# x"), "figures.mplstyle changed"),
    "a sentence": (lambda p: append(paths.SENTENCES, "\n"), "sentences.j2 changed"),
    "a split": (lambda p: (p.root / layout.SPLIT).write_text("{}"), "split.json changed"),
    "places": (lambda p: (p.root / csv_rows.GROUPS).write_text("split,filename,group\n"), "groups.csv changed"),
    "a module beside the notebooks": (lambda p: (p.notebooks / "mine.py").write_text("x = 1"), "mine.py changed"),
    "a cell": (lambda p: write("one", *ONE, "1"), "the notebook changed"),
    "a setting": ({"data.tile_limit": 3}, "a setting changed"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_notebook_is_stale_when_what_it_kept_or_read_was_changed(place, change):
    do, reason = CHANGES[change]
    if callable(do):
        do(place)
    stale = why(place, **(do if isinstance(do, dict) else {}))
    assert stale is not None and reason in stale and (stale == "") == (reason == "")


def test_what_a_prompt_changes_is_announced_and_restored_by_the_next_report(place, capsys):
    keep(place, "loop-a", "a")
    keep(place, "figure", style.timing({"a": 1.0}))
    assert why(place) is None and capsys.readouterr().out == ""
    keep(place, "mine", "my own")  # which no notebook keeps
    assert why(place) is None and capsys.readouterr().out == ""
    keep(place, "loop-a", "nonsense")
    assert "the next `make report` runs one again" in capsys.readouterr().out
    execute(place.out, place.root, "one", "two")
    output = capsys.readouterr().out
    assert "one runs again: text/loop-a.md was changed or deleted since" in output and "two: nothing to do" in output
    assert (place.out / "text" / "loop-a.md").read_text() == "a\n"


@pytest.fixture
def build(place, monkeypatch):
    """A function from the names that a template includes to the text of the report of the two notebooks."""
    for name in ("page.typ", "style.css"):
        shutil.copy(paths.REPORT / name, place.root.parent)
    monkeypatch.setattr(paths, "TEMPLATE", place.root.parent / "report.md.j2")
    run = {"seconds": {"a": 1.0}, "device_name": "", "host": "", "commit": ""}
    for name, text in (("run.json", json.dumps(run)), ("metrics.json", "{}"), ("timings.csv", "")):
        files.write_text(place.out / name, text)

    def build(*names):
        paths.TEMPLATE.write_text("\n\n".join(f'{{{{ kept("{name}") }}}}' for name in names))
        notebooks.build(book_of(place.out, place.root))
        return (place.out / "report.md").read_text()

    return build


def test_what_is_no_longer_kept_is_deleted_and_in_no_report(place, build):
    assert "A caption." in build("loop-a", "figure", "table")
    write("one", *ONE[:2])
    execute(place.out, place.root, "one")
    lost = ["figures/figure.png", "figures/figure.pdf", "tables/table.csv", "text/table.md", "kept/table.json"]
    assert not [name for name in lost if (place.out / name).exists()]
    with pytest.raises(UserError, match="includes 'figure', but no notebook kept it"):
        build("loop-a", "figure")
    assert build("loop-a") == "a"
    assert files.read_json(place.out / render.MANIFEST).keys().isdisjoint(lost)


def test_two_notebooks_that_keep_one_name_are_an_error(place, build):
    stamp = place.out / "notebooks" / ".two.json"
    fields = files.read_json(stamp)
    files.write_json(stamp, fields | {"outputs": fields["outputs"] | {"kept/table.json": ""}})
    with pytest.raises(UserError, match="Notebooks one and two both keep 'table'"):
        build("loop-a")


def test_a_notebook_whose_kernel_was_killed_is_not_finished(place):
    write("one", *ONE[:2], "os._exit(0)", *ONE[2:])
    with pytest.raises(UserError, match="kernel of notebook one died"):
        execute(place.out, place.root, "one")
    assert why(place) == "" and why(place, "two") is None


@pytest.mark.parametrize(
    ("count", "status", "completed"), [(1, "completed", True), (None, "completed", False), (1, "running", False)]
)
def test_a_killed_kernel_that_looks_like_success_is_noticed(count, status, completed):
    cells = [nbformat.v4.new_markdown_cell("x"), nbformat.v4.new_code_cell("")]
    cells.append(nbformat.v4.new_code_cell("1", execution_count=count, metadata={"papermill": {"status": status}}))
    assert notebooks._completed(nbformat.v4.new_notebook(cells=cells)) == completed


def test_a_damaged_notebook_is_named(place):
    for text in ("", "<html>", "[]"):
        (place.notebooks / "one.ipynb").write_text(text)
        with pytest.raises(UserError, match="one.ipynb is not a valid notebook"):
            why(place)
