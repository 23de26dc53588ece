"""The workbook on data in the course's own layout, through the profiles that are made for it."""

import dataclasses
import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from hw1lib import answers, cost, pipeline, profiles, prose, workbook
from hw1lib.errors import UserError
from hw1lib.models import classifier
from hw1lib.workbook import Workbook

SMALL = {
    "model_scale": 0.125, "device": "cpu", "data.image_size": 32,
    "pretrain.epochs": 2, "pretrain.projection_hidden_size": 32, "supervised.epochs": 1,
    "finetune.epochs": 2, "segmentation.stage_images": "0001,0002",
    "everything.images": "0003", "everything.segments": 9,
    **{f"{m}.{s}": v for m in ("fcn32s", "lraspp", "deeplabv3")
       for s, v in (("epochs", 2), ("pretrained", False), ("batch_size", 2))},
}


@pytest.mark.parametrize("profile", ["seed", "strong"])
def test_profiles_for_the_course_data_run_through(profile, course_data, tmp_path):
    """The path of the real run, at small size: both profiles, all steps, on a course layout."""
    book = Workbook(profile, course_data, tmp_path / "out", SMALL)
    for name in book.steps.all:
        book.run(name)
    assert all(book.steps.status(name) == "done" for name in book.steps.all)
    assert book.metrics("finetune-A")["total"] == len(book.data.problem1.val)
    assert book.metrics("pretrain-supervised")["source"] == "pool"
    said = {name: book.table(name).data for name in answers.TABLES}
    said |= {f"say {name}": book.say(name).data for name in prose.SENTENCES}
    assert not [name for name, text in said.items() if re.search(r"\bnan\b|\bNone\b", text)]
    table = pd.read_csv(book.out / "tables" / "segmentation.csv")
    variants = [f"{m}+tta" for m in profiles.SEGMENTERS if getattr(book.profile, m).tta]
    assert len(variants) == (3 if profile == "strong" else 0)
    assert set(table["model"]) == {
        *profiles.SEGMENTERS, *variants, "deeplabv3+vote", "colour"
    }


def test_the_courses_backbone_file_is_taken(course_data, tmp_path):
    network = classifier.backbone()
    torch.save(network.state_dict(), course_data / "p1_data" / "pretrain_model_SL.pt")
    settings = {k: v for k, v in SMALL.items() if k != "model_scale"}
    book = Workbook("seed", course_data, tmp_path / "out", settings)
    book.run("pretrain-supervised")
    result = book.result("pretrain-supervised")
    assert result.metrics["source"] == "file"
    assert torch.equal(result.weights()["conv1.weight"], network.conv1.weight)


def test_course_pool_without_labels_or_backbone_says_what_to_add(course_data, tmp_path):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    book = Workbook("seed", course_data, tmp_path / "out", SMALL)
    with pytest.raises(UserError, match="pretrain_model_SL.pt"):
        book.run("pretrain-supervised")


def test_one_half_of_the_data_is_enough(course_data, tmp_path):
    shutil.rmtree(course_data / "p1_data")
    book = Workbook("strong", course_data, tmp_path / "out", SMALL)
    assert "absent" in book.figure("office_images").data
    assert set(book.steps.all) == {
        "check-problem2", "segment-fcn32s", "segment-lraspp", "segment-deeplabv3",
        "segment-colour", "everything",
    }
    with pytest.raises(UserError, match="finetune-A"):
        book.run("finetune-A")


def test_the_course_has_a_cost_with_one_half_alone(course_data, tmp_path):
    """Its plan is printed like any other."""
    shutil.rmtree(course_data / "p2_data")
    book = Workbook("strong", course_data, tmp_path / "out", SMALL)
    found = cost.flops(book.profile, cost.of_data(book.data))
    assert found["pretrain"] > 0 and "segment-lraspp" not in found


# --- seeds


def small(root, out, **settings):
    return Workbook("smoke", root, out, {"device": "cpu", "model_scale": 0.125, **settings})


def faked(book, ran):
    """The same steps for every seed, but each only notes that it ran; C collapses nowhere."""
    def fake(name):
        def run(draft, context):
            ran.append((context.profile.seed, name))
            share = (1 + context.profile.seed + len(name)) / 40
            draft.metrics(
                {"correct": 1, "total": 2, "epoch": 1, "accuracy": share, "accuracy_last": share,
                 "collapsed": False}
            )
            draft.history([])
        return run

    for steps in book.seeds.values():
        steps.all |= {n: dataclasses.replace(s, run=fake(n)) for n, s in trained(steps).items()}
    return book


