"""The whole pipeline at smoke size: every file of the interface, and that they agree."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from PIL import Image

from hw1lib import gallery, handin, paths, pipeline, profiles
from hw1lib.data import images
from hw1lib.measures import metrics as scores
from hw1lib.results import tables
from hw1lib.workbook import Workbook
from tests.smoke import hw1lib

STEPS = {step for shown in pipeline.SHOWS.values() for step in shown}


@pytest.fixture(scope="module")
def metrics(smoke_run):
    return json.loads((smoke_run / "metrics.json").read_text())["steps"]


def test_every_promised_file_is_there(smoke_run):
    expected = ["report.html", "report.pdf", "report.md", "metrics.json", "run.json", "timings.csv"]
    expected += [f"figures/{name}.{kind}" for name in gallery.FIGURES for kind in ("png", "pdf")]
    expected += [f"notebooks/{name}.ipynb" for name in pipeline.NOTEBOOKS]
    expected += [f"tables/{n}.csv" for n in ("finetune", "finetune_seeds", "segmentation",
                                             "networks", "everything", "refinement")]
    empty = [n for n in expected if not (smoke_run / n).is_file()
             or (smoke_run / n).stat().st_size < 50]
    assert not empty
    for step in STEPS:
        assert list((smoke_run / "steps" / step).glob("*/done.json")), step


def test_metrics_hold_every_step_and_no_time(smoke_run, metrics):
    assert set(metrics) == STEPS
    text = (smoke_run / "metrics.json").read_text()
    assert "seconds" not in text and "host" not in text and "NaN" not in text


def test_finetune_table_agrees_with_metrics(smoke_run, metrics):
    table = pd.read_csv(smoke_run / "tables" / "finetune.csv")
    assert list(table.columns) == tables.FINETUNE
    assert list(table["setting"]) == [*profiles.SETTINGS, *profiles.CONTROLS]
    for row in table.itertuples():
        kind = "control" if row.setting in profiles.CONTROLS else "finetune"
        step = metrics[f"{kind}-{row.setting}"]
        assert row.correct == step["correct"] and row.total == step["total"] == 96
        assert row.accuracy == pytest.approx(row.correct / row.total, abs=1e-6)
        assert row.accuracy_last == pytest.approx(step["accuracy_last"], abs=1e-6)
        assert row.ci_low <= row.accuracy <= row.ci_high
        assert row.accuracy >= row.accuracy_last


def test_segmentation_table_agrees_with_metrics(smoke_run, metrics):
    table = pd.read_csv(smoke_run / "tables" / "segmentation.csv").set_index("model")
    assert list(table.reset_index().columns) == tables.SEGMENTATION
    assert table.loc["fcn32s", "parameters"] == 184_671_054  # the real model's, at any size
    behind = {model: metrics[f"segment-{model}"] for model in (*profiles.SEGMENTERS, "colour")}
    behind["lraspp+tta"] = behind["lraspp"]["tta"]
    masks = metrics["everything"]
    behind["lraspp+vote"] = masks["refined"][masks["refine"]]
    assert list(table.index) == [
        "fcn32s", "lraspp", "lraspp+tta", "deeplabv3", "lraspp+vote", "colour"
    ]
    for model, row in table.iterrows():
        for name in ("miou", "miou_last", "pixel_accuracy"):
            assert row[name] == pytest.approx(behind[model][name], abs=1e-6)
        classes = row[list(tables.SCORED)]
        assert row["miou"] == pytest.approx(classes.mean(), abs=1e-6)  # absent ones left out
    assert table.loc["lraspp+vote", "epoch"] == profiles.get("smoke").lraspp.epochs


def test_rows_of_the_segmentation_table_are_the_scores_of_stored_predictions(smoke_run):
    book = Workbook("smoke", out=smoke_run)
    _, truth, _ = images.load_tiles(book.data.problem2.validation)
    table = pd.read_csv(smoke_run / "tables" / "segmentation.csv").set_index("model")
    arrays = {m: (f"segment-{m}", "predictions") for m in (*profiles.SEGMENTERS, "colour")} | {
        "lraspp+tta": ("segment-lraspp", "predictions_tta"),
        "lraspp+vote": ("everything", "predictions_vote"),
    }
    assert set(arrays) == set(table.index)
    for row, (step, name) in arrays.items():
        matrix = scores.confusion(truth, book.result(step).array(name))
        assert table.loc[row, "miou_last"] == pytest.approx(scores.miou(matrix), abs=1e-6)


def test_the_refinement_table_agrees_with_metrics_and_the_text(smoke_run, metrics):
    table = pd.read_csv(smoke_run / "tables" / "refinement.csv")
    assert ",".join(table) == "method,segments,model_miou,vote_miou,change"
    found = metrics["everything"]
    assert list(table["method"]) == list(found["refined"])
    for row in table.itertuples():
        assert row.model_miou == pytest.approx(metrics["segment-lraspp"]["miou_last"], abs=1e-6)
        assert row.vote_miou == pytest.approx(found["refined"][row.method]["miou"], abs=1e-6)
        assert row.change == pytest.approx(row.vote_miou - row.model_miou, abs=2e-6)
    text = " ".join((smoke_run / "report.md").read_text().split())
    tiles = profiles.get("smoke").data.tile_limit
    assert f"On all {tiles} validation tiles, a majority vote" in text
    cells = [f"{table['model_miou'][0]:.3f}", f"{table['vote_miou'][0]:.3f}"]
    assert " | ".join(cells) in text


def test_the_printed_models_have_their_ceiling_beside_them(smoke_run, metrics):
    lines = (smoke_run / "report.md").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| model | mIoU |"))
    heading = [cell.strip() for cell in lines[at].strip("| ").split("|")]
    place = heading.index("ceiling")
    rows = [[c.strip() for c in line.strip("| ").split("|")] for line in lines[at + 2 : at + 8]]
    ceilings = [f"{metrics[f'segment-{m}']['ceiling']:.3f}" for m in profiles.SEGMENTERS]
    assert [row[place] for row in rows] == [ceilings[0], ceilings[1], "–", ceilings[2], "–", "–"]
    assert "parameters" not in heading


def test_missing_sam_is_an_empty_row_and_a_sentence(smoke_run, metrics):
    table = pd.read_csv(smoke_run / "tables" / "everything.csv", dtype={"image": str})
    assert list(table.columns) == tables.EVERYTHING
    images = profiles.get("smoke").everything.images
    assert set(zip(table["method"], table["image"])) == {
        (method, image) for method in ("sam", "slic", "felzenszwalb") for image in images
    }
    sam = table[table["method"] == "sam"].drop(columns=["method", "image"])
    if metrics["everything"]["sam"] is None:
        assert sam.isna().all(axis=None)
        assert "SAM was not measured" in (smoke_run / "report.md").read_text()
    rest = table[table["method"] != "sam"]
    assert (rest["coverage"] == 1).all() and (rest["asa"] > 0).all()


def test_report_prints_the_tables_numbers(smoke_run):
    text = (smoke_run / "report.md").read_text()
    table = pd.read_csv(smoke_run / "tables" / "finetune.csv")
    for row in table.itertuples():
        cells = (row.setting, tables.percent(row.accuracy), f"{row.correct} / {row.total}")
        assert re.search(r"\| " + r" \|.*".join(map(re.escape, cells)) + r" \|", text)


def test_report_stands_alone(smoke_run):
    html = (smoke_run / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']+""", html)
    assert html.count("data:image/png") == len(gallery.FIGURES) + 1  # and the timing figure
    assert (smoke_run / "report.pdf").read_bytes().startswith(b"%PDF-")


