"""Runs the notebooks that have something to show anew, headless and in their order, then builds the report."""

import builtins
import contextlib
import datetime
import json
import logging
import os
import platform
import re
import textwrap
import time
import warnings

import pandas as pd
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hw1lib import files, kernel, paths, provenance, settings
from hw1lib.chapters import render, style
from hw1lib.chapters.words import escape
from hw1lib.errors import UserError, remedy
from hw1lib.steps.graph import check_of
from hw1lib.steps.store import key_of

NOTEBOOKS = {  # in their order, with the problem that each belongs to; 0: both
    "00_data": 0,
    "01_pretraining": 1,
    "02_finetuning": 1,
    "03_embeddings": 1,
    "04_segmentation": 2,
    "05_segment_anything": 2,
}
LIVE = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")  # environment variables of kernels that one looks at


def run(book, parameters, where=None):
    """Runs what is not done, through the notebooks, and builds the report.

    Args:
        book: workbook.Workbook.
        parameters: what it was made of, a dict of profile, data_root, out and settings: each notebook's parameters.
        where: the workers that steps run on, as of cluster.run; None: here, in the notebooks.
    """
    started = time.time()
    print(f"Profile {book.profile.name}: {book.profile.about}")
    print(f"Data    {book.root}\nBuild   {book.out}\nDevice  {book.device}")
    undone = _print_plan(book)
    if undone and where:
        from hw1lib import cluster

        cluster.run(book, where)
    if undone:
        kernel.prepare()

    for name, problem in NOTEBOOKS.items():
        if problem == 0 or book.has[problem]:
            _execute(name, book, parameters | {"out": str(book.out)})
        if problem == 0:
            _print_weaknesses(book)

    write(book, started, ran=bool(undone))
    print(f"\nReport  {book.out / 'report.html'}\n        {book.out / 'report.pdf'}")


def _print_plan(book):
    """How much is to run and, where something was done before, why; returns those reasons."""
    reasons = {label: steps.why(name) for label, steps, name in book.planned()}
    undone = [f"{label}: {why}" for label, why in reasons.items() if why]
    print(f"Steps   {len(reasons)}: {len(reasons) - len(undone)} done, {len(undone)} to run")
    for line in undone if len(undone) < len(reasons) else ():
        _print_indented(line)
    return undone