def trained(steps):
    """All but the data's checks."""
    return {name: step for name, step in steps.all.items() if step.trains}


def test_a_seed_of_many_is_the_seed_alone(course_data, tmp_path):
    """The same keys, so that what either ran serves the other."""
    many = small(course_data, tmp_path / "out", seed=3, seeds=3)
    assert list(many.seeds) == [3, 4, 5] and many.seeds[3] is many.steps
    for seed, steps in many.seeds.items():
        alone = small(course_data, tmp_path / "elsewhere", seed=seed).steps
        assert {n: steps.key(n) for n in steps.all} == {n: alone.key(n) for n in alone.all}
        assert steps.profile == dataclasses.replace(many.profile, seed=seed)


def test_what_a_seed_ran_alone_is_not_run_again(course_data, tmp_path):
    alone = small(course_data, tmp_path / "out", seed=1)
    alone.run("control-colour")
    stamp = (alone.result("control-colour").folder / "done.json").stat().st_mtime_ns
    many = small(course_data, tmp_path / "out", seeds=2)
    assert many.seeds[1].status("control-colour") == "done"
    assert many.steps.status("control-colour") == "to run"
    again = many.seeds[1].done("control-colour").folder / "done.json"
    assert again.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("count", [1, 2, 4])
def test_planned_is_every_step_once(course_data, tmp_path, count):
    """The report's own, then for each other seed what `repeat` runs."""
    book = small(course_data, tmp_path / "out", seeds=count)
    plan = list(book.planned())
    own = plan[: len(book.steps.all)]
    assert [(label, name) for label, _, name in own] == [(n, n) for n in book.steps.all]
    assert all(steps is book.steps for _, steps, _ in own)
    others = plan[len(own):]
    assert [(label, name) for label, _, name in others] == [
        (f"{name}, seed {seed}", name)
        for seed in range(1, count) for name in book.steps.all if name in answers.REPEATED
    ]
    keys = [steps.key(name) for _, steps, name in plan]
    assert len(set(keys)) == len(keys) == len(book.steps.all) + 10 * (count - 1)


def test_repeat_runs_what_is_planned_for_the_other_seeds(course_data, tmp_path, capsys):
    ran = []
    book = faked(small(course_data, tmp_path / "out", seeds=3), ran)
    book.repeat()
    assert capsys.readouterr().out == "Seeds: 0, 1, 2\n"
    planned = {(steps.profile.seed, n) for label, steps, n in book.planned() if label != n}
    assert set(ran) == planned and len(ran) == len(planned)
    assert not [name for _, name in ran if name.startswith("segment") or name == "embed"]
    book.repeat()
    assert len(ran) == len(planned)  # loaded, not run
    assert {book.seeds[s].status(n) for s, n in planned} == {"done"}


def test_one_seed_repeats_nothing(course_data, tmp_path, capsys):
    ran = []
    faked(small(course_data, tmp_path / "out"), ran).repeat()
    assert ran == [] and capsys.readouterr().out == "Seeds: 0\n"


def test_without_problem_1_there_is_nothing_to_repeat(course_data, tmp_path):
    shutil.rmtree(course_data / "p1_data")
    book = small(course_data, tmp_path / "out", seeds=3)
    assert list(book.seeds) == [0]
    assert [label for label, _, _ in book.planned()] == list(book.steps.all)
    book.repeat()


@pytest.mark.parametrize("count", [1, 3])
def test_tables_over_seeds_hold_every_seed(course_data, tmp_path, count):
    """From the stored metrics to what is printed, without a gap and without nan."""
    ran = []
    book = faked(small(course_data, tmp_path / "out", seeds=count), ran)
    shown = [book.table(name).data for name in ("finetune_seeds", "over_seeds", "timings", "steps")]
    table = pd.read_csv(tmp_path / "out" / "tables" / "finetune_seeds.csv")
    assert list(zip(table["setting"], table["seed"])) == [
        (row, seed) for row in answers.rows() for seed in range(count)
    ]
    for line in table.itertuples():
        stored = book.seeds[line.seed].done(answers.step_of(line.setting)).metrics
        assert line.accuracy_last == pytest.approx(stored["accuracy_last"], abs=1e-6)
    shown.append(book.say("seeds").data)
    assert not [text for text in shown if "nan" in text.lower()]
    assert ("±" in shown[1]) == (count > 1) == ("±" in shown[-1])
    labels = [label for label, _, _ in book.planned()]
    assert answers.steps(book)["step"].tolist() == labels
    assert answers.timings(book)["step"].tolist() == labels


