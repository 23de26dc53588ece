"""Progress of steps: lines for people, and records for the parent process.

A parent names a file in the environment variable HW1_EVENTS, and its children append each record to it as a line of
JSON. The parent never parses what a child prints, so the output of other libraries cannot be mistaken for progress.
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
POLL_INTERVAL = 0.1  # seconds
SHORT_NAMES = {"effective_rank": "rank"}  # lines should fit 80 columns
muted = False  # True in ranks above 0


def epoch(label, row, epochs):
    """Report a finished epoch.

    Args:
        label: name of the step, with the seed if it is not the report's own.
        row: dict of epoch (from 1), loss and other values; floats are printed.
        epochs: number of epochs of the training.
    """
    numbers = {SHORT_NAMES.get(name, name): value for name, value in row.items() if isinstance(value, float)}
    values = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
    line = f"{label}  epoch {row['epoch']}/{epochs}  {values}"
    emit({"label": label, "line": line, "epoch": row["epoch"], "epochs": epochs, "numbers": numbers})


def say(label, text, separator=": "):
    """Report a message of a step."""
    emit({"label": label, "line": f"{label}{separator}{text}"})


def error(text):
    """Report the error that ends this process."""
    show(f"\nhw1lib: {text}", "stderr")
    _record({"error": text})


def emit(record):
    """Print the line of a record, and pass the record on to the parent process."""
    if not muted:
        show(record["line"])
        _record(record)


def relabel(record, label):
    """Return a record with another label for its step."""
    return record | {"label": label, "line": label + record["line"].removeprefix(record["label"])}


def show(line, stream="stdout"):
    """Print a line above any progress bar; ignore a stream that cannot be written to."""
    try:
        if getattr(sys, stream) is not None:
            tqdm.write(line, file=getattr(sys, stream))
    except BrokenPipeError:  # for example after `| head`: nothing can be printed any more
        setattr(sys, stream, None)
    except (OSError, ValueError):  # a full disk, a closed stream
        pass


def bar(items, label, total, done=0, unit="it"):
    """Wrap an iterable in a progress bar, which is shown in terminals only."""
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
        environment: variables to set for the child.
        error: after the block, the error that the child reported, or "".
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
                last = self._ended.wait(POLL_INTERVAL)
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    record = json.loads(line)
                    if "error" in record:
                        self.error = self.error or record["error"]
                    else:
                        self._on_record(record)
