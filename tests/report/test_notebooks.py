"""The whole pipeline at smoke size: all promised files, that they agree, and what runs again."""

import json
import re
import shutil

import nbformat
import pandas as pd
import pytest
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from hw1lib import cpus, files, kept, paths, variants
from hw1lib.chapters import phrases
from hw1lib.data import csv_rows, images
from hw1lib.errors import UserError
from hw1lib.metrics import iou as scores
from hw1lib.models.segmenters import SEGMENTERS
from hw1lib.report import notebooks, render
from hw1lib.workbook import Workbook
from tests.conftest import one_paragraph, run

pytestmark = pytest.mark.slow
TABLES_ALONE = {"finetune_seeds", "segmentation_seeds"}  # kept, but not included by the template


@pytest.fixture(scope="module")
def metrics(smoke_run):
    return json.loads((smoke_run / "metrics.json").read_text())["steps"]


@pytest.fixture(scope="module")
def book(smoke_run):
    return Workbook("smoke", out=smoke_run)


def test_every_promised_file_exists(smoke_run, book):
    expected = ["report.html", "report.pdf", "report.md", "metrics.json", "run.json", "timings.csv"]
    expected += [f"notebooks/{name}.ipynb" for name in notebooks.NOTEBOOKS] + ["manifest.json"]
    names = ("finetune", "finetune_seeds", "segmentation", "networks", "everything", "refinement")
    expected += [f"tables/{name}.csv" for name in names]
    assert not [n for n in expected if not (smoke_run / n).is_file() or (smoke_run / n).stat().st_size < 40]
    for step in book.steps.all:
        assert list((smoke_run / "steps" / step).glob("*/done.json")), step
    assert book.steps.store.verify() == []


def test_entries_and_manifest_describe_everything_in_the_report(smoke_run, book):
    keys = {label: steps.key(name) for label, steps, name in book.planned()}
    entries = kept.entries(smoke_run)
    assert {entry["notebook"] for entry in entries.values()} == {*notebooks.NOTEBOOKS, "the report"}
    assert all(entry["steps"].items() <= keys.items() for entry in entries.values())
    assert {label for entry in entries.values() for label in entry["steps"]} == set(keys)
    included = set(re.findall(r'kept\("([\w-]+)"\)', re.sub("(?s){#.*?#}", "", paths.TEMPLATE.read_text())))
    assert included | TABLES_ALONE | {f"network_{name}" for name in SEGMENTERS} == set(entries)
    hashes = kept.hashes(entries)
    written = files.read_json(smoke_run / "manifest.json")
    assert written == hashes | {name: files.digest(smoke_run / name) for name in ("report.md", *render.NUMBERS)}
    assert kept.changed(smoke_run, written) == []


def test_metrics_have_every_step_and_no_times(smoke_run, metrics, book):
    assert set(metrics) == set(book.steps.all)
    text = (smoke_run / "metrics.json").read_text()
    assert not [word for word in ("seconds", "host", "NaN", '"only"') if word in text]


def test_the_finetune_table_is_that_of_the_last_epoch(smoke_run, metrics):
    table, text = pd.read_csv(smoke_run / "tables" / "finetune.csv"), (smoke_run / "report.md").read_text()
    assert list(table["setting"]) == list(variants.ROWS)
    for row in table.itertuples():
        assert row.correct == metrics[variants.ROWS[row.setting].step]["correct_last"] and row.total == 96
        assert (
            row.accuracy_last == pytest.approx(row.correct / row.total, abs=1e-6) and row.accuracy >= row.accuracy_last
        )
        assert re.search(
            rf"\| {row.setting} \|.*\| {phrases.percent(row.accuracy_last)} \|.* {row.correct} / 96 ", text
        )


def test_the_segmentation_table_agrees_with_stored_predictions(smoke_run, book):
    _, truth = images.load_tiles(book.data.problem2.validation)
    table = pd.read_csv(smoke_run / "tables" / "segmentation.csv").set_index("model")
    arrays = {m: (f"segment-{m}", "predictions") for m in (*SEGMENTERS, "colour")}
    arrays |= {"lraspp+tta": ("segment-lraspp", "predictions_tta"), "lraspp+vote": ("everything", "predictions_vote")}
    assert list(table.index) == ["fcn32s", "lraspp", "lraspp+tta", "deeplabv3", "lraspp+vote", "colour"]
    for row, (step, name) in arrays.items():
        matrix = scores.confusion(truth, book.result(step).array(name))
        assert table.loc[row, "miou_last"] == pytest.approx(scores.miou(matrix), abs=1e-6)
    assert table.loc["fcn32s", "parameters"] == 184_671_054  # of the real model, also at smoke size


def test_the_report_states_what_its_numbers_depend_on(smoke_run, book):
    """The instruction sets, and the precision of each training."""
    run, text = files.read_json(smoke_run / "run.json"), (smoke_run / "report.md").read_text()
    aten, onednn = cpus.instruction_sets()
    assert run["instruction_sets"] == {"aten": aten, "onednn": onednn}
    assert f"| instruction sets | ATen {aten}, oneDNN {onednn or '–'} |" in text
    precisions = {name: book.result(name).run["precision"] for name in book.steps.all}
    assert run["precision"] == {name: precision for name, precision in precisions.items() if precision}
    assert {"pretrain", "finetune-C", "segment-lraspp"} <= run["precision"].keys()
    for name, precision in run["precision"].items():
        assert re.search(rf"\n\| precision \|.*{precision}: [^;]*\b{name}\b", text)


