"""Disks that are full and permissions that are missing, met by whole commands.

Whatever happens: exit code 1, one paragraph that says what helps, and nothing damaged.
"""

import errno

import pytest

from hw1lib import cli, commands
from hw1lib.steps import store
from tests.conftest import everything_of, refused
from tests.test_files import full_disk, held_to_permissions

CHECK = {"segment-colour": "check-problem2", "control-colour": "check-problem1"}


def words(step, data, out, *more):
    """A command that runs one of the two quickest steps."""
    return ["run", step, "--profile", "smoke", "--device", "cpu", "--data-root", str(data), "--out", str(out), *more]


def finished(out):
    """Names of the steps that are finished; each of them must verify."""
    markers = sorted(out.glob("steps/*/*/done.json"))
    assert not markers or store.Store(out).verify() == []
    return [marker.parent.parent.name for marker in markers]


# --- a full disk


@pytest.mark.parametrize("limit", [40, 500, 8000])
def test_a_training_that_meets_a_full_disk_ends_later_as_if_it_had_not(course_data, tmp_path, capsys, limit):
    """Wherever that was: the check's results, a checkpoint, or the step's own."""
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    command = words("control-colour", course_data, out, "--set", "checkpoint_every=0")
    with full_disk(limit):
        assert "Free some disk space" in refused(capsys, *command)
    assert "control-colour" not in finished(out)
    assert {path.name for path in out.rglob(".*") if path.is_file()} <= {".lock", ".holder"}  # nothing half written
    assert cli.main(command) == 0
    assert cli.main(words("control-colour", course_data, undisturbed)) == 0
    one, two = (everything_of(next(o.glob("steps/control-colour/*"))) for o in (out, undisturbed))
    assert one == two and "metrics.json" in one


# --- folders that cannot be used


def test_a_build_folder_that_may_not_be_written_keeps_what_is_done(course_data, tmp_path, capsys):
    """Reading needs no more: the results of somebody else, too, are loaded, verified and planned with."""
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    command, check = (words(step, course_data, out) for step in ("segment-colour", "check-problem2"))
    with held_to_permissions():
        said = refused(capsys, *command)
    assert "Permission denied" in said and str(out) in said and "--out" in said
    assert "Mend the permissions of its folder" in said and list(out.iterdir()) == []
    out.chmod(0o755)
    assert cli.main(check) == 0
    folders = [out, *(path for path in out.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    with held_to_permissions():
        assert "Permission denied" in refused(capsys, *command)
        assert finished(out) == ["check-problem2"]
        assert [cli.main(again) for again in (check, ["verify", *check[2:]], ["plan", *check[2:]])] == [0, 0, 0]
    for folder in folders:
        folder.chmod(0o755)
    assert cli.main(command) == 0 and finished(out) == ["check-problem2", "segment-colour"]


# --- files that may not be read


@pytest.mark.parametrize(
    "file",
    ["p2_data/validation/0001_mask.png", "p2_data/train", "p1_data/office/val.csv", "p1_data/mini/train"]
    + ["p1_data/office/train/Mug00002.jpg", "p1_data/office/train", "p1_data/mini/train/00003.jpg"],
)
def test_data_that_may_not_be_read_is_named(course_data, tmp_path, capsys, file):
    out, path = tmp_path / "out", course_data / file
    step = "segment-colour" if file.startswith("p2") else "control-colour"
    mode = path.stat().st_mode
    path.chmod(0)
    with held_to_permissions():
        said = refused(capsys, *words(step, course_data, out))
    path.chmod(mode)
    assert str(path) in said and "ermission" in said
    assert finished(out) == []
    assert cli.main(words(step, course_data, out)) == 0
    assert set(finished(out)) == {CHECK[step], step}


def test_a_result_that_may_not_be_read_is_named(course_data, tmp_path, capsys):
    out = tmp_path / "out"
    command = words("segment-colour", course_data, out)
    assert cli.main(command) == 0
    (path,) = out.glob("steps/segment-colour/*/predictions.npy")
    path.chmod(0)
    with held_to_permissions():
        for again in (command, ["verify", *command[2:]], ["plan", *command[2:]]):
            said = refused(capsys, *again)
            assert "predictions.npy" in said and "Permission denied" in said
    path.chmod(0o644)
    assert set(finished(out)) == {"check-problem2", "segment-colour"}


# --- what nobody nearer knew


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left", "a/b.csv"), "a/b.csv: No space left. Free some disk space, then run"),
        (OSError("odd"), "odd. "),
    ],
    ids=str,
)
def test_whatever_the_file_system_refuses_is_a_sentence(capsys, monkeypatch, error, expected):
    def fail(arguments):
        raise error

    monkeypatch.setattr(commands, "verify", fail)
    assert refused(capsys, "verify").startswith(f"hw1lib: {expected}")
