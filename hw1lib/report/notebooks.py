"""Execute the notebooks that are out of date, in order, and build the report."""

import contextlib
import datetime
import logging
import os
import platform
import re
import textwrap
import time
import warnings
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hw1lib import files, kept, paths, progress, provenance, settings
from hw1lib.chapters import style
from hw1lib.chapters.phrases import escape
from hw1lib.data import csv_rows, layout
from hw1lib.errors import UserError, remedy
from hw1lib.report import render
from hw1lib.steps.graph import check_of
from hw1lib.steps.store import key_of

NOTEBOOKS = {  # in order, with the problem that each belongs to; 0: both
    "00_data": 0,
    "01_pretraining": 1,
    "02_finetuning": 1,
    "03_embeddings": 1,
    "04_segmentation": 2,
    "05_segment_anything": 2,
}


def run(book, parameters, run_steps=None):
    """Run the steps and notebooks that are out of date and build the report.

    Args:
        book: workbook.Workbook.
        parameters: the notebooks' parameters, which `book` was made from: profile, data_root, out and settings.
        run_steps: function of `book` that runs the steps first, such as on workers; None: the notebooks run them.
    """
    started = time.time()
    print(f"Profile {book.profile.name}: {book.profile.about}")
    print(f"Data    {book.root}\nBuild   {book.out}\nDevice  {book.device}")
    undone = _print_plan(book)
    if undone and run_steps:
        run_steps(book)

    for name in _notebooks(book):
        _execute(name, book, parameters | {"out": str(book.out)})
        for problem in filter(book.has.get, (1, 2) if NOTEBOOKS[name] == 0 else ()):  # before anything is trained
            _print_indented(book.steps.result(check_of(problem)).metrics["warnings"])

    write(book, started, ran=bool(undone))
    print(f"\nReport  {book.out / 'report.html'}\n        {book.out / 'report.pdf'}")


def _notebooks(book):
    """Return the notebooks for the problems that the data holds."""
    return [name for name, problem in NOTEBOOKS.items() if problem == 0 or book.has[problem]]


def _print_plan(book):
    """Print how many steps will run and, if some are done already, why; return one reason per step to run."""
    reasons = {label: steps.why(name) for label, steps, name in book.planned()}
    undone = [f"{label}: {why}" for label, why in reasons.items() if why]
    print(f"Steps   {len(reasons)}: {len(reasons) - len(undone)} done, {len(undone)} to run")
    if len(undone) < len(reasons):
        _print_indented(undone)
    return undone


def _print_indented(lines):
    for line in lines:
        print(textwrap.fill(line, 80, initial_indent="  ", subsequent_indent="    "))


def _execute(name, book, parameters):
    """Execute one notebook, unless its inputs and everything it kept are unchanged."""
    source, target = (folder / f"{name}.ipynb" for folder in (paths.NOTEBOOKS, book.out / "notebooks"))
    inputs = _inputs(source, book)
    reason = _stale(name, inputs, book)
    if reason is None:
        print(f"\n{name}: nothing to do")
        return
    print(f"\n{name}{reason and f' runs again: {reason}'}")

    started = time.time()
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp = _stamp(name, book)
    stamp.unlink(missing_ok=True)  # without a stamp, a notebook counts as unfinished
    before = kept.entries(book.out, name)
    for entry in before:
        kept.path(book.out, entry).unlink()
    with _readable_errors(name, target, book):
        executed = _papermill(name, source, target, parameters)
    if not _completed(executed):
        raise UserError(f"Notebook {name} ended before its last cell. Run the same command again.")

    entries = kept.entries(book.out, name)
    outputs = kept.hashes(entries)
    for file in kept.hashes(before).keys() - outputs:
        (book.out / file).unlink(missing_ok=True)
    others = [target, *(kept.path(book.out, entry) for entry in entries)]
    outputs |= {str(path.relative_to(book.out)): files.digest(path) for path in others}
    files.write_json(stamp, {"inputs": inputs, "outputs": outputs})
    print(f"{name}: {time.time() - started:.0f} s")


def _stamp(name, book):
    """Return the path of a notebook's stamp: the hashes of its inputs and outputs when it was executed."""
    return book.out / "notebooks" / f".{name}.json"


def _inputs(source, book):
    """Return the hashes of a notebook's inputs, except steps: dict from the input's name in messages to its hash."""
    read = [paths.STYLE, paths.SENTENCES, paths.ORIGINAL, paths.RECIPE]
    read += [book.root / layout.SPLIT, book.root / csv_rows.GROUPS]
    read += sorted(source.parent.glob("*.py"))  # modules that notebooks may import
    try:
        cells = [cell.source for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "code"]
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise UserError(f"{source} is not a valid notebook. Restore it: git checkout -- {source}") from error
    values = {
        "the notebook": cells,
        "the library": provenance.code(paths.ROOT),
        "a setting": settings.result_settings(book.profile) | {"checkpoint_every": None},
        "the data folder": [str(book.root.resolve()), book.is_sample, book.has],
        "the device": str(book.device),
        "a package": provenance.versions(),
    }
    hashes = {path.name: files.digest(path) if path.is_file() else None for path in read}
    return hashes | {name: key_of(value) for name, value in values.items()}


def _stale(name, inputs, book):
    """Return why a notebook has to run, as a phrase; "" if it never finished, None if nothing changed."""
    stamp = _read(_stamp(name, book))
    if not stamp:
        return ""
    for what in {**inputs, **stamp["inputs"]}:
        if inputs.get(what) != stamp["inputs"].get(what):
            return f"{what} changed"
    if changed := kept.changed(book.out, stamp["outputs"]):
        return f"{changed[0]} was changed or deleted since"
    done = {label: steps.key(step) for label, steps, step in book.planned() if steps.status(step) == "done"}
    for entry in kept.entries(book.out, name).values():
        for label, key in entry["steps"].items():
            if done.get(label) != key:
                return f"it shows step {label}, which has to run"
    return None


