"""Runs the notebooks that have something to show anew, headless and in their order, then builds the report."""

import contextlib
import datetime
import logging
import os
import platform
import re
import textwrap
import time
import warnings

import nbformat
import pandas as pd
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hw1lib import files, kept, paths, progress, provenance, settings
from hw1lib.chapters import style
from hw1lib.chapters.phrases import escape
from hw1lib.data import groups, layout
from hw1lib.errors import UserError, remedy
from hw1lib.report import kernel, render
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


def run(book, parameters, where=None):
    """Runs what is not done, through the notebooks, and builds the report.

    Args:
        book: workbook.Workbook.
        parameters: what it was made of, a dict of profile, data_root, out and settings: each notebook's parameters.
        where: the workers that steps run on, as of cluster.run_steps.run; None: here, in the notebooks.
    """
    started = time.time()
    print(f"Profile {book.profile.name}: {book.profile.about}")
    print(f"Data    {book.root}\nBuild   {book.out}\nDevice  {book.device}")
    undone = _print_plan(book)
    if undone and where:
        from hw1lib.cluster import run_steps

        run_steps.run(book, where)
    if undone:
        kernel.prepare()

    for name in _notebooks(book):
        _execute(name, book, parameters | {"out": str(book.out)})
        if NOTEBOOKS[name] == 0:
            _print_weaknesses(book)

    write(book, started, ran=bool(undone))
    print(f"\nReport  {book.out / 'report.html'}\n        {book.out / 'report.pdf'}")


def _notebooks(book):
    """The notebooks of this report: those of the problems that its data holds."""
    return [name for name, problem in NOTEBOOKS.items() if problem == 0 or book.has[problem]]


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


def _execute(name, book, parameters):
    """Execute one notebook, unless nothing that it follows from and nothing that it kept has changed."""
    source, target = (folder / f"{name}.ipynb" for folder in (paths.NOTEBOOKS, book.out / "notebooks"))
    inputs = _inputs(source, book)
    why = _stale(name, inputs, book)
    if why is None:
        print(f"\n{name}: nothing to do")
        return
    print(f"\n{name}{why and f' runs again: {why}'}")

    started = time.time()
    target.parent.mkdir(parents=True, exist_ok=True)
    _stamp(name, book).unlink(missing_ok=True)  # until it has run to its end, its copy shows nothing
    before = kept.entries(book.out, name)
    for thing in before:
        kept.path(book.out, thing).unlink()
    with _naming_its_fault(name, target, book):
        _papermill(name, source, target, parameters)
    if unfinished := _unfinished(target):  # an output notebook alone proves nothing
        raise UserError(f"Notebook {name} ended early: {unfinished}. Run the same command again.")

    things = kept.entries(book.out, name)
    own, old = ({k: v for thing in some.values() for k, v in thing["files"].items()} for some in (things, before))
    if changed := kept.changed(book.out, own):
        raise UserError(f"{book.out / changed[0]} changed while notebook {name} ran. Run the same command again.")
    for file in old.keys() - own:  # which it keeps no longer
        (book.out / file).unlink(missing_ok=True)
    hashes = {thing: files.digest(kept.path(book.out, thing)) for thing in things}
    files.write_json(_stamp(name, book), {"inputs": inputs, "copy": files.digest(target), "kept": hashes})
    print(f"{name}: {time.time() - started:.0f} s")


def _stamp(name, book):
    """The file that says what an executed notebook followed from and what it kept."""
    return book.out / "notebooks" / f".{name}.json"


def _inputs(source, book):
    """Return hashes of all that a notebook follows from beside the steps that it shows, by what it is called."""
    read = [paths.STYLE, paths.ORIGINAL, paths.RECIPE, book.root / layout.SPLIT, book.root / groups.GROUPS]
    read += sorted(source.parent.glob("*.py"))  # what notebooks may import from beside them
    try:
        cells = [cell.source for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "code"]
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise UserError(f"{source} is not a notebook's JSON. Restore it: git checkout -- {source.name}") from error
    values = {
        "the notebook": cells,
        "the library": provenance.code(paths.ROOT),
        "a setting": settings.result_settings(book.profile) | {"checkpoint_every": None},
        "the data folder": [str(book.root.resolve()), book.is_sample, book.has],
        "the device": str(book.device),
        "a package": provenance.versions(),
    }
    return {path.name: files.digest(path) if path.is_file() else None for path in read} | {
        what: key_of(value) for what, value in values.items()
    }


