"""The command line: help, exit codes, and errors of one paragraph without a traceback."""

import argparse
import json
import re
import shutil

import pytest

from hw1lib import cli, commands, files, profiles
from hw1lib.data.sample import build as sample
from tests.conftest import picture, refused, run

COMMON = ("--profile", "--data-root", "--out", "--seeds", "--device", "--set")
COMMON += tuple(f"{name}:" for name in profiles.PROFILES)
COMMANDS = {
    "report": (*COMMON, "--only"), "plan": COMMON, "run": (*COMMON, "STEP"), "verify": COMMON,
    "data sample": ("--from",), "data info": ("--data-root", "--json"), "data check": ("--data-root", "--json"),
    "data split": ("--by", "--data-root", "--out"),
    "weights list": (), "weights fetch": ("--from", "NAME", "HW1_WEIGHTS_MIRROR"), "weights check": (),
    "predict classification": (*COMMON, "--model", "CSV", "IMAGE_DIR", "OUT_CSV"),
    "predict segmentation": (*COMMON, "--model", "--tta", "IMAGE_DIR", "OUT_DIR"),
    "evaluate classification": ("PRED_CSV", "TRUE_CSV"), "evaluate segmentation": ("PRED_DIR", "TRUE_DIR"),
    "publish": COMMON, "compare": ("RUN",), "figures": (*COMMON, "--format", "--dpi", "NAME"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_sample(monkeypatch):
    """No test here may build the Earth sample: a command that tries did not see its error."""
    monkeypatch.setattr(sample, "build", None)


# --- help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_every_command_profile_and_option_and_fits_a_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = run(capsys, *command.split(), "--help")
    assert code == 0 and max(map(len, text.splitlines())) <= 80
    expected = COMMANDS[command] if command else [name.split()[0] for name in COMMANDS]
    assert [word for word in expected if word not in text] == []


def test_every_command_there_is_has_its_help_tested():
    """Walks the parser, so that a new command cannot be forgotten here."""

    def every(parser, name=""):
        kinds = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not kinds:
            yield name.strip()
        for kind in kinds:
            for word, child in kind.choices.items():
                yield from every(child, f"{name} {word}")

    assert set(every(cli._parser())) == set(COMMANDS)


# --- wrong usage


@pytest.mark.parametrize(
    "words",
    ["", "nonsense", "run", "data", "data nonsense", "weights", "weights fetch", "predict", "evaluate", "plan extra"]
    + ["report --nonsense", "report --only problem3", "report --profile", "report --set", "plan --seeds two"]
    + ["plan --seeds", "figures --dpi high", "weights fetch a b", "weights fetch a --from", "predict segmentation a"]
    + ["predict classification a b", "predict segmentation a b --tta=1", "evaluate segmentation a"]
    + ["evaluate classification", "evaluate segmentation a b --profile smoke"],
)
def test_wrong_usage_ends_with_2(capsys, words):
    code, out, text = run(capsys, *words.split())
    assert code == 2 and text.startswith("usage:") and out == ""


# --- what a user can mend


WORDS = {  # of each command that has settings; those that stand for files
    "report": [], "plan": [], "verify": [], "publish": [], "run": ["pretrain"],
    "predict segmentation": ["images", "out"], "predict classification": ["table.csv", "images", "out.csv"],
}  # fmt: skip
WRONG = {
    "--profile dmeo": "dmeo",
    "--profile seed": "DATA=",  # for the course data, which is not given
    "--profile strong": "--data-root",
    "--set pretrain.epoch=3": "pretrain.epoch",
    "--set pretrain.epochs=many": "pretrain.epochs=many",
    "--set pretrain.epochs": "NAME=VALUE",
    "--set pretrain=3": "pretrain.epochs",
    "--set =3": "''",
    "--set seed=1 seed=x": "seed=x",
    "--data-root /nowhere/at/all": "/nowhere/at/all",
    "--seeds -3": "seeds=-3",
    "--device tpu9000": "--device tpu9000",
    "--set device=a=b'c'Größe": "a=b'c'Größe",  # as a shell lets it through
}


@pytest.mark.parametrize("command", WORDS)
def test_a_wrong_option_is_named(capsys, course_data, command):
    for options, word in WRONG.items():
        data = ["--data-root", course_data] if "device" in options else []
        assert word in refused(capsys, *command.split(), *WORDS[command], *options.split(), *data), options


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_predictions_of_an_unfinished_report_say_what_to_run(capsys, course_data, tmp_path, kind):
    """And write nothing. Where there is nothing to be scored, that is named."""
    picture(0).save(tmp_path / "x.jpg")
    (tmp_path / "table.csv").write_text("id,filename\n1,x.jpg\n")
    files = ("table.csv", ".", "out.csv") if kind == "classification" else (".", "out")
    where = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "build")
    text = refused(capsys, "predict", kind, *(tmp_path / name for name in files), *where)
    assert "not trained" in text and "make report PROFILE=smoke" in text
    shutil.rmtree(course_data / ("p1_data" if kind == "classification" else "p2_data"))  # no such model can be had
    refused(capsys, "predict", kind, *(tmp_path / name for name in files), *where)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.csv").exists()


def test_what_a_command_cannot_use_is_named(capsys, course_data, tmp_path):
    """A step that is not there, an output folder that cannot be, an incomplete data folder."""
    common = ("--profile", "smoke", "--data-root", course_data, "--out")
    text = refused(capsys, "run", "pre-train", *common, tmp_path / "out")
    assert "pre-train" in text and "finetune-A" in text and "segment-lraspp" in text
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        text = refused(capsys, "run", "segment-colour", *common, out)
        assert str(tmp_path / "file") in text and "--out" in text and "disk space" not in text
    assert (tmp_path / "file").read_text() == "mine"
    (course_data / "p2_data" / "train" / "0001_mask.png").unlink()
    for words in (("plan",), ("data", "info")):
        assert "0001_mask.png" in refused(capsys, *words, "--data-root", course_data)


def test_an_unknown_figure_or_format_is_named(capsys, tmp_path):
    files.write_text(tmp_path / "figures" / "tiles.pdf", "%PDF")
    assert "bmp" in refused(capsys, "figures", "--format", "png,bmp", "--out", tmp_path)
    text = refused(capsys, "figures", "tyles", "--out", tmp_path)
    assert "'tyles'" in text and "tiles" in text


def test_stopping_it_is_no_traceback(capsys, monkeypatch):
    def stop(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "verify", stop)
    code, _, text = run(capsys, "verify")
    assert code == 130 and "Finished steps are kept" in text and "Traceback" not in text


# --- plan

LINE = re.compile(r"(?P<label>\S.*?) +(?P<state>done|to run|to resume) +(?P<seconds>~?\d+|–) +(?P<key>[0-9a-f]{16})")


def plan(capsys, *words):
    """The printed table: dict from label to its cells."""
    code, out, _ = run(capsys, "plan", *words)
    head, *lines = out.partition("\n\n")[0].splitlines()
    assert code == 0 and re.fullmatch(r"step +state +seconds +key", head)
    reasons = [line for line in lines if line.startswith("  ")]
    steps = [LINE.fullmatch(line) for line in lines if line not in reasons]
    assert all(steps), lines
    assert len(reasons) >= sum(step["state"] != "done" for step in steps)
    assert len({step["label"] for step in steps}) == len(steps)
    return {step["label"]: step.groupdict() for step in steps}


@pytest.mark.parametrize(("half", "profile"), [("p1_data", "smoke"), ("p2_data", "strong")])
def test_a_plan_fits_a_terminal_and_half_of_the_data_has_one(capsys, course_data, tmp_path, half, profile):
    words = ("--profile", profile, "--data-root", course_data, "--out", tmp_path / "out", "--seeds", 12)
    words += ("--set", *(f"{name}.pretrained=false" for name in ("fcn32s", "lraspp", "deeplabv3")))
    assert max(map(len, run(capsys, "plan", *words)[1].splitlines())) <= 80
    found = plan(capsys, *words)
    assert {row["seconds"] for row in found.values()} == {"–"} and "pretrain, seed 11" in found
    (course_data / half).rename(tmp_path / "away")
    found = plan(capsys, *words)
    assert ("pretrain" in found) == (half == "p2_data") != ("segment-lraspp" in found)
    info = json.loads(run(capsys, "data", "info", "--data-root", course_data, "--json")[1])
    assert ("pool" in info) == (half == "p2_data") != ("tiles" in info)


# --- what works


def test_plan_run_and_verify(capsys, course_data, tmp_path):
    common = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out", "--device", "cpu")
    before = plan(capsys, *common)
    assert {cells["state"] for cells in before.values()} == {"to run"} and "control-colour" in before
    assert run(capsys, "run", "control-colour", *common)[0] == 0
    after = plan(capsys, *common)
    changed = {label for label in before if before[label] != after[label]}
    assert changed == {"check-problem1", "control-colour"} == {n for n in after if after[n]["state"] == "done"}
    assert re.fullmatch(r"\d+", after["control-colour"]["seconds"])
    longer = plan(capsys, *common, "--set", "finetune.epochs=600")
    assert longer["control-colour"]["state"] == "to run" and longer["finetune-A"]["seconds"] == "–"
    assert int(longer["control-colour"]["seconds"][1:]) > int(after["control-colour"]["seconds"])
    assert run(capsys, "verify", *common)[0] == 0
    (metrics,) = (tmp_path / "out" / "steps").glob("control-colour/*/metrics.json")
    metrics.write_text(metrics.read_text() + " ")
    said = refused(capsys, "verify", *common)
    assert "control-colour" in said and "metrics.json was altered" in said


def test_settings_reach_the_steps(capsys, course_data, tmp_path):
    common = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
    plain = plan(capsys, *common)
    one = plan(capsys, *common, "--set", "embed.perplexity=7", "lraspp.lr=0.5")
    assert {n for n in plain if plain[n] != one[n]} == {"embed", "segment-lraspp", "everything"}
    assert one == plan(capsys, *common, "--set", "embed.perplexity=7", "--set", "lraspp.lr=0.5")
    assert plan(capsys, *common, "--set", "seeds=5", "--seeds", 2) == plan(capsys, *common, "--seeds", 2)


def test_data_info_counts_the_folder(capsys, course_data):
    code, out, _ = run(capsys, "data", "info", "--data-root", course_data, "--json")
    info = json.loads(out)
    assert code == 0 and info["pool"]["images"] == 12 and info["val"]["images"] == 6
    assert info["train"]["classes"] == {"Couch": 4, "Alarm_Clock": 4, "Mug": 4}
    assert info["tiles"] == {"train": 4, "validation": 3}
    said = run(capsys, "data", "info", "--data-root", course_data)[1]
    assert "Alarm_Clock" in said and "train: 12 images" in said


def test_reports_are_compared_side_by_side(capsys, tmp_path):
    for name, accuracy, epochs in (("one", 0.5, 2), ("two", 0.75, 4)):
        steps = {"finetune-C": {"accuracy_last": accuracy}, "segment-lraspp": {"miou_last": 0.1}}
        settings = {"seed": 0, "finetune": {"epochs": epochs}}
        files.write_json(tmp_path / name / "metrics.json", {"steps": steps, "settings": settings})
    code, out, _ = run(capsys, "compare", tmp_path / "one", tmp_path / "two")
    assert code == 0
    for row in (r"finetune-C +0\.5000 +0\.7500", r"segment-lraspp +0\.1000 +0\.1000", r"finetune\.epochs +2 +4"):
        assert re.search(row, out), row
    assert "seed" not in out.replace("seeds", "")  # what is the same is not listed
    assert "same" in run(capsys, "compare", tmp_path / "one", tmp_path / "one")[1]
    assert str(tmp_path / "three") in refused(capsys, "compare", tmp_path / "three")
