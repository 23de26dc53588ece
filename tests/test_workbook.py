"""The workbook: results of steps, what it keeps, seeds, live figures, and the profiles for the course's data."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from hw1lib import paths, workbook
from hw1lib.errors import UserError
from hw1lib.steps.graph import repeated
from hw1lib.workbook import Workbook
from tests.conftest import everything_of

SMALL = {
    "model_scale": 0.125, "device": "cpu", "data.image_size": 32, "embed.perplexity": 3, "everything.segments": 9,
    "pretrain.epochs": 2, "pretrain.projection_hidden_size": 32, "supervised.epochs": 1,
    "finetune.epochs": 2, "segmentation.stage_images": "0001,0002", "everything.images": "0003",
    **{f"{m}.{s}": v for m in ("fcn32s", "lraspp", "deeplabv3")
       for s, v in (("epochs", 2), ("pretrained", False), ("batch_size", 2))},
}  # fmt: skip


def small(root, out, **settings):
    return Workbook("smoke", root, out, {"device": "cpu", "model_scale": 0.125, "finetune.epochs": 1, **settings})


@pytest.fixture
def book(course_data, tmp_path):
    return small(course_data, tmp_path / "out")


# --- profiles for the course's data


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["seed", "strong"])
def test_profiles_for_the_course_data_run_all_steps(profile, course_data, tmp_path):
    book = Workbook(profile, course_data, tmp_path / "out", SMALL)
    results = {name: book.result(name) for name in book.steps.all}
    assert all(book.steps.status(name) == "done" for name in book.steps.all)
    assert results["finetune-A"].metrics["total"] == len(book.data.problem1.val)
    assert results["pretrain-supervised"].metrics["source"] == "pool"
    assert ("tta" in results["segment-lraspp"].metrics) == (profile == "strong")


@pytest.mark.slow
def test_the_earth_sample_is_recognised_by_any_path(book, tmp_path):
    (tmp_path / "link").symlink_to(paths.EARTH)
    for root in ("", paths.EARTH, tmp_path / "link", f"{paths.EARTH}/../{paths.EARTH.name}"):
        assert small(root, tmp_path / "out").is_sample
    assert not book.is_sample


# --- results and seeds


def test_a_result_is_computed_once_whichever_seed_asks(course_data, tmp_path, capsys):
    two_seeds = small(course_data, tmp_path / "out", seeds=2)
    first, second = (two_seeds.result("control-colour", seed) for seed in (0, 1))
    lines = [line.partition("  epoch")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["control-colour", "control-colour, seed 1"] and first.folder != second.folder
    for settings, result in (({}, first), ({"seed": 1}, second)):
        assert small(course_data, tmp_path / "out", **settings).result("control-colour").folder == result.folder
    assert capsys.readouterr().out == ""  # only notebooks show the last epoch of a loaded result


@pytest.mark.slow
def test_planned_is_every_step_once(course_data, tmp_path):
    """The report's own seed first, then for each other seed the steps that are repeated."""
    book = small(course_data, tmp_path / "out", seed=7, seeds=3)
    plan, again = list(book.planned()), repeated(book.profile)
    assert [(label, name) for label, _, name in plan] == [(name, name) for name in book.steps.all] + [
        (f"{name}, seed {seed}", name) for seed in (8, 9) for name in book.steps.all if name in again
    ]
    keys = [steps.key(name) for _, steps, name in plan]
    assert len(set(keys)) == len(keys) == len(book.steps.all) + 11 * 2
    # A step that all seeds share is known by one label.
    assert book.result("control-simple", seed=8).key == book.steps.key("control-simple")
    assert set(book._used) <= {label for label, *_ in plan}
    half = small(course_data, tmp_path / "out", seeds=2, only="problem2").planned()
    assert [label for label, *_ in half if "seed" in label] == ["segment-lraspp, seed 1"]


# --- what is kept