def test_figures_hold_a_picture(smoke_run):
    for path in (smoke_run / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20, path


def test_executed_notebooks_have_no_error_and_no_warning(smoke_run):
    for name in pipeline.NOTEBOOKS:
        notebook = nbformat.read(smoke_run / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                assert output["output_type"] != "error"
                assert output.get("name") != "stderr", output["text"]


def test_a_second_call_runs_nothing(smoke_run):
    def state():
        timed = ("report.html", "report.pdf", "report.md", "run.json")
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in smoke_run.rglob("*")
                if p.is_file() and p.name not in timed}

    before = state()
    seconds = json.loads((smoke_run / "run.json").read_text())["seconds_total"]
    done = hw1lib("report", "--profile", "smoke", "--out", smoke_run)
    assert done.returncode == 0, done.stderr
    assert f"{len(STEPS)} done, 0 to run" in done.stdout
    assert done.stdout.count("nothing to do") == len(pipeline.NOTEBOOKS)
    assert state() == before
    assert json.loads((smoke_run / "run.json").read_text())["seconds_total"] == seconds


class Executed(Exception):
    pass


@pytest.fixture
def copied(smoke_run, tmp_path, monkeypatch):
    """A copy of the finished smoke run in which executing a notebook ends with Executed."""
    out = tmp_path / "smoke"
    shutil.copytree(smoke_run, out)

    def execute(source, target, *words, **named):
        (out / "notebooks" / "00_data.ipynb").write_text("{")  # killed while it writes
        raise Executed

    monkeypatch.setattr(pipeline.papermill, "execute_notebook", execute)
    return out


def execute(out, **settings):
    request = pipeline.Request("smoke", out=str(out), settings=settings)
    pipeline._execute("00_data", request, request.workbook())


@pytest.mark.parametrize(
    "change",
    [
        lambda out: (out / "figures" / "tiles.pdf").unlink(),
        lambda out: (out / "figures" / "class_counts.png").write_bytes(b"another picture"),
        lambda out: (out / "notebooks" / "00_data.ipynb").unlink(),
        lambda out: (out / "notebooks" / ".00_data.json").write_text("{"),
        lambda out: (out / "notebooks" / ".00_data.json").unlink(),
    ],
    ids=["figure deleted", "figure altered", "copy deleted", "stamp damaged", "stamp deleted"],
)
def test_a_notebook_runs_again_when_what_it_made_is_not_as_it_was(copied, change):
    execute(copied)  # nothing to do
    change(copied)
    for _ in range(2):  # and again, as it did not run to its end
        with pytest.raises(Executed):
            execute(copied)


@pytest.mark.parametrize("setting", ["data.tile_limit", "segmentation.improved"])
def test_a_notebook_runs_again_when_a_setting_changed(copied, setting):
    """Its figures show how much of the data is used, and the improved model, whatever the steps."""
    value = {"data.tile_limit": 3, "segmentation.improved": "fcn32s"}[setting]
    with pytest.raises(Executed):
        execute(copied, **{setting: value})


def test_one_problem_alone_does_not_look_at_the_others_data(course_data, tmp_path):
    """However broken that is."""
    for path in (course_data / "p2_data" / "train").iterdir():
        path.write_bytes(b"")
    small = ["--set", "model_scale=0.125", "pretrain.epochs=1", "supervised.epochs=1",
             "finetune.epochs=1", "embed.perplexity=3", "data.image_size=32"]
    words = ["report", "--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out"]
    done = hw1lib(*words, "--only", "problem1", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    done = hw1lib(*words, "--only", "problem2", *small)
    assert done.returncode == 1 and "0001_" in done.stderr and "Traceback" not in done.stderr
    assert "segment-" not in done.stdout.partition("00_data")[2]  # nothing was trained


def test_a_changed_colour_or_sentence_trains_nothing(smoke_run, tmp_path):
    """A copy of the project with another look finds every step done; its notebooks run again."""
    for name in ("hw1lib", "notebooks", "report"):
        shutil.copytree(paths.ROOT / name, tmp_path / name,
                        ignore=shutil.ignore_patterns("build", "demo", "__pycache__"))
    (tmp_path / "data").symlink_to(paths.DATA)
    for file, before, after in (
        ("results/figures.py", 'INK = "', 'INK = "red" or "'),
        ("results/sentences.py", "The loss of the last epoch is", "At the end the loss is"),
    ):
        path = tmp_path / "hw1lib" / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
    words = ["-m", "hw1lib", "plan", "--profile", "smoke"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"HW1_BUILD": str(smoke_run.parent)},
    )
    assert done.returncode == 0, done.stderr
    states = dict(re.findall(r"^(\S+) +(done|to run|to resume) ", done.stdout, re.M))
    assert states.keys() == STEPS and set(states.values()) == {"done"}
    where = subprocess.run(
        [sys.executable, "-c", "import hw1lib.paths; print(hw1lib.paths.ROOT)"],
        cwd=tmp_path, capture_output=True, text=True,
    )
    assert where.stdout.strip() == str(tmp_path)  # it was the copy that looked


def test_one_half_alone_names_the_other_as_absent(smoke_run, tmp_path):
    out = tmp_path / "half"
    shutil.copytree(smoke_run, out)
    done = hw1lib("report", "--profile", "smoke", "--only", "problem2", "--out", out)
    assert done.returncode == 0, done.stderr
    text = (out / "report.md").read_text()
    assert "Problem 1 is absent" in text and "## Problem 2" in text
    assert "## Problem 1" not in text


def test_verify_names_what_was_altered(smoke_run, tmp_path):
    assert hw1lib("verify", "--profile", "smoke", "--out", smoke_run).returncode == 0
    out = tmp_path / "copy"
    shutil.copytree(smoke_run, out)
    victim = next(out.glob("steps/embed/*/pca_first.npy"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    done = hw1lib("verify", "--profile", "smoke", "--out", out)
    assert done.returncode == 1 and "pca_first.npy was altered" in done.stderr


def test_figures_export(smoke_run, tmp_path):
    done = hw1lib("figures", "tsne", "--format", "svg,pdf", "--profile", "smoke",
                  "--out", smoke_run, "--into", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tsne.svg").read_text().startswith("<?xml")
    assert (tmp_path / "tsne.pdf").read_bytes().startswith(b"%PDF")


def test_author_notes_are_included_and_marked(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "NOTES", tmp_path)
    (tmp_path / "problem1-2.md").write_text("Mine & <script>alert(1)</script>")
    assert handin._note("problem1-3") == ""
    assert handin._note("problem1-2").startswith("> **The author's note.**")
    assert "<script>" not in handin._note("problem1-2")