def _print_indented(text):
    print(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    "))


def _print_weaknesses(book):
    """What the check of the data found, before anything is trained on it."""
    for problem in (1, 2):
        for warning in book.steps.result(check_of(problem)).metrics["warnings"] if book.has[problem] else ():
            _print_indented(warning)


def keeps(notebook, has=None):
    """The names that a notebook keeps, read off its cells: book.keep("NAME", …).

    Args:
        notebook: its path.
        has: dict from 1, 2 to whether that problem is there; cells that begin with `if book.data.problem1:` and the
            like keep nothing without it. None: as if both were there.
    """
    names = []
    for cell in _cells(notebook):
        needs = re.match(r"if book\.data\.problem([12]):", cell)
        if has is None or not needs or has[int(needs[1])]:
            names += re.findall(r'book\.keep\(\s*"([^"]+)"', cell)
    return names


def _cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _execute(name, book, parameters):
    """Executes one notebook, unless what it kept is what it would keep now."""
    source, target = (folder / f"{name}.ipynb" for folder in (paths.NOTEBOOKS, book.out / "notebooks"))
    stamp, made_of = target.with_name(f".{name}.json"), _made_of(source, book)
    names = keeps(source, book.has)
    if _read(stamp) == made_of and target.is_file() and all(_current(kept, book) for kept in names):
        print(f"\n{name}: nothing to do")
        return
    print(f"\n{name}")

    started = time.time()
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # until it has run to its end, its copy shows nothing
    with _naming_its_fault(name, target, book):
        _papermill(source, target, parameters, set(book.steps.all))

    missing = [kept for kept in names if not _current(kept, book, since=started)]
    if missing:  # an output notebook alone proves nothing
        raise UserError(f"Notebook {name} ended, but did not keep {', '.join(missing)}. Run the same command again.")
    files.write_json(stamp, made_of)
    print(f"{name}: {time.time() - started:.0f} s")


def _made_of(source, book):
    """What an executed notebook follows from, beside the steps that it shows: its cells, the library, settings."""
    profile = settings.plain(book.profile) | {"checkpoint_every": None}
    return {"source": key_of(_cells(source)), "library": provenance.code(paths.ROOT), "settings": key_of(profile)}


def _read(path):
    with contextlib.suppress(OSError, ValueError):
        return files.read_json(path)


def _current(name, book, since=0.0):
    """Whether a kept thing is there, not older than `since`, and the steps behind it are those of now."""
    endings = {"figure": ("figures", "png", "pdf"), "table": ("tables", "csv"), "text": ("text", "md")}
    path = book.out / "kept" / f"{name}.json"
    try:
        about = files.read_json(path)
        folder, *kinds = endings[about["kind"]]
        there = all((book.out / folder / f"{name}.{kind}").is_file() for kind in kinds)
        keys = {label: steps.key(step) for label, steps, step in book.planned() if label in about["steps"]}
        done = all(steps.status(step) == "done" for label, steps, step in book.planned() if label in keys)
        return there and done and keys == about["steps"] and path.stat().st_mtime >= since - 2  # coarse clocks
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _papermill(source, target, parameters, steps):
    _listen(steps)
    kernel.prepare()
    live = {name: os.environ.pop(name) for name in LIVE if name in os.environ}  # nobody looks at these kernels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's own, about its dependencies
            papermill.execute_notebook(
                str(source), str(target), parameters, kernel_name="python3", log_output=True, progress_bar=False,
                cwd=str(paths.NOTEBOOKS), kernel_manager_class=kernel.ForkedKernel,
                extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
            )  # fmt: skip
    finally:
        os.environ.update(live)


@contextlib.contextmanager
def _naming_its_fault(name, target, book):
    """Turns what papermill says of a notebook that stopped into one clear error."""
    try:
        yield
    except PapermillExecutionError as error:
        if error.ename == UserError.__name__:
            raise UserError(str(error.evalue)) from error
        if issubclass(getattr(builtins, error.ename, object), OSError):
            raise UserError(f"{name}: {error.evalue}. {remedy(None)}") from error
        raise UserError(
            f"Notebook {name} stopped in cell {error.exec_count} with {error.ename}: {error.evalue}. The executed "
            f"copy {target} shows where. This is likely a fault of the workbook; what was finished before is kept."
        ) from error
    except DeadKernelError as error:
        helps = (steps.for_less_memory(step) for _, steps, step in book.planned() if steps.status(step) != "done")
        raise UserError(
            f"The kernel of notebook {name} died, as it does when memory runs out or it is killed. Run the same "
            "command again: finished steps are kept, half done ones go on from their last checkpoint. If it was "
            f"memory: {next(helps, 'close other programs.')}"
        ) from error


def _listen(steps):
    """Lets papermill's log carry what steps print, and nothing else that cells show."""

    def of_step(record):
        lines = record.getMessage().splitlines()
        shown = [line for line in lines if line.partition(" ")[0].rstrip(":") in steps]
        record.msg, record.args = textwrap.indent("\n".join(shown), "  "), ()
        return bool(shown)

    log = logging.getLogger("papermill")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(of_step)
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def write(book, started, ran=True):
    """Writes metrics.json, run.json, timings.csv and the report.

    Args:
        started: when the call began, in seconds since 1970.
        ran: whether it ran a step; else run.json keeps the seconds_total of the call that did.
    """
    done = {label: steps.result(name) for label, steps, name in book.planned()}
    steps = {name: {"key": result.key, **result.metrics} for name, result in done.items()}
    profile = settings.plain(book.profile)
    files.write_json(book.out / "metrics.json", {"profile": book.profile.name, "settings": profile, "steps": steps})
    seconds = time.time() - started
    if not ran:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it may be damaged
            seconds = files.read_json(book.out / "run.json")["seconds_total"]
    files.write_json(book.out / "run.json", _provenance(book, done, seconds))
    rows = [{"step": s} | {c: r.run[c] for c in ("seconds", "device", "started")} for s, r in done.items()]
    files.write_text(book.out / "timings.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.6f"))
    build(book)


def build(book):
    """Writes the report in its three forms; of how it ran they say what run.json says."""
    run = files.read_json(book.out / "run.json")
    book.keep("timing-steps", style.timing(run["seconds"]), caption="Seconds of each step.")
    keys = [{"step": label, "key": steps.key(name)} for label, steps, name in book.planned()]
    book.keep("steps", pd.DataFrame(keys))
    run |= {name: escape(run[name]) for name in ("device_name", "host", "commit")}
    render.write(book.out, {"profile": book.profile, "is_sample": book.is_sample, "has": book.has, "run": run})


def _provenance(book, done, seconds):
    """Where and how this report came about: what run.json holds."""
    root = book.root.relative_to(paths.ROOT) if book.root.is_relative_to(paths.ROOT) else book.root
    precisions = {label: result.run["precision"] for label, result in done.items()}  # the same for all seeds
    return {
        "profile": book.profile.name,
        "data_root": str(root),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds_total": round(seconds, 1),
        "seconds": {name: result.run["seconds"] for name, result in done.items()},
        "resumed": [name for name, result in done.items() if result.run.get("resumed")],
        "precision": {label.partition(",")[0]: precision for label, precision in precisions.items() if precision},
        **provenance.process(book.device),
        "device_name": provenance.device_name(book.device),
        "host": platform.platform(),
        "commit": provenance.commit(),
    }
