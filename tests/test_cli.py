"""The command line: help, exit codes, and errors of one paragraph without a traceback."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from hw1lib import cli, commands, paths, profiles
from hw1lib.data import earth
from tests.conftest import picture, refused, run

COMMON = ("--profile", "--data-root", "--out", "--seeds", "--device", "--set")
COMMON += tuple(f"{name}:" for name in profiles.NAMES)
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
    monkeypatch.setattr(earth, "build", None)


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
    + [
        "evaluate classification",
        "evaluate segmentation a b --profile smoke",
        "run --set a=1",
        "plan pretrain --set a=1",
    ]
    + ["figures --dpi 0", "figures --dpi -300", "figures --dpi 99999", "plan --workers 0", "plan --workers 1e3"],
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
    "--seeds 0": "from 1 to 1000",
    "--seeds 99999999999": "from 1 to 1000",
    "--set threads=-1": "from 0 to 1024",
    "--set Pretrain.Epochs=3": "Did you mean pretrain.epochs?",
    "--set fintune.lr=1": "Did you mean finetune.lr?",
    "--profile Smoke": "Did you mean smoke?",
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


def test_stopping_it_is_no_traceback(capsys, monkeypatch):
    def stop(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "verify", stop)
    code, _, text = run(capsys, "verify")
    assert code == 130 and "Finished steps are kept" in text and "Traceback" not in text


SUGGESTED = {"reprot": "report", "Report": "report", "data chek": "check", "predict segmentaton a b": "segmentation"}
SUGGESTED |= {"plan --Profile smoke": "--profile", "report --data-rot x": "--data-root"}


@pytest.mark.parametrize("words", SUGGESTED)
def test_a_misspelt_command_or_option_comes_with_the_nearest(capsys, words):
    code, _, text = run(capsys, *words.split())
    assert code == 2 and text.rstrip().endswith(f"Did you mean {SUGGESTED[words]}?")


@pytest.mark.parametrize(
    "words",
    ["run {set} pretrain", "run pretrain {set}", "run --profile smoke {set} -- pretrain", "run {set} --out o pretrain"],
)
@pytest.mark.parametrize("form", ["--set a=1 b.c=2,3", "--set a=1 --set b.c=2,3", "--set=a=1 --set b.c=2,3"])
def test_settings_end_where_a_word_has_no_equals_sign(words, form):
    arguments = cli._parser().parse_args(cli._split_settings(words.format(set=form).split()))
    assert arguments.step == "pretrain" and arguments.settings == ["a=1", "b.c=2,3"]


def examples():
    """Every command that a --help shows, with where; test_docs has those of the documents."""
    for command in ("", *COMMANDS, "data", "weights", "predict", "evaluate"):
        parser = cli._parser()
        for word in command.split():
            (kinds,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            parser = kinds.choices[word]
        yield f"{command} --help", parser.epilog.replace("\\\n", " ").partition(":")[2].strip()


EXAMPLES = sorted(set(examples()))
CHEAP = ("data info --data-root", "weights list", "weights check")


@pytest.mark.parametrize(("where", "example"), EXAMPLES)
def test_every_command_that_is_shown_can_be_typed(capsys, where, example):
    """What costs little runs; of the rest the words are parsed."""
    words = shlex.split(example)[3:]
    arguments = cli._parser().parse_args(cli._split_settings(words))
    profiles.get(getattr(arguments, "profile", "demo"), dict(s.split("=") for s in getattr(arguments, "settings", ())))
    if " ".join(words).startswith(CHEAP) and paths.EARTH.is_dir():
        assert run(capsys, *words)[0] == 0


def test_examples_are_found():
    assert len([where for where, _ in EXAMPLES if "--help" in where]) == len(COMMANDS) + 5


VARIABLES = {"profile=smoke": "profile", "DATAROOT=/x": "DATAROOT", "Seeds=2": "Seeds", "PROFIL=smoke": "PROFIL"}


@pytest.mark.parametrize("given", [*VARIABLES, "PROFILE=smoke HW1_BUILD=/x SET=a=1"])
def test_make_refuses_a_variable_that_it_does_not_know(given):
    """Of its command line; the environment may hold whatever it likes."""
    environment = os.environ | {"profile": "x", "DATAROOT": "x"}
    done = subprocess.run(
        ["make", "-n", "report", *given.split()], cwd=paths.ROOT, capture_output=True, text=True, env=environment
    )
    assert (
        (done.returncode != 0)
        == (given in VARIABLES)
        == (f"variable {VARIABLES.get(given)} is not used" in done.stderr)
    )


ENDS = ("2>&-", "2>/dev/full", ">&-", ">/dev/full", "<&- >&- 2>&-", "| head -0; exit ${PIPESTATUS[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("command", ["compare nothing nowhere", "weights check"])
def test_closed_or_full_streams_are_no_traceback(command, ends):
    """And the error goes where it can be read."""
    words = ["bash", "-c", f"{shlex.quote(sys.executable)} -m hw1lib {command} {ends}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=paths.ROOT)
    works = command == "weights check" and ends != ">/dev/full"
    assert done.returncode == (0 if works else 1), done
    assert "Traceback" not in done.stdout + done.stderr and "Exception ignored" not in done.stderr
    if ends == "2>&-" and not works:
        assert "hw1lib: " in done.stdout and "nothing" in done.stdout


def test_an_environment_variable_that_nothing_reads_is_named_once(capsys, monkeypatch):
    monkeypatch.setenv("HW1_BULD", "/x")
    monkeypatch.setenv("HW1_KILLS", "3")
    code, _, said = run(capsys, "weights", "list")
    assert code == 0 and said.count("HW1_BULD is not used") == 1 and "Did you mean HW1_BUILD?" in said
    assert "KILLS is not" not in said and run(capsys, "weights", "list")[2] == ""  # nor do child processes say it


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