def test_every_planned_step_is_shown_by_a_notebook(course_data, tmp_path):
    """Else a notebook would not run again when that step changes."""
    book = small(course_data, tmp_path / "out", seeds=2)
    shown = {n: [s[0] for s in pipeline._shown(n, book)] for n in pipeline.NOTEBOOKS}
    assert set().union(*shown.values()) == {label for label, _, _ in book.planned()}
    assert all(len(set(labels)) == len(labels) for labels in shown.values())
    assert set(shown["05_segment_anything"]) == {"everything", *shown["04_segmentation"]}
    keys = {n: pipeline._made_of(workbook.paths.NOTEBOOKS / f"{n}.ipynb", n, book)["steps"]
            for n in pipeline.NOTEBOOKS}
    assert "finetune-C, seed 1" in keys["02_finetuning"] and "pretrain" in keys["01_pretraining"]


# --- live figures


@pytest.fixture
def displayed(monkeypatch):
    """IPython is here; what it would show is noted, a list of pictures for each place."""
    places = []

    def display(picture, display_id):
        assert display_id
        places.append([picture])
        return SimpleNamespace(update=places[-1].append)

    monkeypatch.delenv("HW1_HEADLESS", raising=False)
    monkeypatch.setattr(workbook, "get_ipython", lambda: object())
    monkeypatch.setattr(workbook, "display", display)
    return places


def watched(book, name, epochs=3, seed=None):
    """Runs a step that only calls its draft's watch as `training.train` does."""
    steps = book.seeds[book.profile.seed if seed is None else seed]

    def run(draft, context):
        history = []
        for epoch in range(1, epochs + 1):
            history.append({"epoch": epoch, "loss": 1 / epoch, "lr": 0.1})
            if draft.watch is not None:
                draft.watch(history)
        draft.metrics({})

    steps.all |= {n: dataclasses.replace(s, run=run) for n, s in trained(steps).items()}
    steps.done(name)


def test_a_step_has_one_figure_that_grows(course_data, tmp_path, displayed):
    book = small(course_data, tmp_path / "out")
    watched(book, "pretrain")
    (pictures,) = displayed
    assert len(pictures) == 3 and len({picture.data for picture in pictures}) == 3
    assert all(picture.data.startswith(b"\x89PNG") for picture in pictures)
    watched(book, "finetune-A", epochs=2)
    assert [len(place) for place in displayed] == [3, 2]
    watched(book, "finetune-A")  # it is done: nothing is drawn
    assert [len(place) for place in displayed] == [3, 2]


def test_another_seeds_figure_is_one_of_its_own(course_data, tmp_path, displayed):
    """Else the first seed's, further up in the notebook, would be drawn over."""
    book = small(course_data, tmp_path / "out", seeds=2)
    for seed in (0, 1):
        watched(book, "pretrain", seed=seed)
    assert [len(place) for place in displayed] == [3, 3]


def test_headless_there_is_no_live_figure(course_data, tmp_path, displayed, monkeypatch):
    """An empty value is as good as none."""
    monkeypatch.setenv("HW1_HEADLESS", "")
    assert small(course_data, tmp_path / "out").steps.watch is not None
    monkeypatch.setenv("HW1_HEADLESS", "1")
    book = small(course_data, tmp_path / "out", seeds=2)
    assert all(steps.watch is None for steps in book.seeds.values())
    watched(book, "pretrain")
    assert displayed == []


def test_outside_ipython_there_is_no_live_figure(course_data, tmp_path, displayed, monkeypatch):
    monkeypatch.setattr(workbook, "get_ipython", lambda: None)
    book = small(course_data, tmp_path / "out")
    assert book.steps.watch is None
    watched(book, "pretrain")
    assert displayed == []


def test_whether_one_looks_on_does_not_change_a_result(course_data, tmp_path, displayed):
    """Neither the key nor a byte of what is stored."""
    book = small(course_data, tmp_path / "looked", **{"finetune.epochs": 2})
    seen = book.result("control-colour")
    assert len(displayed) == 1 and len(displayed[0]) == 2
    book = small(course_data, tmp_path / "blind", **{"finetune.epochs": 2})
    book.steps.watch = None
    blind = book.result("control-colour")
    assert seen.key == blind.key
    for path in sorted(seen.folder.iterdir()):
        if path.name not in ("run.json", "done.json", ".lock"):
            assert path.read_bytes() == (blind.folder / path.name).read_bytes(), path.name


def test_the_four_profiles_run_one_seed():
    assert {profile.seeds for profile in profiles.PROFILES.values()} == {1}