def test_a_table_is_kept_as_csv_and_as_readers_see_it(book):
    table = pd.DataFrame({"model": ["a", "b"], "miou": [1 / 3, np.nan]})
    book.keep("scores", table)
    assert (book.out / "tables" / "scores.csv").read_text() == "model,miou\na,0.333333\nb,\n"
    assert "| a | 0.333 |\n| b | – |" in (book.out / "text" / "scores.md").read_text()
    book.keep("scores", table, shown=table.assign(model="*"))
    assert "a,0.333333" in (book.out / "tables" / "scores.csv").read_text()
    assert r"| \* |" in (book.out / "text" / "scores.md").read_text()


def test_figures_and_texts_are_kept_with_their_caption_and_the_steps_behind_them(book):
    result = book.result("control-colour")
    book.keep("picture", Figure(), caption="A *caption*.")
    book.keep("text", "Some words.")
    assert (book.out / "figures" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (book.out / "figures" / "picture.pdf").read_bytes().startswith(b"%PDF")
    assert (book.out / "text" / "text.md").read_text() == "Some words.\n"
    entry = json.loads((book.out / "kept" / "picture.json").read_text())
    assert set(entry.pop("files")) == {"figures/picture.png", "figures/picture.pdf"}
    steps = {"control-colour": result.key}
    assert entry == {"kind": "figure", "caption": "A *caption*.", "steps": steps, "notebook": ""}


def test_wrong_names_and_types_are_not_kept(book):
    for name in ("../x", "Name", "", "a b", "ä"):
        with pytest.raises(UserError, match="a name may contain only lower-case letters"):
            book.keep(name, "text")
    for content in (3, None, {"a": 1}, np.zeros(3)):
        with pytest.raises(UserError, match=type(content).__name__):
            book.keep("name", content)
    assert not (book.out / "text").exists()


# --- live notebooks


@pytest.fixture
def displays(monkeypatch):
    """Pretend that a front end is attached; hold the pictures of each place where some are displayed."""
    places = []

    def display(picture, display_id):
        assert display_id
        places.append([picture])
        return SimpleNamespace(update=places[-1].append)

    monkeypatch.setenv("JPY_SESSION_NAME", "01_pretraining.ipynb")
    monkeypatch.setattr(workbook, "get_ipython", lambda: object())
    monkeypatch.setattr(workbook.style, "use", lambda: None)
    monkeypatch.setattr(workbook, "display", display)
    return places


@pytest.mark.slow
def test_each_step_and_seed_has_one_figure_that_grows(course_data, tmp_path, displays):
    book = small(course_data, tmp_path / "out", seeds=2, **{"finetune.epochs": 3})
    book.result("control-colour")
    (pictures,) = displays
    assert len({picture.data for picture in pictures}) == 3
    assert all(picture.data.startswith(b"\x89PNG") for picture in pictures)
    book.result("control-colour")  # is done: nothing is drawn
    book.steps.watch("pretrain", [{"epoch": 1, "loss": 1.0, "lr": 0.1}])
    book.result("control-colour", seed=1)
    assert [len(place) for place in displays] == [3, 1, 3]


@pytest.mark.parametrize("absent", ["variable", "kernel"])
def test_live_figures_change_no_result(course_data, tmp_path, displays, monkeypatch, absent):
    """Under papermill, nbval or the command line nothing is drawn, and the stored bytes are the same."""
    live = small(course_data, tmp_path / "live").result("control-colour")
    if absent == "variable":
        monkeypatch.delenv("JPY_SESSION_NAME")
    else:
        monkeypatch.setattr(workbook, "get_ipython", lambda: None)
    headless = small(course_data, tmp_path / "headless").result("control-colour")
    assert len(displays) == 1 and live.key == headless.key
    assert everything_of(live.folder) == everything_of(headless.folder)
    shown = []
    monkeypatch.setattr(workbook, "display", shown.append)
    workbook.browse(lambda number, stage: f"{number}, {stage}", number=["7", "8"], stage=("early", "final"))
    assert shown == ["7, early"]  # the first choice, without a slider
