"""The command line: help, exit codes, suggestions, and one-paragraph errors without a traceback."""

import json
import os
import re
import shlex
import subprocess
import sys

import click
import pytest

from hw1lib import cli, paths, profiles, terminal
from hw1lib.data import earth
from tests.conftest import refused, run

COMMON = ["--profile", "--data-root", "--out", "--seeds", "--device", "--set"]
COMMON += [f"{name}:" for name in profiles.NAMES]
COMMANDS = {  # what the help of each must name
    "": [], "report": [*COMMON, "--only", "--cluster"], "plan": [*COMMON, "--workers"], "run": [*COMMON, "STEP"],
    "verify": COMMON, "publish": COMMON, "compare": ["RUN"], "figures": [*COMMON, "--format", "--dpi", "NAME"],
    "data": [], "weights": [], "predict": [], "evaluate": [],
    "data sample": ["--from"], "data info": ["--data-root", "--json"], "data check": ["--data-root", "--json"],
    "data split": ["--by", "--data-root", "--out"],
    "weights list": [], "weights fetch": ["--from", "NAME", "HW1_WEIGHTS_MIRROR"], "weights check": [],
    "predict classification": [*COMMON, "--model", "CSV", "IMAGE_DIR", "OUT_CSV"],
    "predict segmentation": [*COMMON, "--model", "--tta", "IMAGE_DIR", "OUT_DIR"],
    "evaluate classification": ["PRED_CSV", "TRUE_CSV"], "evaluate segmentation": ["PRED_DIR", "TRUE_DIR"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_sample(monkeypatch):
    """Make any attempt to build the Earth sample fail: these commands must stop before it."""
    monkeypatch.setattr(earth, "build", None)


def parse(words):
    """Return the command that a command line runs, and its arguments, without running it."""
    command, context, words = cli.commands, None, terminal.split_settings(words)
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(click.Context(command, parent=context), words)
    return command, command.make_context(command.name, words).params


# --- help and wrong usage


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_fits_80_columns_and_ends_with_an_example(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = run(capsys, *command.split(), "--help")
    assert code == 0 and max(map(len, text.splitlines())) <= 80
    prefix = f"{command} ".lstrip()
    within = [name.removeprefix(prefix).split()[0] for name in COMMANDS if name != command and name.startswith(prefix)]
    assert [word for word in COMMANDS[command] + within if word not in text] == []
    words = shlex.split(text.partition("Example:")[2].replace("\\\n", " "))[3:]
    _, arguments = parse(words)
    profiles.get(arguments.get("profile", "demo"), dict(pair.split("=") for pair in arguments.get("settings", ())))
    if " ".join(words).startswith(("data info", "weights list", "weights check")) and paths.EARTH.is_dir():
        assert run(capsys, *words)[0] == 0


@pytest.mark.parametrize(
    "words",
    ["", "run", "data", "predict", "plan extra", "report --nonsense", "report --only problem3", "report --profile"]
    + ["report --set", "plan --seeds two", "predict segmentation a", "predict segmentation a b --tta=1"]
    + ["evaluate segmentation a b --profile smoke", "run --set a=1", "plan pretrain --set a=1", "figures --dpi 0"]
    + ["plan --workers 1e3"],
)
def test_wrong_usage_exits_with_2(capsys, words):
    code, out, text = run(capsys, *words.split())
    assert code == 2 and text.startswith(("Usage:", "Error:")) and out == ""


SUGGESTIONS = {"reprot": "report", "data chek": "check", "plan --Profile smoke": "--profile"}


@pytest.mark.parametrize("words", SUGGESTIONS)
def test_a_misspelt_command_or_option_suggests_the_nearest(capsys, words):
    code, _, text = run(capsys, *words.split())
    assert code == 2 and text.rstrip().endswith(f"Did you mean '{SUGGESTIONS[words]}'?")


@pytest.mark.parametrize("words", ["run {set} pretrain", "run pretrain {set}", "run {set} -- pretrain"])
@pytest.mark.parametrize("form", ["--set a=1 b.c=2,3", "--set a=1 --set b.c=2,3", "--set=a=1 --set b.c=2,3"])
def test_set_takes_only_words_with_an_equals_sign(words, form):
    command, arguments = parse(words.format(set=form).split())
    assert command.name == "run" and arguments["step"] == "pretrain" and arguments["settings"] == ("a=1", "b.c=2,3")


# --- errors that a user can fix

ARGUMENTS = {"report": [], "run": ["pretrain"], "predict segmentation": ["images", "out"]}  # of some commands
WRONG = {  # options, and what the error must say
    "--profile dmeo": "dmeo",
    "--profile seed": "DATA=",  # it needs the course data
    "--set pretrain.epoch=3": "pretrain.epoch",
    "--set pretrain.epochs=many": "pretrain.epochs=many",
    "--set pretrain.epochs": "NAME=VALUE",
    "--set seed=1 seed=x": "seed=x",
    "--data-root /nowhere/at/all": "/nowhere/at/all",
    "--seeds -3": "seeds=-3",
    "--device tpu9000": "--device tpu9000",
    "--set Pretrain.Epochs=3": "Did you mean pretrain.epochs?",
}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_wrong_option_is_named(capsys, course_data, command):
    for options, words in WRONG.items():
        data = ["--data-root", course_data] if "device" in options else []
        assert words in refused(capsys, *command.split(), *ARGUMENTS[command], *options.split(), *data), options


def test_an_unknown_step_a_file_as_output_folder_and_incomplete_data_are_named(capsys, course_data, tmp_path):
    common = ("--profile", "smoke", "--data-root", course_data, "--out")
    text = refused(capsys, "run", "pre-train", *common, tmp_path / "out")
    assert "pre-train" in text and "finetune-A" in text and "segment-lraspp" in text
    (tmp_path / "file").write_text("text")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        text = refused(capsys, "run", "segment-colour", *common, out)
        assert str(tmp_path / "file") in text and "--out" in text and "disk space" not in text
    assert (tmp_path / "file").read_text() == "text"
    (course_data / "p2_data" / "train" / "0001_mask.png").unlink()
    for words in (("plan",), ("data", "info")):
        assert "0001_mask.png" in refused(capsys, *words, "--data-root", course_data)


def test_ctrl_c_exits_with_130_and_says_that_results_are_kept(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(profiles, "get", interrupt)
    code, _, text = run(capsys, "verify")
    assert code == 130 and "Finished steps are kept" in text and "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["2>&-", ">/dev/full", "<&- >&- 2>&-", "| head -0; exit ${PIPESTATUS[0]}"])
@pytest.mark.parametrize("command", ["weights fetch nothing", "weights check"])
def test_closed_or_full_streams_cause_no_traceback(command, streams):
    words = ["bash", "-c", f"{shlex.quote(sys.executable)} -m hw1lib {command} {streams}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=paths.ROOT)
    succeeds = command == "weights check" and streams != ">/dev/full"
    assert done.returncode == (0 if succeeds else 1), done
    assert "Traceback" not in done.stdout + done.stderr and "Exception ignored" not in done.stderr
    if streams == "2>&-" and not succeeds:
        assert "hw1lib: " in done.stdout and "nothing" in done.stdout


def test_an_unknown_environment_variable_is_reported_once(capsys, monkeypatch):
    monkeypatch.setenv("HW1_BULD", "/x")
    monkeypatch.setenv("HW1_KILLS", "3")
    code, _, text = run(capsys, "weights", "list")
    assert code == 0 and text.count("HW1_BULD is not used") == 1 and "Did you mean HW1_BUILD?" in text
    assert "KILLS is not" not in text and run(capsys, "weights", "list")[2] == ""


MISSPELT = {"profile=smoke": "profile", "PROFIL=smoke": "PROFIL"}


@pytest.mark.parametrize("words", [*MISSPELT, "PROFILE=smoke HW1_BUILD=/x SET=a=1"])
def test_make_refuses_unknown_variables_on_its_command_line(words):
    environment = os.environ | {"profile": "x", "DATAROOT": "x"}
    command = ["make", "-n", "report", *words.split()]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, env=environment)
    is_named = f"variable {MISSPELT.get(words)} is not used" in done.stderr
    assert (done.returncode != 0) == (words in MISSPELT) == is_named


# --- plan, run, verify, data info

LINE = re.compile(r"(?P<label>\S.*?) +(?P<state>done|to run|to resume) +(?P<seconds>~?\d+|–) +(?P<key>[0-9a-f]{16})")


def plan(capsys, *words):
    """Return the printed table, {label: cells}."""
    code, out, _ = run(capsys, "plan", *words)
    _, *lines = out.partition("\n\n")[0].splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    steps = [step for step in map(LINE.fullmatch, lines) if step]
    assert len(lines) - len(steps) >= sum(step["state"] != "done" for step in steps)  # each has its reason
    return {step["label"]: step.groupdict() for step in steps}


@pytest.mark.parametrize(("half", "profile"), [("p1_data", "smoke"), ("p2_data", "strong")])
def test_plan_and_info_work_with_half_of_the_data(capsys, course_data, tmp_path, half, profile):
    words = ("--profile", profile, "--data-root", course_data, "--out", tmp_path / "out", "--seeds", 12)
    words += ("--set", *(f"{name}.pretrained=false" for name in ("fcn32s", "lraspp", "deeplabv3")))
    steps = plan(capsys, *words)
    assert {row["seconds"] for row in steps.values()} == {"–"} and "pretrain, seed 11" in steps
    (course_data / half).rename(tmp_path / "away")
    steps = plan(capsys, *words)
    assert ("pretrain" in steps) == (half == "p2_data") != ("segment-lraspp" in steps)
    info = json.loads(run(capsys, "data", "info", "--data-root", course_data, "--json")[1])
    assert ("pool" in info) == (half == "p2_data") != ("tiles" in info)


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
    text = refused(capsys, "verify", *common)
    assert "control-colour" in text and "metrics.json was altered" in text


def test_data_info_counts_the_images(capsys, course_data):
    code, out, _ = run(capsys, "data", "info", "--data-root", course_data, "--json")
    info = json.loads(out)
    assert code == 0 and info["pool"]["images"] == 12 and info["val"]["images"] == 6
    assert info["train"]["classes"] == {"Couch": 4, "Alarm_Clock": 4, "Mug": 4}
    assert info["tiles"] == {"train": 4, "validation": 3}
    text = run(capsys, "data", "info", "--data-root", course_data)[1]
    assert re.search("train, classes, Alarm_Clock +4\n", text) and re.search("tiles, train +4\n", text)