def _completed(notebook):
    """Return whether every code cell of an executed notebook ran to its end."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    return all(cell.execution_count and cell.metadata.papermill.status == "completed" for cell in code)


def _read(stamp):
    """Return the dict in a stamp file; {} if the file is missing, damaged or of an earlier version."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        fields = files.read_json(stamp)
        return fields if set(fields) == {"inputs", "outputs"} else {}
    return {}


def _kept(name, book):
    """Return the names that a notebook kept when it was last executed."""
    return [Path(file).stem for file in _read(_stamp(name, book))["outputs"] if file.startswith("kept/")]


def _papermill(name, source, target, parameters):
    """Execute a notebook and return the executed copy; only the steps' progress lines are printed."""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # papermill logs the outputs of cells
    os.environ[kept.NOTEBOOK] = name  # inherited by the kernel; kept.notebook reads it
    try:
        with warnings.catch_warnings(), progress.follow(_print_progress) as (environment, _):
            os.environ |= environment
            warnings.simplefilter("ignore")  # from papermill's dependencies
            return papermill.execute_notebook(
                str(source), str(target), parameters, kernel_name="python3", progress_bar=False,
                cwd=str(paths.NOTEBOOKS), extra_arguments=["--IPKernelApp.log_level=50"],  # do not log interrupts
            )  # fmt: skip
    finally:
        os.environ.pop(progress.EVENTS, None)
        del os.environ[kept.NOTEBOOK]


def _print_progress(record):
    progress.show(f"  {record['line']}")


@contextlib.contextmanager
def _readable_errors(name, target, book):
    """Re-raise papermill's errors as a UserError with a remedy."""
    try:
        yield
    except PapermillExecutionError as error:
        if error.ename == UserError.__name__:
            raise UserError(str(error.evalue)) from error
        if error.ename == KeyboardInterrupt.__name__:
            raise KeyboardInterrupt from error
        if number := re.match(r"\[Errno (\d+)\]", str(error.evalue)):  # an OSError raised by a system call
            raise UserError(f"{name}: {error.evalue}. {remedy(OSError(int(number[1]), ''))}") from error
        raise UserError(
            f"Notebook {name} stopped in cell {error.exec_count} with {error.ename}: {error.evalue}. See the executed "
            f"copy {target}. This is probably a bug in the workbook; finished steps are kept."
        ) from error
    except DeadKernelError as error:
        advice = (steps.for_less_memory(step) for _, steps, step in book.planned() if steps.status(step) != "done")
        raise UserError(
            f"The kernel of notebook {name} died: it ran out of memory or was killed. Run the same command again; "
            "finished steps are kept, and an interrupted one resumes from its last checkpoint. If memory ran out: "
            f"{next(advice, 'close other programs.')}"
        ) from error


def write(book, started, ran=True):
    """Write metrics.json, run.json, timings.csv and the report.

    Args:
        book: workbook.Workbook whose steps are all done.
        started: start of this call, in seconds since 1970.
        ran: whether this call ran a step; if not, run.json keeps the seconds_total of the last call that did.
    """
    done = {label: steps.result(name) for label, steps, name in book.planned()}
    configs = {label: steps.config(name) for label, steps, name in book.planned()}
    metrics = {
        "profile": book.profile.name,
        "settings": settings.result_settings(book.profile),
        "data": {split: value for config in configs.values() for split, value in config["data"].items()},
        "versions": {label: config["version"] for label, config in configs.items()},
        "steps": {label: {"key": result.key, **result.metrics} for label, result in done.items()},
    }
    files.write_json(book.out / "metrics.json", metrics)
    seconds = time.time() - started
    if not ran:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # run.json may be damaged
            seconds = files.read_json(book.out / "run.json")["seconds_total"]
    files.write_json(book.out / "run.json", _provenance(book, done, seconds))
    rows = [{"step": s} | {c: r.run[c] for c in ("seconds", "device", "started")} for s, r in done.items()]
    files.write_text(book.out / "timings.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.6f"))
    build(book)


def build(book):
    """Render the report from what the notebooks kept and from run.json.

    Raises:
        UserError: two notebooks kept the same name, or the template includes a name that none of them kept.
    """
    run = files.read_json(book.out / "run.json")
    book.notebook = "the report"
    book.keep("timing-steps", style.timing(run["seconds"]), caption="Run time of each step.")
    keys = [{"step": label, "key": steps.key(name)} for label, steps, name in book.planned()]
    book.keep("steps", pd.DataFrame(keys))
    keepers = dict.fromkeys(kept.entries(book.out, book.notebook), book.notebook)
    for notebook in _notebooks(book):
        for name in _kept(notebook, book):
            if name in keepers:
                raise UserError(f"Notebooks {keepers[name]} and {notebook} both keep {name!r}. Rename one of them.")
            keepers[name] = notebook
    run |= {name: escape(run[name]) for name in ("device_name", "host", "commit")}
    facts = {"profile": book.profile, "is_sample": book.is_sample, "has": book.has, "run": run}
    render.write(book.out, list(keepers), facts)


def _provenance(book, done, seconds):
    """Return the content of run.json: date, run times, device, packages and commit of the report."""
    root = book.root.relative_to(paths.ROOT) if book.root.is_relative_to(paths.ROOT) else book.root
    precisions = {label: result.run["precision"] for label, result in done.items()}
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
