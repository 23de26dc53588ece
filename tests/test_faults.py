"""Full disks and missing permissions during whole commands.

Each ends with exit code 1 and one paragraph that says what helps, and damages nothing.
"""

import errno

import pytest

from hw1lib import cli, profiles
from hw1lib.steps import store
from tests.conftest import everything_of, refused
from tests.test_files import fail, full_disk, held_to_permissions


def words(step, data, out, *more):
    """Return the words of a command that runs one of the two fastest steps."""
    return ["run", step, "--profile", "smoke", "--device", "cpu", "--data-root", str(data), "--out", str(out), *more]


def finished(out):
    """Return the names of the finished steps, each of which must verify."""
    markers = sorted(out.glob("steps/*/*/done.json"))
    assert not markers or store.Store(out).verify() == []
    return [marker.parent.parent.name for marker in markers]


@pytest.mark.parametrize("limit", [40, 8000])
def test_a_training_that_met_a_full_disk_resumes_and_ends_alike(course_data, tmp_path, capsys, limit):
    """Wherever it happened: in the check's results, a checkpoint, or the step's own results."""
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


def test_a_build_folder_without_write_permission_keeps_its_results(course_data, tmp_path, capsys):
    """They can be loaded, verified and planned with, like those of another user."""
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    command, check = (words(step, course_data, out) for step in ("segment-colour", "check-problem2"))
    with held_to_permissions():
        text = refused(capsys, *command)
    assert "Permission denied. Fix the permissions of its folder" in text and str(out) in text and "--out" in text
    out.chmod(0o755)
    assert cli.main(check) == 0
    folders = [out, *(path for path in out.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    with held_to_permissions():
        assert "Permission denied" in refused(capsys, *command)
        assert [cli.main(again) for again in (check, ["verify", *check[2:]], ["plan", *check[2:]])] == [0, 0, 0]
    for folder in folders:
        folder.chmod(0o755)
    assert finished(out) == ["check-problem2"]


@pytest.mark.parametrize(
    "file", ["p2_data/validation/0001_mask.png", "p2_data/train", "p1_data/office/val.csv", "p1_data/mini/train"]
)
def test_data_that_cannot_be_read_is_named(course_data, tmp_path, capsys, file):
    out, path = tmp_path / "out", course_data / file
    path.chmod(0)
    with held_to_permissions():
        text = refused(capsys, *words("segment-colour" if file[1] == "2" else "control-colour", course_data, out))
    path.chmod(0o755)
    assert str(path) in text and "ermission" in text and finished(out) == []


def test_a_result_that_cannot_be_read_is_named(course_data, tmp_path, capsys):
    out = tmp_path / "out"
    command = words("segment-colour", course_data, out)
    assert cli.main(command) == 0
    (path,) = out.glob("steps/segment-colour/*/predictions.npy")
    path.chmod(0)
    with held_to_permissions():
        for again in (command, ["verify", *command[2:]], ["plan", *command[2:]]):
            text = refused(capsys, *again)
            assert "predictions.npy" in text and "Permission denied" in text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left", "a/b.csv"), "a/b.csv: No space left. Free some disk space, then run"),
        (OSError("odd"), "odd. "),
    ],
    ids=str,
)
def test_any_other_error_of_the_system_is_one_paragraph(capsys, monkeypatch, error, expected):
    monkeypatch.setattr(profiles, "get", fail(error))
    assert refused(capsys, "verify").startswith(f"hw1lib: {expected}")
