"""Progress travels as records: what a child prints is not parsed, and a line that cannot be written is dropped."""

import io
import os
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
sys.stdout.write('no end of line: hw1lib: boo')
"""
NESTED = """
import subprocess
subprocess.run([sys.executable, "-c", "from hw1lib import progress; progress.say('child', 1)"])
"""


def follow(script, on_record):
    """Run a Python script as a child process; return its exit code, its errors and its last lines."""
    script = f"import os, sys\nfrom hw1lib import progress\n{script}"
    with progress.follow(on_record) as (variables, errors):
        code, output = processes.run([sys.executable, "-c", script], os.environ | variables, tail=3)
    return code, errors, output


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "progress.error('The disk is full.'); sys.exit(1)", "1 / 0"])
def test_records_arrive_in_order_whatever_else_is_printed(end):
    """Also those of the child's own children, and unusual text; lines show floats with three digits."""
    script = f"progress.epoch('pretrain', {ROW}, 9)\n{NOISE}\nprogress.say('pretrain', 'a\\nb — ü \\udcff')\n{NESTED}"
    records = []
    code, errors, output = follow(script + end, records.append)
    assert records == [
        {"label": "pretrain", "line": "pretrain  epoch 2/9  loss 0.123  rank 7", "epoch": 2, "epochs": 9}
        | {"numbers": {"loss": 0.12345, "rank": 7.0}},
        {"label": "pretrain", "line": "pretrain: a\nb — ü \udcff"},
        {"label": "child", "line": "child: 1"},
    ]
    assert code == bool(end) and errors == (["The disk is full."] if "error" in end else [])
    assert end != "1 / 0" or output.endswith("ZeroDivisionError: division by zero")


@pytest.mark.slow
def test_records_arrive_while_the_child_works():
    times = []
    follow("progress.say('a', 1); import time; time.sleep(1)", lambda record: times.append(time.time()))
    assert time.time() - times[0] > 0.7


def test_relabel_replaces_the_label_of_a_line():
    record = {"label": "pretrain", "line": "pretrain  epoch 1/6  loss 2", "epoch": 1}
    expected = {"label": "pretrain, seed 2", "line": "pretrain, seed 2  epoch 1/6  loss 2", "epoch": 1}
    assert progress.relabel(record, "pretrain, seed 2") == expected


class Broken(io.StringIO):
    """A stream that raises an error when it is written to."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


ERRORS = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), ValueError("closed file")]


@pytest.mark.parametrize("broken", [None, *map(Broken, ERRORS)], ids=["None", "broken pipe", "full disk", "closed"])
def test_a_line_that_cannot_be_written_is_dropped_and_its_record_arrives(broken, monkeypatch, tmp_path):
    """If the record cannot be written either, nothing happens."""
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(sys, "stderr", broken)
    monkeypatch.setenv(progress.EVENTS, str(tmp_path / "events"))
    progress.epoch("pretrain", ROW, 9)
    progress.error("The disk is full.")
    assert list(progress.bar(range(3), "pretrain epoch 1", 3)) == [0, 1, 2]
    assert len((tmp_path / "events").read_text().splitlines()) == 2
    monkeypatch.setenv(progress.EVENTS, str(tmp_path / "none" / "events"))
    progress.say("pretrain", "goes on")


@pytest.mark.slow
def test_the_terminal_shows_progress_of_a_notebook_and_nothing_else_that_it_prints(tmp_path, capfd):
    """The notebook keeps all of its output; later kernels report to nobody."""
    reports = f"from hw1lib import progress\nprogress.epoch('pretrain', {ROW}, 9)\nprogress.say('pretrain', 'waits')"
    cells = [f"import sys\n{NOISE.partition('os.write')[0]}", reports, "print('everything  0001  slic  3 masks')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "source.ipynb")
    notebooks._papermill("source", tmp_path / "source.ipynb", tmp_path / "executed.ipynb", {})
    captured = capfd.readouterr()
    expected = ["  pretrain  epoch 2/9  loss 0.123  rank 7", "  pretrain: waits"]
    assert (captured.out + captured.err).splitlines() == expected
    printed = [cell.outputs[0].text for cell in nbformat.read(tmp_path / "executed.ipynb", 4).cells if cell.outputs]
    assert printed[1] == "pretrain  epoch 2/9  loss 0.123  rank 7\npretrain: waits\n" and "hw1lib: boo" in printed[0]
    assert progress.EVENTS not in os.environ
