"""Progress travels as records; what a child process prints is never read, and a line that cannot be written is lost."""

import io
import os
import subprocess
import sys
import time

import nbformat
import pytest

from hw1lib import processes, progress
from hw1lib.report import notebooks

ROW = {"epoch": 2, "loss": 0.12345, "effective_rank": 7.0, "steps": 3, "list": [1.0]}
NOISE = """
print("pretrain  epoch 3/9  loss 0.1"); print("hw1lib: boo")
print('{"label": "pretrain", "line": "pretrain  epoch 5/9", "epoch": 5, "epochs": 9}', flush=True)
sys.stderr.write("pretrain epoch 4:  50%|#####     | 1/2\\rhw1lib: the disk is full\\n")
os.write(1, b"\\xff\\xfe pretrain  epoch 6/9\\n")
"""


def follow(script):
    """The records, exit code and error of a Python script."""
    records = []
    script = f"import os, sys\nfrom hw1lib import progress\n{script}"
    code, error = processes.run([sys.executable, "-c", script], records.append, dict(os.environ), tail=3)
    return records, code, error


def test_a_line_has_what_is_a_number_in_three_digits(capsys):
    progress.epoch("pretrain, seed 1", ROW, 9)
    progress.say("embed", "waiting")
    progress.say("everything", "0001  slic", "  ")
    assert capsys.readouterr().out.splitlines() == [
        "pretrain, seed 1  epoch 2/9  loss 0.123  rank 7",
        "embed: waiting",
        "everything  0001  slic",
    ]


@pytest.mark.parametrize("noise", ["", NOISE, "sys.stdout.write('no end of line: hw1lib: boo')\n"])
@pytest.mark.parametrize("end", ["", "progress.error('The disk is full.'); sys.exit(1)", "1 / 0"])
def test_records_arrive_in_order_beside_anything_that_is_printed(noise, end):
    """Also from what the child starts itself, and with odd text; the error is the one reported, or else the output."""
    reports = f"progress.epoch('pretrain', {ROW}, 9)\n{noise}\nprogress.say('pretrain', 'a\\nb — ü \\udcff')\n"
    nested = "import subprocess; subprocess.run([sys.executable, '-c', 'from hw1lib import progress;"
    nested += " progress.say(chr(101) * 3, 1)'])\n"
    records, code, error = follow(reports + nested + end)
    assert [(record["label"], record.get("epoch"), record.get("epochs")) for record in records] == [
        ("pretrain", 2, 9), ("pretrain", None, None), ("eee", None, None),
    ]  # fmt: skip
    assert records[0]["numbers"] == {"loss": 0.12345, "rank": 7.0}
    assert records[1]["line"] == "pretrain: a\nb — ü \udcff"
    expected = {"": None, "1 / 0": "ZeroDivisionError: division by zero"}.get(end, "The disk is full.")
    assert code == bool(end) and (expected is None or error.endswith(expected))


def test_records_arrive_while_the_child_works():
    seen = []
    script = "from hw1lib import progress; progress.say('a', 1); import time; time.sleep(3)"
    processes.run([sys.executable, "-c", script], lambda record: seen.append(time.time()), dict(os.environ))
    assert 2 < time.time() - seen[0] < 30


def test_a_record_gets_the_label_of_the_parents_step():
    record = {"label": "pretrain", "line": "pretrain  epoch 1/6  loss 2", "epoch": 1}
    assert progress.relabel(record, "pretrain, seed 2") == {
        "label": "pretrain, seed 2", "line": "pretrain, seed 2  epoch 1/6  loss 2", "epoch": 1,
    }  # fmt: skip


class Broken(io.StringIO):
    """A stream whose other end is gone, or whose disk is full."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


STREAMS = {
    "none": lambda: None,
    "closed": io.StringIO,
    "broken pipe": lambda: Broken(BrokenPipeError(32, "Broken pipe")),
    "full disk": lambda: Broken(OSError(28, "No space left on device")),
    "lost terminal": lambda: Broken(OSError(5, "Input/output error")),
}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_line_that_cannot_be_written_is_dropped(kind, stream, monkeypatch, tmp_path):
    """And its record arrives all the same; where that cannot be written either, nothing happens."""
    broken = STREAMS[kind]()
    if kind == "closed":
        broken.close()
    monkeypatch.setattr(sys, stream, broken)
    monkeypatch.setenv(progress.EVENTS, str(tmp_path / "events"))
    progress.epoch("pretrain", ROW, 9)
    progress.error("The disk is full.")
    assert list(progress.bar(range(3), "pretrain epoch 1", 3)) == [0, 1, 2]
    assert len((tmp_path / "events").read_text().splitlines()) == 2
    monkeypatch.setenv(progress.EVENTS, str(tmp_path / "none" / "events"))
    progress.say("pretrain", "goes on")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "| head -1", "2>&1 | true", ">/dev/full"])
def test_a_process_whose_output_is_gone_works_to_its_end(redirection, tmp_path):
    script = (
        "import pathlib, sys; from hw1lib import progress; from hw1lib.cli import main\n"
        f"for step in progress.bar(range(20), 'x', 20): progress.epoch('pretrain', {ROW}, 9)\n"
        f"pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    )
    command = f'"{sys.executable}" -c "$SCRIPT" {redirection}'
    subprocess.run(["sh", "-c", command], env=os.environ | {"SCRIPT": script}, check=False, capture_output=True)
    assert (tmp_path / "done").exists()


@pytest.mark.slow
def test_the_terminal_shows_what_steps_of_a_notebook_report_and_nothing_else_that_it_prints(tmp_path, capfd):
    """The notebook itself keeps all of it; kernels that come later report to nobody."""

    reports = f"from hw1lib import progress\nprogress.epoch('pretrain', {ROW}, 9)\nprogress.say('pretrain', 'waits')"
    cells = [f"import sys\n{NOISE.partition('os.write')[0]}", reports, "print('everything  0001  slic  3 masks')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "source.ipynb")
    notebooks._papermill("source", tmp_path / "source.ipynb", tmp_path / "executed.ipynb", {})
    said = capfd.readouterr()
    assert (said.out + said.err).splitlines() == ["  pretrain  epoch 2/9  loss 0.123  rank 7", "  pretrain: waits"]
    printed = [cell.outputs[0].text for cell in nbformat.read(tmp_path / "executed.ipynb", 4).cells if cell.outputs]
    assert printed[1] == "pretrain  epoch 2/9  loss 0.123  rank 7\npretrain: waits\n" and "hw1lib: boo" in printed[0]
    assert progress.EVENTS not in os.environ


@pytest.mark.slow
def test_lines_of_another_seed_carry_its_label_and_loaded_results_print_none(course_data, tmp_path, capsys):
    from hw1lib.workbook import Workbook

    settings = {"seeds": 2, "pretrain.epochs": 1, "model_scale": 0.125, "data.image_size": 16}
    book = Workbook("smoke", course_data, tmp_path / "out", settings)
    seed = [*book.seeds][1]
    for expected in (f"pretrain, seed {seed}  epoch 1/1  loss ", ""):
        book.result("pretrain", seed)
        said = capsys.readouterr().out
        assert said.startswith(expected) and bool(said) == bool(expected)
    assert [label for label, _, name in book.planned() if name == "pretrain"] == ["pretrain", f"pretrain, seed {seed}"]