def test_the_report_is_complete_and_self_contained(smoke_run, metrics):
    """No empty figure, no missing number, nothing fetched; without SAM its rows are empty and the report says so."""
    html, text = (smoke_run / "report.html").read_text(), (smoke_run / "report.md").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']+""", html)
    assert html.count("data:image/png") == len(list((smoke_run / "figures").glob("*.png")))
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"```.*?```", "", text, flags=re.S))
    for path in (smoke_run / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20, path
    table, absent = pd.read_csv(smoke_run / "tables" / "everything.csv"), metrics["everything"]["sam"] is None
    assert table["asa"].isna().tolist() == [absent and method == "sam" for method in table["method"]]
    assert ("SAM was not measured" in text) == absent
    for path in (smoke_run / "notebooks").glob("*.ipynb"):
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_a_second_call_runs_nothing(smoke_run, book, capsys):
    def state():
        timed = ("report.html", "report.pdf", "report.md", "run.json", "manifest.json")
        return {p: files.digest(p) for p in smoke_run.rglob("*") if p.is_file() and p.name not in timed}

    before, seconds = state(), files.read_json(smoke_run / "run.json")["seconds_total"]
    code, printed, text = run(capsys, "report", "--profile", "smoke", "--out", smoke_run)
    assert code == 0, text
    assert f"{len(book.steps.all)} done, 0 to run" in printed
    assert printed.count("nothing to do") == len(notebooks.NOTEBOOKS)
    assert state() == before and files.read_json(smoke_run / "run.json")["seconds_total"] == seconds


def test_template_styles_and_notes_are_applied_though_no_notebook_runs(smoke_run, tmp_path, monkeypatch):
    out = tmp_path / "smoke"
    shutil.copytree(smoke_run, out, ignore=shutil.ignore_patterns("steps", "decoded"))
    (out / "steps").symlink_to(smoke_run / "steps")
    report = shutil.copytree(paths.REPORT, tmp_path / "report", ignore=shutil.ignore_patterns("build", "demo"))
    for name in ("TEMPLATE", "ABOUT", "NOTES"):
        monkeypatch.setattr(paths, name, report / getattr(paths, name).name)
    pdf = (out / "report.pdf").read_bytes()
    with open(report / "style.css", "a") as style, open(report / "page.typ", "a") as page:
        style.write("\nbody { color: red; }")
        page.write("\n#set text(size: 9pt)")
    (report / "notes" / "problem1-2.md").write_text("My words.")
    notebooks.build(Workbook("smoke", out=out))
    html = (out / "report.html").read_text()
    assert "color: red" in html and "My words." in html and (out / "report.pdf").read_bytes() != pdf


def test_one_problem_alone_ignores_the_data_of_the_other(smoke_run, course_data, tmp_path, capsys):
    """Even if that is damaged. The report names the missing problem, and finished steps stay finished."""
    for path in (course_data / "p1_data" / "office" / "train").iterdir():
        path.write_bytes(b"")
    shutil.rmtree(course_data / "p2_data")
    for name in ("p2_data", csv_rows.GROUPS):
        (course_data / name).symlink_to(paths.EARTH / name)
    shutil.copytree(smoke_run, tmp_path / "out")
    options = ["--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out"]
    code, printed, text = run(capsys, "report", *options, "--only", "problem2")
    assert code == 0, printed + text
    assert " 0 to run" in printed and printed.count("runs again: the data folder changed") == 3
    assert run(capsys, "report", *options, "--only", "problem2")[1].count("nothing to do") == 3
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Problem 1 is absent" in text and "## Problem 2" in text and "## Problem 1" not in text
    manifest = files.read_json(tmp_path / "out" / "manifest.json")
    assert (tmp_path / "out" / "tables" / "finetune.csv").is_file() and "tables/finetune.csv" not in manifest
    code, printed, text = run(capsys, "report", *options, "--only", "problem1")
    assert code == 1 and "p1_data" in one_paragraph(text)
    assert "pretrain" not in printed.partition("00_data")[2]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("OSError", "[Errno 28] No space left on device: 'a.csv'", "Free some disk space"),
        ("PermissionError", "[Errno 13] Permission denied: 'a.csv'", "Fix the permissions"),
        ("OSError", "cannot write mode F as PNG", "stopped in cell 3 with OSError"),
    ],
)
def test_an_error_in_a_notebook_is_reported_with_its_remedy(tmp_path, name, text, words):
    with pytest.raises(UserError, match=words) as caught, notebooks._readable_errors("00_data", tmp_path, None):
        raise PapermillExecutionError(0, 3, "", name, text, [])
    assert text in str(caught.value) and ("disk space" in str(caught.value)) == ("No space" in text)
