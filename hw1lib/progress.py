"""Progress of steps: printed for people, and passed as records to the process that started this one.

A parent names a file in the variable HW1_EVENTS, to which each record is appended as one line of JSON. It never reads
what a child prints, so no library's output can be taken for progress.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

from tqdm import tqdm

EVENTS = "HW1_EVENTS"
POLL = 0.1  # seconds
muted = False  # in all but the first of several processes on one step


def epoch(label, row, epochs):
    """Report a finished epoch of training.

    Args:
        label: name of the step, with its seed where that is not the report's own.
        row: dict of epoch (from 1), loss and other numbers; floats are shown.
        epochs: number of epochs of the whole training.
    """
    short = {"effective_rank": "rank"}  # a line has 80 columns
    numbers = {short.get(name, name): value for name, value in row.items() if isinstance(value, float)}
    shown = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
    line = f"{label}  epoch {row['epoch']}/{epochs}  {shown}"
    emit({"label": label, "line": line, "epoch": row["epoch"], "epochs": epochs, "numbers": numbers})


def say(label, text, separator=": "):
    """Report a message of a step."""
    emit({"label": label, "line": f"{label}{separator}{text}"})


def error(text):
    """Report the error that this process ends with."""
    show(f"\nhw1lib: {text}", "stderr")
    _record({"error": text})


def emit(record):
    """Print the line of a record, and pass the record on to the parent, if it follows."""
    if not muted:
        show(record["line"])
        _record(record)


def relabel(record, label):
    """Return a record under the label that its step has in this process."""
    return record | {"label": label, "line": label + record["line"].removeprefix(record["label"])}


def show(line, stream="stdout"):
    """Print a line past any progress bar; one that cannot be written is dropped."""
    try:
        if getattr(sys, stream) is not None:
            tqdm.write(line, file=getattr(sys, stream))
    except BrokenPipeError:  # as after `| head`: nothing more can be printed
        setattr(sys, stream, None)
    except (OSError, ValueError):  # a full disk, a closed stream
        pass


def bar(items, label, total, done=0, unit="it"):
    """Wrap an iterable in a progress bar, which only a terminal shows."""
    hidden = muted or sys.stderr is None or sys.stderr.closed
    return tqdm(items, label, total, initial=done, leave=False, ncols=80, unit=unit, disable=hidden or None)


def _record(record):
    if path := os.environ.get(EVENTS):
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")


class Follower:
    """Pass on the records of a child process as they arrive; a context manager around the child's life.

    Args:
        on_record: function(record), called in a thread of its own.

    Attributes:
        environment: the variables that the child needs.
        error: after the block, the error that the child ended with; empty if it reported none.
    """

    def __init__(self, on_record):
        self.error = ""
        self._on_record = on_record
        self._folder = tempfile.TemporaryDirectory(prefix="hw1lib-")
        self._path = Path(self._folder.name) / "events.jsonl"
        self._path.touch()
        self.environment = {EVENTS: str(self._path)}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self._folder.cleanup()

    def _follow(self):
        with open(self._path, "rb") as file:
            rest, last = b"", False
            while not last:
                last = self._ended.wait(POLL)
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    self._pass_on(json.loads(line))

    def _pass_on(self, record):
        if "error" in record:
            self.error = self.error or record["error"]
        else:
            self._on_record(record)