def _stale(name, inputs, book):
    """Return why a notebook has to run, a phrase; "" where it never ran to its end, None where nothing changed."""
    before = _read(_stamp(name, book))
    try:
        was, copy, things = (before[part] for part in ("inputs", "copy", "kept"))
        for what in {**inputs, **was}:
            if inputs.get(what) != was.get(what):
                return f"{what} changed"
        if kept.changed(book.out, {f"notebooks/{name}.ipynb": copy}):
            return "its executed copy is missing or was changed"
        done = {label: steps.key(step) for label, steps, step in book.planned() if steps.status(step) == "done"}
        for thing, digest in things.items():
            about = kept.entry(book.out, thing)
            if not about or kept.changed(book.out, {f"kept/{thing}.json": digest} | about["files"]):
                return f"{about['kind'] if about else 'what it kept as'} {thing} was changed outside of the report"
            for label, key in about["steps"].items():
                if done.get(label) != key:
                    return f"{thing} shows step {label}, which {'is another' if label in done else 'has to run'}"
    except (KeyError, TypeError, AttributeError):
        return ""


def _unfinished(notebook):
    """Return why an executed notebook did not run to its end, as when its kernel was killed; "" where it did."""
    executed = _read(notebook) or {"cells": []}
    code = [cell for cell in executed["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    for number, cell in enumerate(code, 1):
        status = cell["metadata"].get("papermill", {}).get("status")
        if not cell["execution_count"] or status != "completed":
            return f"code cell {number} of {len(code)} was not executed ({status})"
    return "" if code else f"{notebook} holds no executed cell"


def _read(path):
    with contextlib.suppress(OSError, ValueError):
        return files.read_json(path)


def _papermill(name, source, target, parameters):
    kernel.prepare()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it logs what cells show
    os.environ[kept.NOTEBOOK] = name  # its kernel inherits it: what is kept there is kept for the report
    try:
        with warnings.catch_warnings(), progress.Follower(_print_progress) as records:
            os.environ |= records.environment
            warnings.simplefilter("ignore")  # papermill's own, about its dependencies
            papermill.execute_notebook(
                str(source), str(target), parameters, kernel_name="python3", progress_bar=False,
                cwd=str(paths.NOTEBOOKS), kernel_manager_class=kernel.ForkedKernel,
                extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
            )  # fmt: skip
    finally:
        os.environ.pop(progress.EVENTS, None)
        del os.environ[kept.NOTEBOOK]


def _print_progress(record):
    progress.show(f"  {record['line']}")


@contextlib.contextmanager
def _naming_its_fault(name, target, book):
    """Turns what papermill says of a notebook that stopped into one clear error."""
    try:
        yield
    except PapermillExecutionError as error:
        if error.ename == UserError.__name__:
            raise UserError(str(error.evalue)) from error
        if error.ename == KeyboardInterrupt.__name__:
            raise KeyboardInterrupt from error
        if number := re.match(r"\[Errno (\d+)\]", str(error.evalue)):  # as OSErrors of system calls begin
            raise UserError(f"{name}: {error.evalue}. {remedy(OSError(int(number[1]), ''))}") from error
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


def write(book, started, ran=True):
    """Writes metrics.json, run.json, timings.csv and the report.

    Args:
        started: when the call began, in seconds since 1970.
        ran: whether it ran a step; else run.json keeps the seconds_total of the call that did.
    """
    done = {label: steps.result(name) for label, steps, name in book.planned()}
    steps = {name: {"key": result.key, **result.metrics} for name, result in done.items()}
    configs = {label: its.config(name) for label, its, name in book.planned()}
    metrics = {
        "profile": book.profile.name,
        "settings": settings.result_settings(book.profile),
        "data": {split: found for config in configs.values() for split, found in config["data"].items()},
        "versions": {label: config["version"] for label, config in configs.items()},
        "steps": steps,
    }
    files.write_json(book.out / "metrics.json", metrics)
    seconds = time.time() - started
    if not ran:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it may be damaged
            seconds = files.read_json(book.out / "run.json")["seconds_total"]
    files.write_json(book.out / "run.json", _provenance(book, done, seconds))
    rows = [{"step": s} | {c: r.run[c] for c in ("seconds", "device", "started")} for s, r in done.items()]
    files.write_text(book.out / "timings.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.6f"))
    build(book)


def build(book):
    """Write the report in its three forms; of how it ran they say what run.json says.

    Raises:
        UserError: two notebooks keep one name, or the template includes what none of this report's notebooks kept.
    """
    run = files.read_json(book.out / "run.json")
    book.notebook = "the report"  # as which the next two are kept
    book.keep("timing-steps", style.timing(run["seconds"]), caption="Seconds of each step.")
    keys = [{"step": label, "key": steps.key(name)} for label, steps, name in book.planned()]
    book.keep("steps", pd.DataFrame(keys))
    keepers = dict.fromkeys(kept.entries(book.out, book.notebook), book.notebook)
    for notebook in _notebooks(book):
        for name in _read(_stamp(notebook, book))["kept"]:
            if name in keepers:
                raise UserError(f"Notebooks {keepers[name]} and {notebook} both keep {name!r}: give one another name.")
            keepers[name] = notebook
    run |= {name: escape(run[name]) for name in ("device_name", "host", "commit")}
    facts = {"profile": book.profile, "is_sample": book.is_sample, "has": book.has, "run": run}
    render.write(book.out, list(keepers), facts)


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
