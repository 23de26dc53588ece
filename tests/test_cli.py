"""The command line: help, exit codes, and errors of one paragraph without a traceback."""

import json
import subprocess
import sys

import pytest

from hw1lib import cli, paths, profiles, store
from hw1lib.data import sample
from hw1lib.models import weights

COMMON = ("--profile", "--data-root", "--out", "--device", "--set")
COMMANDS = {
    "report": (*COMMON, "--only"),
    "plan": COMMON,
    "run": (*COMMON, "STEP"),
    "verify": COMMON,
    "data sample": ("--from",),
    "data info": ("--data-root", "--json"),
    "weights list": (),
    "publish": COMMON,
    "figures": (*COMMON, "--format", "--dpi", "NAME"),
}


@pytest.fixture(autouse=True)
def no_sample(monkeypatch):
    """No test here may build the Earth sample: a command that tries did not see its error."""
    def build(*words, **options):
        raise AssertionError("the Earth sample was asked for")

    monkeypatch.setattr(sample, "build", build)


def run(capsys, *words):
    """Exit code, standard output and error of one command, in this process."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as left:
        code = left.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, *words):
    """The one paragraph of a command that ends with 1."""
    code, _, text = run(capsys, *words)
    assert code == 1, text
    text = text.strip()
    assert text.startswith("hw1lib: ") and "Traceback" not in text
    assert "\n" not in text and len(text) < 700
    return text


# --- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(capsys, command):
    code, text, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert [option for option in COMMANDS[command] if option not in text] == []


def test_help_names_every_command_and_profile(capsys):
    code, text, _ = run(capsys, "--help")
    assert code == 0
    assert all(command.split()[0] in text for command in COMMANDS)
    text = " ".join(run(capsys, "report", "--help")[1].split())
    assert all(f"{name}:" in text for name in profiles.PROFILES)


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "hw1lib", "run", "--help"],
        cwd=paths.ROOT, capture_output=True, text=True,
    )
    assert done.returncode == 0 and "STEP" in done.stdout and done.stderr == ""


# --- wrong usage


@pytest.mark.parametrize(
    "words",
    [(), ("nonsense",), ("report", "--nonsense"), ("run",), ("data",), ("data", "nonsense"),
     ("report", "--only", "problem3"), ("report", "--profile"), ("report", "--set"),
     ("figures", "--dpi", "high"), ("plan", "extra"), ("weights",)],
)
def test_wrong_usage_ends_with_2(capsys, words):
    code, out, text = run(capsys, *words)
    assert code == 2 and text.startswith("usage:") and out == ""


# --- what a user can mend


@pytest.mark.parametrize("command", ["report", "plan", "verify", "publish", "figures", "run"])
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--profile", "dmeo"), "dmeo"),
        (("--set", "pretrain.epoch=3"), "pretrain.epoch"),
        (("--set", "pretrain.epochs=many"), "pretrain.epochs=many"),
        (("--set", "pretrain.epochs"), "NAME=VALUE"),
        (("--set", "pretrain=3"), "pretrain.epochs"),
        (("--set", "=3"), "''"),
        (("--set", "seed=1", "seed=x"), "seed=x"),
        (("--data-root", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--profile", "seed"), "DATA="),
        (("--profile", "strong"), "--data-root"),
    ],
)
def test_a_wrong_option_is_named(capsys, command, options, word):
    step = ["pretrain"] if command == "run" else []
    assert word in fails(capsys, command, *step, *options)


def test_a_wrong_device_is_named(capsys, course_data):
    text = fails(capsys, "plan", "--data-root", course_data, "--device", "tpu9000")
    assert "--device tpu9000" in text


@pytest.mark.parametrize("setting", ["device", "everything.images"])
def test_a_setting_may_hold_what_a_shell_lets_through(capsys, course_data, setting):
    """Equals signs, quotes, and letters of any script belong to the value."""
    words = ("--data-root", course_data, "--set", f"{setting}=a=b 'c' Größe")
    code, _, text = run(capsys, "plan", *words)
    assert code == 0 if setting != "device" else "a=b 'c' Größe" in text


def test_a_wrong_step_comes_with_the_right_ones(capsys, course_data, tmp_path):
    text = fails(
        capsys, "run", "pre-train", "--profile", "smoke", "--data-root", course_data,
        "--out", tmp_path / "out",
    )
    assert "pre-train" in text and "finetune-A" in text and "segment-lraspp" in text


def test_a_step_of_a_problem_that_is_not_there(capsys, course_data, tmp_path):
    (course_data / "p1_data").rename(tmp_path / "away")
    text = fails(capsys, "run", "pretrain", "--profile", "smoke", "--data-root", course_data)
    assert "'pretrain'" in text and "segment-lraspp" in text


def test_an_incomplete_data_folder_is_named(capsys, course_data):
    (course_data / "p2_data" / "train" / "0001_mask.png").unlink()
    for words in (("plan",), ("data", "info")):
        assert "0001_mask.png" in fails(capsys, *words, "--data-root", course_data)


def test_an_output_folder_that_cannot_be_is_named(capsys, course_data, tmp_path):
    (tmp_path / "file").write_text("")
    text = fails(
        capsys, "run", "segment-colour", "--profile", "smoke", "--data-root", course_data,
        "--out", tmp_path / "file",
    )
    assert str(tmp_path / "file") in text and "--out" in text


def test_an_unknown_figure_or_format_is_named(capsys, course_data, tmp_path):
    common = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
    assert "bmp" in fails(capsys, "figures", "--format", "png,bmp", *common)
    text = fails(capsys, "figures", "tyles", *common)
    assert "'tyles'" in text and "tiles" in text


def test_stopping_it_is_no_traceback(capsys, monkeypatch, course_data):
    def stop(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_request", stop)
    code, _, text = run(capsys, "plan", "--data-root", course_data)
    assert code == 130 and "Finished steps are kept" in text and "Traceback" not in text


# --- what works


def test_plan_run_and_verify(capsys, course_data, tmp_path):
    common = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out",
              "--device", "cpu")

    def states():
        code, out, _ = run(capsys, "plan", *common)
        assert code == 0
        rows = [line.split("  ") for line in out.splitlines()[1:]]
        return {row[0]: [cell.strip() for cell in row if cell.strip()][1] for row in rows}

    before = states()
    assert set(before.values()) == {"to run"} and "segment-colour" in before
    assert run(capsys, "run", "segment-colour", *common)[0] == 0
    after = states()
    assert after == before | {"segment-colour": "done"}
    assert run(capsys, "verify", *common)[0] == 0
    (metrics,) = (tmp_path / "out" / "steps").glob("segment-colour/*/metrics.json")
    data = store.read_json(metrics)
    metrics.write_text(json.dumps(data | {"miou": 1.0}))
    assert "segment-colour" in fails(capsys, "verify", *common)
    assert "metrics.json was altered" in fails(capsys, "verify", *common)


def test_settings_reach_the_steps(capsys, course_data, tmp_path):
    def keys(*more):
        words = ("plan", "--profile", "smoke", "--data-root", course_data, *more)
        rows = [line.split() for line in run(capsys, *words)[1].splitlines()[1:]]
        return {row[0]: row[-2] for row in rows}

    plain = keys()
    one = keys("--set", "embed.perplexity=7", "lraspp.lr=0.5")
    assert {n for n in plain if plain[n] != one[n]} == {"embed", "segment-lraspp", "everything"}
    two = keys("--set", "embed.perplexity=7", "--set", "lraspp.lr=0.5")  # either way of writing it
    assert one == two


def test_data_info_counts_the_folder(capsys, course_data):
    code, out, _ = run(capsys, "data", "info", "--data-root", course_data, "--json")
    info = json.loads(out)
    assert code == 0 and info["pool"]["images"] == 12 and info["val"]["images"] == 6
    assert info["train"]["classes"] == {"Couch": 4, "Alarm_Clock": 4, "Mug": 4}
    assert info["tiles"] == {"train": 4, "validation": 3}
    code, out, _ = run(capsys, "data", "info", "--data-root", course_data)
    assert code == 0 and "Alarm_Clock" in out and "train: 12 images" in out


def test_weights_list_says_how_to_get_them(capsys, monkeypatch):
    monkeypatch.setattr(weights, "find_sam", lambda: None)
    code, out, _ = run(capsys, "weights", "list")
    assert code == 0 and "data/weights" in out and "hf download" in out


def test_figures_are_exported_in_every_format(capsys, course_data, tmp_path):
    code, out, _ = run(
        capsys, "figures", "tiles", "--format", "pdf,svg,png", "--dpi", "50",
        "--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out",
        "--into", tmp_path / "into",
    )
    assert code == 0
    assert {path.name for path in (tmp_path / "into").iterdir()} == {
        "tiles.pdf", "tiles.svg", "tiles.png"
    }
    assert all(str(path) in out for path in (tmp_path / "into").iterdir())
