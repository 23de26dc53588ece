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
        label: name of the step, with its seed if that is not the report's own.
        row: dict of epoch (from 1), loss and other values, of which the floats are printed.
        epochs: total number of epochs.
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
    """Print the line of a record, and pass the record to the parent process."""
    if not muted:
        show(record["line"])
        _record(record)


def relabel(record, label):
    """Return a record with another label for its step."""
    return record | {"label": label, "line": label + record["line"].removeprefix(record["label"])}


def show(line, stream="stdout"):
    """Print a line above any progress bar; ignore a stream that cannot be written to."""
    with contextlib.suppress(OSError, ValueError):  # a full disk, a closed stream or pipe
        if getattr(sys, stream) is not None:
            tqdm.write(line, file=getattr(sys, stream))


def bar(items, label, total, done=0, unit="it"):
    """Wrap an iterable in a progress bar, which is shown in terminals only."""
    hidden = muted or sys.stderr is None or sys.stderr.closed
    return tqdm(items, label, total, initial=done, leave=False, ncols=80, unit=unit, disable=hidden or None)


def _record(record):
    """Append a record to the file of the parent process, if there is one."""
    if path := os.environ.get(EVENTS):
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")


@contextlib.contextmanager
def follow(on_record):
    """Pass the records of child processes to a function as they arrive, until the block ends.

    Args:
        on_record: function(record), called in a thread of its own.

    Yields:
        (environment variables for the children; list of their error messages, complete after the block).
    """
    ended, errors = threading.Event(), []
    with tempfile.TemporaryDirectory(prefix="hw1lib-") as folder:
        path = Path(folder) / "events.jsonl"
        path.touch()
        thread = threading.Thread(target=_read_records, args=(path, ended, on_record, errors), daemon=True)
        thread.start()
        try:
            yield {EVENTS: str(path)}, errors
        finally:
            ended.set()
            thread.join()


def _read_records(path, ended, on_record, errors):
    """Read records from a growing file until `ended` is set, then once more."""
    with open(path, "rb") as file:
        rest, last = b"", False
        while not last:
            last = ended.wait(POLL_INTERVAL)
            *lines, rest = (rest + file.read()).split(b"\n")
            for record in map(json.loads, lines):
                if "error" in record:
                    errors.append(record["error"])
                else:
                    on_record(record)
